//! Interrupts that the client injects, NMI, and the task priority, without interrupt controllers in the hypervisor.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno, Memory},
    runner::{Case, case},
    vm::{CODE, Exit, RealMode, at, in_shadow, while_running},
};

mod window;

pub(super) const CASES: &[Case] = &[
    case("an-interrupt-is-delivered", "A12", delivered),
    case("pending-interrupts-stand-in-the-bitmap", "A12", bitmap),
    case("an-interrupt-set-by-the-bitmap", "A12", set_by_bitmap),
    case("vectors-that-do-not-exist", "A12", bad_vector),
    case("not-with-controllers-in-the-hypervisor", "A12", with_irqchip),
    case("hlt-goes-on-with-an-interrupt", "A12 D06", after_hlt),
    case("none-is-lost-when-the-run-ends-first", "A12 A09", run_ends_first),
    case("none-is-lost-in-a-storm-of-signals", "A12 A09", storm),
    case("delivery-to-a-stack-that-was-write-protected", "A12 A17", protected_stack),
    case("an-open-window-exits", "A12", window::exits),
    case("no-window-in-the-shadow-of-sti", "A12", window::sti),
    case("no-window-between-sti-and-mov-ss", "A12", window::mov_ss),
    case("popf-has-no-shadow", "A12", window::popf),
    case("an-open-window-does-not-wait", "A12", window::open_at_once),
    case("nmi", "A12", nmi).needs(KVM_CAP_USER_NMI),
    case("nmi-waits-behind-sti", "A12", nmi_behind_sti).needs(KVM_CAP_USER_NMI).needs(KVM_CAP_VCPU_EVENTS),
    case("nmi-takes-no-argument", "A12", nmi_argument).needs(KVM_CAP_USER_NMI),
    case("one-nmi-waits-for-iret", "A12", nmi_waits)
        .needs(KVM_CAP_USER_NMI)
        .restricted("an NMI in real mode is delivered by Linux itself, and blocks no other"),
    case("task-priority-in", "A13", tpr_in),
    case("task-priority-out", "A13 C05", tpr_out),
    case("task-priority-lowered", "A13 A05", tpr_lowered),
    case("impossible-task-priority", "A13", tpr_impossible),
];

