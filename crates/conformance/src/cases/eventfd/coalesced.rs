//! Writes that wait in a ring until the client looks.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Memory},
    vm::{Exit, RealMode, at},
};

/// The ring of a vCPU, in the page that the capability names.
struct Ring(Memory);

impl Ring {
    fn of(device: &Device, machine: &RealMode) -> Self {
        let page = device.cap(KVM_CAP_COALESCED_MMIO) as usize;
        assert!((page + 1) * 4096 <= machine.vcpu.page.0.len(), "the ring is in page {page}");
        Self(machine.vcpu.page.0.part(page * 4096, 4096))
    }

    fn take(&self) -> Vec<(u64, Vec<u8>)> {
        let mut writes = Vec::new();
        let mut ring: KvmCoalescedMmioRing = self.0.pod(0);
        while ring.first != ring.last {
            let at = size_of::<KvmCoalescedMmioRing>() + ring.first as usize * size_of::<KvmCoalescedMmio>();
            let write: KvmCoalescedMmio = self.0.pod(at);
            writes.push((write.phys_addr, write.data[..write.len as usize].to_vec()));
            ring.first = (ring.first + 1) % KVM_COALESCED_MMIO_MAX as u32;
        }
        self.0.set_u32(0, ring.first);
        writes
    }
}

fn register(machine: &RealMode, nr: u32, addr: u64, size: u32, pio: u32) {
    machine.vm.fd.put(nr, &KvmCoalescedMmioZone { addr, size, pio }).expect("a zone");
}

fn machine(device: &Device, code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> RealMode {
    let machine = RealMode::new(device, |a| {
        code(a)?;
        a.hlt()
    });
    machine.vcpu.edit_sregs(|s| at(&mut s.es, 0x20000));
    machine
}

pub(super) fn ring(device: &Device) {
    let machine = machine(device, |a| {
        a.mov(byte_ptr(0x10).es(), 1)?;
        a.mov(dword_ptr(0x14).es(), 0x0403_0201)?;
        a.mov(ax, word_ptr(0x18).es())?;
        a.mov(word_ptr(0x1e).es(), 7)?;
        a.mov(word_ptr(0x20).es(), 8)
    });
    let ring = Ring::of(device, &machine);
    register(&machine, KVM_REGISTER_COALESCED_MMIO, 0x20010, 0x10, 0);
    // Reads come out, after what was written before.
    assert_eq!(machine.vcpu.run(), Exit::Read { gpa: 0x20018, len: 2 });
    assert_eq!(ring.take(), [(0x20010, vec![1]), (0x20014, vec![1, 2, 3, 4])]);
    // Behind the zone.
    assert_eq!(machine.vcpu.run(), Exit::write(0x20020, &[8, 0]));
    assert_eq!(ring.take(), [(0x2001e, vec![7, 0])]);
    machine.vcpu.run_to_hlt();
}

pub(super) fn full(device: &Device) {
    let machine = machine(device, |a| a.rep().stosb());
    let ring = Ring::of(device, &machine);
    register(&machine, KVM_REGISTER_COALESCED_MMIO, 0x20000, 0x1000, 0);
    machine.vcpu.edit_regs(|r| (r.rcx, r.rdi, r.rax) = (400, 0, 0x55));
    let mut all = Vec::new();
    loop {
        let exit = machine.vcpu.run();
        all.extend(ring.take());
        match exit {
            // No room: this one is the client's.
            Exit::Write { gpa, data } => all.push((gpa, data)),
            Exit::Hlt => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(all, (0..400).map(|n| (0x20000 + n, vec![0x55])).collect::<Vec<_>>());
}

pub(super) fn unregistered(device: &Device) {
    let machine = machine(device, |a| {
        a.mov(byte_ptr(0x10).es(), 1)?;
        a.hlt()?;
        a.mov(byte_ptr(0x10).es(), 2)
    });
    let ring = Ring::of(device, &machine);
    register(&machine, KVM_REGISTER_COALESCED_MMIO, 0x20000, 0x1000, 0);
    machine.vcpu.run_to_hlt();
    assert_eq!(ring.take(), [(0x20010, vec![1])]);
    register(&machine, KVM_UNREGISTER_COALESCED_MMIO, 0x20000, 0x1000, 0);
    assert_eq!(machine.vcpu.run(), Exit::write(0x20010, &[2]));
}

pub(super) fn ports(device: &Device) {
    let machine = machine(device, |a| {
        a.mov(ax, 0x1234)?;
        a.out(0x70, al)?;
        a.out(0x70, ax)?;
        a.out(0x72, al)
    });
    let ring = Ring::of(device, &machine);
    register(&machine, KVM_REGISTER_COALESCED_MMIO, 0x70, 2, 1);
    assert_eq!(machine.vcpu.run(), Exit::out8(0x72, 0x34));
    assert_eq!(ring.take(), [(0x70, vec![0x34]), (0x70, vec![0x34, 0x12])]);
}

pub(super) fn scribbled(device: &Device) {
    let machine = machine(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.mov(byte_ptr(0x10).es(), 1)?;
        a.hlt()?;
        a.jmp(start)
    });
    let ring = Ring::of(device, &machine);
    register(&machine, KVM_REGISTER_COALESCED_MMIO, 0x20000, 0x1000, 0);
    for (first, last) in [(0, u32::MAX), (u32::MAX, 0), (1000, 1000), (0, KVM_COALESCED_MMIO_MAX as u32)] {
        ring.0.set_u32(0, first);
        ring.0.set_u32(4, last);
        // In the ring or out: it does not write outside of its page.
        if machine.vcpu.run() != Exit::Hlt {
            machine.vcpu.run_to_hlt();
        }
    }
    ring.0.write(0, &[0; 8]);
    machine.vcpu.run_to_hlt();
    assert_eq!(ring.take(), [(0x20010, vec![1])]);
}
