//! Device memory: one instruction is a transaction.
use abi::*;
use x86::Segment;

use crate::{
    Errno,
    backend::{Access, Exit},
    testing::{CODE, Machine},
};

/// Where DS points: no memory there.
const DEVICE: u64 = 0x2_0000;

fn machine(code: &[u8]) -> Machine {
    let m = Machine::new();
    m.poke(CODE, code);
    m.state(|s| {
        s.seg[3] = Segment::real(0x2000, 0);
        s.gpr[3] = 0x10;
    });
    m
}

fn fault(m: &Machine, access: Access) {
    m.script.exit(Exit::NestedPageFault { gpa: DEVICE, access, table_walk: false });
}

/// Runs; the MMIO access that the client is asked for.
fn mmio(m: &Machine) -> (u64, u32, bool, u64) {
    assert_eq!(m.run(), Ok(KVM_EXIT_MMIO));
    let mmio: KvmRunMmio = m.payload();
    (mmio.phys_addr, mmio.len, mmio.is_write != 0, u64::from_le_bytes(mmio.data))
}

/// The script has nothing more: the vCPU went on.
fn went_on(m: &Machine) {
    assert_eq!(m.run(), Ok(KVM_EXIT_UNKNOWN));
}

#[test]
fn a_read_is_finished_by_the_next_run() {
    let m = machine(&[0x8b, 0x07]); // mov ax, [bx]
    fault(&m, Access::Read);
    assert_eq!(mmio(&m), (DEVICE + 0x10, 2, false, 0));
    // Pending: the registers are as before the instruction.
    assert_eq!(m.get::<KvmRegs>(KVM_GET_REGS).rip, CODE);
    m.answer_mmio(0xffff_ffff_ffff_1234);
    went_on(&m);
    m.state(|s| assert_eq!((s.gpr[0] & 0xffff, s.rip), (0x1234, CODE + 2)));
}

#[test]
fn a_write_is_posted_with_the_instruction_done() {
    let m = machine(&[0x66, 0x89, 0x07]); // mov [bx], eax
    m.state(|s| s.gpr[0] = 0xdead_beef);
    fault(&m, Access::Write);
    assert_eq!(mmio(&m), (DEVICE + 0x10, 4, true, 0xdead_beef));
    assert_eq!(m.get::<KvmRegs>(KVM_GET_REGS).rip, CODE + 3);
    went_on(&m);
}

#[test]
fn a_read_modify_write_reads_and_writes_once() {
    for code in [&[0x01, 0x07][..], &[0xf0, 0x01, 0x07]] {
        let m = machine(code); // [lock] add [bx], ax
        m.state(|s| s.gpr[0] = 5);
        fault(&m, Access::Write);
        assert_eq!(mmio(&m), (DEVICE + 0x10, 2, false, 0));
        m.answer_mmio(37);
        assert_eq!(mmio(&m), (DEVICE + 0x10, 2, true, 42));
        went_on(&m);
        m.state(|s| assert_eq!(s.rip, CODE + code.len() as u64));
    }
}

#[test]
fn two_operands_in_device_memory() {
    let m = machine(&[0xa5]); // movsw
    m.state(|s| {
        s.seg[0] = Segment::real(0x3000, 0);
        (s.gpr[6], s.gpr[7]) = (4, 8);
    });
    fault(&m, Access::Read);
    assert_eq!(mmio(&m), (DEVICE + 4, 2, false, 0));
    m.answer_mmio(0xabcd);
    assert_eq!(mmio(&m), (0x3_0008, 2, true, 0xabcd));
    went_on(&m);
    m.state(|s| assert_eq!((s.gpr[6], s.gpr[7], s.rip), (6, 10, CODE + 1)));
}

#[test]
fn each_iteration_of_a_rep_is_an_instruction() {
    let m = machine(&[0xf3, 0xa4]); // rep movsb, memory to device
    m.poke(0x500, b"abc");
    m.state(|s| {
        s.seg[3] = Segment::real(0, 0);
        s.seg[0] = Segment::real(0x2000, 0);
        (s.gpr[1], s.gpr[6], s.gpr[7]) = (3, 0x500, 0);
    });
    for (i, byte) in b"abc".iter().enumerate() {
        fault(&m, Access::Write);
        assert_eq!(mmio(&m), (DEVICE + i as u64, 1, true, u64::from(*byte)));
    }
    went_on(&m);
    m.state(|s| assert_eq!(s.gpr[1], 0));
}

#[test]
fn an_access_over_the_end_of_memory_is_split() {
    let m = machine(&[0x66, 0x8b, 0x07]); // mov eax, [bx] at 0xfffe
    m.poke(0xfffe, &[0x11, 0x22]);
    m.state(|s| {
        s.seg[3] = Segment::real(0x0fff, 0);
        s.gpr[3] = 0xe; // 0xfff0 + 0xe
    });
    fault(&m, Access::Read);
    assert_eq!(mmio(&m), (0x1_0000, 2, false, 0));
    m.answer_mmio(0x4433);
    went_on(&m);
    m.state(|s| assert_eq!(s.gpr[0], 0x4433_2211));
}

