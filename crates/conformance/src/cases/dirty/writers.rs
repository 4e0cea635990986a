//! Who writes.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Memory},
    vm::{CODE, Exit, RealMode, at, until, while_running},
};

const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;
/// Pages of the logged slot, which begins at 0x20000.
const PAGES: usize = 16;

/// A machine with slot 1 at 0x20000 and DS and ES there.
fn machine(
    device: &Device,
    flags: u32,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> (RealMode, Memory) {
    let machine = RealMode::new(device, |a| {
        code(a)?;
        a.hlt()
    });
    let memory = Memory::new(PAGES << 12);
    machine.vm.set_slot(1, flags, 0x20000, memory).expect("a slot");
    machine.vcpu.edit_sregs(|s| {
        at(&mut s.ds, 0x20000);
        at(&mut s.es, 0x20000);
    });
    (machine, memory)
}

fn again(machine: &RealMode) {
    machine.vcpu.edit_regs(|r| r.rip = CODE);
    machine.vcpu.run_to_hlt();
}

pub(super) fn once(device: &Device) {
    let (machine, _) = machine(device, LOG, |a| {
        a.mov(byte_ptr(0x3000), al)?;
        a.mov(word_ptr(0x5ffe), ax)?;
        a.mov(dword_ptr(0xf000), eax)
    });
    assert_eq!(machine.vm.dirty(1, PAGES), []);
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vm.dirty(1, PAGES), [3, 5, 15]);
    assert_eq!(machine.vm.dirty(1, PAGES), []);
    for _ in 0..3 {
        again(&machine);
        assert_eq!(machine.vm.dirty(1, PAGES), [3, 5, 15]);
    }
}

pub(super) fn enabled_later(device: &Device) {
    let (machine, memory) = machine(device, 0, |a| a.inc(word_ptr(0x4000)));
    // Mapped for writing before the log is there.
    machine.vcpu.run_to_hlt();
    machine.vm.set_slot(1, LOG, 0x20000, memory).expect("logging");
    assert_eq!(machine.vm.dirty(1, PAGES), []);
    again(&machine);
    assert_eq!((machine.vm.dirty(1, PAGES), memory.u16(0x4000)), (vec![4], 2));
}

pub(super) fn reads(device: &Device) {
    let (machine, _) = machine(device, LOG, |a| {
        a.mov(ax, word_ptr(0x1000))?;
        a.cmp(byte_ptr(0x2000), 0)?;
        a.lodsb()?;
        // A write of what is there already is a write.
        a.mov(byte_ptr(0x6000), 0)
    });
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vm.dirty(1, PAGES), [6]);
}

pub(super) fn code(device: &Device) {
    let (machine, memory) = machine(device, LOG, |a| {
        // CALL 0x2000:0x5000
        a.db(&[0x9a, 0x00, 0x50, 0x00, 0x20])
    });
    memory.write(0x5000, &[0xcb]);
    assert_eq!(machine.vm.dirty(1, PAGES), []);
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vm.dirty(1, PAGES), [5]);
    again(&machine);
    assert_eq!(machine.vm.dirty(1, PAGES), []);
}

pub(super) fn crossing(device: &Device) {
    let (machine, _) = machine(device, LOG, |a| {
        a.mov(dword_ptr(0x1ffd), eax)?;
        a.add(word_ptr(0x7fff), 1)
    });
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vm.dirty(1, PAGES), [1, 2, 7, 8]);
}

pub(super) fn emulator(device: &Device) {
    // From a device into logged memory.
    let (machine, memory) = machine(device, LOG, |a| {
        a.movsw()?;
        a.pop(word_ptr(0x9000))?;
        a.mov(bx, word_ptr(0).fs())?;
        a.mov(word_ptr(0xa000), bx)
    });
    let vcpu = &machine.vcpu;
    vcpu.edit_sregs(|s| {
        at(&mut s.ds, 0x50000);
        at(&mut s.ss, 0x60000);
        at(&mut s.fs, 0x70000);
    });
    vcpu.edit_regs(|r| r.rdi = 0x3ffe);
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x50000, len: 2 });
    vcpu.edit_sregs(|_| ());
    vcpu.answer(&[1, 2]);
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x68000, len: 2 });
    assert_eq!((machine.vm.dirty(1, PAGES), memory.u16(0x3ffe)), (vec![3], 0x201));
}

