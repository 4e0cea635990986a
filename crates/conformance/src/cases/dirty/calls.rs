//! KVM_GET_DIRTY_LOG as a call.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Address, Device, Errno, Memory, fenced},
    vm::{RealMode, at},
};

const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;

/// Writes a byte at ES:0 and halts, for ever.
fn machine(device: &Device) -> RealMode {
    RealMode::new(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.inc(byte_ptr(0).es())?;
        a.hlt()?;
        a.jmp(start)
    })
}

fn write(machine: &RealMode, gpa: u64) {
    machine.vcpu.edit_sregs(|s| at(&mut s.es, gpa));
    machine.vcpu.run_to_hlt();
}

pub(super) fn odd_sizes(device: &Device) {
    for pages in [1usize, 2, 63, 64, 65, 127, 128, 129, 200] {
        let machine = machine(device);
        machine.vm.set_slot(1, LOG, 0x20000, Memory::new(pages << 12)).expect("a slot");
        // The bitmap's end is fenced: 8 bytes for each 64 pages begun are written, not more.
        for page in [0, pages / 2, pages - 1] {
            write(&machine, 0x20000 + (page << 12) as u64);
            assert_eq!(machine.vm.dirty(1, pages), [page], "{pages} pages");
        }
    }
}

pub(super) fn off_and_on(device: &Device) {
    let (machine, memory) = (machine(device), Memory::new(0x4000));
    machine.vm.set_slot(1, LOG, 0x20000, memory).expect("a slot");
    write(&machine, 0x22000);
    machine.vm.set_slot(1, 0, 0x20000, memory).expect("logging off");
    assert_eq!(machine.vm.try_dirty(1, 4), Err(Errno::ENOENT));
    write(&machine, 0x21000);
    machine.vm.set_slot(1, LOG, 0x20000, memory).expect("logging on");
    // What was written before is another log's.
    assert_eq!(machine.vm.dirty(1, 4), []);
    write(&machine, 0x23000);
    assert_eq!(machine.vm.dirty(1, 4), [3]);
}

pub(super) fn errors(device: &Device) {
    let machine = machine(device);
    assert_eq!(machine.vm.try_dirty(0, 16), Err(Errno::ENOENT), "a slot without a log");
    assert_eq!(machine.vm.try_dirty(5, 16), Err(Errno::ENOENT), "no slot");
    let limit = device.cap(KVM_CAP_NR_MEMSLOTS) as u32;
    assert_eq!(machine.vm.try_dirty(limit, 16), Err(Errno::EINVAL), "no such number");
}

pub(super) fn bad_bitmap(device: &Device) {
    let machine = machine(device);
    machine.vm.set_slot(1, LOG, 0x20000, Memory::new(65 << 12)).expect("a slot");
    write(&machine, 0x20000 + (64 << 12));
    let ask = |dirty_bitmap| machine.vm.fd.put(KVM_GET_DIRTY_LOG, &KvmDirtyLog { slot: 1, padding1: 0, dirty_bitmap });
    for address in Address::BAD {
        assert_eq!(ask(address.get()), Err(Errno::EFAULT), "{address:?}");
    }
    // 8 bytes of 16.
    assert_eq!(ask(fenced(&[0; 8]).0.get()), Err(Errno::EFAULT));
    machine.vm.dirty(1, 65);
    write(&machine, 0x20000);
    assert_eq!(machine.vm.dirty(1, 65), [0]);
}

pub(super) fn moved(device: &Device) {
    let (machine, memory) = (machine(device), Memory::new(0x4000));
    machine.vm.set_slot(1, LOG, 0x20000, memory).expect("a slot");
    write(&machine, 0x21000);
    machine.vm.set_slot(1, LOG, 0x40000, memory).expect("a move");
    machine.vm.dirty(1, 4);
    write(&machine, 0x42000);
    assert_eq!(machine.vm.dirty(1, 4), [2]);
    assert_eq!((memory.u8(0x1000), memory.u8(0x2000)), (1, 1));
}
