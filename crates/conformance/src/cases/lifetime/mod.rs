//! Descriptors of VMs and vCPUs: any order of closing, copies, half-built machines, other processes ([`processes`]).
mod processes;

use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno, Fd},
    runner::{Case, case},
    vm::{CODE, Exit, RealMode, Vm, assemble, until, while_running},
};

pub(super) const CASES: &[Case] = &[
    case("closing-in-every-order", "A02", every_order),
    case("a-copy-of-a-descriptor-is-the-same", "A02", copies),
    case("closed-descriptors-are-EBADF", "A02", closed),
    case("half-built-machines-can-be-closed", "A02", half_built),
    case("a-vm-closed-under-a-running-vcpu", "A02", vm_closed),
    case("a-vcpu-closed-while-it-runs", "A02", vcpu_closed),
    case("a-range-of-descriptors-is-closed", "A02", range_closed),
    case("a-range-is-closed-under-a-running-vcpu", "A02", range_closed_while_it_runs),
    case("the-mapping-outlives-the-descriptor", "A02 A04", mapping_outlives),
    case("vcpu-numbers", "A02 D01", vcpu_numbers),
    case("one-of-two-threads-gets-the-number", "A02 D01", same_number_at_once),
    case("many-vms", "A02 D04", many_vms),
    case("many-vcpus", "A02 D01", many_vcpus),
    case("a-killed-process-ends-in-the-guest", "A02", processes::killed),
    case("a-stopped-process-continues", "A02", processes::stopped),
    case("another-process-may-not-use-a-vm", "A02", processes::another_process),
    case("children-of-a-running-guests-process-begin-anew", "A02", processes::children),
    case("children-while-vms-come-and-go", "A02 D04", processes::children_meanwhile),
    case("a-process-changes-its-group", "A02 E01", processes::group),
];

/// OUT in a loop.
fn outs() -> Vec<u8> {
    assemble(16, CODE, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.out(0x10, al)?;
        a.jmp(start)
    })
}

/// Counts at 0x500 for ever.
pub(crate) fn counter(device: &Device) -> RealMode {
    RealMode::spinning(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.inc(dword_ptr(0x500))?;
        a.jmp(start)
    })
}

fn every_order(device: &Device) {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let kvm = device.again();
        let vm = Vm::new(kvm.make(KVM_CREATE_VM, 0).expect("a VM"), device.run_bytes());
        let RealMode { vm, vcpu, .. } = RealMode::with_code(vm, &outs());
        let (page, parts) = (vcpu.page, [kvm, vm.fd, vcpu.fd]);
        for (n, closes) in order.into_iter().enumerate() {
            assert_eq!(parts[closes].close(), Ok(()));
            if !order[..=n].contains(&2) {
                assert_eq!(parts[2].number(KVM_RUN, 0), Ok(0), "order {order:?}, step {n}");
                assert_eq!(Exit::of(page), Exit::out8(0x10, 0));
            }
        }
    }
}

fn copies(device: &Device) {
    let machine = RealMode::with_code(device.vm(), &outs());
    let vm = machine.vm.fd.dup().expect("dup");
    let vcpu = machine.vcpu.fd.dup().expect("dup");
    assert_ne!(vcpu.raw(), machine.vcpu.fd.raw());
    machine.vcpu.edit_regs(|r| r.rbx = 0x1234);
    assert_eq!(vcpu.get::<KvmRegs>(KVM_GET_REGS).map(|r| r.rbx), Ok(0x1234));
    assert_eq!(machine.vm.fd.close(), Ok(()));
    assert_eq!(machine.vcpu.fd.close(), Ok(()));
    assert_eq!(vcpu.number(KVM_RUN, 0), Ok(0));
    assert_eq!(Exit::of(machine.vcpu.page), Exit::out8(0x10, 0));
    assert!(vm.make(KVM_CREATE_VCPU, 1).is_ok());
}

fn closed(device: &Device) {
    let machine = RealMode::with_code(device.vm(), &outs());
    machine.vcpu.fd.close().expect("close");
    machine.vm.fd.close().expect("close");
    assert_eq!(machine.vcpu.fd.number(KVM_RUN, 0), Err(Errno::EBADF));
    assert_eq!(machine.vcpu.fd.get::<KvmRegs>(KVM_GET_REGS), Err(Errno::EBADF));
    assert_eq!(machine.vm.fd.number(KVM_CREATE_VCPU, 1), Err(Errno::EBADF));
    assert_eq!(machine.vm.fd.close(), Err(Errno::EBADF));
}

fn half_built(device: &Device) {
    for built in 0..6 {
        let vm = device.vm();
        match built {
            0 => {}
            1 => vm.irqchip(),
            2 => {
                vm.irqchip();
                vm.pit();
                vm.irq_line(0, true);
            }
            3 => drop(vm.memory(0, 0, 0x10000)),
            // A vCPU that nobody maps, and one that has no memory when it runs.
            4 => drop(vm.fd.make(KVM_CREATE_VCPU, 0).expect("a vCPU")),
            _ => {
                let vcpu = vm.vcpu(0);
                drop(vm);
                // The reset vector is in no memory: whatever comes of that, KVM_RUN returns.
                assert_ne!(vcpu.try_run(), Ok(Exit::Hlt));
            }
        }
    }
}

fn vm_closed(device: &Device) {
    let RealMode { vm, memory, vcpu } = counter(device);
    let (exit, ()) = while_running(&vcpu, |running| {
        until("the guest to count", || memory.u32(0x500) != 0);
        drop(vm);
        let before = memory.u32(0x500);
        until("the guest to go on", || memory.u32(0x500) != before);
        running.stop();
    });
    assert_eq!(exit, Err(Errno::EINTR));
    assert_eq!(vcpu.page.exit_reason(), KVM_EXIT_INTR);
    vcpu.regs();
}

