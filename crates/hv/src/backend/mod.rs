//! The seam towards processors.
mod event;
mod exit;
mod vector;

use core::sync::atomic::AtomicU32;

pub use crate::cpuid::features_from_cpuid;
pub use event::{Event, EventKind};
pub use exit::{Access, CrOp, Exit, PioExit};
use mmu::{
    AddressSpace,
    shadow::{EntryFormat, Root},
};
use platform::{Atomic, MaySleep, OutOfMemory, Platform};
pub use vector::VectorUnit;
use x86::{CpuState, Features};

/// Groups of registers, as a hardware back end fetches and writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups(pub u16);

#[allow(missing_docs)]
impl Groups {
    /// General registers, RIP and RFLAGS but for the status flags, interrupt shadow, mode and privilege level.
    pub const GENERAL: Self = Self(1 | 1 << 8);
    /// Of those what most instructions that exit come to: all but RSP, mode and privilege level. Whoever asks to change these leaves the
    /// others as they are, and may end the shadow but begin none.
    pub const PLAIN: Self = Self(1);
    /// The status flags, which few exits look at and which take long to convert.
    pub const STATUS: Self = Self(1 << 7);
    /// Segment and descriptor-table registers.
    pub const SEGMENTS: Self = Self(1 << 1);
    /// CR4, CR8 and EFER, which a guest does not change without an exit.
    pub const SWITCHES: Self = Self(1 << 2);
    /// CR0, CR2, CR3, PDPTEs.
    pub const PAGING: Self = Self(1 << 6);
    /// All control registers.
    pub const CONTROL: Self = Self::SWITCHES.and(Self::PAGING);
    pub const DEBUG: Self = Self(1 << 3);
    /// SYSCALL and SYSENTER MSRs, KERNEL_GS_BASE, TSC_AUX.
    pub const MSRS: Self = Self(1 << 4);
    /// x87, SSE, AVX, XCR0.
    pub const FPU: Self = Self(1 << 5);
    pub const ALL: Self = Self(0x1ff);
    /// What no instruction but those of x87, SSE and AVX goes beyond.
    pub const ALL_BUT_FPU: Self = Self(0x1df);

    /// Both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether it has any of `of`.
    pub const fn any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }

    /// Without `these`.
    pub const fn without(self, these: Self) -> Self {
        Self(self.0 & !these.0)
    }
}

/// What the client's debugger asks of the processor (KVM_SET_GUEST_DEBUG, KVM_DEBUG_GUEST).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestDebug {
    /// Exit after each instruction.
    pub single_step: bool,
    /// #BP exits instead of being delivered.
    pub software_breakpoints: bool,
    /// DR0 to DR3 and DR7 that replace the guest's while it runs; matches exit as [`Exit::Debug`].
    pub hardware: Option<([u64; 4], u64)>,
    /// Suppress interrupts while single stepping (KVM_GUESTDBG_BLOCKIRQ).
    pub block_interrupts: bool,
}

/// Who translates guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// The back end, by itself: it walks the guest's tables, and looks guest-physical addresses up in [`Env::memory`].
    Slots,
    /// The processor, by tables that the core makes of the guest's: it walks [`Env::root`], and leaves with
    /// [`Exit::PageFault`] for whatever it does not find there.
    Shadow,
    /// The processor, by the guest's tables, and by nested ones of the core's for every guest-physical address that it meets
    /// ([`Env::root`]) in this format; it leaves with [`Exit::NestedPageFault`] for whatever it does not find in those.
    Nested(EntryFormat),
}

/// What a vCPU may use while it is inside the guest.
#[derive(Debug)]
pub struct Env<'a, P: Platform> {
    /// The VM's guest-physical address space.
    pub memory: &'a AddressSpace<P>,
    /// This vCPU's reader number for snapshots.
    pub reader: usize,
    /// The vCPU's request word: non-zero means leave the guest at the next instruction boundary.
    pub requests: &'a AtomicU32,
    /// [`Translation::Nested`]: the nested tables, of four levels. In the format of ordinary ones every entry lets user mode in,
    /// as which a processor walks them; no entry forbids execution or is global. A vCPU is told to flush
    /// ([`FlushTlb::Physical`]) whenever it gets another root, or what it may remember of them is no longer right.
    ///
    /// [`Translation::Shadow`]: the tables to walk, with CR0.WP, EFER.NXE and CR4.PAE set whatever the guest has there,
    /// and SMEP and SMAP as in CR4 if the guest has paging on, else clear.
    pub root: Root,
}

