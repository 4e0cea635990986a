//! Instructions whose length the processor does not tell, at a glance: the way to them is remembered, and never taken when it is not
//! the guest's any more.
use abi::*;

use crate::{
    backend::{CrOp, Exit, Translation},
    testing::{CODE, Machine, TABLE},
};

/// CPUID, and with a prefix that changes nothing but its length.
const PLAIN: [u8; 4] = [0x0f, 0xa2, 0x90, 0x90];
const PREFIXED: [u8; 4] = [0x66, 0x0f, 0xa2, 0x90];

/// Where CPUID at CODE leads.
fn behind(m: &Machine) -> u64 {
    m.state(|s| s.rip = CODE);
    m.script.exit(Exit::Cpuid { len: 0 });
    m.script.exit(Exit::Shutdown);
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    m.state(|s| s.rip) - CODE
}

#[test]
fn a_change_of_the_instruction_is_seen() {
    let m = Machine::new();
    for (code, len) in [(PLAIN, 2), (PREFIXED, 3), (PLAIN, 2), ([0x66, 0x66, 0x0f, 0xa2], 4)] {
        m.poke(CODE, &code);
        assert_eq!((behind(&m), behind(&m)), (len, len), "{code:x?}");
    }
}

/// The page at CODE is given another frame, without anybody telling the hypervisor.
#[test]
fn a_change_of_the_guests_tables_is_seen() {
    for translation in [Translation::Slots, Translation::Nested(mmu::shadow::EntryFormat::X86)] {
        let m = Machine::paged(translation);
        let frames = [(0x8000u32, PLAIN, 2), (0x9000, PREFIXED, 3)];
        for (frame, code, _) in frames {
            m.poke(frame.into(), &code);
        }
        for (frame, _, len) in frames.into_iter().cycle().take(4) {
            m.poke(TABLE + CODE / 4096 * 4, &(frame | 7).to_le_bytes());
            assert_eq!((behind(&m), behind(&m)), (len, len), "{frame:#x}");
        }
    }
}

/// The same for another table, and for the slot below.
#[test]
fn so_is_another_table_and_another_slot() {
    let m = Machine::paged(Translation::Slots);
    m.poke(CODE, &PLAIN);
    assert_eq!(behind(&m), 2);
    let other = Machine::paged(Translation::Slots);
    other.poke(CODE, &PREFIXED);
    assert_eq!(behind(&other), 3);
    m.set_slot(0, 0, 0, 0).unwrap();
    m.set_slot(0, 0, crate::testing::RAM, other.ram.at()).unwrap();
    assert_eq!(behind(&m), 3);
}

#[test]
fn an_instruction_at_the_end_of_its_page_is_decoded() {
    let m = Machine::new();
    for at in [CODE + 0xffc, CODE + 0xffd, CODE + 0xffe] {
        m.poke(at, &PLAIN);
        m.state(|s| s.rip = at);
        m.script.exit(Exit::Cpuid { len: 0 });
        m.script.exit(Exit::Shutdown);
        assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
        assert_eq!(m.state(|s| s.rip), at + 2);
    }
}

/// MOV to CR0 in 64-bit code needs no decoding, and does what it does otherwise.
#[test]
fn control_registers_are_written_by_the_same_rules() {
    let m = Machine::new();
    // Tables that map the first 2 MiB to themselves.
    for (at, entry) in [(0x4000, 0x5003u64), (0x5000, 0x6003), (0x6000, 0x83)] {
        m.poke(at, &entry.to_le_bytes());
    }
    let write = |code: [u8; 4], value: u64| {
        m.poke(CODE, &code);
        m.state(|s| {
            (s.cr0, s.cr3, s.cr4, s.efer) = (0x8000_0011, 0x4000, 0x20, 0x500);
            s.seg[1] = x86::Segment::from_descriptor(8, 0x00af_9b00_0000_ffff);
            s.gpr[1] = value;
            s.gpr[9] = value;
            s.rip = CODE;
            s.refresh();
        });
        m.script.exit(Exit::Cr { op: CrOp::Other, len: 0 });
        m.script.exit(Exit::Shutdown);
        assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
        m.state(|s| (s.cr0, s.cr3, s.cr4, s.rip - CODE))
    };
    // mov cr0, rcx; mov cr0, r9; mov cr3, rcx; mov cr4, rcx.
    assert_eq!(write([0x0f, 0x22, 0xc1, 0x90], 0x8001_0011), (0x8001_0011, 0x4000, 0x20, 3));
    assert_eq!(write([0x41, 0x0f, 0x22, 0xc1], 0x8001_0011), (0x8001_0011, 0x4000, 0x20, 4));
    assert_eq!(write([0x0f, 0x22, 0xd9, 0x90], 0x7000), (0x8000_0011, 0x7000, 0x20, 3));
    assert_eq!(write([0x0f, 0x22, 0xe1, 0x90], 0xa0), (0x8000_0011, 0x4000, 0xa0, 3));
    // #GP: nothing has changed, and RIP is at the instruction.
    assert_eq!(write([0x0f, 0x22, 0xe1, 0x90], 0), (0x8000_0011, 0x4000, 0x20, 0));
    let injected = m.script.take_injected();
    assert_eq!(injected.len(), 1, "{injected:?}");
}
