//! 2007's memory slots: memory that belongs to the VM and that the client maps by the VM's descriptor.
mod common;

use std::os::fd::RawFd;

use abi::*;
use common::{Map, RW, ioctl, number, vcpu, vm};
use hv::Errno;
use user::device;

fn slot(vm: RawFd, slot: u32, flags: u32, gpa: u64, size: u64) -> Result<i32, Errno> {
    let mut region = KvmMemoryRegion { slot, flags, guest_phys_addr: gpa, memory_size: size };
    ioctl(vm, KVM_SET_MEMORY_REGION, &mut region)
}

/// mov byte [0x2001], 7; mov al, [0x2000]; mov [0x2002], al; hlt
const COPY: &[u8] = &[0xc6, 0x06, 0x01, 0x20, 7, 0xa0, 0x00, 0x20, 0xa2, 0x02, 0x20, 0xf4];

#[test]
fn guest_and_client_share_it_at_the_guests_addresses() {
    let vm = vm();
    slot(vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0x1000, 0x3000).unwrap();
    slot(vm, 1, 0, 0x10_0000, 0x1000).unwrap();
    // One mapping over both slots, and one that begins in the middle of the first.
    let all = Map::new(vm, 0, 0x10_1000);
    let part = Map::new(vm, 0x2000, 0x1000);
    all.write(0x1000, COPY);
    all.write(0x10_0fff, &[9]);
    part.write(0, &[5]);
    all.write(0x3000, &[1]);
    let (vcpu, run) = vcpu(vm, 0x1000);
    number(vcpu, KVM_RUN, 0).unwrap();
    assert_eq!(u32::from(run.read(KVM_RUN_EXIT_REASON_OFFSET)), KVM_EXIT_HLT);
    assert_eq!((all.read(0x2000), part.read(1), part.read(2)), (5, 7, 5));
    let mut bitmap = 0u64;
    let mut log = KvmDirtyLog { slot: 0, padding1: 0, dirty_bitmap: &raw mut bitmap as u64 };
    ioctl(vm, KVM_GET_DIRTY_LOG, &mut log).unwrap();
    assert_eq!(bitmap, 3, "the guest's code is in the first page, it wrote the second, and the client does not count");
    // A moved slot keeps its bytes, and the client finds them at the new place.
    slot(vm, 1, 0, 0x20_0000, 0x1000).unwrap();
    assert_eq!(Map::new(vm, 0x20_0000, 0x1000).read(0xfff), 9);
    for fd in [vm, vcpu] {
        device::close(fd).unwrap();
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let vm = vm();
    assert_eq!(slot(vm, 0, 0, 0x800, 0x1000), Err(Errno::EINVAL));
    assert_eq!(slot(vm, 0, KVM_MEM_READONLY, 0, 0x1000), Err(Errno::EINVAL));
    slot(vm, 0, 0, 0, 0x2000).unwrap();
    assert_eq!(slot(vm, 0, 0, 0, 0x1000), Err(Errno::EINVAL));
    assert_eq!(slot(vm, 1, 0, 0x1000, 0x1000), Err(Errno::EEXIST));
    let map = |flags, offset| device::mmap(vm, 4096, RW, flags, offset);
    assert_eq!(map(libc::MAP_PRIVATE, 0), Err(Errno::EINVAL));
    assert_eq!(map(libc::MAP_SHARED, 0x800), Err(Errno::EINVAL));
    assert_eq!(map(libc::MAP_SHARED, u64::MAX - 0xfff), Err(Errno::EINVAL));
    // Rights are the client's choice: no write access here.
    let read_only = device::mmap(vm, 4096, libc::PROT_READ, libc::MAP_SHARED, 0).unwrap();
    // SAFETY: a read that only reports failure, and our own mapping.
    unsafe {
        let mut pipe = [0; 2];
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        assert_eq!(libc::write(pipe[1], read_only.cast(), 1), 1);
        assert_eq!(libc::read(pipe[0], read_only.cast(), 1), -1, "the mapping can be written");
        device::munmap(read_only, 4096).unwrap();
    }
    device::close(vm).unwrap();
}

#[test]
fn memory_of_a_deleted_slot_is_gone_for_the_guest_and_stays_with_the_clients_mapping() {
    let vm = vm();
    slot(vm, 0, 0, 0x1000, 0x1000).unwrap();
    slot(vm, 1, 0, 0x2000, 0x1000).unwrap();
    let map = Map::new(vm, 0, 0x3000);
    map.write(0x1000, COPY);
    map.write(0x2000, &[1]);
    let (vcpu, run) = vcpu(vm, 0x1000);
    // Either call deletes it.
    let mut nothing = KvmUserspaceMemoryRegion { slot: 1, ..KvmUserspaceMemoryRegion::default() };
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &mut nothing).unwrap();
    assert_eq!(map.read(0x2000), 1);
    number(vcpu, KVM_RUN, 0).unwrap();
    assert_eq!(u32::from(run.read(KVM_RUN_EXIT_REASON_OFFSET)), KVM_EXIT_MMIO);
    // New memory at the same place is zero and another one.
    slot(vm, 1, 0, 0x2000, 0x1000).unwrap();
    assert_eq!((Map::new(vm, 0x2000, 0x1000).read(0), map.read(0x2000)), (0, 1));
    // The VM and all its memory go; the client's mapping stays.
    device::close(vm).unwrap();
    device::close(vcpu).unwrap();
    assert_eq!((map.read(0x1000), map.read(0x2000)), (COPY[0], 1));
}

#[test]
fn an_alias_shows_memory_that_the_vm_owns_a_second_time() {
    let vm = vm();
    slot(vm, 0, 0, 0x1000, 0x2000).unwrap();
    let map = Map::new(vm, 0x1000, 0x2000);
    map.write(0, COPY);
    map.write(0x1000, &[3]);
    let mut alias =
        KvmMemoryAlias { slot: 3, flags: 0, guest_phys_addr: 0xa_0000, memory_size: 0x1000, target_phys_addr: 0x1000 };
    ioctl(vm, KVM_SET_MEMORY_ALIAS, &mut alias).unwrap();
    let (vcpu, run) = vcpu(vm, 0);
    let mut sregs = KvmSregs::default();
    ioctl(vcpu, KVM_GET_SREGS, &mut sregs).unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0xa_0000, 0xa000);
    ioctl(vcpu, KVM_SET_SREGS, &mut sregs).unwrap();
    number(vcpu, KVM_RUN, 0).unwrap();
    assert_eq!(u32::from(run.read(KVM_RUN_EXIT_REASON_OFFSET)), KVM_EXIT_HLT);
    assert_eq!((map.read(0x1001), map.read(0x1002)), (7, 3));
    alias.slot = 4;
    assert_eq!(ioctl(vm, KVM_SET_MEMORY_ALIAS, &mut alias), Err(Errno::EINVAL));
    device::close(vcpu).unwrap();
    device::close(vm).unwrap();
}
