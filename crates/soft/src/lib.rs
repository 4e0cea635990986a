//! The software CPU: a processor for guests on machines whose own processor cannot run any. It is the one back
//! end that needs no privileges and no hardware support: an interpreter around the crate `emulate`.
//!
//! # One entry
//! [`SoftVcpu`] delivers the event that the core wants injected, then runs blocks of decoded instructions ([`cache`])
//! until something stops it: a bit in the vCPU's request word, which it looks at between blocks, or an
//! instruction that needs the core (device memory, HLT, CPUID, ...), which leaves the registers as they were before it.
//! Exceptions, page walks, control registers and everything else that a processor with nested paging does by itself, it
//! does by itself. When a debugger or the trap flag watches each instruction, another, slower loop runs
//! (`step`).
//!
//! # Memory
//! Every access goes through the soft TLB ([`tlb`]): one compare, then a host move through the platform's accessors, which
//! survive memory that the client takes away. Misses walk the guest's tables with `mmu::walk`.
//!
//! Two [`options`] make of it what the core is to be tested with: it walks shadow tables that the core fills (`shadow`), or nested
//! ones beside the guest's (`nested`); and its TLB keeps every translation until somebody flushes it (`kept`).
//!
//! x87, SSE and AVX instructions are executed by the host's own unit on the guest's registers ([`native`]).
//!
//! # Code that changes
//! A block is a copy of memory, so something must tell when memory has changed. Three things do:
//! 1. *Stores of vCPUs* to pages with decoded code are seen as they happen, down to 64 bytes ([`code_map`]); the storing
//!    vCPU sees its own change at its next instruction, the others at their next block.
//! 2. *Writes by the client* (its devices' DMA) and by the core cannot be seen. But a guest learns that
//!    they are complete through an interrupt or a device register, that is through an exit: so every block is compared with
//!    memory (its source bytes are kept) when it is entered for the first time after an entry into the guest.
//! 3. A guest that polls memory to learn of DMA, and has new code loaded by that into a page of which it has run
//!    code before, must have had the page mapped for execution twice: a block is also compared when it is first entered
//!    through a new translation of its page. Last, everything is compared again after each four million
//!    instructions; the one guest that can run stale code until then loads code by DMA over code that it runs, without
//!    an interrupt, a device access or a change of mapping in between.
//!
//! What the core writes for one vCPU (string input, a copy from device memory) the others learn of in the same ways.
//!
//! A block that was compared unchanged is used on; a difference only costs its decoding.
//!
//! # A translator
//! can be added behind this: a [`cache::Block`] is a range of guest code and something that runs it. Finding, linking,
//! comparing and dropping blocks do not depend on what that is, the TLB's layout is fixed (`repr(C)`), and the
//! interpreter is the reference.
pub mod arena;
mod build;
pub mod cache;
pub mod code_map;
mod cpu;
mod enter;
mod events;
mod kept;
mod memory;
pub mod native;
mod nested;
pub mod options;
mod run;
mod shadow;
pub mod stats;
mod step;
pub mod tlb;
mod vcpu;
mod vm;

use core::marker::PhantomData;

use hv::backend::{Backend, Translation};
use platform::{MaySleep, OutOfMemory, Platform};
use x86::{Features, Mode};

pub use options::{Options, PagingKind, TlbKind};
pub use stats::Stats;
pub use vcpu::SoftVcpu;
pub use vm::SoftVm;

/// The software CPU on the platform `P`.
#[derive(Debug)]
pub struct Soft<P> {
    features: Features,
    xcr0: u64,
    options: Options,
    platform: PhantomData<fn() -> P>,
}

impl<P: Platform> Soft<P> {
    /// As [`Self::with_options`], with the usual ones.
    pub fn new() -> Self {
        Self::with_options(Options::default())
    }

    /// Looks at what the host's processor can do, and makes the decoder's and the encoder's tables.
    pub fn with_options(options: Options) -> Self {
        // They allocate them when they are first used: not while a guest runs. And who comes second meanwhile spins, in a child of
        // fork for ever.
        let _ = emulate::decode::<SoftVcpu<P>>(&[0x90], Mode::Long64, Features::empty());
        native::prepare();
        let (vector, xcr0) = native::offered();
        let features = match options.paging {
            PagingKind::Slots | PagingKind::Nested => INTEGER | vector,
            PagingKind::Shadow => (INTEGER | vector).difference(Features::PCID | Features::INVPCID),
        };
        Self { features, xcr0, options, platform: PhantomData }
    }
}

impl<P: Platform> Default for Soft<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P> Soft<P> {
    /// How it works.
    pub fn options(&self) -> Options {
        self.options
    }
}

/// What the emulator executes by itself, whatever the host.
const INTEGER: Features = Features::VME
    .union(Features::DE)
    .union(Features::PSE)
    .union(Features::TSC)
    .union(Features::MSR)
    .union(Features::PAE)
    .union(Features::MCE)
    .union(Features::CX8)
    .union(Features::SEP)
    .union(Features::PGE)
    .union(Features::CMOV)
    .union(Features::PSE36)
    .union(Features::CLFLUSH)
    .union(Features::CX16)
    .union(Features::PCID)
    .union(Features::MOVBE)
    .union(Features::POPCNT)
    .union(Features::RDRAND)
    .union(Features::FSGSBASE)
    .union(Features::BMI1)
    .union(Features::SMEP)
    .union(Features::BMI2)
    .union(Features::INVPCID)
    .union(Features::RDSEED)
    .union(Features::ADX)
    .union(Features::SMAP)
    .union(Features::CLFLUSHOPT)
    .union(Features::CLWB)
    .union(Features::UMIP)
    .union(Features::RDPID)
    .union(Features::SYSCALL)
    .union(Features::NX)
    .union(Features::RDTSCP)
    .union(Features::LM)
    .union(Features::LAHF64)
    .union(Features::LZCNT)
    .union(Features::PREFETCHW)
    .union(Features::GBPAGES);

impl<P: Platform> Backend for Soft<P> {
    type Platform = P;
    type Vcpu = SoftVcpu<P>;
    type Vm = SoftVm<P>;
    const NAME: &'static str = "software CPU";
    const COUNTERS: &'static [&'static str] = Stats::NAMES;

    fn translation(&self) -> Translation {
        match self.options.paging {
            PagingKind::Slots => Translation::Slots,
            PagingKind::Shadow => Translation::Shadow,
            PagingKind::Nested => Translation::Nested(mmu::shadow::EntryFormat::X86),
        }
    }

    fn features(&self) -> Features {
        self.features
    }

    fn xcr0(&self) -> u64 {
        self.xcr0
    }

    fn create_vm(&self, _cx: &MaySleep) -> Result<SoftVm<P>, OutOfMemory> {
        SoftVm::new()
    }

    fn create_vcpu(&self, vm: &SoftVm<P>, index: usize, _cx: &MaySleep) -> Result<SoftVcpu<P>, OutOfMemory> {
        SoftVcpu::new(vm, index, self.features, self.xcr0, self.options)
    }
}
