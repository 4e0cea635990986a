//! MSR accesses that the client sees or denies.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Address, Device, Errno, Memory},
    runner::{Case, case},
    vm::{CODE, Exit, RealMode, Vm, assemble},
};

pub(super) const CASES: &[Case] = &[
    case("unknown-msrs-are-the-clients", "A05 C10", unknown).needs(KVM_CAP_X86_USER_SPACE_MSR),
    case("the-client-can-refuse", "A05 C10", refused).needs(KVM_CAP_X86_USER_SPACE_MSR),
    case("writes-that-would-fault", "A05 C10", invalid).needs(KVM_CAP_X86_USER_SPACE_MSR),
    case("filtered-accesses-fault", "C10", faults).needs(KVM_CAP_X86_MSR_FILTER),
    case("filtered-accesses-are-the-clients", "A05 C10", exits).needs(KVM_CAP_X86_MSR_FILTER),
    case("filter-taken-away", "C10", removed).needs(KVM_CAP_X86_MSR_FILTER),
    case("filters-that-cannot-be", "C10", errors).needs(KVM_CAP_X86_MSR_FILTER),
];

const UNKNOWN: u32 = 0x8888_8888;
const STAR: u32 = 0xc000_0081;

/// RDMSR of ECX, then WRMSR of what was read, then HLT; #GP sets SI and halts.
fn machine(device: &Device, vm: Vm) -> RealMode {
    let code = assemble(16, CODE, |a| {
        a.rdmsr()?;
        a.wrmsr()?;
        a.hlt()
    });
    let machine = RealMode::with_code(vm, &code);
    machine.set_vector(13, 0x3000);
    machine.put_code(0x3000, |a| {
        a.mov(si, 13)?;
        a.hlt()
    });
    machine.vcpu.support_all(device);
    machine
}

fn with_exits(device: &Device, reasons: u32) -> Vm {
    let vm = device.vm();
    vm.enable(KVM_CAP_X86_USER_SPACE_MSR, [reasons.into(), 0, 0, 0]).expect("KVM_ENABLE_CAP");
    vm
}

fn answer(machine: &RealMode, error: u8, data: u64) {
    let mut msr: KvmRunMsr = machine.vcpu.page.payload();
    (msr.error, msr.data) = (error, data);
    machine.vcpu.page.set_payload(&msr);
}

fn unknown(device: &Device) {
    let machine = machine(device, with_exits(device, KVM_MSR_EXIT_REASON_UNKNOWN));
    let reason = KVM_MSR_EXIT_REASON_UNKNOWN;
    machine.vcpu.edit_regs(|r| r.rcx = UNKNOWN.into());
    assert_eq!(machine.vcpu.run(), Exit::ReadMsr { reason, index: UNKNOWN });
    answer(&machine, 0, 0x1234_5678_9abc_def0);
    assert_eq!(machine.vcpu.run(), Exit::WriteMsr { reason, index: UNKNOWN, data: 0x1234_5678_9abc_def0 });
    let regs = machine.vcpu.regs();
    assert_eq!((regs.rax, regs.rdx), (0x9abc_def0, 0x1234_5678));
    answer(&machine, 0, 0);
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vcpu.regs().rsi, 0);
}

fn refused(device: &Device) {
    let machine = machine(device, with_exits(device, KVM_MSR_EXIT_REASON_UNKNOWN));
    machine.vcpu.edit_regs(|r| r.rcx = UNKNOWN.into());
    assert!(matches!(machine.vcpu.run(), Exit::ReadMsr { .. }));
    answer(&machine, 1, 0);
    machine.vcpu.run_to_hlt();
    assert_eq!((machine.vcpu.regs().rsi, machine.memory.u16(0x7ffa)), (13, CODE as u16));
}

fn invalid(device: &Device) {
    let machine = machine(device, with_exits(device, KVM_MSR_EXIT_REASON_INVAL));
    // Reserved bits of EFER.
    machine.vcpu.edit_regs(|r| (r.rip, r.rcx, r.rax, r.rdx) = (CODE + 2, 0xc000_0080, 0, 0x100));
    let reason = KVM_MSR_EXIT_REASON_INVAL;
    assert_eq!(machine.vcpu.run(), Exit::WriteMsr { reason, index: 0xc000_0080, data: 0x100 << 32 });
    answer(&machine, 1, 0);
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vcpu.regs().rsi, 13);
}

