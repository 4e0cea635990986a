//! One guest processor: its registers, what the core has asked for, and the way from one entry to the exit behind it.
mod fields;
mod held;
mod nmi;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use core::{marker::PhantomData, sync::atomic::Ordering::SeqCst};

use hardware::{
    asked::{Asked, Tsc, UNSCALED, Window},
    control::{CR0_FREE, Paging, Registers},
    event::{self, CutShort},
    fpu, payload, reset,
    tags::Tag,
};
use hv::backend::{BackendVcpu, Env, Event, EventKind, Exit, FlushTlb, Groups, GuestDebug};
use mmu::shadow::Root;
use platform::{
    Atomic, Hardware, Level, MaySleep, OutOfMemory, Shared,
    fallible::try_box,
    hardware::{Frames, GuestFpu},
};
use x86::{CpuState, Cr0, Exception, Features, Shadow, Vector, debug, flags};

use crate::{
    backend::Common,
    control,
    controls::{entry, primary},
    detect::Processor,
    exit::{Decoded, Report, reason},
    failure,
    fields::{
        ENTRY_ERROR_CODE, ENTRY_LENGTH, EXIT_ERROR_CODE, EXIT_EVENT, EXIT_LENGTH, EXIT_REASON, GUEST_PHYSICAL,
        QUALIFICATION, VECTORING_ERROR_CODE, VECTORING_EVENT,
    },
    guest_state::{self, Form},
    inject::{self, Injection},
    instructions::{HostThread, Instructions},
    region::Region,
    sync,
    vmcs::Current,
};
use fields::Fields;
use held::{blocked, held_back};

/// Where the task priority is in the virtual-APIC page.
const TPR: usize = 0x80;
/// EPT pointer: the tables are cached as write-back memory and have four levels; entries have accessed and dirty bits.
const EPT_FORM: u64 = 6 | 3 << 3;
const EPT_ACCESSED: u64 = 1 << 6;

/// What the control structure has, and `state` only if somebody asks.
const LAZY: Groups = Groups::SEGMENTS.and(Groups::CONTROL).and(Groups::FPU);

/// A guest processor.
pub struct IntelVcpu<P: Hardware, I: Instructions> {
    common: Shared<Common<P>>,
    guest: Guest<P, I>,
}

/// Everything about it that is not shared.
pub(crate) struct Guest<P: Hardware, I> {
    pub(crate) state: Box<CpuState>,
    pub(crate) region: Region<P::Frames>,
    pub(crate) fields: Box<Fields>,
    /// Where the guest reads CR8.
    virtual_apic: Option<P::Frames>,
    pub(crate) fpu: P::GuestFpu,
    /// Groups that the processor has, and `state` not yet.
    stale: Groups,
    /// Groups of `state` that the processor does not have yet.
    changed: Groups,
    /// How the processor would enter the guest with the segments and control registers of `state`.
    form: Form,
    /// Which vCPU this is, among all of the host.
    pub(crate) number: u64,
    pub(crate) tag: Tag,
    /// The processor that it ran on last.
    pub(crate) last_cpu: usize,
    /// The host's stack pointer in the control structure.
    pub(crate) host_stack: u64,
    pub(crate) thread: HostThread,
    pub(crate) flush: Flush,
    pub(crate) asked: Asked,
    /// Data breakpoints that wait for the end of the instruction behind MOV SS.
    traps: u64,
    /// Since when an NMI waits for the end of another one that the processor will not tell of.
    nmi_waits: Option<u64>,
    /// The log has been told why an entry failed.
    told: bool,
    instructions: PhantomData<fn() -> I>,
}

/// Translations that are to be forgotten before the next entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flush {
    /// Those of linear addresses.
    pub(crate) linear: bool,
    /// Those of guest-physical addresses, and all that are combined with them.
    pub(crate) physical: bool,
}

/// What the processor says about one stay in the guest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Left {
    report: Report,
    vectoring: u32,
    vectoring_code: u32,
}

