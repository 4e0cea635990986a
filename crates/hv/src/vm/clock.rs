//! The clock of a VM: its time-stamp counter and kvmclock, which is nanoseconds since the VM was made.
use core::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};

use platform::Platform;

/// The time of one VM.
pub(crate) struct Clock {
    /// Guest TSC = host TSC + this, for vCPUs whose counter has not been set otherwise.
    tsc_offset: AtomicU64,
    /// kvmclock = monotonic nanoseconds + this.
    offset: AtomicI64,
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
        Self {
            tsc_offset: AtomicU64::new(P::tsc().wrapping_neg()),
            offset: AtomicI64::new((P::now_ns() as i64).wrapping_neg()),
        }
    }

    pub(crate) fn tsc_offset(&self) -> u64 {
        self.tsc_offset.load(SeqCst)
    }

    /// A client sets a vCPU's TSC to `value`. Clients set all vCPUs one after the other to what they saved: a value
    /// within a second of where the VM's counter is means that counter, so that they stay in step; another one
    /// moves it. Returns the vCPU's offset.
    pub(crate) fn set_tsc<P: Platform>(&self, value: u64) -> u64 {
        let old = self.tsc_offset();
        let second = u64::from(P::tsc_khz().max(1_000_000)) * 1000;
        let host = P::tsc();
        let distance = value.wrapping_sub(host.wrapping_add(old)) as i64;
        if value == 0 || distance.unsigned_abs() < second {
            return old;
        }
        let new = value.wrapping_sub(host);
        self.tsc_offset.store(new, SeqCst);
        new
    }

    pub(crate) fn read<P: Platform>(&self) -> Reading {
        let kvmclock = P::now_ns().wrapping_add_signed(self.offset.load(SeqCst));
        Reading { host_tsc: P::tsc(), kvmclock }
    }

    /// KVM_SET_CLOCK.
    pub(crate) fn set<P: Platform>(&self, kvmclock: u64) {
        self.offset.store((kvmclock as i64).wrapping_sub(P::now_ns() as i64), SeqCst);
    }

    /// Nanoseconds since 1970 at kvmclock 0.
    pub(crate) fn boot_ns<P: Platform>(&self) -> u64 {
        P::wall_clock_ns().saturating_sub(self.read::<P>().kvmclock)
    }
}
