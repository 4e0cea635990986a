//! One guest processor: its registers, what the core has asked for, and the way from one entry to the exit behind it.
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use core::{marker::PhantomData, sync::atomic::Ordering::SeqCst};

use hardware::{
    asked::{Asked, Tsc, UNSCALED, Window},
    control::Paging,
    event::{self, CutShort},
    fpu, payload, reset,
    tags::Tag,
};
use hv::backend::{BackendVcpu, Env, Event, EventKind, Exit, FlushTlb, Groups, GuestDebug};
use mmu::shadow::Root;
use platform::{Atomic, Hardware, MaySleep, OutOfMemory, Shared, hardware::GuestFpu};
use x86::{CpuState, Exception, Features, Shadow, debug, flags};

use crate::{
    backend::Common,
    block::ControlBlock,
    control,
    exit::{Decoded, Report},
    inject,
    instructions::Instructions,
    intercept::Wanted,
    sync::{self, put},
    vmcb::{NESTED_PAGING, clean},
};

/// PAT of the processor after reset; with nested paging it applies to the guest's own tables.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// A loop of so many PAUSEs is let alone, if they are not further apart than so many cycles.
const PAUSES: u16 = 3000;
const PAUSE_CYCLES: u16 = 128;

/// What the control block does not always show: kept there while the guest runs, and fetched when somebody asks.
const LAZY: Groups = Groups::STATUS.and(Groups::SEGMENTS).and(Groups::MSRS).and(Groups::FPU);

/// A guest processor.
pub struct AmdVcpu<P: Hardware, I> {
    common: Shared<Common<P>>,
    guest: Guest<P, I>,
}

/// Everything about it that is not shared.
pub(crate) struct Guest<P: Hardware, I> {
    pub(crate) state: Box<CpuState>,
    pub(crate) block: ControlBlock<P::Frames>,
    pub(crate) fpu: P::GuestFpu,
    /// Groups that the processor has, and `state` not yet.
    stale: Groups,
    /// Groups of `state` that the processor does not have yet.
    changed: Groups,
    /// Which vCPU this is, among all of the host.
    pub(crate) number: u64,
    pub(crate) asid: Tag,
    /// The processor that it ran on last.
    pub(crate) last_cpu: usize,
    /// Its translations are to be forgotten.
    pub(crate) flush: bool,
    /// The root with which all but the general registers is in the control block, as it is to be; none if something of it may have
    /// changed.
    settled: Option<Root>,
    pub(crate) asked: Asked,
    instructions: PhantomData<fn() -> I>,
}

impl<P: Hardware, I: Instructions> AmdVcpu<P, I> {
    pub(crate) fn new(common: Shared<Common<P>>, cx: &MaySleep) -> Result<Self, OutOfMemory> {
        let mut block = ControlBlock::new(cx)?;
        let vmcb = block.get_mut();
        vmcb.control.iopm_base = common.permissions.io();
        vmcb.control.msrpm_base = common.permissions.msr();
        vmcb.control.nested_control = if common.nested { NESTED_PAGING } else { 0 };
        vmcb.save.pat = PAT_RESET;
        if common.processor.pause_threshold {
            vmcb.control.pause_filter_threshold = PAUSE_CYCLES;
        }
        if common.processor.pause_filter {
            vmcb.control.pause_filter_count = PAUSES;
        }
        let guest = Guest {
            state: reset::registers()?,
            block,
            fpu: P::GuestFpu::new(cx)?,
            stale: Groups(0),
            changed: Groups::ALL,
            number: common.number(),
            asid: Tag::default(),
            last_cpu: usize::MAX,
            flush: false,
            settled: None,
            asked: Asked::default(),
            instructions: PhantomData,
        };
        Ok(Self { common, guest })
    }
}

impl<P: Hardware, I: Instructions> Guest<P, I> {
    /// Brings the groups in `need` up to date.
    #[inline]
    fn fetch(&mut self, need: Groups) {
        let wanted = Groups(self.stale.0 & need.0);
        if wanted.0 != 0 {
            self.fetch_stale(wanted);
        }
    }

    #[inline(never)]
    fn fetch_stale(&mut self, wanted: Groups) {
        self.stale = self.stale.without(wanted);
        let save = &self.block.get().save;
        if wanted.any(Groups::STATUS) {
            self.state.flags.set_status(save.rflags);
        }
        if wanted.any(Groups::SEGMENTS) {
            sync::read_segments(save, &mut self.state);
        }
        if wanted.any(Groups::MSRS) {
            sync::read_msrs(save, &mut self.state);
        }
        if wanted.any(Groups::FPU) {
            fpu::save(&mut self.fpu, &mut self.state.fpu);
        }
    }

    /// The ratio of time-stamp counters in the processor's form.
    pub(crate) fn tsc_ratio(&self) -> u64 {
        self.asked.tsc.ratio >> 16
    }