fn vcpu_closed(device: &Device) {
    let RealMode { vm, memory, vcpu } = counter(device);
    let (exit, ()) = while_running(&vcpu, |running| {
        until("the guest to count", || memory.u32(0x500) != 0);
        assert_eq!(vcpu.fd.close(), Ok(()));
        let before = memory.u32(0x500);
        until("the guest to go on", || memory.u32(0x500) != before);
        running.stop();
    });
    assert_eq!(exit, Err(Errno::EINTR));
    assert_eq!(vcpu.fd.number(KVM_RUN, 0), Err(Errno::EBADF));
    drop(vm);
}

/// `linux/close_range.h`.
const CLOSE_RANGE_CLOEXEC: u32 = 4;

fn range_closed(device: &Device) {
    let machine = RealMode::with_code(device.vm(), &outs());
    let (vm, vcpu) = (&machine.vm.fd, &machine.vcpu.fd);
    // Marked for exec, they are what they were.
    assert_eq!(Fd::close_range(&[vm, vcpu], CLOSE_RANGE_CLOEXEC), Ok(()));
    assert_eq!(machine.vcpu.run(), Exit::out8(0x10, 0));
    // The VM lives by the descriptor of its vCPU.
    assert_eq!(Fd::close_range(&[vm], 0), Ok(()));
    assert_eq!(vm.number(KVM_CREATE_VCPU, 1), Err(Errno::EBADF));
    assert_eq!(machine.vcpu.run(), Exit::out8(0x10, 0));
    assert_eq!(Fd::close_range(&[vcpu], 0), Ok(()));
    assert_eq!(vcpu.number(KVM_RUN, 0), Err(Errno::EBADF));
    assert_eq!(Exit::of(machine.vcpu.page), Exit::out8(0x10, 0));
    // The numbers are free for others.
    let again = RealMode::with_code(device.vm(), &outs());
    assert_eq!(again.vcpu.run(), Exit::out8(0x10, 0));
}

fn range_closed_while_it_runs(device: &Device) {
    let RealMode { vm, memory, vcpu } = counter(device);
    let (exit, ()) = while_running(&vcpu, |running| {
        until("the guest to count", || memory.u32(0x500) != 0);
        assert_eq!(Fd::close_range(&[&vm.fd, &vcpu.fd], 0), Ok(()));
        let before = memory.u32(0x500);
        until("the guest to go on", || memory.u32(0x500) != before);
        running.stop();
    });
    assert_eq!(exit, Err(Errno::EINTR));
    assert_eq!([vm.fd.number(KVM_CREATE_VCPU, 1), vcpu.fd.number(KVM_RUN, 0)], [Err(Errno::EBADF); 2]);
}

fn mapping_outlives(device: &Device) {
    let machine = RealMode::with_code(device.vm(), &outs());
    machine.vcpu.run();
    let page = machine.vcpu.page;
    drop(machine.vcpu);
    drop(machine.vm);
    assert_eq!(Exit::of(page), Exit::out8(0x10, 0));
    page.set_immediate_exit(true);
    // Others that are made meanwhile have pages of their own.
    let other = device.vm().vcpu(0);
    assert_eq!(other.page.0.u8(KVM_RUN_IMMEDIATE_EXIT_OFFSET), 0);
}

fn vcpu_numbers(device: &Device) {
    let vm = device.vm();
    let limit = match device.cap(KVM_CAP_MAX_VCPU_ID) {
        0 => device.cap(KVM_CAP_NR_VCPUS),
        limit => limit,
    } as u64;
    for id in [limit, limit + 1, 0xffff_ffff] {
        assert_eq!(vm.fd.make(KVM_CREATE_VCPU, id).err(), Some(Errno::EINVAL), "id {id}");
    }
    let _last = vm.fd.make(KVM_CREATE_VCPU, limit - 1).expect("the highest number");
    let _first = vm.fd.make(KVM_CREATE_VCPU, 0).expect("the lowest number");
    assert_eq!(vm.fd.make(KVM_CREATE_VCPU, 0).err(), Some(Errno::EEXIST));
}

fn same_number_at_once(device: &Device) {
    for _ in 0..20 {
        let vm = device.vm();
        let made = std::thread::scope(|scope| {
            let threads = [0; 4].map(|_| scope.spawn(|| vm.fd.make(KVM_CREATE_VCPU, 3).map(drop)));
            threads.map(|thread| thread.join().expect("a thread"))
        });
        assert_eq!(made.iter().filter(|answer| answer.is_ok()).count(), 1, "{made:?}");
        assert!(made.iter().all(|answer| matches!(answer, Ok(()) | Err(Errno::EEXIST))), "{made:?}");
    }
}

fn many_vms(device: &Device) {
    let machines: Vec<_> = (0..24).map(|_| RealMode::with_code(device.vm(), &outs())).collect();
    machines.iter().for_each(|machine| assert_eq!(machine.vcpu.run(), Exit::out8(0x10, 0)));
    drop(machines);
    for _ in 0..100 {
        device.vm();
    }
}

fn many_vcpus(device: &Device) {
    let vm = device.vm();
    let memory = vm.memory(0, 0, 0x10000);
    memory.write(CODE as usize, &outs());
    let count = device.cap(KVM_CAP_NR_VCPUS).clamp(1, 16) as u32;
    let vcpus: Vec<_> = (0..count).map(|id| vm.vcpu(id)).collect();
    for vcpu in vcpus.iter().rev() {
        RealMode::start(vcpu, CODE);
        vcpu.edit_regs(|r| r.rax = 7);
        assert_eq!(vcpu.run(), Exit::out8(0x10, 7));
    }
}
