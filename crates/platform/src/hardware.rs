//! What a back end that uses the processor's own virtualization asks of a host beside [`Platform`]: the services of a
//! kernel. User space has none of them, and no such back end.
use core::fmt;

use crate::{Atomic, MaySleep, OutOfMemory, Platform};

/// A host that runs at the processor's highest privilege. As in [`Platform`], all methods are associated functions.
pub trait Hardware: Platform {
    /// Contiguous pages.
    type Frames: Frames;
    /// The x87, SSE and AVX registers of a guest.
    type GuestFpu: GuestFpu;
    /// Tells when a thread loses its processor.
    type Watch<L: LosesProcessor>: Watch<L>;

    /// The number of the processor that runs this, below [`Self::cpus`].
    fn cpu(cx: &Atomic) -> usize;
    /// How many processors the host can ever have.
    fn cpus() -> usize;
    /// Has processor `cpu` run `f` with interrupts off, and waits for it. Nothing happens if it is off. Called with interrupts on.
    fn on_cpu(cpu: usize, f: &(dyn Fn(&Atomic) + Sync));
    /// With interrupts off: sets the bits `bits` in this processor's CR4, or clears them, so that the host knows of it.
    fn change_cr4(bits: u64, set: bool, cx: &Atomic);
    /// Switches interrupts of this processor off. Calls do not nest.
    fn irqs_off(cx: &Atomic);
    /// Switches them on again.
    fn irqs_on(cx: &Atomic);
    /// Switches interrupts off, right before the guest is entered. Answers the number of the processor, or nothing, with interrupts
    /// on again, if the host has other work for this thread (another thread is due, a signal is pending); then the back end
    /// answers `Exit::Interrupted` instead.
    fn prepare(cx: &Atomic) -> Option<usize>;
    /// With interrupts off: the guest is about to run. For the host's accounting of time. The [`GuestFpu`] that this thread has
    /// loaded is in the processor's registers afterwards.
    fn guest_begins(cx: &Atomic);
    /// With interrupts off: the guest has left. The host's own breakpoints are in the debug registers again afterwards,
    /// whatever the back end left there.
    fn guest_ended(cx: &Atomic);
    /// With interrupts off: the guest left for a machine check, which is the host's to handle.
    fn machine_check(cx: &Atomic);
    /// What the host does, and wants done, against flaws of its processors. The answer never changes.
    fn mitigations() -> Mitigations;
}

/// Measures against speculation attacks that the host has chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mitigations {
    /// Branch predictions of one guest must not reach another: IBPB (MSR 0x49) when a processor changes to another vCPU.
    pub ibpb: bool,
    /// The return stack buffer is to be filled after every exit.
    pub fill_rsb: bool,
    /// Buffers are to be cleared by VERW before every entry.
    pub clear_buffers: bool,
    /// The first-level data cache is to be flushed (MSR 0x10b) before every entry of a guest whose own page tables the processor
    /// walks.
    pub flush_l1d: bool,
    /// What the processor has learned of returns (Retbleed, SRSO on AMD's) is to be forgotten after every exit, before the first of
    /// them. How is the host's business, in a function of its own that code of assembly calls: `rekvm_untrain_returns`, which
    /// clobbers RAX, RCX and RDX.
    pub untrain_returns: bool,
}

/// Pages of 4 KiB, zeroed and one behind the other in host-physical memory: what a processor is told about by physical
/// address (control blocks, permission maps). They are given back when the value goes.
pub trait Frames: Sized + Send + Sync + 'static {
    /// `count` of them, below 2^32 if `below_4g` is set.
    fn new(count: usize, below_4g: bool, cx: &MaySleep) -> Result<Self, OutOfMemory>;
    /// Host-physical address of the first byte.
    fn hpa(&self) -> u64;
    /// Where the first byte is to be reached, writable for as long as the value lives.
    fn as_ptr(&self) -> *mut u8;
}

/// XSAVE area in standard form with x87, SSE and the upper halves of YMM (SDM vol. 1, 13.4).
pub type FpuArea = [u8; 832];

/// The floating-point and vector registers of a guest. Between [`Self::load`] and [`Self::put`] they are the calling
/// thread's, which the host's scheduler saves and restores by itself.
pub trait GuestFpu: Sized + Send + 'static {
    /// Initial state.
    fn new(cx: &MaySleep) -> Result<Self, OutOfMemory>;
    /// KVM_RUN begins.
    fn load(&mut self);
    /// KVM_RUN ends, on the thread that has loaded them.
    fn put(&mut self);
    /// Copies them out, also while they are loaded by the calling thread. XSTATE_BV says which components are not initial.
    fn save(&mut self, area: &mut FpuArea);
    /// Replaces them, also while they are loaded by the calling thread. A component whose bit in XSTATE_BV is clear becomes
    /// initial. The host refuses a state that would fault when it is loaded: false, and nothing has changed.
    fn restore(&mut self, area: &FpuArea) -> bool;
}

/// What is to be done when the thread that runs a vCPU loses its processor to another one.
pub trait LosesProcessor: Send + Sync + 'static {
    /// It happens now, on this processor, with interrupts off.
    fn loses_processor(&self, cx: &Atomic);
}

/// Has it done, between [`Self::begin`] and [`Self::end`], which the same thread calls.
pub trait Watch<L: LosesProcessor>: Sized + Send + 'static {
    /// For a thread that is still to be known.
    fn new(told: L, cx: &MaySleep) -> Result<Self, OutOfMemory>;
    /// Who is told.
    fn told(&self) -> &L;
    /// From now on, of the thread that calls this.
    fn begin(&self);
    /// No longer.
    fn end(&self);
}

/// The processors' virtualization, switched on and off by whoever knows when they come and go.
pub trait Processors: Send + Sync + 'static {
    /// Switches it on for the processor that runs this, number `cpu`, with interrupts off.
    fn enable(&self, cpu: usize, cx: &Atomic) -> Result<(), Refusal>;
    /// Switches it off, with interrupts off. Nothing happens if it is not on.
    fn disable(&self, cpu: usize, cx: &Atomic);
}

/// Why the processors cannot run guests. `Display` is what the operator reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The processor has no such virtualization.
    NotThere,
    /// The firmware has switched it off and locked the switch.
    DisabledByFirmware,
    /// Another hypervisor has it switched on.
    AlreadyInUse,
    /// It does not have enough of it: what is missing.
    Lacking(&'static str),
    /// No memory for what each processor needs.
    OutOfMemory,
}

impl From<OutOfMemory> for Refusal {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere => f.write_str("the processor has no virtualization of its own"),
            Self::DisabledByFirmware => {
                f.write_str("the processor's virtualization is disabled by the firmware (BIOS setup)")
            }
            Self::AlreadyInUse => f.write_str("the processor's virtualization is in use by another hypervisor"),
            Self::Lacking(what) => write!(f, "the processor's virtualization is too old: it lacks {what}"),
            Self::OutOfMemory => f.write_str("out of memory"),
        }
    }
}
