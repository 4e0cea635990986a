//! A guest that can run: a slot, a mode, code. Without it an input would have to find all of them at once.
use abi::*;

use super::client::{Client, Kind};
use crate::input::Input;

const CODE: u64 = 0x1000;
const TABLES: u64 = 0x8000;

/// Makes a VM and a vCPU if there are none, and gives the vCPU code in the mode that the input chooses.
pub(super) fn set_up(client: &mut Client, input: &mut Input<'_>) {
    let options = input.u8();
    let code = input.u8();
    let kvm = client.last(Kind::Device).unwrap_or(-1);
    let vm = match client.last(Kind::Vm) {
        Some(vm) if options & 1 == 0 => vm,
        _ => client.number(kvm, KVM_CREATE_VM, 0),
    };
    let log = if options & 4 != 0 { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
    let (userspace_addr, memory_size) = client.memory();
    let region = KvmUserspaceMemoryRegion { slot: 0, flags: log, guest_phys_addr: 0, memory_size, userspace_addr };
    client.structure(vm, KVM_SET_USER_MEMORY_REGION, region);
    if options & 8 != 0 {
        client.number(vm, KVM_CREATE_IRQCHIP, 0);
        client.structure(vm, KVM_CREATE_PIT2, KvmPitConfig::default());
    }
    let id = u64::from(options >> 4 & 3);
    let vcpu = client.number(vm, KVM_CREATE_VCPU, id);
    if options & 2 != 0 {
        client.use_supported_cpuid(kvm, vcpu);
    }
    let bytes = input.bytes(usize::from(code));
    client.write(CODE, bytes);
    let mode = options >> 6;
    let mut sregs: KvmSregs = client.structure(vcpu, KVM_GET_SREGS, KvmSregs::default());
    let flat = |type_, selector, l, db| KvmSegment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        l,
        db,
        g: 1,
        ..KvmSegment::default()
    };
    if mode == 0 {
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
    } else {
        let data = flat(3, 0x18, 0, 1);
        (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
        sregs.cs = flat(11, 0x10, u8::from(mode == 3), u8::from(mode < 3));
        sregs.cr0 = if mode == 1 { 0x11 } else { 0x8000_0011 };
        sregs.cr4 = 0x620;
        sregs.cr3 = TABLES;
        sregs.efer = if mode == 3 { 0x500 } else { 0 };
        // One large page for everything, in the formats of PAE and of long mode.
        if mode == 3 {
            client.write(TABLES, &(TABLES + 0x1007).to_le_bytes());
        } else {
            client.write(TABLES, &(TABLES + 0x2001).to_le_bytes());
        }
        client.write(TABLES + 0x1000, &(TABLES + 0x2007).to_le_bytes());
        client.write(TABLES + 0x2000, &0x87u64.to_le_bytes());
    }
    client.structure(vcpu, KVM_SET_SREGS, sregs);
    let regs =
        KvmRegs { rip: CODE, rsp: 0x7000, rbp: 0x6000, rsi: 0x5000, rdi: 0x5800, rflags: 2, ..KvmRegs::default() };
    client.structure(vcpu, KVM_SET_REGS, regs);
}
