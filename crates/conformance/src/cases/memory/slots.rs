//! Slots that come, go and move between runs.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Memory},
    vm::{Exit, RealMode, Vcpu, at},
};

/// Reads the word at DS:0 into AX and halts, for ever; DS is at 0x20000, where nothing is yet.
pub(super) fn reader(device: &Device) -> RealMode {
    let machine = RealMode::new(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.mov(ax, word_ptr(0))?;
        a.hlt()?;
        a.jmp(start)
    });
    machine.vcpu.edit_sregs(|s| at(&mut s.ds, 0x20000));
    machine
}

fn reads(vcpu: &Vcpu, value: u64) {
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rax & 0xffff, value);
}

fn reads_nothing(vcpu: &Vcpu) {
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20000, len: 2 });
    vcpu.answer(&[0xee, 0xee]);
    reads(vcpu, 0xeeee);
}

pub(super) fn create_delete(device: &Device) {
    let machine = reader(device);
    let (vm, vcpu) = (&machine.vm, &machine.vcpu);
    reads_nothing(vcpu);
    let memory = vm.memory(1, 0x20000, 0x3000);
    memory.set_u16(0, 0x1234);
    reads(vcpu, 0x1234);
    vm.delete_slot(1).expect("deletion");
    reads_nothing(vcpu);
    // The number can be used for something else.
    let other = vm.memory(1, 0x1f000, 0x2000);
    other.set_u16(0x1000, 0x5678);
    reads(vcpu, 0x5678);
    assert_eq!(memory.u16(0), 0x1234);
}

pub(super) fn move_slot(device: &Device) {
    let machine = reader(device);
    let (vm, vcpu) = (&machine.vm, &machine.vcpu);
    let memory = vm.memory(1, 0x20000, 0x2000);
    memory.set_u16(0, 0x1111);
    memory.set_u16(0x1000, 0x2222);
    reads(vcpu, 0x1111);
    vm.set_slot(1, 0, 0x1f000, memory).expect("a move down");
    reads(vcpu, 0x2222);
    vm.set_slot(1, 0, 0x30000, memory).expect("a move up");
    reads_nothing(vcpu);
    vcpu.edit_sregs(|s| at(&mut s.ds, 0x30000));
    reads(vcpu, 0x1111);
}

pub(super) fn same_memory(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.mov(word_ptr(4), 0x4321u32)?;
        a.mov(bx, word_ptr(4).es())?;
        a.hlt()
    });
    let memory = machine.vm.memory(1, 0x20000, 0x1000);
    machine.vm.set_slot(2, 0, 0x40000, memory).expect("a second slot");
    machine.vcpu.edit_sregs(|s| {
        at(&mut s.ds, 0x20000);
        at(&mut s.es, 0x40000);
    });
    machine.vcpu.run_to_hlt();
    assert_eq!((machine.vcpu.regs().rbx & 0xffff, memory.u16(4)), (0x4321, 0x4321));
}

pub(super) fn neighbours(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.mov(dword_ptr(0xffe), 0x4433_2211u32)?;
        a.mov(ebx, dword_ptr(0xffd))?;
        a.hlt()
    });
    let first = machine.vm.memory(1, 0x20000, 0x1000);
    let second = machine.vm.memory(2, 0x21000, 0x1000);
    machine.vcpu.edit_sregs(|s| at(&mut s.ds, 0x20000));
    machine.vcpu.run_to_hlt();
    assert_eq!((first.u16(0xffe), second.u16(0)), (0x2211, 0x4433));
    assert_eq!(machine.vcpu.regs().rbx, 0x3322_1100);
}

