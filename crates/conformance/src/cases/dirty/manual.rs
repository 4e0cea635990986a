//! KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: marks stay until KVM_CLEAR_DIRTY_LOG takes them away.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno, Memory, fenced},
    vm::{RealMode, Vm, at},
};

const PAGES: usize = 130;

fn machine(device: &Device, modes: u64) -> RealMode {
    let vm = device.vm();
    vm.enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, [modes, 0, 0, 0]).expect("KVM_ENABLE_CAP");
    let code = crate::vm::assemble(16, crate::vm::CODE, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.inc(byte_ptr(0).es())?;
        a.hlt()?;
        a.jmp(start)
    });
    let machine = RealMode::with_code(vm, &code);
    machine.vm.set_slot(1, KVM_MEM_LOG_DIRTY_PAGES, 0x20000, Memory::new(PAGES << 12)).expect("a slot");
    machine
}

fn write(machine: &RealMode, page: u64) {
    machine.vcpu.edit_sregs(|s| at(&mut s.es, 0x20000 + (page << 12)));
    machine.vcpu.run_to_hlt();
}

fn clear(vm: &Vm, first_page: u64, num_pages: u32, pages: &[u64]) -> Result<i32, Errno> {
    let mut bytes = vec![0u8; (num_pages as usize).div_ceil(64) * 8];
    pages.iter().for_each(|page| bytes[(page - first_page) as usize / 8] |= 1 << ((page - first_page) % 8));
    let dirty_bitmap = fenced(&bytes).0.get();
    vm.fd.put(KVM_CLEAR_DIRTY_LOG, &KvmClearDirtyLog { slot: 1, num_pages, first_page, dirty_bitmap })
}

pub(super) fn cleared_by_hand(device: &Device) {
    let machine = machine(device, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
    let vm = &machine.vm;
    write(&machine, 3);
    write(&machine, 70);
    for _ in 0..2 {
        assert_eq!(vm.dirty(1, PAGES), [3, 70]);
    }
    assert_eq!(clear(vm, 0, PAGES as u32, &[3]), Ok(0));
    assert_eq!(vm.dirty(1, PAGES), [70]);
    // A page that was not cleared need not be found again; one that was is.
    write(&machine, 3);
    assert_eq!(vm.dirty(1, PAGES), [3, 70]);
}

pub(super) fn in_part(device: &Device) {
    let machine = machine(device, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
    let vm = &machine.vm;
    [1, 65, 66, 129].into_iter().for_each(|page| write(&machine, page));
    assert_eq!(clear(vm, 64, 64, &[65]), Ok(0));
    assert_eq!(vm.dirty(1, PAGES), [1, 66, 129]);
    // The last pages of the slot need not fill 64.
    assert_eq!(clear(vm, 128, 2, &[129]), Ok(0));
    assert_eq!(vm.dirty(1, PAGES), [1, 66]);
    write(&machine, 129);
    assert_eq!(vm.dirty(1, PAGES), [1, 66, 129]);
}

pub(super) fn initially_set(device: &Device) {
    let modes = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
    if device.cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) as u64 & modes != modes {
        crate::runner::lacks("KVM_DIRTY_LOG_INITIALLY_SET");
    }
    let machine = machine(device, modes);
    let vm = &machine.vm;
    let begun = vm.dirty(1, PAGES);
    assert!((0..PAGES).all(|page| begun.contains(&page)), "{begun:?}");
    let all: Vec<u64> = (0..PAGES as u64).collect();
    assert_eq!(clear(vm, 0, PAGES as u32, &all), Ok(0));
    assert_eq!(vm.dirty(1, PAGES).into_iter().filter(|page| *page < PAGES).count(), 0);
    write(&machine, 5);
    assert_eq!(vm.dirty(1, PAGES).into_iter().filter(|page| *page < PAGES).collect::<Vec<_>>(), [5]);
}

pub(super) fn errors(device: &Device) {
    let machine = machine(device, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
    let vm = &machine.vm;
    for (first, count) in [(1, 64), (64, 1), (0, 65), (0, 192), (192, 64)] {
        assert_eq!(clear(vm, first, count, &[]), Err(Errno::EINVAL), "{count} pages from {first}");
    }
    let log = KvmClearDirtyLog { slot: 1, num_pages: 64, first_page: 0, dirty_bitmap: 8 };
    assert_eq!(vm.fd.put(KVM_CLEAR_DIRTY_LOG, &log), Err(Errno::EFAULT));
    assert_eq!(vm.fd.put(KVM_CLEAR_DIRTY_LOG, &KvmClearDirtyLog { slot: 0, ..log }), Err(Errno::ENOENT));
    assert_eq!(vm.enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, [1 << 40, 0, 0, 0]), Err(Errno::EINVAL));
}