pub(super) fn string_input(device: &Device) {
    let (machine, memory) = machine(device, LOG, |a| a.rep().insw());
    let vcpu = &machine.vcpu;
    vcpu.edit_regs(|r| (r.rcx, r.rdi, r.rdx) = (3, 0x4ffd, 0x60));
    while let Exit::In { count, .. } = vcpu.run() {
        vcpu.answer(&vec![0x77; 2 * count as usize]);
    }
    assert_eq!(memory.read(0x4ffc, 8), [0, 0x77, 0x77, 0x77, 0x77, 0x77, 0x77, 0]);
    assert_eq!(machine.vm.dirty(1, PAGES), [4, 5]);
}

pub(super) fn delivery(device: &Device) {
    let (machine, memory) = machine(device, 0, |a| a.int(0x40));
    machine.set_vector(0x40, 0x3000);
    machine.put_code(0x3000, |a| a.hlt());
    let vcpu = &machine.vcpu;
    vcpu.edit_sregs(|s| at(&mut s.ss, 0x20000));
    // The stack is mapped for writing, then loses that: delivery meets a page that cannot be written.
    for n in 0..5u64 {
        machine.vm.set_slot(1, if n % 2 == 0 { LOG } else { 0 }, 0x20000, memory).expect("a change of flags");
        vcpu.edit_regs(|r| (r.rip, r.rsp) = (CODE, 0x3004));
        vcpu.run_to_hlt();
        assert_eq!(vcpu.regs().rsp, 0x2ffe);
        if n % 2 == 0 {
            assert_eq!(machine.vm.dirty(1, PAGES), [2, 3]);
        }
    }
}

pub(super) fn locked(device: &Device) {
    let (machine, _) = machine(device, LOG, |a| {
        a.lock().inc(word_ptr(0x1000))?;
        a.xchg(word_ptr(0x3000), ax)?;
        a.lock().cmpxchg(word_ptr(0x5000), bx)?;
        a.lock().bts(word_ptr(0x7000), 3)
    });
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vm.dirty(1, PAGES), [1, 3, 5, 7]);
}

pub(super) fn vcpus(device: &Device) {
    let (machine, _) = machine(device, LOG, |a| a.mov(byte_ptr(0x1000), 1));
    let second = machine.vm.vcpu(1);
    RealMode::start(&second, 0x2000);
    machine.put_code(0x2000, |a| {
        a.mov(byte_ptr(0x8000), 1)?;
        a.hlt()
    });
    second.edit_sregs(|s| at(&mut s.ds, 0x20000));
    for _ in 0..3 {
        again(&machine);
        second.edit_regs(|r| r.rip = 0x2000);
        second.run_to_hlt();
        assert_eq!(machine.vm.dirty(1, PAGES), [1, 8]);
    }
}

pub(super) fn running(device: &Device) {
    let machine = RealMode::spinning(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.inc(dword_ptr(0x3000))?;
        a.jmp(start)
    });
    let memory = Memory::new(PAGES << 12);
    machine.vm.set_slot(1, LOG, 0x20000, memory).expect("a slot");
    machine.vcpu.edit_sregs(|s| at(&mut s.ds, 0x20000));
    let (_, ()) = while_running(&machine.vcpu, |running| {
        for _ in 0..20 {
            let before = memory.u32(0x3000);
            until("the guest to count", || memory.u32(0x3000) != before);
            // It writes without end: whatever is taken, what comes later is marked again.
            assert_eq!(machine.vm.dirty(1, PAGES), [3]);
            let before = memory.u32(0x3000);
            until("the guest to count", || memory.u32(0x3000) != before);
        }
        running.stop();
    });
    assert_eq!(machine.vm.dirty(1, PAGES), [3]);
}

pub(super) fn clock(device: &Device) {
    let (machine, memory) = machine(device, LOG, |a| a.nop());
    machine.vcpu.support_all(device);
    // MSR_KVM_SYSTEM_TIME_NEW, enabled.
    assert!(machine.vcpu.set_msr(0x4b56_4d01, 0x2_6041));
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vm.dirty(1, PAGES), [6]);
    let version = memory.u32(0x6040);
    assert!(version != 0 && version.is_multiple_of(2), "version {version}");
}