    /// Writes what has changed into the control block. False: the guest's FPU state cannot be loaded.
    #[inline]
    fn write(&mut self, common: &Common<P>, root: Root) -> bool {
        if self.settled != Some(root) || self.changed.any(Groups::ALL.without(Groups::GENERAL)) {
            return self.write_all(common, root);
        }
        self.changed = Groups(0);
        let rflags = self.rflags();
        sync::write_general(self.block.get_mut(), &self.state, rflags);
        true
    }

    /// The guest's RFLAGS. Most times nobody has asked for the status flags.
    #[inline]
    fn rflags(&self) -> u64 {
        match self.stale.any(Groups::STATUS) {
            true => self.state.flags.others() | self.block.get().save.rflags & flags::STATUS,
            false => self.state.flags.get(),
        }
    }

    /// The same, whatever it is.
    #[inline(never)]
    fn write_all(&mut self, common: &Common<P>, root: Root) -> bool {
        let changed = core::mem::replace(&mut self.changed, Groups(0));
        if changed.any(Groups::FPU) && !fpu::restore(&mut self.fpu, &self.state.fpu, common.processor.offer.xcr0) {
            self.changed = changed;
            return false;
        }
        payload::apply(self.asked.injected.as_ref(), &mut self.state);
        let rflags = payload::rflags_to_run(self.rflags(), &self.asked.debug, self.asked.injected.as_ref());
        let state = &*self.state;
        let vmcb = self.block.get_mut();
        let mut dirty = 0;
        sync::write_general(vmcb, state, rflags);
        if changed.any(Groups::SEGMENTS) {
            sync::write_segments(&mut vmcb.save, state);
            dirty |= clean::SEGMENTS | clean::TABLES;
        }
        if changed.any(Groups::MSRS) {
            sync::write_msrs(&mut vmcb.save, state);
        }
        let registers = control::registers(state, Paging::of(common.nested, root));
        put(&mut vmcb.save.cr0, registers.cr0, clean::CRX, &mut dirty);
        put(&mut vmcb.save.cr3, registers.cr3, clean::CRX, &mut dirty);
        put(&mut vmcb.save.cr4, registers.cr4, clean::CRX, &mut dirty);
        put(&mut vmcb.save.efer, registers.efer, clean::CRX, &mut dirty);
        put(&mut vmcb.save.cr2, state.cr2, clean::CR2, &mut dirty);
        if common.nested {
            put(&mut vmcb.control.nested_cr3, root.hpa, clean::NESTED, &mut dirty);
        }
        // What a #DB adds is seen alone.
        put(&mut vmcb.save.dr6, debug::DR6_FIXED, clean::DRX, &mut dirty);
        put(&mut vmcb.save.dr7, self.asked.dr7(state), clean::DRX, &mut dirty);
        sync::write_interrupts(vmcb, state.cr8, self.asked.window.interrupt, &mut dirty);
        let scaled = self.asked.tsc.ratio != UNSCALED && !common.processor.tsc_ratio;
        let wanted = Wanted {
            shadow: !common.nested,
            cr0_differs: registers.cr0 != state.cr0,
            cr4_differs: registers.cr4 != state.cr4,
            interrupt_window: self.asked.window.interrupt,
            iret: self.asked.nmi_blocked,
            breakpoints: self.asked.debug.software_breakpoints,
            tsc: scaled,
            pause: common.processor.pause_filter,
        };
        put(&mut vmcb.control.intercepts, wanted.vectors(), clean::INTERCEPTS, &mut dirty);
        put(&mut vmcb.control.tsc_offset, self.asked.tsc.offset, clean::INTERCEPTS, &mut dirty);
        vmcb.control.event_inject = self.asked.injected.as_ref().map_or(0, inject::encode);
        vmcb.control.clean &= !dirty;
        // An event is delivered once, and flags that the core adds for the debugger or for an event are taken away again.
        let lasts = self.asked.injected.is_none() && !self.asked.debug.single_step;
        self.settled = lasts.then_some(root);
        true
    }

    /// An NMI waits for the end of the shadow of MOV SS, which nothing but the next instruction ends.
    fn nmi_in_shadow(&self) -> bool {
        self.asked.window.nmi
            && !self.asked.nmi_blocked
            && self.asked.injected.is_none()
            && self.state.shadow != Shadow::None
    }

    fn enter(&mut self, common: &Common<P>, env: &Env<'_, P>) -> Exit {
        if self.nmi_in_shadow() {
            return Exit::Emulate;
        }
        if env.root == Root::NONE {
            return Exit::FailEntry { reason: 0 };
        }
        if !self.write(common, env.root) {
            return Exit::FailEntry { reason: 0 };
        }
        let cx = Atomic::at_entry();
        let Some(cpu) = P::prepare(&cx) else { return Exit::Interrupted };
        // A kick may have come before interrupts were off.
        if env.requests.load(SeqCst) != 0 {
            P::irqs_on(&cx);
            return Exit::Interrupted;
        }
        let crossed = self.cross(common, cpu, &cx);
        P::irqs_on(&cx);
        if !crossed {
            return Exit::FailEntry { reason: 0 };
        }
        self.read(common)
    }