impl Left {
    /// The guest did not run: the processor does not like its state.
    pub(crate) const fn entry_failed(&self) -> bool {
        self.report.reason & reason::ENTRY_FAILED != 0
    }

    /// An NMI of the host's.
    pub(crate) fn is_nmi(&self) -> bool {
        self.report.reason == reason::EVENT && inject::met(self.report.event).nmi
    }

    /// A machine check, while the guest ran or was entered.
    pub(crate) fn is_machine_check(&self) -> bool {
        self.report.reason & 0xffff == reason::MACHINE_CHECK
            || self.report.reason == reason::EVENT && inject::met(self.report.event).vector == Vector::MC
    }
}

/// How a crossing ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Crossed {
    /// The guest ran, or the processor did not like its state.
    Left(Left),
    /// The processor refused the control structure, with this error.
    Refused(u32),
    /// This processor is switched off.
    Off,
}

impl<P: Hardware, I: Instructions> IntelVcpu<P, I> {
    pub(crate) fn new(common: Shared<Common<P>>, cx: &MaySleep) -> Result<Self, OutOfMemory> {
        let processor = &common.processor;
        let virtual_apic = if processor.tpr_shadow { Some(P::Frames::new(1, processor.below_4g, cx)?) } else { None };
        let guest = Guest {
            state: reset::registers()?,
            region: Region::new(processor.revision, processor.below_4g, cx)?,
            fields: try_box(Fields::new())?,
            virtual_apic,
            fpu: P::GuestFpu::new(cx)?,
            stale: Groups(0),
            changed: Groups::ALL,
            form: if common.nested { Form::Itself } else { Form::None },
            number: common.number(),
            tag: Tag::default(),
            last_cpu: usize::MAX,
            host_stack: 0,
            thread: HostThread::default(),
            flush: Flush::default(),
            asked: Asked::default(),
            traps: 0,
            nmi_waits: None,
            told: false,
            instructions: PhantomData,
        };
        Ok(Self { common, guest })
    }
}

impl<P: Hardware, I: Instructions> Drop for IntelVcpu<P, I> {
    fn drop(&mut self) {
        // The page goes: no processor may keep anything of it.
        self.common.locals.recall::<P, I>(self.guest.region.node(), true);
    }
}

impl<P: Hardware, I: Instructions> Guest<P, I> {
    /// Brings the groups in `need` up to date.
    fn fetch(&mut self, common: &Common<P>, need: Groups) {
        let wanted = Groups(self.stale.0 & need.0);
        if wanted.0 == 0 {
            return;
        }
        self.stale = self.stale.without(wanted);
        if wanted.any(Groups::FPU) {
            fpu::save(&mut self.fpu, &mut self.state.fpu);
        }
        if !wanted.any(Groups::SEGMENTS.and(Groups::CONTROL)) {
            return;
        }
        // The thread may have been anywhere since the exit.
        let _pin = P::pin();
        let cx = Atomic::at_entry();
        common.locals.recall::<P, I>(self.region.node(), false);
        P::irqs_off(&cx);
        common.locals.with::<P, _>(&cx, |resident, cpu| {
            // Active nowhere else any more.
            let Some(vmcs) = resident.current::<I>(self.region.node(), cpu) else { return };
            if wanted.any(Groups::SEGMENTS) {
                if self.form == Form::Virtual8086 {
                    sync::read_segments_8086(&vmcs, &mut self.state);
                } else {
                    sync::read_segments(&vmcs, &mut self.state);
                }
            }
            if wanted.any(Groups::CONTROL) {
                self.state.cr0 = self.state.cr0 & !CR0_FREE | self.fields.cr0.get(&vmcs) & CR0_FREE;
                if common.nested {
                    self.state.cr3 = self.fields.cr3.get(&vmcs);
                }
            }
        });
        P::irqs_on(&cx);
    }

