//! Time as the guest reads it.
use abi::*;
use x86::msr;

use crate::{
    backend::Exit,
    testing::{Machine, host},
};

fn write_msr(m: &Machine, index: u32, value: u64) {
    m.state(|s| (s.gpr[1], s.gpr[0], s.gpr[2]) = (index.into(), value & 0xffff_ffff, value >> 32));
    m.script.exit(Exit::MsrWrite { len: 2 });
    m.run().unwrap();
}

fn read_msr(m: &Machine, index: u32) -> u64 {
    m.state(|s| s.gpr[1] = index.into());
    m.script.exit(Exit::MsrRead { len: 2 });
    m.run().unwrap();
    m.state(|s| s.gpr[0] & 0xffff_ffff | s.gpr[2] << 32)
}

/// What a guest computes from the structure at `gpa` when its TSC is `tsc` (`pvclock` in Linux's documentation).
fn pvclock(m: &Machine, gpa: u64, tsc: u64) -> u64 {
    let info: [u8; 32] = m.peek(gpa);
    let word = |at: usize| u64::from_le_bytes(info[at..at + 8].try_into().unwrap());
    assert_eq!(info[0] & 1, 0, "the structure is being changed");
    let (shift, multiplier) = (info[28] as i8, u64::from(word(24) as u32));
    let delta = tsc.wrapping_sub(word(8));
    let delta = if shift < 0 { delta >> -shift } else { delta << shift };
    word(16) + ((u128::from(delta) * u128::from(multiplier)) >> 32) as u64
}

#[test]
fn kvmclock_and_the_tsc_tell_the_same_time() {
    let m = Machine::new();
    write_msr(&m, msr::KVM_SYSTEM_TIME_NEW, 0x5001);
    host::advance(3_000_000_000);
    let tsc = read_msr(&m, msr::TSC);
    let ns = pvclock(&m, 0x5000, tsc);
    assert!(ns.abs_diff(tsc / 2) < 10, "{ns} ns at {tsc} ticks of 0.5 ns");
    let mut clock = KvmClockData::default();
    m.vm_ioctl(KVM_GET_CLOCK, &mut clock).unwrap();
    assert!(clock.clock.abs_diff(ns) < 10);
}

#[test]
fn a_clock_that_the_client_sets_reaches_the_guest() {
    let m = Machine::new();
    write_msr(&m, msr::KVM_SYSTEM_TIME_NEW, 0x5001);
    let mut clock = KvmClockData { clock: 77_000_000_000, ..KvmClockData::default() };
    m.vm_ioctl(KVM_SET_CLOCK, &mut clock).unwrap();
    let tsc = read_msr(&m, msr::TSC);
    assert!(pvclock(&m, 0x5000, tsc).abs_diff(77_000_000_000) < 10);
    // And the note that the guest was stopped.
    m.vcpu.ioctl(KVM_KVMCLOCK_CTRL, 0, &crate::testing::cx()).unwrap();
    m.run().unwrap();
    assert_eq!(m.peek::<[u8; 32]>(0x5000)[29], 3);
    clock.flags = 1 << 31;
    assert!(m.vm_ioctl(KVM_SET_CLOCK, &mut clock).is_err());
}

#[test]
fn the_wall_clock_is_the_time_of_boot() {
    let m = Machine::new();
    host::advance(5_000_000_000);
    write_msr(&m, msr::KVM_WALL_CLOCK_NEW, 0x6000);
    let [version, seconds, _]: [u32; 3] = m.peek(0x6000);
    assert_eq!((version, seconds), (2, 1_700_000_000));
}

#[test]
fn a_clock_without_memory_harms_nobody() {
    let m = Machine::new();
    write_msr(&m, msr::KVM_SYSTEM_TIME_NEW, 0x7fff_f000_0001);
    assert_eq!(read_msr(&m, msr::KVM_SYSTEM_TIME_NEW), 0x7fff_f000_0001);
}

#[test]
fn the_tsc_can_be_written_and_adjusted() {
    let m = Machine::new();
    write_msr(&m, msr::TSC, 1000);
    assert_eq!(read_msr(&m, msr::TSC), 1000);
    let adjust = read_msr(&m, msr::TSC_ADJUST);
    write_msr(&m, msr::TSC_ADJUST, adjust.wrapping_add(500));
    assert_eq!(read_msr(&m, msr::TSC), 1500);
    host::advance(10);
    assert_eq!(read_msr(&m, msr::TSC), 1520);
}

#[test]
fn a_tsc_deadline_fires_when_the_counter_is_there() {
    let m = Machine::with_irqchip();
    let mut lapic: KvmLapicState = m.get(KVM_GET_LAPIC);
    lapic.regs[0xf0..0xf4].copy_from_slice(&0x1ffu32.to_le_bytes());
    lapic.regs[0x320..0x324].copy_from_slice(&0x4_0052u32.to_le_bytes());
    m.ioctl(KVM_SET_LAPIC, &mut lapic).unwrap();
    m.state(|s| s.flags.set(x86::flags::IF));
    let now = read_msr(&m, msr::TSC);
    write_msr(&m, msr::TSC_DEADLINE, now + 2_000);
    m.script.take_notes();
    host::advance(999);
    m.run().unwrap();
    assert_eq!(m.script.take_injected(), []);
    host::advance(1);
    m.run().unwrap();
    assert_eq!(m.script.take_injected().len(), 1);
    assert_eq!(read_msr(&m, msr::TSC_DEADLINE), 0);
}