pub(super) fn many(device: &Device) {
    let machine = RealMode::new(device, |a| {
        let mut start = a.create_label();
        a.mov(cx, 200)?;
        a.set_label(&mut start)?;
        a.mov(ds, dx)?;
        a.add(word_ptr(0), cx)?;
        a.add(dx, 0x100)?;
        a.loop_(start)?;
        a.hlt()
    });
    let slots = (device.cap(KVM_CAP_NR_MEMSLOTS) as usize).min(201) - 1;
    assert!(slots >= 31, "{slots} slots");
    // Backwards, and each with memory of its own, so that neighbours stay apart.
    let memories: Vec<_> = (0..slots)
        .rev()
        .map(|n| {
            let memory = Memory::new(0x1000);
            machine.vm.set_slot(1 + n as u32, 0, 0x20000 + 0x1000 * n as u64, memory).expect("a slot");
            (n, memory)
        })
        .collect();
    machine.vcpu.edit_regs(|r| r.rdx = 0x2000);
    if slots == 200 {
        machine.vcpu.run_to_hlt();
        memories.iter().for_each(|(n, memory)| assert_eq!(memory.u16(0), 200 - *n as u16, "slot {n}"));
    }
    for n in 0..slots {
        machine.vm.delete_slot(1 + n as u32).expect("deletion");
    }
}

pub(super) fn read_only(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.mov(ax, word_ptr(0))?;
        a.mov(word_ptr(0), 0x7777u32)?;
        a.mov(bx, word_ptr(0))?;
        a.hlt()
    });
    let (vm, vcpu, memory) = (&machine.vm, &machine.vcpu, Memory::new(0x1000));
    memory.set_u16(0, 0x1234);
    vm.set_slot(1, KVM_MEM_READONLY, 0x20000, memory).expect("a read-only slot");
    vcpu.edit_sregs(|s| at(&mut s.ds, 0x20000));
    assert_eq!(vcpu.run(), Exit::write(0x20000, &[0x77, 0x77]));
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rax & 0xffff, regs.rbx & 0xffff, memory.u16(0)), (0x1234, 0x1234, 0x1234));
    // As the ROM of a flash chip: gone and back as memory.
    vm.delete_slot(1).expect("deletion");
    vm.set_slot(1, 0, 0x20000, memory).expect("a slot");
    vcpu.edit_regs(|r| r.rip = 0x1000);
    vcpu.run_to_hlt();
    assert_eq!(memory.u16(0), 0x7777);
}

pub(super) fn read_only_rmw(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.add(word_ptr(0), 1)?;
        a.lock().xadd(word_ptr(2), ax)?;
        a.movsw()?;
        a.hlt()
    });
    let (vcpu, memory) = (&machine.vcpu, Memory::new(0x1000));
    memory.set_u64(0, 0x4444_3333_2222_1111);
    machine.vm.set_slot(1, KVM_MEM_READONLY, 0x20000, memory).expect("a read-only slot");
    vcpu.edit_sregs(|s| {
        at(&mut s.ds, 0x20000);
        at(&mut s.es, 0x20000);
    });
    vcpu.edit_regs(|r| (r.rax, r.rsi, r.rdi) = (0x10, 4, 6));
    // Reads come from memory: only the writes are the client's.
    assert_eq!(vcpu.run(), Exit::write(0x20000, &[0x12, 0x11]));
    assert_eq!(vcpu.run(), Exit::write(0x20002, &[0x32, 0x22]));
    assert_eq!(vcpu.run(), Exit::write(0x20006, &[0x33, 0x33]));
    vcpu.run_to_hlt();
    assert_eq!((vcpu.regs().rax & 0xffff, memory.u64(0)), (0x2222, 0x4444_3333_2222_1111));
}

pub(super) fn read_only_code(device: &Device) {
    let machine = RealMode::new(device, |a| {
        // JMP 0x2000:0
        a.db(&[0xea, 0x00, 0x00, 0x00, 0x20])
    });
    let memory = Memory::new(0x1000);
    // INC BX; MOV CS:[0x10], AL; HLT
    memory.write(0, &[0x43, 0x2e, 0xa2, 0x10, 0x00, 0xf4]);
    machine.vm.set_slot(1, KVM_MEM_READONLY, 0x20000, memory).expect("a read-only slot");
    assert_eq!(machine.vcpu.run(), Exit::write(0x20010, &[0]));
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vcpu.regs().rbx & 0xffff, 1);
}
