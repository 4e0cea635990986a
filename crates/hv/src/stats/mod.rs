//! Exit statistics, kept from the first day.
//!
//! Each vCPU counts for itself, on cache lines of its own: only the thread inside its ioctl writes, so a count is a
//! plain load and store; readers (`rekvm stat`, KVM_GET_STATS_FD) see it a moment late at worst.
mod file;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use platform::OutOfMemory;

pub use file::StatsFile;

macro_rules! counters {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $counter:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$doc])* $counter,)* }

        impl $name {
            /// The names under which they are read, in the order of the values.
            pub(crate) const NAMES: &'static [&'static str] = &[$($text,)*];
        }
    };
}

counters! {
    /// What a vCPU counts. Names that Linux has too mean the same.
    Counter {
        Exits = "exits",
        /// An exit of the processor for each kind.
        ExitInterrupted = "exit_interrupted",
        ExitInterruptWindow = "irq_window_exits",
        ExitNmiWindow = "nmi_window_exits",
        ExitHlt = "halt_exits",
        ExitPause = "exit_pause",
        ExitCpuid = "exit_cpuid",
        ExitMsrRead = "exit_rdmsr",
        ExitMsrWrite = "exit_wrmsr",
        ExitHypercall = "hypercalls",
        ExitPio = "io_exits",
        ExitCr = "exit_cr",
        ExitInvlpg = "invlpg",
        ExitPageFault = "pf_taken",
        ExitEmulate = "exit_emulate",
        ExitException = "exit_exception",
        ExitOther = "exit_other",
        /// Accesses that went to the client.
        MmioExits = "mmio_exits",
        PioUserExits = "io_user_exits",
        /// Accesses that devices inside the hypervisor served.
        MmioKernel = "mmio_kernel",
        PioKernel = "io_kernel",
        SignalExits = "signal_exits",
        RequestIrqExits = "request_irq_exits",
        HaltWakeup = "halt_wakeup",
        Emulation = "insn_emulation",
        EmulationFail = "insn_emulation_fail",
        IrqInjections = "irq_injections",
        NmiInjections = "nmi_injections",
        ExceptionInjections = "exception_injections",
        Reinjections = "reinjections",
        TlbFlush = "tlb_flush",
        TimerExpirations = "timer_expirations",
        Runs = "runs",
    }
}

const COUNTERS: usize = Counter::NAMES.len();

/// The counters of one vCPU.
pub(crate) struct VcpuStats {
    own: [AtomicU64; COUNTERS],
    /// The back end's, as they were when it was last asked.
    backend: Vec<AtomicU64>,
}

impl VcpuStats {
    /// With `backend` counters of the back end's.
    pub(crate) fn new(backend: usize) -> Result<Self, OutOfMemory> {
        let mut counters = Vec::new();
        counters.try_reserve_exact(backend).map_err(|_| OutOfMemory)?;
        counters.extend((0..backend).map(|_| AtomicU64::new(0)));
        Ok(Self { own: [const { AtomicU64::new(0) }; COUNTERS], backend: counters })
    }

    /// Counts one more. Only the owner of the vCPU calls this.
    #[inline]
    pub(crate) fn count(&self, counter: Counter) {
        if let Some(value) = self.own.get(counter as usize) {
            value.store(value.load(Relaxed).wrapping_add(1), Relaxed);
        }
    }

    /// Takes over what the back end has counted.
    pub(crate) fn set_backend(&self, index: usize, value: u64) {
        if let Some(counter) = self.backend.get(index) {
            counter.store(value, Relaxed);
        }
    }

    /// The core's counters first, then the back end's.
    fn get(&self, index: usize) -> u64 {
        self.own.iter().chain(&self.backend).nth(index).map_or(0, |value| value.load(Relaxed))
    }
}
