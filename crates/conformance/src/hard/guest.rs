//! A guest that makes itself from nothing but calls that may fail.
use abi::*;

use crate::{
    device::{Errno, Fd, Memory},
    vm::at,
};

/// Where its code is.
pub(super) const CODE: u64 = 0x1000;
/// Its memory: enough for a few tables.
pub(super) const BYTES: usize = 0xa_0000;

/// Writes a word of each page from 0x10000 to 0x8f000, tells port 0x10, and begins again.
const PROGRAM: &[u8] = &[
    0xb8, 0x00, 0x10, // mov ax, 0x1000
    0x8e, 0xd8, // mov ds, ax
    0xff, 0x06, 0x00, 0x00, // inc word [0]
    0x05, 0x00, 0x01, // add ax, 0x100
    0x3d, 0x00, 0x90, // cmp ax, 0x9000
    0x75, 0xf2, // jne to mov ds
    0xe6, 0x10, // out 0x10, al
    0xeb, 0xeb, // jmp to the beginning
];

/// The guest's memory with its code.
pub(super) fn memory() -> Memory {
    let memory = Memory::new(BYTES);
    memory.write(CODE as usize, PROGRAM);
    memory
}

/// A slot of `memory` at 0.
pub(super) fn slot(vm: &Fd, slot: u32, flags: u32, memory: &Memory) -> Result<i32, Errno> {
    let region = KvmUserspaceMemoryRegion {
        slot,
        flags,
        guest_phys_addr: 0,
        memory_size: memory.len() as u64,
        userspace_addr: memory.address(),
    };
    vm.put(KVM_SET_USER_MEMORY_REGION, &region)
}

/// Brings a vCPU to the code.
pub(super) fn start(vcpu: &Fd) -> Result<i32, Errno> {
    let mut sregs: KvmSregs = vcpu.get(KVM_GET_SREGS)?;
    for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        at(segment, 0);
    }
    vcpu.put(KVM_SET_SREGS, &sregs)?;
    vcpu.put(KVM_SET_REGS, &KvmRegs { rip: CODE, rsp: 0x8000, rflags: 0x202, ..KvmRegs::default() })
}
