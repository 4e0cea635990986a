//! KVM_RUN and the page that it shares: exits, immediate_exit, threads.
use std::time::Duration;

use abi::*;
use iced_x86::code_asm::*;

use super::lifetime::counter;
use crate::{
    device::{Device, Errno},
    runner::{Case, case},
    vm::{CODE, Exit, RealMode, RunPage, Vcpu, until, while_running},
};

mod scribbled;
mod shared_regs;

pub(super) const CASES: &[Case] = &[
    case("hlt-exits-and-goes-on", "A05 D06", hlt),
    case("a-triple-fault-is-a-shutdown", "A05", shutdown).needs(KVM_CAP_VCPU_EVENTS),
    case("immediate-exit-executes-nothing", "A05 A09", immediate_exit),
    case("what-every-exit-shows", "A04 A05 A12", what_exits_show),
    case("an-unmapped-run-page-is-kept", "A04", unmapped),
    case("each-run-in-another-thread", "A02", other_threads),
    case("registers-wait-for-the-running-vcpu", "A02", registers_wait),
    case("two-threads-in-one-vcpu", "A02", two_threads),
    case("vcpus-in-threads-of-their-own", "A02 D01", parallel),
    case("scribbled-while-port-io-is-served", "A04 A06", scribbled::pio),
    case("scribbled-while-device-memory-is-served", "A04 A07", scribbled::mmio),
    case("contradictions-in-a-pending-exit", "A04 A06 A07", scribbled::contradictions),
    case("registers-shared-at-exits", "A10", shared_regs::valid).needs(KVM_CAP_SYNC_REGS),
    case("registers-taken-from-the-page", "A10", shared_regs::dirty).needs(KVM_CAP_SYNC_REGS),
    case("unknown-classes-of-shared-registers", "A10", shared_regs::unknown).needs(KVM_CAP_SYNC_REGS),
];

fn hlt(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.hlt()?;
        a.inc(bx)?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rip, CODE + 1);
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rip, regs.rbx & 0xffff), (CODE + 3, 1));
}

fn shutdown(device: &Device) {
    let machine = RealMode::new(device, |a| a.int(0x20));
    // Paging on, with the first 4 MiB mapped and a vector table that is not: INT is #PF, which cannot be delivered, nor can #DF.
    machine.memory.set_u32(0x4000, 0x83);
    machine.vcpu.support_all(device);
    machine.vcpu.edit_sregs(|s| {
        (s.cr0, s.cr3, s.cr4) = (0x8000_0011, 0x4000, 0x10);
        (s.idt.base, s.idt.limit) = (0x80_0000, 0x7ff);
    });
    assert_eq!(machine.vcpu.run(), Exit::Shutdown);
    // The client resets it, with the double fault that Linux would deliver again, and it runs again.
    machine.vcpu.fd.put(KVM_SET_VCPU_EVENTS, &KvmVcpuEvents::default()).expect("KVM_SET_VCPU_EVENTS");
    machine.vcpu.edit_sregs(|s| {
        (s.cr0, s.cr3, s.cr4) = (0x10, 0, 0);
        (s.idt.base, s.idt.limit) = (0, 0x3ff);
    });
    machine.put_code(0x3000, |a| a.hlt());
    RealMode::start(&machine.vcpu, 0x3000);
    machine.vcpu.run_to_hlt();
}

fn immediate_exit(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.inc(bx)?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    vcpu.page.set_immediate_exit(true);
    for _ in 0..3 {
        assert_eq!(vcpu.try_run(), Err(Errno::EINTR));
    }
    let regs = vcpu.regs();
    assert_eq!((regs.rip, regs.rbx), (CODE, 0));
    // It is the client's to take back.
    assert_eq!(vcpu.page.0.u8(KVM_RUN_IMMEDIATE_EXIT_OFFSET), 1);
    vcpu.page.set_immediate_exit(false);
    vcpu.run_to_hlt();
}

fn what_exits_show(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.out(0x10, al)?;
        a.sti()?;
        a.nop()?;
        a.out(0x10, al)?;
        a.cli()?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    let shown = |page: RunPage| (page.if_flag(), page.ready_for_interrupt());
    vcpu.run();
    assert_eq!(shown(vcpu.page), (false, false));
    vcpu.run();
    assert_eq!(shown(vcpu.page), (true, true));
    vcpu.run_to_hlt();
    assert_eq!(shown(vcpu.page), (false, false));
    assert_eq!(vcpu.page.apic_base(), vcpu.sregs().apic_base);
    assert_eq!(vcpu.page.cr8(), 0);
}

fn unmapped(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.out(0x10, al)?;
        a.hlt()
    });
    let RealMode { vm, memory: _, vcpu: Vcpu { fd, page } } = machine;
    fd.unmap(page.0).expect("munmap");
    assert_eq!(fd.number(KVM_RUN, 0), Ok(0));
    let page = RunPage(fd.map(device.run_bytes(), 0).expect("a new mapping"));
    assert_eq!(Exit::of(page), Exit::out8(0x10, 0));
    drop(vm);
}

fn other_threads(device: &Device) {
    let machine = RealMode::new(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.inc(al)?;
        a.out(0x10, al)?;
        a.jmp(start)
    });
    for n in 1..20 {
        let (exit, ()) = while_running(&machine.vcpu, |_| ());
        assert_eq!(exit, Ok(Exit::out8(0x10, n)));
    }
}

fn registers_wait(device: &Device) {
    let machine = counter(device);
    let (vcpu, memory) = (&machine.vcpu, machine.memory);
    let (exit, ()) = while_running(vcpu, |running| {
        until("the guest to count", || memory.u32(0x500) != 0);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| vcpu.regs());
            std::thread::sleep(Duration::from_millis(30));
            assert!(!asking.is_finished(), "KVM_GET_REGS did not wait");
            running.stop();
            assert!(asking.join().is_ok_and(|regs| (CODE..CODE + 8).contains(&regs.rip)));
        });
    });
    assert_eq!(exit, Err(Errno::EINTR));
}

fn two_threads(device: &Device) {
    let machine = counter(device);
    let (vcpu, memory) = (&machine.vcpu, machine.memory);
    let (first, (second, ())) = while_running(vcpu, |first| {
        until("the guest to count", || memory.u32(0x500) != 0);
        while_running(vcpu, |second| {
            std::thread::sleep(Duration::from_millis(20));
            assert!(!first.done() && !second.done(), "KVM_RUN returned early");
            first.stop();
            second.stop();
        })
    });
    assert_eq!((first, second), (Err(Errno::EINTR), Err(Errno::EINTR)));
    assert!((CODE..CODE + 8).contains(&vcpu.regs().rip));
}

fn parallel(device: &Device) {
    let vm = device.vm();
    let memory = vm.memory(0, 0, 0x10000);
    let code = crate::vm::assemble(16, CODE, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.lock().inc(dword_ptr(0x500))?;
        a.dec(ecx)?;
        a.jnz(start)?;
        a.hlt()
    });
    memory.write(CODE as usize, &code);
    let vcpus: Vec<_> = (0..4).map(|id| vm.vcpu(id)).collect();
    std::thread::scope(|scope| {
        for vcpu in &vcpus {
            RealMode::start(vcpu, CODE);
            vcpu.edit_regs(|r| r.rcx = 2000);
            scope.spawn(|| vcpu.run_to_hlt());
        }
    });
    assert_eq!(memory.u32(0x500), 8000);
}