/// Vector 0x40 counts at 0x600.
fn with_handler(device: &Device, code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> RealMode {
    let machine = RealMode::new(device, code);
    machine.set_vector(0x40, 0x3000);
    machine.put_code(0x3000, |a| {
        a.inc(word_ptr(0x600))?;
        a.iret()
    });
    machine
}

fn delivered(device: &Device) {
    let machine = with_handler(device, |a| {
        a.inc(bx)?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    vcpu.edit_regs(|r| r.rflags = 0x202);
    vcpu.interrupt(0x40).expect("KVM_INTERRUPT");
    vcpu.run_to_hlt();
    // Flags, CS, IP: taken before the first instruction, and back again.
    assert_eq!((machine.memory.u16(0x600), machine.memory.u16(0x7ffa), machine.memory.u16(0x7ffe)), (1, 0x1000, 0x202));
    let regs = vcpu.regs();
    assert_eq!((regs.rbx, regs.rsp, regs.rflags & 0x200), (1, 0x8000, 0x200));
}

fn bitmap(device: &Device) {
    let machine = with_handler(device, |a| a.hlt());
    assert_eq!(machine.vcpu.sregs().interrupt_bitmap, [0; 4]);
    machine.vcpu.edit_regs(|r| r.rflags = 0x202);
    machine.vcpu.interrupt(0x40).expect("KVM_INTERRUPT");
    assert_eq!(machine.vcpu.sregs().interrupt_bitmap, [0, 1, 0, 0]);
    machine.vcpu.run_to_hlt();
    assert_eq!((machine.vcpu.sregs().interrupt_bitmap, machine.memory.u16(0x600)), ([0; 4], 1));
}

fn set_by_bitmap(device: &Device) {
    let machine = with_handler(device, |a| a.hlt());
    machine.vcpu.edit_regs(|r| r.rflags = 0x202);
    machine.vcpu.edit_sregs(|s| s.interrupt_bitmap = [0, 1, 0, 0]);
    assert_eq!(machine.vcpu.sregs().interrupt_bitmap, [0, 1, 0, 0]);
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.memory.u16(0x600), 1);
}

fn bad_vector(device: &Device) {
    let machine = with_handler(device, |a| a.hlt());
    for vector in [256, 1000, u32::MAX] {
        assert_eq!(machine.vcpu.interrupt(vector), Err(Errno::EINVAL));
    }
    machine.vcpu.run_to_hlt();
}

fn with_irqchip(device: &Device) {
    let vm = device.vm();
    vm.irqchip();
    assert_eq!(vm.vcpu(0).interrupt(0x40), Err(Errno::ENXIO));
}

fn after_hlt(device: &Device) {
    let machine = with_handler(device, |a| {
        a.sti()?;
        a.hlt()?;
        a.inc(bx)?;
        a.hlt()
    });
    machine.vcpu.run_to_hlt();
    machine.vcpu.interrupt(0x40).expect("KVM_INTERRUPT");
    machine.vcpu.run_to_hlt();
    assert_eq!((machine.memory.u16(0x600), machine.memory.u16(0x7ffa), machine.vcpu.regs().rbx), (1, 0x1002, 1));
}

fn run_ends_first(device: &Device) {
    let machine = with_handler(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.inc(bx)?;
        a.hlt()?;
        a.jmp(start)
    });
    let vcpu = &machine.vcpu;
    vcpu.edit_regs(|r| r.rflags = 0x202);
    for n in 1..50u16 {
        vcpu.interrupt(0x40).expect("KVM_INTERRUPT");
        vcpu.page.set_immediate_exit(true);
        assert_eq!(vcpu.try_run(), Err(Errno::EINTR));
        vcpu.page.set_immediate_exit(false);
        assert_eq!(vcpu.sregs().interrupt_bitmap, [0, 1, 0, 0]);
        vcpu.run_to_hlt();
        assert_eq!(machine.memory.u16(0x600), n);
    }
}

fn storm(device: &Device) {
    let machine = with_handler(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.inc(dword_ptr(0x500))?;
        a.jmp(start)
    });
    let vcpu = &machine.vcpu;
    vcpu.edit_regs(|r| r.rflags = 0x202);
    vcpu.page.request_interrupt_window(true);
    for n in 0..60u16 {
        // A signal may come before the window; then once more.
        let (exit, ()) = while_running(vcpu, |running| {
            if !running.done() && n % 3 != 0 {
                running.thread().signal(libc::SIGUSR1);
            }
        });
        match exit {
            Ok(Exit::IrqWindow) | Err(Errno::EINTR) => {}
            other => panic!("{other:?}"),
        }
        if vcpu.page.ready_for_interrupt() {
            vcpu.interrupt(0x40).expect("KVM_INTERRUPT");
            machine.memory.set_u16(0x700, machine.memory.u16(0x700) + 1);
        }
    }
    // The last is delivered on the way to the next window.
    while vcpu.try_run() != Ok(Exit::IrqWindow) {}
    assert!(machine.memory.u16(0x700) > 10);
    assert_eq!(machine.memory.u16(0x600), machine.memory.u16(0x700));
}

fn protected_stack(device: &Device) {
    let machine = with_handler(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.hlt()?;
        a.jmp(start)
    });
    let (vm, vcpu, stack) = (&machine.vm, &machine.vcpu, Memory::new(0x4000));
    vm.set_slot(1, 0, 0x20000, stack).expect("a slot");
    vcpu.edit_sregs(|s| at(&mut s.ss, 0x20000));
    vcpu.edit_regs(|r| (r.rsp, r.rflags) = (0x3000, 0x202));
    for n in 1..10u16 {
        // The page of the stack is mapped, then write-protected by logging, then gone from the tables altogether.
        match n % 3 {
            0 => vm.set_slot(1, KVM_MEM_LOG_DIRTY_PAGES, 0x20000, stack),
            1 => vm.set_slot(1, 0, 0x20000, stack),
            _ => vm.delete_slot(1).and_then(|_| vm.set_slot(1, 0, 0x20000, stack)),
        }
        .expect("a slot");
        vcpu.interrupt(0x40).expect("KVM_INTERRUPT");
        vcpu.run_to_hlt();
        assert_eq!(machine.memory.u16(0x600), n);
    }
}

/// NMI counts at 0x602 and tells port 0x20.
fn with_nmi_handler(device: &Device) -> RealMode {
    let machine = RealMode::new(device, |a| {
        a.inc(bx)?;
        a.hlt()
    });
    machine.set_vector(2, 0x3000);
    machine.put_code(0x3000, |a| {
        a.inc(word_ptr(0x602))?;
        a.out(0x20, al)?;
        a.iret()
    });
    machine
}