    /// Reads what the guest has left, and why it stopped.
    #[inline]
    fn read(&mut self, common: &Common<P>) -> Exit {
        let vmcb = self.block.get();
        let control = &vmcb.control;
        let rflags = payload::rflags_of_guest(vmcb.save.rflags, &self.state, &self.asked.debug);
        sync::read_general(vmcb, &mut self.state, rflags);
        sync::read_control(&vmcb.save, &mut self.state, common.nested);
        let report = Report {
            code: control.exit_code,
            info_1: control.exit_info_1,
            info_2: control.exit_info_2,
            rip: vmcb.save.rip,
            next_rip: if common.processor.next_rip { control.next_rip } else { 0 },
        };
        let cut_short = inject::decode(control.exit_int_info, self.state.cr2, self.state.dr6);
        let dr6 = vmcb.save.dr6;
        self.stale = LAZY;
        let delivered = self.asked.injected.take();
        self.asked.unfinished = None;
        match cut_short {
            CutShort::Event(event) => self.asked.unfinished = Some(event),
            CutShort::Instruction => event::hold_back(&mut self.state),
            CutShort::Nothing if delivered.is_some_and(|event| event.kind == EventKind::Nmi) => {
                self.asked.nmi_blocked = true
            }
            CutShort::Nothing => {}
        }
        match report.decode(&self.state.gpr, common.processor.decode_assists) {
            // INT n through a task gate: the emulator executes all of it.
            Decoded::Exit(Exit::TaskSwitch) if cut_short == CutShort::Instruction => Exit::Emulate,
            Decoded::Exit(exit) => exit,
            Decoded::Window => {
                // The virtual interrupt is no longer as it was written.
                self.settled = None;
                Exit::InterruptWindow
            }
            Decoded::MachineCheck => Exit::Interrupted,
            Decoded::Debug => {
                // Nor is DR6.
                self.settled = None;
                if self.asked.is_debugged() {
                    Exit::Debug { dr6 }
                } else {
                    Exit::Exception { exception: Exception::debug(dr6 ^ debug::DR6_FIXED) }
                }
            }
        }
    }
}

impl<P: Hardware, I: Instructions> BackendVcpu<P> for AmdVcpu<P, I> {
    /// A kernel does not lend its FPU.
    type Vectors = core::convert::Infallible;

    fn registers(&mut self, need: Groups) -> &CpuState {
        self.guest.fetch(need);
        &self.guest.state
    }

    fn registers_mut(&mut self, change: Groups) -> &mut CpuState {
        self.guest.fetch(change);
        self.guest.changed = self.guest.changed.and(change);
        &mut self.guest.state
    }

    fn registers_and_vectors(&mut self, change: Groups) -> (&mut CpuState, Option<&mut Self::Vectors>) {
        (self.registers_mut(change), None)
    }

    /// What a guest may use is the same for all: the intercepts keep it from what it is not offered.
    fn set_features(&mut self, _features: Features, _xcr0: u64, _physical_bits: u32) {}

    fn rereads_pdptes(&self) -> bool {
        self.common.nested
    }

    fn set_tsc(&mut self, offset: u64, ratio: u64) {
        self.guest.asked.tsc = Tsc { offset, ratio };
        self.guest.settled = None;
    }

    fn set_debug(&mut self, debug: GuestDebug) {
        self.guest.asked.debug = debug;
        self.guest.settled = None;
    }

    fn inject(&mut self, event: Event) {
        self.guest.asked.injected = Some(event);
        self.guest.settled = None;
    }

    fn take_unfinished_event(&mut self) -> Option<Event> {
        self.guest.asked.take_unfinished()
    }

    fn request_window(&mut self, interrupt: bool, nmi: bool) {
        let window = Window { interrupt, nmi };
        if self.guest.asked.window != window {
            self.guest.asked.window = window;
            self.guest.settled = None;
        }
    }

    fn nmi_blocked(&self) -> bool {
        self.guest.asked.nmi_blocked
    }

    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.guest.asked.nmi_blocked = blocked;
        self.guest.settled = None;
    }

    fn flush(&mut self, _what: FlushTlb) {
        self.guest.flush = true;
    }

    fn load(&mut self, _cx: &Atomic) {
        self.guest.fpu.load();
    }

    fn put(&mut self, _cx: &Atomic) {
        self.guest.fpu.put();
    }

    fn enter(&mut self, env: &Env<'_, P>) -> Exit {
        self.guest.enter(&self.common, env)
    }
}