    /// What the processor is told of nested tables.
    pub(crate) fn ept_pointer(&self, common: &Common<P>, root: Root) -> u64 {
        root.hpa | EPT_FORM | if common.processor.accessed_bits { EPT_ACCESSED } else { 0 }
    }

    /// Whether the processor can be entered; if not, the core goes on with the guest by itself.
    fn can_enter(&mut self, common: &Common<P>) -> bool {
        if common.nested {
            return true;
        }
        if self.changed.any(Groups::SEGMENTS.and(Groups::CONTROL)) {
            self.fetch(common, Groups::ALL_BUT_FPU);
            let form = guest_state::form(&self.state);
            if form != self.form {
                // What is in the control structure is of another form.
                self.changed = self.changed.and(Groups::SEGMENTS);
                self.form = form;
            }
        }
        self.form != Form::None
    }

    /// Writes what has changed into the control structure, which is the current one.
    pub(crate) fn write(&mut self, common: &Common<P>, root: Root, vmcs: &mut Current<I>) -> Registers {
        let processor = &common.processor;
        let changed = core::mem::replace(&mut self.changed, Groups(0));
        self.fields.start(common, vmcs, self.virtual_apic.as_ref().map(Frames::hpa));
        held::join(&mut self.asked.injected, self.traps);
        payload::apply(self.asked.injected.as_ref(), &mut self.state);
        let mut rflags = payload::rflags_to_run(&self.state, &self.asked.debug, self.asked.injected.as_ref());
        if self.form == Form::Virtual8086 {
            rflags = rflags & !flags::IOPL | flags::VM;
        }
        let dr7 = self.asked.dr7(&self.state);
        let state = &*self.state;
        if changed.any(Groups::SEGMENTS) {
            if self.form == Form::Virtual8086 {
                sync::write_segments_8086(vmcs, state);
            } else {
                sync::write_segments(vmcs, state, common.nested);
            }
        }
        if changed.any(Groups::MSRS) {
            sync::write_msrs(vmcs, state);
        }
        if changed.any(Groups::CONTROL) && common.nested && state.pae() {
            sync::write_pdptes(vmcs, state);
        }
        let registers = control::registers(state, Paging::of(common.nested, root), processor);
        let ept_pointer = self.ept_pointer(common, root);
        let fields = &mut *self.fields;
        fields.rip.put(vmcs, state.rip);
        fields.rsp.put(vmcs, state.gpr[4]);
        fields.rflags.put(vmcs, rflags);
        if !self.stale.any(Groups::CONTROL) {
            fields.cr0.put(vmcs, registers.cr0);
            fields.cr3.put(vmcs, registers.cr3);
        } else if !common.nested {
            fields.cr3.put(vmcs, registers.cr3);
        }
        fields.cr0_shadow.put(vmcs, state.cr0);
        fields.cr4.put(vmcs, registers.cr4);
        fields.cr4_shadow.put(vmcs, state.cr4);
        if processor.switches_efer {
            fields.efer.put(vmcs, registers.efer);
        }
        fields.dr7.put(vmcs, dr7);
        fields.tsc_offset.put(vmcs, self.asked.tsc.offset);
        if processor.tsc_scaling {
            fields.tsc_multiplier.put(vmcs, self.asked.tsc.ratio);
        }
        if common.nested {
            fields.ept_pointer.put(vmcs, ept_pointer);
        }
        self.write_controls(common, vmcs, &registers);
        self.write_event(processor, vmcs, rflags);
        registers
    }

