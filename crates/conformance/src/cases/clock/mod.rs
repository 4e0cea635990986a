//! Time-stamp counter and kvmclock.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno},
    runner::{Case, case},
    vm::{Exit, RealMode},
};

pub(super) const CASES: &[Case] = &[
    case("tsc-goes-up", "C10", goes_up),
    case("tsc-can-be-set", "A10 C10", set),
    case("tsc-adjust-moves-the-tsc", "C10", adjust),
    case("tsc-frequency", "A10", frequency).needs(KVM_CAP_GET_TSC_KHZ),
    case("kvmclock-page", "A10", page).needs(KVM_CAP_CLOCKSOURCE).needs(KVM_CAP_ADJUST_CLOCK),
    case("clock-of-the-vm", "A10", clock).needs(KVM_CAP_ADJUST_CLOCK),
    case("clock-was-stopped", "A10", stopped).needs(KVM_CAP_KVMCLOCK_CTRL),
];

const TSC: u32 = 0x10;

/// RDTSC and tell port 0x80, for ever.
fn machine(device: &Device) -> RealMode {
    let machine = RealMode::new(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.rdtsc()?;
        a.out(0x80, al)?;
        a.jmp(start)
    });
    machine.vcpu.support_all(device);
    machine
}

fn read(machine: &RealMode) -> u64 {
    assert!(matches!(machine.vcpu.run(), Exit::Out { port: 0x80, .. }));
    let regs = machine.vcpu.regs();
    regs.rdx << 32 | regs.rax
}

fn goes_up(device: &Device) {
    let machine = machine(device);
    let mut last = read(&machine);
    for _ in 0..20 {
        let now = read(&machine);
        assert!(now > last, "{now} after {last}");
        last = now;
    }
    assert!(machine.vcpu.msr(TSC).is_some_and(|tsc| tsc > last));
}

fn set(device: &Device) {
    let machine = machine(device);
    let far = 1 << 50;
    assert!(machine.vcpu.set_msr(TSC, far));
    let now = read(&machine);
    assert!((far..far + (1 << 44)).contains(&now), "{now:#x}");
}

fn adjust(device: &Device) {
    let machine = machine(device);
    let before = read(&machine);
    machine.put_code(0x2000, |a| {
        // IA32_TSC_ADJUST
        a.mov(ecx, 0x3b)?;
        a.xor(eax, eax)?;
        a.mov(edx, 0x100)?;
        a.wrmsr()?;
        a.hlt()
    });
    machine.vcpu.page.set_immediate_exit(true);
    assert_eq!(machine.vcpu.try_run(), Err(Errno::EINTR));
    machine.vcpu.page.set_immediate_exit(false);
    let back = machine.vcpu.regs().rip;
    machine.vcpu.edit_regs(|r| r.rip = 0x2000);
    machine.vcpu.run_to_hlt();
    machine.vcpu.edit_regs(|r| r.rip = back);
    let after = read(&machine) - before;
    assert!((0x100 << 32..0x180 << 32).contains(&after), "{after:#x}");
    assert_eq!(machine.vcpu.msr(0x3b), Some(0x100 << 32));
}

fn frequency(device: &Device) {
    let vcpu = device.vm().vcpu(0);
    let khz = vcpu.fd.number(KVM_GET_TSC_KHZ, 0);
    assert!(khz.is_ok_and(|khz| khz > 1000), "{khz:?}");
}

/// Nanoseconds as a guest computes them of the page at 0x5000 and its TSC.
fn nanoseconds(machine: &RealMode, tsc: u64) -> u64 {
    let memory = &machine.memory;
    let (timestamp, system_time) = (memory.u64(0x5008), memory.u64(0x5010));
    let (multiplier, shift) = (memory.u32(0x5018), memory.u8(0x501c) as i8);
    let passed = tsc - timestamp;
    let passed = if shift < 0 { passed >> -shift } else { passed << shift };
    system_time + ((u128::from(passed) * u128::from(multiplier)) >> 32) as u64
}

fn now(machine: &RealMode) -> u64 {
    machine.vm.fd.get::<KvmClockData>(KVM_GET_CLOCK).expect("KVM_GET_CLOCK").clock
}

/// The guest's clock, and that it is the VM's.
fn agrees(machine: &RealMode) -> u64 {
    let before = now(machine);
    let tsc = read(machine);
    let after = now(machine);
    let version = machine.memory.u32(0x5000);
    assert!(version != 0 && version.is_multiple_of(2), "version {version}");
    let ns = nanoseconds(machine, tsc);
    // The two may be scaled by different roads.
    let slack = 2_000_000;
    assert!(before < ns + slack && ns < after + slack, "{ns} is not between {before} and {after}");
    ns
}

fn page(device: &Device) {
    let machine = machine(device);
    assert!(machine.vcpu.set_msr(0x4b56_4d01, 0x5001));
    assert_eq!(machine.vcpu.msr(0x4b56_4d01), Some(0x5001));
    let first = agrees(&machine);
    std::thread::sleep(std::time::Duration::from_millis(10));
    assert!(agrees(&machine) > first + 5_000_000);
    // A clock that the client sets is the guest's, too.
    let hour = 3_600_000_000_000;
    let set = KvmClockData { clock: 10 * hour, ..KvmClockData::default() };
    machine.vm.fd.put(KVM_SET_CLOCK, &set).expect("KVM_SET_CLOCK");
    assert!((10 * hour..11 * hour).contains(&agrees(&machine)));
    // Switched off, it is not written any more.
    assert!(machine.vcpu.set_msr(0x4b56_4d01, 0));
    machine.memory.write(0x5000, &[0; 32]);
    read(&machine);
    assert_eq!(machine.memory.read(0x5000, 32), [0; 32]);
}

fn clock(device: &Device) {
    let machine = machine(device);
    let now = || machine.vm.fd.get::<KvmClockData>(KVM_GET_CLOCK).expect("KVM_GET_CLOCK");
    let first = now();
    std::thread::sleep(std::time::Duration::from_millis(2));
    let second = now();
    assert!(second.clock >= first.clock + 1_000_000, "{} after {}", second.clock, first.clock);
    let hour = 3_600_000_000_000;
    let set = KvmClockData { clock: 10 * hour, ..KvmClockData::default() };
    machine.vm.fd.put(KVM_SET_CLOCK, &set).expect("KVM_SET_CLOCK");
    assert!((10 * hour..11 * hour).contains(&now().clock));
    let bad = KvmClockData { flags: 1 << 20, ..set };
    assert_eq!(machine.vm.fd.put(KVM_SET_CLOCK, &bad), Err(Errno::EINVAL));
}

fn stopped(device: &Device) {
    let machine = machine(device);
    // Nobody has a clock yet.
    assert_eq!(machine.vcpu.fd.number(KVM_KVMCLOCK_CTRL, 0), Err(Errno::EINVAL));
    assert!(machine.vcpu.set_msr(0x4b56_4d01, 0x5001));
    read(&machine);
    assert_eq!(machine.memory.u8(0x501d) & 2, 0);
    assert_eq!(machine.vcpu.fd.number(KVM_KVMCLOCK_CTRL, 0), Ok(0));
    read(&machine);
    // The guest is told that it was stopped.
    assert_eq!(machine.memory.u8(0x501d) & 2, 2);
}
