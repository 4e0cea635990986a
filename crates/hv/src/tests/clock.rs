//! Time as the guest reads it.
use abi::*;
use x86::msr;

use platform::Platform;

use crate::{
    Errno, Outcome,
    backend::Exit,
    testing::{Machine, cx, host},
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

/// With the local APIC's timer in TSC-deadline mode.
fn with_deadline_timer() -> Machine {
    let m = Machine::with_irqchip();
    let mut lapic: KvmLapicState = m.get(KVM_GET_LAPIC);
    lapic.regs[0xf0..0xf4].copy_from_slice(&0x1ffu32.to_le_bytes());
    lapic.regs[0x320..0x324].copy_from_slice(&0x4_0052u32.to_le_bytes());
    m.ioctl(KVM_SET_LAPIC, &mut lapic).unwrap();
    m.state(|s| s.flags.set(x86::flags::IF));
    m
}

#[test]
fn a_tsc_deadline_fires_when_the_counter_is_there() {
    let m = with_deadline_timer();
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

#[test]
fn a_tsc_deadline_that_has_passed_needs_no_timer_of_the_platforms() {
    let m = with_deadline_timer();
    // 0 would be no deadline.
    host::advance(1000);
    let now = read_msr(&m, msr::TSC);
    m.script.take_notes();
    write_msr(&m, msr::TSC_DEADLINE, now);
    // Behind the instruction that has written it.
    assert_eq!(m.script.take_injected().len(), 1);
    assert_eq!(read_msr(&m, msr::TSC_DEADLINE), 0);
}

fn khz(vcpu: &crate::Vcpu<crate::testing::script::Scripted>) -> i32 {
    match vcpu.ioctl(KVM_GET_TSC_KHZ, 0, &cx()) {
        Ok(Outcome::Value(khz)) => khz,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guests_counter_runs_at_the_frequency_that_the_client_asks_for() {
    // The host's has 2 GHz.
    for (asked, per_ns) in [(1_000_000u64, 1.0), (5_000_000, 5.0), (0, 2.0)] {
        let m = Machine::new();
        host::advance(1_000_000_000);
        m.vcpu.ioctl(KVM_SET_TSC_KHZ, asked, &cx()).unwrap();
        write_msr(&m, msr::KVM_SYSTEM_TIME_NEW, 0x5001);
        assert_eq!(khz(&m.vcpu), if asked == 0 { 2_000_000 } else { asked as i32 });
        let before = read_msr(&m, msr::TSC);
        // It counts from when the VM was made.
        assert!((before as f64 - 1e9 * per_ns).abs() < 1e6 * per_ns, "{before}");
        host::advance(3_000_000_000);
        let tsc = read_msr(&m, msr::TSC);
        assert!(((tsc - before) as f64 - 3e9 * per_ns).abs() < 10.0, "{before} to {tsc}");
        assert!(pvclock(&m, 0x5000, tsc).abs_diff(4_000_000_000) < 2_000_000, "kvmclock");
        // The processor counts by the same rule.
        let (offset, ratio) = *m.script.tsc.lock().unwrap();
        let scaled = ((u128::from(host::Host::tsc()) * u128::from(ratio)) >> 48) as u64;
        assert_eq!(scaled.wrapping_add(offset), tsc);
    }
    let m = Machine::new();
    for bad in [600_000_000u64, u32::MAX.into(), 1 << 32] {
        assert_eq!(m.vcpu.ioctl(KVM_SET_TSC_KHZ, bad, &cx()).map(drop), Err(Errno::EINVAL));
        assert_eq!(m.vm.ioctl(KVM_SET_TSC_KHZ, bad, &cx()).map(drop), Err(Errno::EINVAL));
    }
}

#[test]
fn vcpus_of_one_frequency_are_in_step() {
    let m = Machine::new();
    m.vm.ioctl(KVM_SET_TSC_KHZ, 3_000_000, &cx()).unwrap();
    host::advance(123_456_789);
    let (second, _pages) = Machine::new_vcpu(&m.vm, 1);
    assert_eq!((khz(&m.vcpu), khz(&second)), (2_000_000, 3_000_000));
    host::advance(5_000_001);
    m.vcpu.ioctl(KVM_SET_TSC_KHZ, 3_000_000, &cx()).unwrap();
    let offset = |n| *m.backend.script(n).tsc.lock().unwrap();
    assert_eq!(offset(0), offset(1));
    // A client restores both, a little later the second one.
    let set = |vcpu: &crate::Vcpu<_>, value: u64| {
        let mut list = KvmMsrs { nmsrs: 1, pad: 0 }.bytes().to_vec();
        list.extend(KvmMsrEntry { index: msr::TSC, reserved: 0, data: value }.bytes());
        m.client.with_bytes(&mut list, |arg| vcpu.ioctl(KVM_SET_MSRS, arg, &cx())).unwrap();
    };
    set(&m.vcpu, 1 << 50);
    host::advance(1_000_000);
    set(&second, 1 << 50);
    assert_eq!(offset(0), offset(1));
    let tsc = read_msr(&m, msr::TSC);
    assert!(tsc.wrapping_sub(1 << 50) < 4_000_000, "{tsc:#x}");
}

#[test]
fn the_offset_of_the_counter_is_an_attribute() {
    let m = Machine::new();
    let value = host::Mapping::new(4096);
    let mut attr = KvmDeviceAttr { flags: 0, group: KVM_VCPU_TSC_CTRL, attr: KVM_VCPU_TSC_OFFSET, addr: value.at() };
    m.ioctl(KVM_HAS_DEVICE_ATTR, &mut attr).unwrap();
    m.ioctl(KVM_GET_DEVICE_ATTR, &mut attr).unwrap();
    let load = || <host::Client as platform::Memory>::load::<u64>(platform::Hva(value.at())).unwrap();
    assert_eq!(load(), m.script.tsc.lock().unwrap().0);
    <host::Client as platform::Memory>::store(platform::Hva(value.at()), 77u64).unwrap();
    m.ioctl(KVM_SET_DEVICE_ATTR, &mut attr).unwrap();
    assert_eq!(read_msr(&m, msr::TSC), host::Host::tsc() + 77);
    for (flags, group, which, error) in [(0, 1, 0, Errno::ENXIO), (0, 0, 1, Errno::ENXIO), (1, 0, 0, Errno::EINVAL)] {
        let mut bad = KvmDeviceAttr { flags, group, attr: which, addr: value.at() };
        for nr in [KVM_HAS_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR] {
            assert_eq!(m.ioctl(nr, &mut bad).map(drop), Err(error));
        }
    }
    attr.addr = 8;
    assert_eq!(m.ioctl(KVM_GET_DEVICE_ATTR, &mut attr).map(drop), Err(Errno::EFAULT));
    // The device's own.
    let mut xcr0 = KvmDeviceAttr { attr: KVM_X86_XCOMP_GUEST_SUPP, addr: value.at(), ..KvmDeviceAttr::default() };
    m.client.with_bytes(xcr0.bytes_mut(), |arg| m.kvm.ioctl(KVM_GET_DEVICE_ATTR, arg, &cx())).unwrap();
    assert_eq!(load(), 7);
    xcr0.attr = 1;
    let absent = m.client.with_bytes(xcr0.bytes_mut(), |arg| m.kvm.ioctl(KVM_HAS_DEVICE_ATTR, arg, &cx()));
    assert_eq!(absent.map(drop), Err(Errno::ENXIO));
}