    /// Control fields that depend on what the guest does.
    fn write_controls(&mut self, common: &Common<P>, vmcs: &mut Current<I>, registers: &Registers) {
        let on = |wanted: bool, bits: u32| if wanted { bits } else { 0 };
        let processor = &common.processor;
        let scaled = self.asked.tsc.ratio != UNSCALED && !processor.tsc_scaling;
        // Nested paging with PAE: the four roots are read when CR3 is loaded (row B05).
        let pae = common.nested && self.state.pae();
        let controls = processor.primary
            | on(!common.nested || pae, primary::CR3_LOAD)
            | on(!common.nested, primary::CR3_STORE)
            | self.windows(processor)
            | on(scaled, primary::RDTSC);
        self.fields.primary.put(vmcs, controls);
        self.fields.entry.put(vmcs, processor.entry | on(registers.long_mode(), entry::LONG_MODE));
        let bit = |vector: Vector| 1u32 << vector.0;
        // #DB and #AC: a guest can raise them without end while one is delivered, and must not hold the processor by that.
        // #UD: the other vendor's hypercall instruction. #MC is the host's.
        let exceptions = bit(Vector::DB)
            | bit(Vector::UD)
            | bit(Vector::AC)
            | bit(Vector::MC)
            | on(!common.nested, bit(Vector::PF))
            | on(self.asked.debug.software_breakpoints, bit(Vector::BP));
        let exceptions = if self.form == Form::Virtual8086 { u32::MAX } else { exceptions };
        self.fields.exceptions.put(vmcs, exceptions);
        if let Some(page) = &self.virtual_apic {
            // SAFETY: a page of this vCPU's own, which the processor only reads while the guest runs.
            unsafe { page.as_ptr().add(TPR).write((self.state.cr8 << 4) as u8) };
        }
    }

    /// The event to be delivered, and what is held back.
    fn write_event(&mut self, processor: &Processor, vmcs: &mut Current<I>, rflags: u64) {
        let protected = self.state.cr0 & Cr0::PE.bits() != 0;
        let injection =
            self.asked.injected.as_ref().map_or(Injection::default(), |event| inject::encode(event, protected));
        if injection.has_code() {
            vmcs.write(ENTRY_ERROR_CODE, injection.code);
        }
        if injection.has_len() {
            // The return address is behind the instruction: without a length there is none to go behind.
            let len = if processor.zero_length { injection.len } else { injection.len.max(1) };
            vmcs.write(ENTRY_LENGTH, len);
        }
        self.fields.event.put(vmcs, injection.info);
        let injected = self.asked.injected.map(|event| event.kind);
        let (mut held, pending) = held_back(self.state.shadow, rflags, self.traps, injected.is_some());
        if processor.virtual_nmis && self.asked.nmi_blocked && injected != Some(EventKind::Nmi) {
            held |= blocked::NMI;
        }
        self.fields.interruptibility.put(vmcs, held);
        self.fields.pending_debug.put(vmcs, pending);
        self.fields.activity.put(vmcs, 0);
    }

    /// Reads what every exit needs, and what belongs to its reason.
    pub(crate) fn read(&mut self, processor: &Processor, vmcs: &Current<I>) -> Left {
        let reason = vmcs.read(EXIT_REASON);
        let mut report = Report { reason, ..Report::default() };
        if Report::has_qualification(reason) {
            report.qualification = vmcs.read(QUALIFICATION);
        }
        if reason & reason::ENTRY_FAILED != 0 {
            return Left { report, ..Left::default() };
        }
        if Report::has_len(reason) {
            report.len = vmcs.read(EXIT_LENGTH) as u8;
        }
        if reason == reason::EVENT {
            report.event = vmcs.read(EXIT_EVENT);
            report.code = vmcs.read(EXIT_ERROR_CODE);
        }
        if reason == reason::EPT_VIOLATION {
            report.gpa = vmcs.read(GUEST_PHYSICAL);
        }
        let vectoring = vmcs.read(VECTORING_EVENT);
        let vectoring_code = if vectoring != 0 { vmcs.read(VECTORING_ERROR_CODE) } else { 0 };
        let fields = &mut *self.fields;
        // The processor has taken the event.
        fields.event.changed();
        fields.pending_debug.changed();
        if reason == reason::TRIPLE_FAULT {
            fields.activity.changed();
        }
        let mut rflags = fields.rflags.get(vmcs);
        let held = fields.interruptibility.get(vmcs);
        self.traps = if held & blocked::MOV_SS != 0 { fields.pending_debug.get(vmcs) & held::TRAPS } else { 0 };
        let state = &mut *self.state;
        if self.form == Form::Virtual8086 {
            rflags = rflags & !(flags::VM | flags::IOPL) | state.flags.get() & flags::IOPL;
        }
        state.rip = fields.rip.get(vmcs);
        state.gpr[4] = fields.rsp.get(vmcs);
        state.flags.set(payload::rflags_of_guest(rflags, state, &self.asked.debug));
        state.shadow = if held & blocked::MOV_SS != 0 {
            Shadow::MovSs
        } else if held & blocked::STI != 0 {
            Shadow::Sti
        } else {
            Shadow::None
        };
        if self.form == Form::Virtual8086 {
            state.refresh();
        } else {
            sync::read_levels(vmcs, state);
        }
        self.note_nmi(processor, held);
        self.stale = LAZY;
        Left { report, vectoring, vectoring_code }
    }

