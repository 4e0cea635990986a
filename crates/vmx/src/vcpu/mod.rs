//! One guest processor: its registers, what the core has asked for, and the way from one entry to the exit behind it.
mod enter;
mod fetch;
mod fields;
mod held;
mod leave;
mod nmi;
mod settled;
#[cfg(test)]
mod tests;
mod write;

use alloc::boxed::Box;

use hardware::{
    asked::{Asked, Tsc, Window},
    control::Registers,
    reset,
    tags::Tag,
};
use hv::backend::{BackendVcpu, Env, Event, Exit, FlushTlb, Groups, GuestDebug};
use mmu::shadow::Root;
use platform::{
    Atomic, Hardware, MaySleep, OutOfMemory, Shared,
    fallible::try_box,
    hardware::{Frames, GuestFpu, Watch},
};
use x86::{CpuState, Features};

use crate::{
    backend::Common,
    guest_state::Form,
    instructions::{HostThread, Instructions},
    region::Region,
    sync::Segments,
    user_mode::UserMode,
};
pub(crate) use enter::Crossed;
use fields::Fields;
use leave::Levels;
pub(crate) use leave::{Left, lazy};

/// A guest processor.
pub struct IntelVcpu<P: Hardware, I: Instructions> {
    common: Shared<Common<P>>,
    guest: Guest<P, I>,
}

/// Everything about it that is not shared.
pub(crate) struct Guest<P: Hardware, I: Instructions> {
    pub(crate) state: Box<CpuState>,
    pub(crate) region: Region<P::Frames>,
    pub(crate) fields: Box<Fields>,
    /// Where the guest reads CR8.
    virtual_apic: Option<P::Frames>,
    pub(crate) fpu: P::GuestFpu,
    /// Groups that the processor has, and `state` not yet.
    pub(crate) stale: Groups,
    /// Groups of `state` that the processor does not have yet.
    changed: Groups,
    /// How the processor would enter the guest with the segments and control registers of `state`.
    form: Form,
    /// The mode that `form` is for.
    formed: Option<[u64; 3]>,
    /// What the control structure has been given besides: control registers, primary controls but for windows, and the root.
    pub(crate) registers: Registers,
    primary: u32,
    root: Root,
    /// Something else has changed of what depends on neither registers nor the root.
    unsettled: bool,
    /// The segments in the control structure, from when they were read until the next entry.
    known: Option<Segments>,
    /// Of the last exit.
    pub(crate) left: Left,
    /// See [`settled`].
    pub(crate) settled: bool,
    ordinary: bool,
    /// See [`lazy`].
    pub(crate) lazy: Groups,
    /// As the guest has left it, with its status flags.
    rflags: u64,
    /// What `state` has its mode and privilege level from, as far as nobody has changed it since.
    levels: Option<Levels>,
    /// Which vCPU this is, among all of the host.
    pub(crate) number: u64,
    pub(crate) tag: Tag,
    /// The processor that it ran on last.
    pub(crate) last_cpu: usize,
    /// The host's stack pointer in the control structure.
    pub(crate) host_stack: u64,
    pub(crate) thread: HostThread,
    pub(crate) user_mode: P::Watch<UserMode<I>>,
    pub(crate) flush: Flush,
    pub(crate) asked: Asked,
    /// What CPUID offers; everything, until the client has said what.
    features: Features,
    /// Data breakpoints that wait for the end of the instruction behind MOV SS.
    traps: u64,
    /// Since when an NMI waits for the end of another one that the processor will not tell of.
    nmi_waits: Option<u64>,
    /// The log has been told why an entry failed.
    told: bool,
}

/// Translations that are to be forgotten before the next entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flush {
    /// Those of linear addresses.
    pub(crate) linear: bool,
    /// Those of guest-physical addresses, and all that are combined with them.
    pub(crate) physical: bool,
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
            formed: None,
            registers: Registers::default(),
            primary: 0,
            root: Root::NONE,
            unsettled: true,
            known: None,
            left: Left::default(),
            settled: false,
            ordinary: false,
            lazy: Groups(0),
            rflags: 0,
            levels: None,
            number: common.number(),
            tag: Tag::default(),
            last_cpu: usize::MAX,
            host_stack: 0,
            thread: HostThread::default(),
            user_mode: P::Watch::new(UserMode::default(), cx)?,
            flush: Flush::default(),
            asked: Asked::default(),
            features: Features::all(),
            traps: 0,
            nmi_waits: None,
            told: false,
        };
        Ok(Self { common, guest })
    }
}

#[cfg(test)]
impl<P: Hardware, I: Instructions> IntelVcpu<P, I> {
    pub(crate) fn user_mode(&self) -> &UserMode<I> {
        self.guest.user_mode.told()
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.guest.settled
    }
}

impl<P: Hardware, I: Instructions> Drop for IntelVcpu<P, I> {
    fn drop(&mut self) {
        // The page goes: no processor may keep anything of it.
        self.common.locals.recall::<P, I>(self.guest.region.node(), true);
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
        self.guest.settled &= change == Groups::PLAIN;
        &mut self.guest.state
    }

    fn registers_and_vectors(&mut self, change: Groups) -> (&mut CpuState, Option<&mut Self::Vectors>) {
        (self.registers_mut(change), None)
    }

    /// Exits keep the guest from most of what it is not offered.
    fn set_features(&mut self, features: Features, _xcr0: u64, _physical_bits: u32) {
        self.guest.features = features;
        self.guest.unsettle();
    }

    fn set_tsc(&mut self, offset: u64, ratio: u64) {
        self.guest.asked.tsc = Tsc { offset, ratio };
        self.guest.unsettle();
    }

    fn set_debug(&mut self, debug: GuestDebug) {
        self.guest.asked.debug = debug;
        self.guest.unsettle();
    }

    fn inject(&mut self, event: Event) {
        self.guest.asked.injected = Some(event);
        self.guest.settled = false;
    }

    fn take_unfinished_event(&mut self) -> Option<Event> {
        self.guest.asked.take_unfinished()
    }

    fn request_window(&mut self, interrupt: bool, nmi: bool) {
        let window = Window { interrupt, nmi };
        // Which control it is depends on what is held back.
        self.guest.settled &= !interrupt && !nmi && self.guest.asked.window == window;
        self.guest.asked.window = window;
    }

    fn nmi_blocked(&self) -> bool {
        self.guest.nmi_blocked(&self.common.processor)
    }

    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.guest.asked.nmi_blocked = blocked;
        self.guest.settled = false;
    }

    fn flush(&mut self, what: FlushTlb) {
        let physical = matches!(what, FlushTlb::Physical | FlushTlb::All);
        self.guest.flush.linear = true;
        self.guest.flush.physical |= physical;
        self.guest.settled = false;
    }

    fn can_enter(&mut self) -> bool {
        self.guest.can_enter(&self.common)
    }

    fn load(&mut self, _cx: &Atomic) {
        self.guest.fpu.load();
        self.guest.thread = I::host_thread();
        self.guest.settled = false;
        self.guest.user_mode.begin();
    }

    fn put(&mut self, cx: &Atomic) {
        P::irqs_off(cx);
        // SAFETY: interrupts are off, on the thread that runs the vCPU.
        unsafe { self.guest.user_mode.told().give_back() };
        P::irqs_on(cx);
        self.guest.user_mode.end();
        self.guest.fpu.put();
    }

    fn enter(&mut self, env: &Env<'_, P>) -> Exit {
        self.guest.enter(&self.common, env)
    }
}