/// A kind of processor that can run guests.
pub trait Backend: Sized + Send + Sync + 'static {
    /// The host it is built for.
    type Platform: Platform;
    /// What one guest processor is to it.
    type Vcpu: BackendVcpu<Self::Platform>;
    /// What it keeps for a VM.
    type Vm: Send + Sync;
    /// Its name as users read it: "software CPU", "AMD-V", "VT-x".
    const NAME: &'static str;

    /// Who translates addresses; the same for all vCPUs as long as the back end lives. A back end that answers
    /// [`Translation::Shadow`] offers no PCID, INVPCID and LA57 in `features`, and leaves with [`Exit::Cr`] or
    /// [`Exit::TaskSwitch`] for whatever changes CR0 (but TS), CR3 or CR4, and with [`Exit::Invlpg`] for INVLPG.
    fn translation(&self) -> Translation;
    /// Names of what its vCPUs count beside the core's counters (row A20); 47 characters at most.
    const COUNTERS: &'static [&'static str] = &[];

    /// What guests may be offered in CPUID.
    fn features(&self) -> Features;
    /// XCR0 bits that guests may set.
    fn xcr0(&self) -> u64;
    /// IA32_ARCH_CAPABILITIES of guests whose vendor is not AMD: flaws that this processor does *not* have (SDM vol. 4,
    /// MSR 0x10a). 0 promises nothing, and CPUID then does not offer the register.
    fn arch_capabilities(&self) -> u64 {
        0
    }
    /// REP MOVSB and REP STOSB are as fast as any other way to move bytes: guests then use them wherever they can.
    fn fast_strings(&self) -> bool {
        true
    }
    /// A new VM.
    fn create_vm(&self, cx: &MaySleep) -> Result<Self::Vm, OutOfMemory>;
    /// A new vCPU, in reset state.
    fn create_vcpu(&self, vm: &Self::Vm, index: usize, cx: &MaySleep) -> Result<Self::Vcpu, OutOfMemory>;
}

/// One guest processor of a back end. Its owner (the thread inside a vCPU ioctl) is the only one who reaches it.
pub trait BackendVcpu<P: Platform>: Send + 'static {
    /// What executes vector and x87 arithmetic outside of [`Self::enter`]; `Infallible` if nothing does.
    type Vectors: VectorUnit;

    /// The registers; the groups in `need` are up to date, others may be stale.
    fn registers(&mut self, need: Groups) -> &CpuState;
    /// The registers to be changed; the groups in `change` are up to date, and what is written to them takes effect
    /// at the next entry. The caller calls `CpuState::refresh` when mode or privilege may have changed.
    fn registers_mut(&mut self, change: Groups) -> &mut CpuState;
    /// The same, and what executes vector instructions on them.
    fn registers_and_vectors(&mut self, change: Groups) -> (&mut CpuState, Option<&mut Self::Vectors>);
    /// The guest's CPUID changed.
    fn set_features(&mut self, features: Features, xcr0: u64, physical_bits: u32);
    /// Whether the processor reads PAE's page-directory pointers in every walk, as AMD's do with nested paging (APM vol. 2,
    /// 15.25.10): those in the registers then mean nothing.
    fn rereads_pdptes(&self) -> bool {
        false
    }
    /// Guest TSC = host TSC * ratio >> 48 + offset. A ratio of 1 << 48 means no scaling.
    fn set_tsc(&mut self, offset: u64, ratio: u64);
    /// Debugging by the client changed.
    fn set_debug(&mut self, debug: GuestDebug);
    /// Delivers `event` at the next entry, before the next instruction. One event at a time.
    fn inject(&mut self, event: Event);
    /// The event that was to be injected, or whose delivery an exit cut short: it is to be injected again (unless
    /// the exit's handling replaces it). Cleared by reading.
    fn take_unfinished_event(&mut self) -> Option<Event>;
    /// Ask for [`Exit::InterruptWindow`] / [`Exit::NmiWindow`] as soon as an interrupt / NMI could be delivered.
    fn request_window(&mut self, interrupt: bool, nmi: bool);
    /// Whether an NMI is being handled (blocked until IRET).
    fn nmi_blocked(&self) -> bool;
    /// Sets the above, as KVM_SET_VCPU_EVENTS does.
    fn set_nmi_blocked(&mut self, blocked: bool);
    /// Forgets translations: of guest-physical memory (`memory`: slots, dirty logging, permissions), or of the
    /// guest's own tables too.
    fn flush(&mut self, what: FlushTlb);
    /// Calls `each` with the present value of each of [`Backend::COUNTERS`], by its place there.
    fn counters(&self, each: impl FnMut(usize, u64)) {
        let _ = each;
    }
    /// Whether the processor can run the guest with its registers as they are, which changes only when they do. If not, the core
    /// executes the guest's instructions one by one, and delivers its events, until it can.
    fn can_enter(&mut self) -> bool {
        true
    }
    /// The vCPU is about to run on this processor.
    fn load(&mut self, cx: &Atomic);
    /// It no longer does.
    fn put(&mut self, cx: &Atomic);
    /// Runs the guest until something happens. On return the registers are at an instruction boundary, RIP at the
    /// instruction that caused the exit unless the exit's documentation says otherwise.
    fn enter(&mut self, env: &Env<'_, P>) -> Exit;
}

/// What to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushTlb {
    /// Every translation.
    All,
    /// Translations of guest-physical addresses changed (slots, dirty logging); guest-virtual ones that were
    /// combined with them go too.
    Physical,
    /// Everything of the guest's current address space, as a load of CR3 does.
    Current,
    /// One linear page.
    Page(u64),
}