    fn enter(&mut self, common: &Common<P>, env: &Env<'_, P>) -> Exit {
        if env.root == Root::NONE {
            return Exit::FailEntry { reason: 0 };
        }
        if self.form == Form::Virtual8086 && self.asked.injected.is_some() {
            // It would go through the guest's table as protected mode's.
            return Exit::Delivery;
        }
        if let Some(exit) = self.before_nmi(&common.processor) {
            return exit;
        }
        if self.changed.any(Groups::FPU) {
            if !fpu::restore(&mut self.fpu, &self.state.fpu, common.processor.offer.xcr0) {
                return Exit::FailEntry { reason: 0 };
            }
            self.changed = self.changed.without(Groups::FPU);
        }
        let cx = Atomic::at_entry();
        common.locals.recall::<P, I>(self.region.node(), false);
        P::irqs_off(&cx);
        // A kick may have come before interrupts were off.
        if env.requests.load(SeqCst) != 0 || P::must_leave(&cx) {
            P::irqs_on(&cx);
            return Exit::Interrupted;
        }
        let crossed = self.cross(common, env.root, &cx);
        P::irqs_on(&cx);
        match crossed {
            Crossed::Left(left) => self.left(common, &left),
            Crossed::Refused(error) => {
                self.tell(format_args!("VM entry refused: {} (error {error})", failure::refused(error)));
                Exit::FailEntry { reason: error.into() }
            }
            Crossed::Off => Exit::FailEntry { reason: 0 },
        }
    }

    /// What the exit means.
    fn left(&mut self, common: &Common<P>, left: &Left) -> Exit {
        let Left { report, vectoring, vectoring_code } = *left;
        if !left.entry_failed() {
            self.asked.injected = None;
        }
        let cut_short = event::decode(vectoring, vectoring_code, self.state.cr2, self.state.dr6);
        self.asked.unfinished = None;
        if let CutShort::Event(event) = cut_short {
            self.asked.unfinished = Some(event);
            if event.kind == EventKind::Nmi {
                // It comes again.
                self.asked.nmi_blocked = false;
            }
        }
        if common.processor.virtual_nmis && report.nmi_unblocked(cut_short != CutShort::Nothing) {
            self.asked.nmi_blocked = true;
        }
        match report.decode(&self.state.gpr) {
            // In real mode the same instruction does what it does, or faults in another way.
            Decoded::Exit(Exit::Exception { exception })
                if self.form == Form::Virtual8086 && !self.is_exception_of_real_mode(exception.vector) =>
            {
                Exit::Emulate
            }
            // INT n through a task gate: the emulator executes all of it.
            Decoded::Exit(Exit::TaskSwitch) if cut_short == CutShort::Instruction => Exit::Emulate,
            Decoded::Exit(exit) => exit,
            Decoded::MachineCheck | Decoded::Nmi => Exit::Interrupted,
            Decoded::Debug { dr6, behind } => {
                self.state.rip = self.state.rip.wrapping_add(behind.into());
                if self.asked.is_debugged() {
                    Exit::Debug { dr6: dr6 | debug::DR6_FIXED }
                } else {
                    Exit::Exception { exception: Exception::debug(dr6) }
                }
            }
            Decoded::InvalidState => {
                self.tell_state(common, report.qualification);
                Exit::FailEntry { reason: report.reason.into() }
            }
        }
    }

