//! Time as a vCPU's guest reads it: the time-stamp counter, and the structures of kvmclock in guest memory.
use core::marker::PhantomData;

use platform::Platform;

use crate::{
    backend::{Backend, BackendVcpu},
    vm::VmShared,
};

/// Binary places of a ratio.
const PLACES: u32 = 48;
const NS_PER_SECOND: u64 = 1_000_000_000;
/// A guest's counter is at most so many times as fast as the host's.
const MAX_FACTOR: u64 = 256;

/// How fast a guest's time-stamp counter runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    khz: u32,
    /// Guest ticks for one of the host, times 2^48.
    ratio: u64,
}

impl Rate {
    /// As the host's.
    pub(crate) fn host<P: Platform>() -> Self {
        Self { khz: P::tsc_khz(), ratio: 1 << PLACES }
    }

    /// `khz`, 0 for the host's; None if that is too fast, or the host's own is not known.
    pub(crate) fn new<P: Platform>(khz: u32) -> Option<Self> {
        let host = Self::host::<P>();
        if khz == 0 || khz == host.khz {
            return Some(host);
        }
        if host.khz == 0 || u64::from(khz) >= u64::from(host.khz) * MAX_FACTOR {
            return None;
        }
        // The factor is below 2^8, so the ratio fits.
        let ratio = ((u128::from(khz) << PLACES) / u128::from(host.khz)) as u64;
        Some(Self { khz, ratio })
    }

    pub(crate) fn khz(self) -> u32 {
        self.khz
    }

    /// Ticks of the guest in so many of the host.
    pub(crate) fn scale(self, host: u64) -> u64 {
        ((u128::from(host) * u128::from(self.ratio)) >> PLACES) as u64
    }
}

/// The time-stamp counter of one vCPU: guest = host at its rate + offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tsc {
    offset: u64,
    rate: Rate,
    /// IA32_TSC_ADJUST.
    adjust: u64,
}

impl Tsc {
    pub(crate) fn new(offset: u64, rate: Rate) -> Self {
        Self { offset, rate, adjust: 0 }
    }

    /// What the guest reads when the host's counter is `host`.
    pub(crate) fn at(&self, host: u64) -> u64 {
        self.rate.scale(host).wrapping_add(self.offset)
    }

    pub(crate) fn read<P: Platform>(&self) -> u64 {
        self.at(P::tsc())
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn set_offset(&mut self, offset: u64) {
        self.offset = offset;
    }

    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    pub(crate) fn set_rate(&mut self, rate: Rate, offset: u64) {
        (self.rate, self.offset) = (rate, offset);
    }

    pub(crate) fn adjust(&self) -> u64 {
        self.adjust
    }

    /// WRMSR to IA32_TSC_ADJUST moves the counter by the difference; a client's restore only notes the value.
    pub(crate) fn set_adjust(&mut self, value: u64, moves: bool) {
        if moves {
            self.offset = self.offset.wrapping_add(value.wrapping_sub(self.adjust));
        }
        self.adjust = value;
    }

    /// WRMSR to IA32_TIME_STAMP_COUNTER changes IA32_TSC_ADJUST alike (SDM vol. 3, 17.17.3).
    pub(crate) fn write<P: Platform>(&mut self, value: u64) {
        let by = value.wrapping_sub(self.read::<P>());
        self.offset = self.offset.wrapping_add(by);
        self.adjust = self.adjust.wrapping_add(by);
    }

    /// Tells the back end.
    pub(crate) fn apply<B: Backend>(&self, cpu: &mut B::Vcpu) {
        cpu.set_tsc(self.offset, self.rate.ratio);
    }

    /// When the counter reaches `deadline`, in nanoseconds of the platform's clock, rounded up.
    pub(crate) fn deadline_ns<P: Platform>(&self, deadline: u64) -> u64 {
        let now = P::now_ns();
        let left = deadline.wrapping_sub(self.read::<P>());
        let khz = u128::from(self.rate.khz.max(1));
        if left as i64 <= 0 {
            return now;
        }
        let ns = (u128::from(left) * 1_000_000).div_ceil(khz);
        now.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// kvmclock: where the guest wants the time written (MSR 0x4b564d01).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PvClock {
    /// The MSRs' values: bit 0 of the system time one enables it.
    pub(crate) system_time: u64,
    pub(crate) wall_clock: u64,
    version: u32,
    /// KVM_KVMCLOCK_CTRL: the guest is told that it was stopped.
    pub(crate) stopped: bool,
}

/// flags: the clock is the same on every vCPU.
const TSC_STABLE: u8 = 1;
/// flags: the client stopped the guest.
const GUEST_STOPPED: u8 = 2;

/// nanoseconds = (tsc << shift, or >> -shift) * multiplier >> 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scale {
    shift: i8,
    multiplier: u32,
}

impl Scale {
    /// For a counter of `khz`: the shift that brings its frequency between 0.5 and 1 times 1 GHz * 2.
    fn new(khz: u32) -> Self {
        let mut hz = u64::from(khz.max(1)) * 1000;
        let mut shift: i8 = 0;
        while hz > 2 * NS_PER_SECOND {
            hz >>= 1;
            shift -= 1;
        }
        while hz <= NS_PER_SECOND {
            hz <<= 1;
            shift += 1;
        }
        let multiplier = ((NS_PER_SECOND << 32) / hz) as u32;
        Self { shift, multiplier }
    }
}

/// Writes kvmclock's structures for one vCPU.
pub(crate) struct ClockWriter<'a, P: Platform> {
    pub(crate) vm: &'a VmShared<P>,
    pub(crate) reader: usize,
    pub(crate) platform: PhantomData<P>,
}