#[test]
fn immediate_exit_finishes_what_is_pending_first() {
    let m = machine(&[0x8b, 0x07]);
    fault(&m, Access::Read);
    mmio(&m);
    m.answer_mmio(7);
    m.set_run_field(KVM_RUN_IMMEDIATE_EXIT_OFFSET as u64, 1u8);
    m.script.take_notes();
    assert_eq!(m.run(), Err(Errno::EINTR));
    assert_eq!(m.run_field::<u32>(KVM_RUN_EXIT_REASON_OFFSET as u64), KVM_EXIT_INTR);
    let regs: KvmRegs = m.get(KVM_GET_REGS);
    assert_eq!((regs.rax & 0xffff, regs.rip), (7, CODE + 2));
    assert_eq!(m.script.take_notes(), []);
}

#[test]
fn a_guest_fault_while_emulating_is_the_guests() {
    // movsw from device memory to a segment that ends: #GP, and the device was read once.
    let m = machine(&[0xa5]);
    m.state(|s| {
        s.seg[0] = Segment { limit: 0x100, ..Segment::real(0x0, 0) };
        (s.gpr[6], s.gpr[7]) = (4, 0x100);
    });
    fault(&m, Access::Read);
    if m.run() == Ok(KVM_EXIT_MMIO) {
        m.answer_mmio(1);
        went_on(&m);
    }
    let injected = m.script.take_injected();
    assert_eq!(injected.len(), 1, "{injected:?}");
    m.state(|s| assert_eq!(s.rip, CODE));
}

#[test]
fn an_instruction_that_nobody_knows_is_reported_with_its_bytes() {
    let m = machine(&[0x0f, 0x58, 0x07]); // addps xmm0, [bx]
    m.state(|s| s.cr4 |= 0x200);
    fault(&m, Access::Read);
    let reason = m.run();
    if reason == Ok(KVM_EXIT_INTERNAL_ERROR) {
        let failure: KvmRunEmulationFailure = m.payload();
        assert_eq!(failure.suberror, KVM_INTERNAL_ERROR_EMULATION);
        assert_eq!(failure.flags, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
        assert_eq!(failure.insn_bytes[..3], [0x0f, 0x58, 0x07]);
        m.state(|s| assert_eq!(s.rip, CODE));
    } else {
        // The emulator may learn it.
        assert_eq!(reason, Ok(KVM_EXIT_MMIO));
    }
}

#[test]
fn memory_that_the_client_took_away_is_efault() {
    let m = machine(&[0x8b, 0x07]);
    m.state(|s| s.seg[3] = Segment::real(0, 0));
    m.ram.unmap();
    m.script.exit(Exit::Emulate);
    assert_eq!(m.run(), Err(Errno::EFAULT));
}

#[test]
fn a_reset_by_the_client_drops_what_was_pending() {
    let m = machine(&[0x8b, 0x07, 0x8b, 0x07]);
    fault(&m, Access::Read);
    mmio(&m);
    let mut regs: KvmRegs = m.get(KVM_GET_REGS);
    regs.rip = CODE + 2;
    m.ioctl(KVM_SET_REGS, &mut regs).unwrap();
    m.answer_mmio(99);
    went_on(&m);
    m.state(|s| assert_eq!((s.rip, s.gpr[0]), (CODE + 2, 0)));
    // The old answer is not taken for the new instruction.
    fault(&m, Access::Read);
    assert_eq!(mmio(&m), (DEVICE + 0x10, 2, false, 0));
}

#[test]
fn memory_that_came_back_is_tried_again() {
    let m = machine(&[]);
    m.script.exit(Exit::NestedPageFault { gpa: 0x2000, access: Access::Write, table_walk: false });
    went_on(&m);
}

#[test]
fn read_only_slots_are_read_as_memory_and_written_as_devices() {
    let m = machine(&[0x8b, 0x07, 0x89, 0x07]);
    let rom = crate::testing::host::Mapping::new(4096);
    let mut region = KvmUserspaceMemoryRegion {
        slot: 1,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: DEVICE,
        memory_size: 4096,
        userspace_addr: rom.at(),
    };
    m.vm_ioctl(KVM_SET_USER_MEMORY_REGION, &mut region).unwrap();
    m.script.exit(Exit::Emulate);
    went_on(&m);
    fault(&m, Access::Write);
    assert_eq!(mmio(&m), (DEVICE + 0x10, 2, true, 0));
}

#[test]
fn the_client_cannot_mislead_us_about_a_pending_access() {
    let m = machine(&[0x8b, 0x07]);
    fault(&m, Access::Read);
    mmio(&m);
    m.set_run_field(KVM_RUN_UNION_OFFSET as u64, [0xffu8; 64]);
    m.set_run_field(KVM_RUN_EXIT_REASON_OFFSET as u64, 0xffff_ffffu32);
    went_on(&m);
    m.state(|s| assert_eq!((s.gpr[0], s.rip), (0xffff, CODE + 2)));
}