/// A filter that denies accesses of the kinds in `flags` to STAR only.
fn deny_star(vm: &Vm, flags: u32) -> Result<i32, Errno> {
    let bitmap = Memory::new(4096);
    bitmap.set_u8(0, 0b1111_1101);
    let mut filter = KvmMsrFilter { flags: KVM_MSR_FILTER_DEFAULT_ALLOW, ..KvmMsrFilter::zeroed() };
    filter.ranges[0] = KvmMsrFilterRange { flags, nmsrs: 8, base: 0xc000_0080, pad: 0, bitmap: bitmap.address() };
    vm.fd.put(KVM_X86_SET_MSR_FILTER, &filter)
}

fn faults(device: &Device) {
    let machine = machine(device, device.vm());
    deny_star(&machine.vm, KVM_MSR_FILTER_WRITE).expect("KVM_X86_SET_MSR_FILTER");
    machine.vcpu.set_msr(STAR, 0x1234);
    machine.vcpu.edit_regs(|r| r.rcx = STAR.into());
    machine.vcpu.run_to_hlt();
    // Read, but not written; the client's own calls are not filtered.
    let regs = machine.vcpu.regs();
    assert_eq!((regs.rsi, regs.rax, machine.memory.u16(0x7ffa)), (13, 0x1234, CODE as u16 + 2));
    assert!(machine.vcpu.set_msr(STAR, 0x5678));
}

fn exits(device: &Device) {
    let machine = machine(device, with_exits(device, KVM_MSR_EXIT_REASON_FILTER));
    deny_star(&machine.vm, KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE).expect("KVM_X86_SET_MSR_FILTER");
    machine.vcpu.edit_regs(|r| r.rcx = STAR.into());
    let reason = KVM_MSR_EXIT_REASON_FILTER;
    assert_eq!(machine.vcpu.run(), Exit::ReadMsr { reason, index: STAR });
    answer(&machine, 0, 7);
    assert_eq!(machine.vcpu.run(), Exit::WriteMsr { reason, index: STAR, data: 7 });
    answer(&machine, 0, 0);
    machine.vcpu.run_to_hlt();
    assert_eq!((machine.vcpu.msr(STAR), machine.vcpu.regs().rsi), (Some(0), 0));
    // Its neighbour in the bitmap is allowed.
    machine.vcpu.edit_regs(|r| (r.rip, r.rcx) = (CODE, 0xc000_0082));
    machine.vcpu.run_to_hlt();
}

fn removed(device: &Device) {
    let machine = machine(device, device.vm());
    deny_star(&machine.vm, KVM_MSR_FILTER_READ).expect("KVM_X86_SET_MSR_FILTER");
    machine.vcpu.edit_regs(|r| r.rcx = STAR.into());
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vcpu.regs().rsi, 13);
    machine.vm.fd.put(KVM_X86_SET_MSR_FILTER, &KvmMsrFilter::zeroed()).expect("an empty filter");
    machine.vcpu.edit_regs(|r| (r.rip, r.rcx, r.rsi) = (CODE, STAR.into(), 0));
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vcpu.regs().rsi, 0);
}

fn errors(device: &Device) {
    let vm = device.vm();
    let set = |flags, range| {
        let mut filter = KvmMsrFilter { flags, ..KvmMsrFilter::zeroed() };
        filter.ranges[3] = range;
        vm.fd.put(KVM_X86_SET_MSR_FILTER, &filter)
    };
    let bitmap = Memory::new(8192);
    let good = KvmMsrFilterRange { flags: 3, nmsrs: 64, base: 0, pad: 0, bitmap: bitmap.address() };
    assert_eq!(set(0, good), Ok(0));
    assert_eq!(set(1 << 5, good), Err(Errno::EINVAL), "flags");
    assert_eq!(set(0, KvmMsrFilterRange { flags: 1 << 5, ..good }), Err(Errno::EINVAL), "flags of a range");
    assert_eq!(set(0, KvmMsrFilterRange { nmsrs: 0x600 * 8 + 1, ..good }), Err(Errno::EINVAL), "too many MSRs");
    assert_eq!(set(0, KvmMsrFilterRange { bitmap: Address::BAD[1].get(), ..good }), Err(Errno::EFAULT), "no bitmap");
    // Nothing allowed at all makes no sense.
    let deny_all = KvmMsrFilter { flags: KVM_MSR_FILTER_DEFAULT_DENY, ..KvmMsrFilter::zeroed() };
    assert_eq!(vm.fd.put(KVM_X86_SET_MSR_FILTER, &deny_all), Err(Errno::EINVAL));
    assert_eq!(vm.enable(KVM_CAP_X86_USER_SPACE_MSR, [1 << 20, 0, 0, 0]), Err(Errno::EINVAL));
}
