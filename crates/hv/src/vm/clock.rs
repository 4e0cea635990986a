//! The clock of a VM: its time-stamp counter, and kvmclock, which is nanoseconds since the VM was made.
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use platform::Platform;

use crate::vcpu::Rate;

/// The time of one VM.
///
/// kvmclock counts by the host's TSC from one moment that all vCPUs share: guests are told that it is the same on
/// every vCPU, and would see it go backwards if each had a moment of its own.
pub(crate) struct Clock {
    /// The host's TSC when the VM was made.
    made: u64,
    /// What the guest's TSC would have shown then, for vCPUs whose counter has not been set otherwise. It runs on from
    /// there at the vCPU's own frequency, so that vCPUs of one frequency are in step.
    tsc_start: AtomicU64,
    /// The moment from which kvmclock counts: host TSC, monotonic nanoseconds, and kvmclock then.
    base_tsc: AtomicU64,
    base_ns: AtomicU64,
    base_clock: AtomicU64,
}

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) host_tsc: u64,
    pub(crate) kvmclock: u64,
}

impl Clock {
    /// Both begin at 0.
    pub(crate) fn new<P: Platform>() -> Self {
        let tsc = P::tsc();
        Self {
            made: tsc,
            tsc_start: AtomicU64::new(0),
            base_tsc: AtomicU64::new(tsc),
            base_ns: AtomicU64::new(P::now_ns()),
            base_clock: AtomicU64::new(0),
        }
    }

    /// The offset of a vCPU whose counter runs at this rate.
    pub(crate) fn tsc_offset(&self, rate: Rate) -> u64 {
        self.tsc_start.load(SeqCst).wrapping_sub(rate.scale(self.made))
    }

    /// A client sets a vCPU's TSC to `value`. Clients set all vCPUs one after the other to what they saved: a value
    /// within a second of where the VM's counter is means that counter, so that they stay in step; another one
    /// moves it. Returns the vCPU's offset.
    pub(crate) fn set_tsc<P: Platform>(&self, value: u64, rate: Rate) -> u64 {
        let second = u64::from(rate.khz().max(1_000_000)) * 1000;
        let host = rate.scale(P::tsc());
        let distance = value.wrapping_sub(host.wrapping_add(self.tsc_offset(rate))) as i64;
        if value != 0 && distance.unsigned_abs() >= second {
            self.tsc_start.store(value.wrapping_sub(host).wrapping_add(rate.scale(self.made)), SeqCst);
        }
        self.tsc_offset(rate)
    }

    /// The moment from which kvmclock counts.
    pub(crate) fn base(&self) -> Reading {
        Reading { host_tsc: self.base_tsc.load(SeqCst), kvmclock: self.base_clock.load(SeqCst) }
    }

    /// Now, as a guest computes it.
    pub(crate) fn read<P: Platform>(&self) -> Reading {
        let base = self.base();
        let host_tsc = P::tsc();
        let passed = match u128::from(P::tsc_khz()) {
            0 => P::now_ns().saturating_sub(self.base_ns.load(SeqCst)),
            khz => (u128::from(host_tsc.saturating_sub(base.host_tsc)) * 1_000_000 / khz) as u64,
        };
        Reading { host_tsc, kvmclock: base.kvmclock.wrapping_add(passed) }
    }

    /// KVM_SET_CLOCK. The vCPUs are told by a request.
    pub(crate) fn set<P: Platform>(&self, kvmclock: u64) {
        self.base_tsc.store(P::tsc(), SeqCst);
        self.base_ns.store(P::now_ns(), SeqCst);
        self.base_clock.store(kvmclock, SeqCst);
    }

    /// Nanoseconds since 1970 at kvmclock 0.
    pub(crate) fn boot_ns<P: Platform>(&self) -> u64 {
        P::wall_clock_ns().saturating_sub(self.read::<P>().kvmclock)
    }
}
