//! 2007's memory: slots whose memory the VM owns and the client maps through the VM's descriptor, and aliases.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno, Memory},
    vm::{CODE, Exit, RealMode, Vcpu, Vm, assemble, at},
};

pub(super) const REASON: &str = "2007's KVM_SET_MEMORY_REGION; today's clients give memory of their own";
pub(super) const ALIAS: &str = "2007's KVM_SET_MEMORY_ALIAS; today a client makes a second slot of the same memory";

fn set_owned(vm: &Vm, slot: u32, flags: u32, gpa: u64, memory_size: u64) -> Result<i32, Errno> {
    vm.fd.put(KVM_SET_MEMORY_REGION, &KvmMemoryRegion { slot, flags, guest_phys_addr: gpa, memory_size })
}

fn set_alias(vm: &Vm, slot: u32, gpa: u64, memory_size: u64, target_phys_addr: u64) -> Result<i32, Errno> {
    let alias = KvmMemoryAlias { slot, flags: 0, guest_phys_addr: gpa, memory_size, target_phys_addr };
    vm.fd.put(KVM_SET_MEMORY_ALIAS, &alias)
}

/// A real-mode machine whose 64 KiB at 0 belong to the VM.
fn machine(device: &Device, code: &[u8]) -> (Vm, Memory, Vcpu) {
    let vm = device.vm();
    set_owned(&vm, 0, 0, 0, 0x10000).expect("KVM_SET_MEMORY_REGION");
    let memory = vm.fd.map(0x10000, 0).expect("a mapping of the VM");
    memory.write(CODE as usize, code);
    let vcpu = vm.vcpu(0);
    RealMode::start(&vcpu, CODE);
    (vm, memory, vcpu)
}

/// INC WORD [0]; HLT, for ever.
fn counter() -> Vec<u8> {
    assemble(16, CODE, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.inc(word_ptr(0))?;
        a.hlt()?;
        a.jmp(start)
    })
}

pub(super) fn basic(device: &Device) {
    let (_vm, memory, vcpu) = machine(device, &counter());
    assert!(memory.read(0, 0x1000).iter().all(|byte| *byte == 0), "new memory is not zero");
    memory.set_u16(0, 0x100);
    vcpu.run_to_hlt();
    assert_eq!(memory.u16(0), 0x101);
}

pub(super) fn by_address(device: &Device) {
    let (vm, _, vcpu) = machine(device, &counter());
    set_owned(&vm, 1, 0, 0x20000, 0x3000).expect("a second slot");
    let all = vm.fd.map(0x3000, 0x20000).expect("a mapping of the second slot");
    let last = vm.fd.map(0x1000, 0x22000).expect("a mapping of its last page");
    last.set_u16(0, 0x1233);
    assert_eq!(all.u16(0x2000), 0x1233);
    vcpu.edit_sregs(|s| at(&mut s.ds, 0x22000));
    vcpu.run_to_hlt();
    assert_eq!((all.u16(0x2000), last.u16(0)), (0x1234, 0x1234));
}

pub(super) fn deleted(device: &Device) {
    let (vm, _, vcpu) = machine(device, &counter());
    set_owned(&vm, 1, 0, 0x20000, 0x1000).expect("a second slot");
    let memory = vm.fd.map(0x1000, 0x20000).expect("a mapping");
    vcpu.edit_sregs(|s| at(&mut s.ds, 0x20000));
    vcpu.run_to_hlt();
    set_owned(&vm, 1, 0, 0, 0).expect("deletion");
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20000, len: 2 });
    // The client's mapping outlives the slot.
    assert_eq!(memory.u16(0), 1);
}

pub(super) fn logged(device: &Device) {
    let (vm, _, vcpu) = machine(device, &counter());
    set_owned(&vm, 1, KVM_MEM_LOG_DIRTY_PAGES, 0x20000, 0x5000).expect("a slot with a log");
    vcpu.edit_sregs(|s| at(&mut s.ds, 0x23000));
    vcpu.run_to_hlt();
    assert_eq!(vm.dirty(1, 5), [3]);
    assert_eq!(vm.dirty(1, 5), []);
    vcpu.run_to_hlt();
    assert_eq!(vm.dirty(1, 5), [3]);
}

