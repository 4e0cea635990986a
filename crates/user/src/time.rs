//! Clocks and randomness.
use std::{
    arch::x86_64::{__cpuid, __cpuid_count, _rdtsc},
    sync::OnceLock,
    thread,
    time::Duration,
};

/// Nanoseconds of a clock.
fn clock(id: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for writes. The clocks asked for always exist.
    unsafe { libc::clock_gettime(id, &mut now) };
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

/// Since some fixed moment.
pub(crate) fn monotonic_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

/// Since 1970.
pub(crate) fn wall_clock_ns() -> u64 {
    clock(libc::CLOCK_REALTIME)
}

/// The host's time-stamp counter.
#[inline]
pub(crate) fn tsc() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 processor; Linux lets user space use it unless the process forbade it.
    unsafe { _rdtsc() }
}

/// Its frequency: what the processor or the hypervisor above us states, else measured once.
pub(crate) fn tsc_khz() -> u32 {
    static KHZ: OnceLock<u32> = OnceLock::new();
    *KHZ.get_or_init(|| stated_khz().filter(|khz| plausible(*khz)).unwrap_or_else(measured_khz))
}

fn plausible(khz: u32) -> bool {
    (100_000..20_000_000).contains(&khz)
}

fn stated_khz() -> Option<u32> {
    if __cpuid(1).ecx >> 31 & 1 != 0 {
        // A hypervisor's timing leaf: EAX is the frequency in kHz.
        return (0x4000_0010..0x4000_1000).contains(&__cpuid(0x4000_0000).eax).then(|| __cpuid(0x4000_0010).eax);
    }
    if __cpuid(0).eax < 0x15 {
        return None;
    }
    // Crystal clock in Hz times EBX / EAX.
    let leaf = __cpuid_count(0x15, 0);
    let hz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax.max(1));
    u32::try_from(hz / 1000).ok()
}

/// Compares the counter with the monotonic clock over 5 ms.
fn measured_khz() -> u32 {
    let (tsc0, ns0) = pair();
    thread::sleep(Duration::from_millis(5));
    let (tsc1, ns1) = pair();
    let khz = u128::from(tsc1.wrapping_sub(tsc0)) * 1_000_000 / u128::from((ns1 - ns0).max(1));
    u32::try_from(khz).ok().filter(|khz| plausible(*khz)).unwrap_or(0)
}

/// Both clocks at one moment: the closest of a few tries, so that an interruption between the two does not count.
fn pair() -> (u64, u64) {
    (0..5)
        .map(|_| {
            let before = tsc();
            let ns = monotonic_ns();
            let width = tsc().wrapping_sub(before);
            (width, (before + width / 2, ns))
        })
        .min()
        .map_or((0, 0), |(_, pair)| pair)
}

/// Fills `buf` from the kernel's generator.
pub(crate) fn random(buf: &mut [u8]) {
    let mut rest = buf;
    while !rest.is_empty() {
        // SAFETY: `rest` is valid for writes of its length.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) if got > 0 => rest = rest.get_mut(got..).unwrap_or_default(),
            // Interrupted; there is no other error on a kernel that has the call.
            _ => continue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_runs_at_its_frequency() {
        let stated = tsc_khz();
        let measured = measured_khz();
        assert!(stated.abs_diff(measured) < stated / 100, "stated {stated} kHz, measured {measured} kHz");
    }

    #[test]
    fn random_fills_everything() {
        let mut buf = [0; 300];
        random(&mut buf);
        assert!(buf.chunks(20).all(|chunk| chunk.iter().any(|b| *b != 0)));
    }
}
