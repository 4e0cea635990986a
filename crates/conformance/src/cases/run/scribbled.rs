//! The client writes to kvm_run while the vCPU runs, or contradicts what an exit said. Whatever the guest then sees is the
//! client's fault; the hypervisor must stay well.
use abi::*;
use iced_x86::code_asm::*;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{
    device::{Device, Errno},
    vm::{Exit, RealMode, RunPage, at},
};

/// A sequence that is the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.0 >> 11
    }
}

/// Writes random bytes all over kvm_run up to the registers, and into the data page.
fn scribble(page: RunPage, stop: &AtomicBool) {
    let mut random = Random(1);
    while !stop.load(Ordering::SeqCst) {
        for _ in 0..64 {
            let offset = match random.next() % 4 {
                0 => 4096 + random.next() as usize % 4096,
                _ => random.next() as usize % KVM_RUN_VALID_REGS_OFFSET,
            };
            // What asks for an exit would only make it slow.
            if offset != KVM_RUN_IMMEDIATE_EXIT_OFFSET {
                page.0.set_u8(offset, random.next() as u8);
            }
        }
        std::thread::yield_now();
    }
}

fn under_fire(machine: &RealMode) {
    let vcpu = &machine.vcpu;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || scribble(vcpu.page, stop));
        for _ in 0..300 {
            // The exit's fields cannot be believed; a CR8 above 15 is refused.
            match vcpu.fd.number(KVM_RUN, 0) {
                Ok(0) | Err(Errno::EINVAL | Errno::EINTR) => {}
                other => panic!("{other:?}"),
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    // In peace it works as ever.
    vcpu.page.0.write(0, &[0; KVM_RUN_VALID_REGS_OFFSET]);
    vcpu.page.set_immediate_exit(true);
    // What the interrupted instruction has to do with the device still comes.
    let mut left = 8;
    while vcpu.fd.number(KVM_RUN, 0) != Err(Errno::EINTR) {
        left -= 1;
        assert!(left > 0, "no EINTR under immediate_exit");
    }
    vcpu.page.set_immediate_exit(false);
    machine.put_code(0x3000, |a| {
        a.in_(al, 0x10)?;
        a.hlt()
    });
    vcpu.edit_regs(|r| (r.rip, r.rsp, r.rflags) = (0x3000, 0x8000, 2));
    assert_eq!(vcpu.run(), Exit::input(0x10, 1));
    vcpu.answer(&[0x77]);
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rax & 0xff, 0x77);
}

pub(super) fn pio(device: &Device) {
    under_fire(&RealMode::new(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.in_(eax, 0x10)?;
        a.out(0x11, ax)?;
        a.mov(cx, 5)?;
        a.mov(di, 0x4000)?;
        a.mov(dx, 0x60)?;
        a.rep().insw()?;
        a.jmp(start)
    }));
}

pub(super) fn mmio(device: &Device) {
    let machine = RealMode::new(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.mov(eax, dword_ptr(0x10).es())?;
        a.add(word_ptr(0x1fff).es(), ax)?;
        a.mov(dword_ptr(0x20).es(), eax)?;
        a.jmp(start)
    });
    machine.vcpu.edit_sregs(|s| at(&mut s.es, 0x20000));
    under_fire(&machine);
}

pub(super) fn contradictions(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.in_(al, 0x10)?;
        a.mov(bx, word_ptr(0).es())?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    vcpu.edit_sregs(|s| at(&mut s.es, 0x20000));
    assert_eq!(vcpu.run(), Exit::input(0x10, 1));
    let mut io: KvmRunIo = vcpu.page.payload();
    vcpu.answer(&[0x5a]);
    // The data stays where the hypervisor put it, whatever the client makes of the description.
    (io.data_offset, io.size, io.count, io.direction) = (u64::MAX - 3, 4, u32::MAX, KVM_EXIT_IO_OUT);
    vcpu.page.set_payload(&io);
    vcpu.page.0.set_u32(KVM_RUN_EXIT_REASON_OFFSET, KVM_EXIT_MMIO);
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20000, len: 2 });
    vcpu.answer(&[0x34, 0x12]);
    let mut mmio: KvmRunMmio = vcpu.page.payload();
    (mmio.phys_addr, mmio.len, mmio.is_write) = (u64::MAX, u32::MAX, 1);
    vcpu.page.set_payload(&mmio);
    vcpu.page.0.set_u32(KVM_RUN_EXIT_REASON_OFFSET, KVM_EXIT_IO);
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rax & 0xff, regs.rbx & 0xffff), (0x5a, 0x1234));
}