fn nmi(device: &Device) {
    let machine = with_nmi_handler(device);
    let vcpu = &machine.vcpu;
    // RFLAGS.IF is 0, which does not matter.
    assert_eq!(vcpu.fd.number(KVM_NMI, 0), Ok(0));
    assert_eq!(vcpu.run(), Exit::out8(0x20, 0));
    assert_eq!((machine.memory.u16(0x602), machine.memory.u16(0x7ffa), vcpu.regs().rbx), (1, 0x1000, 0));
    vcpu.run_to_hlt();
    assert_eq!((machine.memory.u16(0x602), vcpu.regs().rbx), (1, 1));
}

/// The guest has executed STI, and not the instruction behind it.
fn nmi_behind_sti(device: &Device) {
    let start = || {
        let machine = with_nmi_handler(device);
        let vcpu = &machine.vcpu;
        // What Bochs has held back is lost when the code's page is faulted in (VMexit_Event in vmexit.cc), so that this is done before.
        let mut start = vcpu.regs();
        vcpu.run_to_hlt();
        start.rflags |= 1 << 9;
        vcpu.set_regs(&start);
        let mut events = vcpu.events();
        (events.flags, events.interrupt.shadow) = (KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_STI);
        vcpu.fd.put(KVM_SET_VCPU_EVENTS, &events).expect("KVM_SET_VCPU_EVENTS");
        vcpu.fd.number(KVM_NMI, 0).expect("KVM_NMI");
        assert_eq!(vcpu.run(), Exit::out8(0x20, 0));
        machine
    };
    let machine = in_shadow(device, start, |machine| machine.memory.u16(0x7ffa) == 0x1001);
    assert_eq!((machine.memory.u16(0x7ffa), machine.vcpu.regs().rbx), (0x1001, 1));
}

/// What stands there is not looked at.
fn nmi_argument(device: &Device) {
    let machine = with_nmi_handler(device);
    assert_eq!(machine.vcpu.fd.number(KVM_NMI, 0x1234), Ok(0));
    assert_eq!(machine.vcpu.run(), Exit::out8(0x20, 0));
}

fn nmi_waits(device: &Device) {
    let machine = with_nmi_handler(device);
    let vcpu = &machine.vcpu;
    vcpu.fd.number(KVM_NMI, 0).expect("KVM_NMI");
    assert_eq!(vcpu.run(), Exit::out8(0x20, 0));
    // In the handler: of any number, one waits.
    for _ in 0..3 {
        vcpu.fd.number(KVM_NMI, 0).expect("KVM_NMI");
    }
    assert_eq!(vcpu.run(), Exit::out8(0x20, 0));
    assert_eq!((machine.memory.u16(0x602), vcpu.regs().rbx), (2, 0));
    vcpu.run_to_hlt();
    assert_eq!((machine.memory.u16(0x602), vcpu.regs().rbx), (2, 1));
}

fn long(device: &Device, code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> RealMode {
    let machine = RealMode::new(device, |a| a.hlt());
    machine.go_long(device, CODE, code);
    machine
}

fn tpr_in(device: &Device) {
    let machine = long(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.mov(rax, cr8)?;
        a.hlt()?;
        a.jmp(start)
    });
    for tpr in [5, 0, 15] {
        machine.vcpu.page.set_cr8(tpr);
        machine.vcpu.run_to_hlt();
        assert_eq!((machine.vcpu.regs().rax, machine.vcpu.sregs().cr8, machine.vcpu.page.cr8()), (tpr, tpr, tpr));
    }
}

fn tpr_out(device: &Device) {
    let machine = long(device, |a| {
        a.mov(eax, 3)?;
        a.mov(cr8, rax)?;
        a.hlt()?;
        a.mov(eax, 9)?;
        a.mov(cr8, rax)?;
        a.hlt()
    });
    for tpr in [3, 9] {
        machine.vcpu.run_to_hlt();
        assert_eq!((machine.vcpu.page.cr8(), machine.vcpu.sregs().cr8), (tpr, tpr));
    }
}

fn tpr_lowered(device: &Device) {
    let machine = long(device, |a| {
        a.mov(eax, 2)?;
        a.mov(cr8, rax)?;
        a.hlt()
    });
    machine.vcpu.page.set_cr8(7);
    // The client may have an interrupt that can be delivered now.
    assert_eq!(machine.vcpu.run(), Exit::SetTpr);
    assert_eq!(machine.vcpu.page.cr8(), 2);
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vcpu.page.cr8(), 2);
}

fn tpr_impossible(device: &Device) {
    let machine = long(device, |a| a.hlt());
    for tpr in [16, u64::MAX] {
        machine.vcpu.page.set_cr8(tpr);
        assert_eq!(machine.vcpu.try_run(), Err(Errno::EINVAL));
    }
    machine.vcpu.page.set_cr8(0);
    machine.vcpu.run_to_hlt();
}
