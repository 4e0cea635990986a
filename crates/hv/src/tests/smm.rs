//! System management mode where the hypervisor executes the handler: a handler that has no end, and one that leaves nothing
//! that a processor could go on with.
use abi::*;
use x86::Cr0;

use crate::{
    Errno,
    backend::Translation,
    testing::{Machine, cx, host},
};

/// SMBASE after reset, and what is behind it.
const BASE: u64 = 0x3_0000;
const ENTRY: u64 = 0x8000;
/// OUT 0x10, AL.
const OUT: [u8; 2] = [0xe6, 0x10];

/// A machine with nested tables that has got an SMI, whose handler is `code`.
fn handling(code: &[u8]) -> Machine {
    let m = Machine::on(Translation::Nested(mmu::shadow::EntryFormat::X86));
    m.set_slot(1 << 16, BASE, 0x1_0000, m.ram.at()).unwrap();
    m.poke(ENTRY, code);
    m.vcpu.ioctl(KVM_SMI, 0, &cx()).unwrap();
    m
}

#[test]
fn a_signal_ends_a_handler_that_does_not_end_by_itself() {
    // MOV CX, 0x40; LOOP to itself; OUT.
    let m = handling(&[&[0xb9, 0x40, 0x00, 0xe2, 0xfe], &OUT[..]].concat());
    host::signal_after(3);
    assert_eq!(m.run(), Err(Errno::EINTR));
    assert!(m.state(|s| s.gpr[1]) > 0x30, "it did not get far");
    host::set_signal(false);
    assert_eq!(m.run(), Ok(KVM_EXIT_IO));
    assert_eq!(m.state(|s| s.gpr[1]), 0);
}

#[test]
fn registers_that_no_processor_can_have_are_not_loaded() {
    // MOV DWORD CS:[saved CR0], PG without PE; RSM.
    let m = handling(&[0x2e, 0x66, 0xc7, 0x06, 0x58, 0xff, 0x10, 0x00, 0x00, 0x80, 0x0f, 0xaa]);
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    m.state(|s| {
        assert_eq!(s.cr0, (Cr0::ET | Cr0::CD | Cr0::NW).bits(), "as in the handler");
        assert_eq!((s.rip, s.seg[1].base, s.mode), (ENTRY + 10, BASE, x86::Mode::Real));
    });
}