pub(super) fn errors(device: &Device) {
    let (vm, ..) = machine(device, &counter());
    for (what, slot, flags, gpa, size) in [
        ("a gpa inside a page", 1, 0, 0x20800, 0x1000),
        ("a size that is no number of pages", 1, 0, 0x20000, 0x1800),
        ("flags that nobody knows", 1, 1 << 31, 0x20000, 0x1000),
        ("a slot number that is too large", 0xffff, 0, 0x20000, 0x1000),
        ("an end behind the last address", 1, 0, u64::MAX - 0xfff, 0x2000),
    ] {
        assert_eq!(set_owned(&vm, slot, flags, gpa, size), Err(Errno::EINVAL), "{what}");
    }
    assert_eq!(set_owned(&vm, 1, 0, 0xf000, 0x2000), Err(Errno::EEXIST), "an overlap");
}

/// A program in the VM's own memory that counts at 0x8000 by way of the window at 0x90000.
fn aliased(device: &Device) -> (Vm, Memory, Vcpu) {
    let (vm, memory, vcpu) = machine(device, &counter());
    set_alias(&vm, 0, 0x90000, 0x2000, 0x8000).expect("KVM_SET_MEMORY_ALIAS");
    vcpu.edit_sregs(|s| at(&mut s.ds, 0x91000));
    (vm, memory, vcpu)
}

pub(super) fn alias(device: &Device) {
    let (_vm, memory, vcpu) = aliased(device);
    memory.set_u16(0x9000, 0x700);
    vcpu.run_to_hlt();
    assert_eq!(memory.u16(0x9000), 0x701);
    // The window is as large as it was made.
    vcpu.edit_sregs(|s| at(&mut s.ds, 0x92000));
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x92000, len: 2 });
}

pub(super) fn alias_removed(device: &Device) {
    let (vm, memory, vcpu) = aliased(device);
    vcpu.run_to_hlt();
    set_alias(&vm, 0, 0, 0, 0).expect("removal");
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x91000, len: 2 });
    vcpu.answer(&[0, 0]);
    assert_eq!(vcpu.run(), Exit::write(0x91000, &[1, 0]));
    assert_eq!(memory.u16(0x9000), 1);
    // Another window under the same number.
    vcpu.run_to_hlt();
    set_alias(&vm, 0, 0x91000, 0x1000, 0xa000).expect("another window");
    vcpu.run_to_hlt();
    assert_eq!(memory.u16(0xa000), 1);
}

pub(super) fn alias_logged(device: &Device) {
    let (vm, _, vcpu) = aliased(device);
    set_owned(&vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, 0x10000).expect("logging");
    vm.dirty(0, 16);
    vcpu.run_to_hlt();
    // The page of the code too, once: see `dirty/the-page-of-new-code-is-marked`.
    assert_eq!(vm.dirty(0, 16), [1, 9]);
    vcpu.run_to_hlt();
    assert_eq!(vm.dirty(0, 16), [9]);
}

pub(super) fn alias_errors(device: &Device) {
    let (vm, ..) = aliased(device);
    for (what, slot, gpa, size, target) in [
        ("a gpa inside a page", 1, 0x80800, 0x1000, 0),
        ("a size that is no number of pages", 1, 0x80000, 0x800, 0),
        ("a slot number that is too large", 4, 0x80000, 0x1000, 0),
        ("a window that wraps", 1, u64::MAX - 0xfff, 0x2000, 0),
        ("a target that wraps", 1, 0x80000, 0x2000, u64::MAX - 0xfff),
    ] {
        assert_eq!(set_alias(&vm, slot, gpa, size, target), Err(Errno::EINVAL), "{what}");
    }
}