    /// Whether an exception in virtual-8086 mode is what real mode would have met.
    fn is_exception_of_real_mode(&self, vector: Vector) -> bool {
        match vector {
            // The core does not execute what raises these.
            Vector::MF | Vector::XM => true,
            Vector::BP => self.asked.debug.software_breakpoints,
            _ => false,
        }
    }

    /// Tells the log once for each vCPU: a client can have any number of entries fail.
    fn tell(&mut self, why: core::fmt::Arguments<'_>) {
        if !core::mem::replace(&mut self.told, true) {
            P::log(Level::Warning, why);
        }
    }

    fn tell_state(&mut self, common: &Common<P>, qualification: u64) {
        let what = failure::invalid_state(qualification);
        let known = if common.nested { Ok(()) } else { guest_state::check(&self.state) };
        self.tell(format_args!(
            "VM entry failed: {what}{}{}",
            if known.is_err() { ": " } else { "" },
            match known {
                Ok(()) => "",
                Err(reason) => reason,
            }
        ));
    }
}

impl<P: Hardware, I: Instructions> BackendVcpu<P> for IntelVcpu<P, I> {
    /// A kernel does not lend its FPU.
    type Vectors = core::convert::Infallible;

    fn registers(&mut self, need: Groups) -> &CpuState {
        self.guest.fetch(&self.common, need);
        &self.guest.state
    }

    fn registers_mut(&mut self, change: Groups) -> &mut CpuState {
        self.guest.fetch(&self.common, change);
        self.guest.changed = self.guest.changed.and(change);
        &mut self.guest.state
    }

    fn registers_and_vectors(&mut self, change: Groups) -> (&mut CpuState, Option<&mut Self::Vectors>) {
        (self.registers_mut(change), None)
    }

    /// What a guest may use is the same for all: exits keep it from what it is not offered.
    fn set_features(&mut self, _features: Features, _xcr0: u64, _physical_bits: u32) {}

    fn set_tsc(&mut self, offset: u64, ratio: u64) {
        self.guest.asked.tsc = Tsc { offset, ratio };
    }

    fn set_debug(&mut self, debug: GuestDebug) {
        self.guest.asked.debug = debug;
    }

    fn inject(&mut self, event: Event) {
        self.guest.asked.injected = Some(event);
    }

    fn take_unfinished_event(&mut self) -> Option<Event> {
        self.guest.asked.take_unfinished()
    }

    fn request_window(&mut self, interrupt: bool, nmi: bool) {
        self.guest.asked.window = Window { interrupt, nmi };
    }

    fn nmi_blocked(&self) -> bool {
        self.guest.nmi_blocked(&self.common.processor)
    }

    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.guest.asked.nmi_blocked = blocked;
    }

    fn flush(&mut self, what: FlushTlb) {
        let physical = matches!(what, FlushTlb::Physical | FlushTlb::All);
        self.guest.flush.linear = true;
        self.guest.flush.physical |= physical;
    }

    fn can_enter(&mut self) -> bool {
        self.guest.can_enter(&self.common)
    }

    fn load(&mut self, _cx: &Atomic) {
        self.guest.fpu.load();
        self.guest.thread = I::host_thread();
    }

    fn put(&mut self, _cx: &Atomic) {
        self.guest.fpu.put();
    }

    fn enter(&mut self, env: &Env<'_, P>) -> Exit {
        self.guest.enter(&self.common, env)
    }
}
