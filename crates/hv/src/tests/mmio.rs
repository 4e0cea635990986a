//! Device memory: one instruction is a transaction.
use abi::*;
use x86::Segment;

use crate::{
    Errno,
    backend::{Access, Event, EventKind, Exit},
    emulation::DeviceAccess,
    testing::{CODE, Machine, host},
    vm::Space,
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
fn each_iteration_of_a_rep_asks_for_its_own_read_once() {
    let m = machine(&[0xf3, 0xa4]); // rep movsb, device to device
    m.state(|s| {
        s.seg[0] = Segment::real(0x3000, 0);
        (s.gpr[1], s.gpr[6], s.gpr[7]) = (3, 0, 0);
    });
    for i in 0..3 {
        fault(&m, Access::Read);
        assert_eq!(mmio(&m), (DEVICE + i, 1, false, 0));
        m.answer_mmio(i + 7);
        assert_eq!(mmio(&m), (0x3_0000 + i, 1, true, i + 7));
    }
    went_on(&m);
    m.state(|s| assert_eq!((s.gpr[1], s.gpr[6], s.gpr[7], s.rip), (0, 3, 3, CODE + 2)));
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
fn immediate_exit_is_looked_at_behind_the_last_iteration() {
    let m = machine(&[0xf3, 0xac]); // rep lodsb
    m.state(|s| (s.gpr[1], s.gpr[6]) = (3, 0));
    fault(&m, Access::Read);
    assert_eq!(mmio(&m), (DEVICE, 1, false, 0));
    m.answer_mmio(7);
    m.set_run_field(KVM_RUN_IMMEDIATE_EXIT_OFFSET as u64, 1u8);
    for i in 1..3 {
        assert_eq!(mmio(&m), (DEVICE + i, 1, false, 0));
        m.answer_mmio(i + 7);
    }
    assert_eq!(m.run(), Err(Errno::EINTR));
    let regs: KvmRegs = m.get(KVM_GET_REGS);
    assert_eq!((regs.rax & 0xff, regs.rcx, regs.rsi, regs.rip), (9, 0, 3, CODE + 2));
}

/// Linux loses the answer then, and with it what MOV has to load.
#[test]
fn registers_that_the_client_sets_while_a_read_is_pending_do_not_lose_the_answer() {
    let m = machine(&[0x8b, 0x07]); // mov ax, [bx]
    fault(&m, Access::Read);
    mmio(&m);
    let mut regs: KvmRegs = m.get(KVM_GET_REGS);
    regs.rbp = 0x5555;
    m.ioctl(KVM_SET_REGS, &mut regs).unwrap();
    let mut sregs: KvmSregs = m.get(KVM_GET_SREGS);
    m.ioctl(KVM_SET_SREGS, &mut sregs).unwrap();
    m.answer_mmio(0x1234);
    went_on(&m);
    m.state(|s| assert_eq!((s.gpr[0] & 0xffff, s.gpr[5], s.rip), (0x1234, 0x5555, CODE + 2)));
}

/// Linux forgets the step when the client has to write (SDM vol. 3, 17.3.1.4: a trap behind each instruction).
#[test]
fn a_step_ends_behind_the_write_of_an_instruction() {
    let m = machine(&[0x01, 0x07]); // add [bx], ax
    let mut debug =
        KvmGuestDebug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, ..KvmGuestDebug::default() };
    m.ioctl(KVM_SET_GUEST_DEBUG, &mut debug).unwrap();
    m.state(|s| s.gpr[0] = 5);
    fault(&m, Access::Write);
    assert_eq!(mmio(&m), (DEVICE + 0x10, 2, false, 0));
    m.answer_mmio(37);
    assert_eq!(mmio(&m), (DEVICE + 0x10, 2, true, 42));
    assert_eq!(m.run(), Ok(KVM_EXIT_DEBUG));
    assert_eq!(m.get::<KvmRegs>(KVM_GET_REGS).rip, CODE + 2);
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

/// Long mode with `code` at the end of the address space, and the entries of its tables.
fn machine_at_the_top(code: &[u8]) -> Machine {
    let m = Machine::new();
    for (table, next) in [(0x2000u64, 0x3003u64), (0x3000, 0x4003), (0x4000, 0x5003), (0x5000, 0x6003)] {
        m.poke(table + 511 * 8, &next.to_le_bytes());
    }
    m.poke(0x7000 - code.len() as u64, code);
    m.state(|s| {
        (s.cr0, s.cr3, s.cr4, s.efer) = (0x8000_0011, 0x2000, 0x220, 0x500);
        s.seg[1] = Segment::from_descriptor(8, 0x00af_9b00_0000_ffff);
        s.rip = 0u64.wrapping_sub(code.len() as u64);
        s.refresh();
    });
    m
}

#[test]
fn a_report_about_the_last_bytes_of_the_address_space() {
    let m = machine_at_the_top(&[0x0f, 0x58, 0xc0]); // addps xmm0, xmm0
    m.state(|s| assert_eq!(s.mode, x86::Mode::Long64));
    m.script.exit(Exit::Emulate);
    assert_eq!(m.run(), Ok(KVM_EXIT_INTERNAL_ERROR));
    let failure: KvmRunEmulationFailure = m.payload();
    // Address 0, which follows, is not mapped.
    assert_eq!((failure.insn_size, &failure.insn_bytes[..4]), (3, &[0x0f, 0x58, 0xc0, 0][..]));
}

#[test]
fn a_locked_instruction_over_memory_and_device_reads_and_writes_once() {
    let m = machine(&[0x66, 0xf0, 0x01, 0x07]); // lock add [bx], eax at 0xfffe
    m.poke(0xfffe, &[0xff, 0xff]);
    m.state(|s| {
        s.seg[3] = Segment::real(0x0fff, 0);
        (s.gpr[3], s.gpr[0]) = (0xe, 1);
    });
    fault(&m, Access::Write);
    assert_eq!(mmio(&m), (0x1_0000, 2, false, 0));
    m.answer_mmio(0x4433);
    assert_eq!(mmio(&m), (0x1_0000, 2, true, 0x4434));
    went_on(&m);
    assert_eq!(m.peek::<u16>(0xfffe), 0);
    m.state(|s| assert_eq!(s.rip, CODE + 4));
}

#[test]
fn a_locked_instruction_over_two_pages_that_lie_apart_writes_both() {
    let m = Machine::new();
    // LOCK INC DWORD [0x5ffe]; page 6 is in frame 9.
    m.poke(CODE, &[0xf0, 0x66, 0xff, 0x06, 0xfe, 0x5f]);
    m.poke(0x2000, &0x3007u32.to_le_bytes());
    for page in 0..8u32 {
        let frame = if page == 6 { 9 } else { page };
        m.poke(0x3000 + 4 * u64::from(page), &(frame << 12 | 7).to_le_bytes());
    }
    m.poke(0x5ffe, &[0xff, 0xff]);
    m.state(|s| {
        s.cr0 |= (x86::Cr0::PE | x86::Cr0::PG).bits();
        s.cr3 = 0x2000;
        s.refresh();
    });
    m.script.exit(Exit::Emulate);
    m.script.exit(Exit::Shutdown);
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    assert_eq!([0x5ffe, 0x9000, 0x6000].map(|at| m.peek::<u16>(at)), [0, 1, 0]);
    assert_eq!(m.state(|s| s.rip), CODE + 6);
}

#[test]
fn flushing_a_line_of_a_device_does_not_read_it() {
    let m = machine(&[0x0f, 0xae, 0x3f]); // clflush [bx]
    m.script.exit(Exit::Emulate);
    went_on(&m);
    m.state(|s| assert_eq!(s.rip, CODE + 3));
}

#[test]
fn a_walk_that_is_disturbed_does_not_repeat_device_accesses() {
    let m = machine_at_the_top(&[0x66, 0xa5]); // movsw
    m.poke(0x5000 + 510 * 8, &0x8003u64.to_le_bytes());
    m.poke(0x5000 + 509 * 8, &0x2_0003u64.to_le_bytes());
    m.state(|s| (s.gpr[6], s.gpr[7]) = (0u64.wrapping_sub(0x3000), 0u64.wrapping_sub(0x2000)));
    m.script.exit(Exit::Emulate);
    assert_eq!(mmio(&m), (DEVICE, 2, false, 0));
    m.answer_mmio(0x1234);
    // More than one walk tries for.
    host::lose_races(100);
    went_on(&m);
    assert_eq!((host::races_left(), m.peek::<u16>(0x8000)), (0, 0x1234));
}

#[test]
fn an_instruction_that_has_spoken_to_a_device_is_finished_first() {
    let m = machine(&[0x8b, 0x07]); // mov ax, [bx]
    m.vcpu.with_inner(|inner| {
        inner.tx.begin(CODE);
        let read = DeviceAccess { space: Space::Mmio, write: false, at: DEVICE + 0x10, len: 2, data: 0x77 };
        inner.tx.record(read).unwrap();
        inner.tx.stopped();
    });
    went_on(&m);
    m.state(|s| assert_eq!((s.gpr[0], s.rip), (0x77, CODE + 2)));
}

#[test]
fn what_emulated_system_instructions_tell_the_core() {
    // mov cr3, rax with a bit beyond the physical addresses of the guest.
    let m = machine_at_the_top(&[0x0f, 0x22, 0xd8]);
    m.state(|s| s.gpr[0] = 1 << 51);
    m.script.exit(Exit::Emulate);
    went_on(&m);
    let gp = EventKind::Exception(x86::Exception::with_code(x86::Vector::GP, 0));
    assert_eq!(m.script.take_injected(), [Event { kind: gp }]);
    // iret
    let m = machine(&[0xcf]);
    m.state(|s| s.gpr[4] = 0x800);
    *m.script.nmi_blocked.lock().unwrap() = true;
    m.script.exit(Exit::Emulate);
    went_on(&m);
    assert!(!*m.script.nmi_blocked.lock().unwrap());
}