impl<P: Platform> ClockWriter<'_, P> {
    fn write(&self, gpa: u64, bytes: &[u8]) {
        // A guest that points the clock at no memory gets none.
        let _ = self.vm.write_guest(self.reader, gpa, bytes);
    }

    /// `pvclock_vcpu_time_info`: version, padding, TSC and nanoseconds of one moment, scale, flags. The version is odd
    /// while the rest changes.
    pub(crate) fn system_time(&self, pv: &mut PvClock, tsc: &Tsc) {
        if pv.system_time & 1 == 0 {
            return;
        }
        let gpa = pv.system_time & !1;
        let base = self.vm.clock.base();
        let scale = Scale::new(tsc.rate().khz());
        let mut flags = TSC_STABLE;
        if core::mem::take(&mut pv.stopped) {
            flags |= GUEST_STOPPED;
        }
        pv.version = pv.version.wrapping_add(2) & !1;
        let mut info = [0u8; 32];
        let mut put = |at: usize, value: &[u8]| info[at..at + value.len()].copy_from_slice(value);
        put(0, &pv.version.wrapping_sub(1).to_le_bytes());
        put(8, &tsc.at(base.host_tsc).to_le_bytes());
        put(16, &base.kvmclock.to_le_bytes());
        put(24, &scale.multiplier.to_le_bytes());
        put(28, &scale.shift.to_le_bytes());
        put(29, &[flags]);
        self.write(gpa, &info);
        self.write(gpa, &pv.version.to_le_bytes());
    }

    /// `pvclock_wall_clock`: version, seconds and nanoseconds since 1970 at kvmclock 0.
    pub(crate) fn wall_clock(&self, gpa: u64) {
        let boot = self.vm.clock.boot_ns::<P>();
        let mut info = [0u8; 12];
        info[0..4].copy_from_slice(&1u32.to_le_bytes());
        info[4..8].copy_from_slice(&((boot / NS_PER_SECOND) as u32).to_le_bytes());
        info[8..12].copy_from_slice(&((boot % NS_PER_SECOND) as u32).to_le_bytes());
        self.write(gpa, &info);
        self.write(gpa, &2u32.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_give_nanoseconds() {
        for khz in [1, 33_000, 999_999, 1_000_000, 1_000_001, 2_000_000, 2_595_124, 5_300_000, u32::MAX] {
            let scale = Scale::new(khz);
            let ticks = u128::from(khz) * 1000; // one second
            let shifted = if scale.shift < 0 { ticks >> -scale.shift } else { ticks << scale.shift };
            let ns = (shifted * u128::from(scale.multiplier)) >> 32;
            assert!(ns.abs_diff(1_000_000_000) < 1000, "{khz} kHz: {ns} ns, {scale:?}");
        }
    }
}
