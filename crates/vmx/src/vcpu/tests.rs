use super::*;
use crate::{
    Options,
    controls::{entry, pin, primary, secondary},
    exit::reason,
    fields::*,
    testing::*,
};
use core::sync::atomic::Ordering::SeqCst;
use hv::backend::{Backend, CrOp, EventKind, Translation};
use platform::hardware::Processors;
use std::vec::Vec;
use x86::{Cr0, Cr4, Efer, Exception, Features, Mode, Seg, Segment, Shadow, Vector, debug, flags};

use super::held::{blocked, held_back};

fn general(rig: &mut Rig) -> &mut CpuState {
    rig.vcpu.registers_mut(Groups::GENERAL)
}

fn interrupt(vector: u8) -> Event {
    Event { kind: EventKind::Interrupt(vector) }
}

fn exception(exception: Exception) -> Event {
    Event { kind: EventKind::Exception(exception) }
}

/// With shadow paging, and a guest in 32-bit protected mode.
fn shadow() -> Rig {
    let mut rig = Rig::with(Options { ept: false, ..Options::default() });
    let state = rig.vcpu.registers_mut(Groups::ALL);
    state.cr0 |= Cr0::PE.bits();
    for segment in &mut state.seg {
        *segment = Segment::from_descriptor(0x10, 0x00cf_9300_0000_ffff);
    }
    state.seg[1] = Segment::from_descriptor(0x08, 0x00cf_9b00_0000_ffff);
    state.refresh();
    rig
}

#[test]
fn a_new_vcpu_is_in_reset_state() {
    let mut rig = Rig::new();
    rig.halt();
    assert_eq!((rig.seen(GUEST_RIP), rig.seen(GUEST_RFLAGS), rig.seen(GUEST_BASES.nth(1))), (0xfff0, 2, 0xffff_0000));
    assert_eq!((rig.seen(GUEST_CR0), rig.seen(CR0_SHADOW)), (0x30, x86::control::CR0_RESET));
    assert_eq!((rig.seen(GUEST_CR4), rig.seen(CR4_SHADOW)), (0x2040, 0));
    assert_eq!((rig.seen(GUEST_DR7), rig.seen(LINK_POINTER)), (debug::DR7_FIXED, u64::MAX));
    assert_eq!(rig.seen(EPT_POINTER), 0x7000 | 6 | 3 << 3 | 1 << 6);
    assert_eq!((rig.seen(HOST_TR), rig.seen(HOST_TR_BASE)), (0x40, 0x7000));
    assert!(rig.seen(MSR_BITMAP) != 0 && rig.seen(VIRTUAL_APIC) != 0);
    assert_eq!(rig.seen(ENTRY_EVENT), 0);
}

#[test]
fn what_the_guest_changes_is_seen() {
    let mut rig = Rig::new();
    rig.guest(|s| {
        put(s, GUEST_RIP, 0x1000);
        put(s, GUEST_RSP, 0x8000);
        put(s, GUEST_RFLAGS, 2 | flags::ZF);
        put(s, GUEST_BASES.nth(4), 0x5000);
        put(s, GUEST_CR3, 0xa000);
        put(s, EXIT_REASON, 10);
        put(s, EXIT_LENGTH, 2);
    });
    assert_eq!(rig.run(), Exit::Cpuid { len: 2 });
    let state = rig.vcpu.registers(Groups::GENERAL);
    assert_eq!((state.rip, state.gpr[4], state.flags.zf()), (0x1000, 0x8000, true));
    assert_eq!(rig.vcpu.registers(Groups::SEGMENTS).seg[Seg::Fs as usize].base, 0x5000);
    assert_eq!(rig.vcpu.registers(Groups::CONTROL).cr3, 0xa000);
    // And stays.
    rig.halt();
    assert_eq!((rig.seen(GUEST_CR3), rig.seen(GUEST_RIP)), (0xa000, 0x1000));
}

#[test]
fn registers_that_nobody_has_asked_for_stay_the_guests() {
    let mut rig = Rig::new();
    rig.guest(|s| {
        put(s, GUEST_CR3, 0xa000);
        put(s, GUEST_CR0, 0x38);
        put(s, GUEST_BASES.nth(5), 0x6000);
        put(s, EXIT_REASON, reason::HLT);
    });
    rig.run();
    general(&mut rig).rip = 0x2000;
    rig.halt();
    assert_eq!((rig.seen(GUEST_CR3), rig.seen(GUEST_CR0), rig.seen(GUEST_BASES.nth(5))), (0xa000, 0x38, 0x6000));
    assert_eq!(rig.seen(GUEST_RIP), 0x2000);
    let cr0 = rig.vcpu.registers(Groups::CONTROL).cr0;
    assert_eq!(cr0 & 8, 8);
}

#[test]
fn registers_are_read_also_after_the_thread_has_moved() {
    let mut rig = Rig::new();
    rig.guest(|s| {
        put(s, GUEST_BASES.nth(4), 0x5000);
        put(s, EXIT_REASON, reason::HLT);
    });
    rig.run();
    script(|s| s.cpu = 1);
    take_steps();
    assert_eq!(rig.vcpu.registers(Groups::SEGMENTS).seg[Seg::Fs as usize].base, 0x5000);
    let steps = take_steps();
    assert_eq!(steps[..3], [Step::OnCpu(0), vmx("vmclear"), Step::IrqsOff]);
    rig.halt();
    assert_eq!(rig.seen(HOST_TR_BASE), 0x7001);
}

#[test]
fn a_vcpu_that_goes_is_cleared_where_it_was() {
    let mut rig = Rig::new();
    rig.halt();
    take_steps();
    drop(rig.vcpu);
    assert_eq!(take_steps(), [Step::OnCpu(0), vmx("vmclear")]);
}

#[test]
fn a_processor_that_is_switched_off_gives_its_structures_back() {
    let mut rig = Rig::new();
    rig.halt();
    let cx = Atomic::at_entry();
    rig.intel.disable(0, &cx);
    script(|s| s.cpu = 1);
    rig.halt();
    rig.intel.enable(0, &cx).unwrap();
    script(|s| s.cpu = 2);
    assert_eq!(rig.run(), Exit::FailEntry { reason: 0 });
}

#[test]
fn an_event_is_injected_once() {
    let mut rig = Rig::new();
    rig.vcpu.inject(interrupt(0x31));
    rig.halt();
    assert_eq!(rig.seen(ENTRY_EVENT), 0x8000_0031);
    assert_eq!(rig.vcpu.take_unfinished_event(), None);
    rig.halt();
    assert_eq!(rig.seen(ENTRY_EVENT) >> 31, 0);
}

#[test]
fn an_event_that_did_not_get_in_is_handed_back() {
    let mut rig = Rig::new();
    rig.vcpu.inject(interrupt(0x31));
    rig.requests.store(1, SeqCst);
    assert_eq!(rig.run(), Exit::Interrupted);
    assert_eq!(rig.vcpu.take_unfinished_event(), Some(interrupt(0x31)));
}

#[test]
fn an_event_that_was_cut_short_is_handed_back() {
    let mut rig = shadow();
    rig.vcpu.inject(Event { kind: EventKind::Nmi });
    rig.guest(|s| {
        put(s, VECTORING_EVENT, 0x8000_0202);
        put(s, GUEST_INTERRUPTIBILITY, 8);
        put(s, EXIT_REASON, 0);
        put(s, EXIT_EVENT, 0x8000_0b0e);
        put(s, EXIT_ERROR_CODE, 2);
        put(s, QUALIFICATION, 0x8000);
    });
    assert_eq!(rig.run(), Exit::PageFault { gva: 0x8000, code: 2, implicit: false });
    assert_eq!(rig.vcpu.take_unfinished_event(), Some(Event { kind: EventKind::Nmi }));
    assert!(!rig.vcpu.nmi_blocked());
}

#[test]
fn an_nmi_blocks_others_until_iret() {
    let mut rig = Rig::new();
    rig.vcpu.inject(Event { kind: EventKind::Nmi });
    rig.guest(|s| {
        put(s, GUEST_INTERRUPTIBILITY, 8);
        put(s, EXIT_REASON, reason::HLT);
    });
    rig.run();
    assert_eq!((rig.seen(ENTRY_EVENT), rig.seen(GUEST_INTERRUPTIBILITY)), (0x8000_0202, 0));
    assert!(rig.vcpu.nmi_blocked());
    rig.vcpu.request_window(false, true);
    rig.guest(|s| put(s, EXIT_REASON, reason::NMI_WINDOW));
    assert_eq!(rig.run(), Exit::NmiWindow);
    assert_eq!(rig.seen(PRIMARY_CONTROLS) & primary::NMI_WINDOW, primary::NMI_WINDOW);
    rig.vcpu.set_nmi_blocked(false);
    rig.halt();
    assert_eq!(rig.seen(GUEST_INTERRUPTIBILITY), 0);
    rig.vcpu.set_nmi_blocked(true);
    rig.halt();
    assert_eq!(rig.seen(GUEST_INTERRUPTIBILITY), 8);
}

/// On a processor without virtual NMIs, with a guest inside the handler of one.
fn in_nmi_handler() -> Rig {
    old_processor();
    let mut rig = shadow();
    rig.vcpu.inject(Event { kind: EventKind::Nmi });
    rig.halt();
    assert_eq!((rig.seen(ENTRY_EVENT), rig.seen(PIN_CONTROLS) & pin::VIRTUAL_NMIS), (0x8000_0202, 0));
    assert!(rig.vcpu.nmi_blocked());
    rig.vcpu.request_window(false, true);
    rig
}

#[test]
fn without_virtual_nmis_a_guest_that_can_be_interrupted_is_out_of_its_handler() {
    let mut rig = in_nmi_handler();
    rig.guest(|s| {
        put(s, GUEST_RFLAGS, 2 | flags::IF);
        put(s, EXIT_REASON, reason::INTERRUPT_WINDOW);
    });
    assert_eq!(rig.run(), Exit::InterruptWindow);
    assert_eq!(rig.seen(PRIMARY_CONTROLS) & primary::INTERRUPT_WINDOW, primary::INTERRUPT_WINDOW);
    assert_eq!(rig.seen(GUEST_INTERRUPTIBILITY), 0);
    assert!(!rig.vcpu.nmi_blocked());
}

#[test]
fn without_virtual_nmis_one_waits_no_longer_than_a_second_for_another() {
    let mut rig = in_nmi_handler();
    rig.halt();
    script(|s| s.now += 999_999_999);
    rig.halt();
    assert!(rig.vcpu.nmi_blocked());
    script(|s| s.now += 1);
    assert_eq!(rig.run(), Exit::NmiWindow);
    assert!(!rig.vcpu.nmi_blocked());
}

#[test]
fn without_virtual_nmis_one_comes_right_behind_what_goes_first() {
    old_processor();
    let mut rig = shadow();
    rig.vcpu.request_window(false, true);
    rig.vcpu.inject(exception(Exception::plain(Vector::UD)));
    assert_eq!(rig.run(), Exit::Delivery);
    assert_eq!(rig.vcpu.take_unfinished_event(), Some(exception(Exception::plain(Vector::UD))));
    general(&mut rig).shadow = Shadow::MovSs;
    assert_eq!(rig.run(), Exit::Emulate);
}

#[test]
fn an_iret_that_faults_has_unblocked_nothing() {
    let mut rig = Rig::new();
    rig.guest(|s| {
        put(s, EXIT_REASON, reason::EPT_VIOLATION);
        put(s, QUALIFICATION, 0x1181);
    });
    rig.run();
    assert!(rig.vcpu.nmi_blocked());
}

#[test]
fn windows_are_asked_for_and_reported() {
    let mut rig = Rig::new();
    rig.vcpu.request_window(true, false);
    rig.guest(|s| put(s, EXIT_REASON, reason::INTERRUPT_WINDOW));
    assert_eq!(rig.run(), Exit::InterruptWindow);
    assert_eq!(rig.seen(PRIMARY_CONTROLS) & primary::INTERRUPT_WINDOW, primary::INTERRUPT_WINDOW);
    rig.vcpu.request_window(false, false);
    rig.halt();
    assert_eq!(rig.seen(PRIMARY_CONTROLS) & primary::INTERRUPT_WINDOW, 0);
}

#[test]
fn behind_sti_an_nmi_waits_for_the_window_of_interrupts() {
    let mut rig = Rig::new();
    rig.vcpu.request_window(false, true);
    for (shadow, window) in [(Shadow::Sti, primary::INTERRUPT_WINDOW), (Shadow::None, primary::NMI_WINDOW)] {
        general(&mut rig).shadow = shadow;
        rig.halt();
        assert_eq!(rig.seen(PRIMARY_CONTROLS) & (primary::INTERRUPT_WINDOW | primary::NMI_WINDOW), window);
    }
}

#[test]
fn what_an_instruction_holds_back_agrees_with_the_flags() {
    let (on, traced) = (flags::IF, flags::IF | flags::TF);
    for (shadow, rflags, traps, injected, expected) in [
        (Shadow::None, traced, 0, false, (0, 0)),
        (Shadow::Sti, on, 0, false, (1, 0)),
        // The processor wants IF set, and no single step.
        (Shadow::Sti, 0, 0, false, (0, 0)),
        (Shadow::Sti, traced, 0, false, (0, 0)),
        (Shadow::MovSs, on, 0, false, (2, 0)),
        (Shadow::MovSs, on, 0x1001, false, (2, 0x1001)),
        (Shadow::MovSs, traced, 0x1001, false, (2, 0x1001 | debug::DR6_BS)),
        (Shadow::MovSs, traced, 0x1001, true, (0, 0)),
        (Shadow::None, on, 0x1001, false, (0, 0x1001)),
    ] {
        let held = held_back(shadow, rflags, traps, injected);
        assert_eq!(held, expected, "{shadow:?} {rflags:#x} {traps:#x} {injected}");
    }
}

#[test]
fn a_breakpoint_behind_mov_ss_is_not_lost() {
    let mut rig = Rig::new();
    // MOV SS met breakpoint 1, and an interrupt of the host's came before the next instruction.
    let met = |s: &mut _| {
        put(s, GUEST_INTERRUPTIBILITY, 2);
        put(s, GUEST_PENDING_DEBUG, 0x1002);
        put(s, EXIT_REASON, reason::INTERRUPT);
    };
    rig.guest(met);
    rig.run();
    rig.halt();
    assert_eq!((rig.seen(GUEST_INTERRUPTIBILITY), rig.seen(GUEST_PENDING_DEBUG)), (2, 0x1002));
    // That instruction left the guest, and the core has executed it.
    general(&mut rig).shadow = Shadow::None;
    rig.halt();
    assert_eq!((rig.seen(GUEST_INTERRUPTIBILITY), rig.seen(GUEST_PENDING_DEBUG)), (0, 0x1002));
    // With TF set that is a trap of its own: one exception tells of both.
    rig.guest(met);
    rig.run();
    general(&mut rig).shadow = Shadow::None;
    rig.vcpu.inject(exception(Exception::debug(debug::DR6_BS)));
    rig.guest(|s| {
        put(s, GUEST_INTERRUPTIBILITY, 0);
        put(s, EXIT_REASON, reason::INTERRUPT);
    });
    rig.run();
    assert_eq!(rig.seen(GUEST_PENDING_DEBUG), 0);
    assert_eq!(rig.vcpu.registers(Groups::DEBUG).dr6 & !debug::DR6_FIXED, debug::DR6_BS | 2);
    rig.halt();
    assert_eq!(rig.seen(GUEST_PENDING_DEBUG), 0);
}

#[test]
fn a_page_fault_brings_its_address_and_rf() {
    let mut rig = shadow();
    rig.vcpu.inject(exception(Exception::page_fault(0x1234, 6)));
    rig.halt();
    assert_eq!((rig.seen(ENTRY_EVENT), rig.seen(ENTRY_ERROR_CODE)), (0x8000_0b0e, 6));
    assert_eq!(rig.seen(GUEST_RFLAGS) & flags::RF, flags::RF);
    assert!(take_steps().contains(&Step::Own("cr2", 0x1234)));
    assert_eq!(rig.vcpu.registers(Groups::CONTROL).cr2, 0x1234);
}

#[test]
fn a_debug_exception_of_the_guests_goes_to_the_guest() {
    let mut rig = Rig::new();
    rig.guest(|s| {
        put(s, EXIT_REASON, 0);
        put(s, EXIT_EVENT, 0x8000_0301);
        put(s, QUALIFICATION, 1);
    });
    assert_eq!(rig.run(), Exit::Exception { exception: Exception::debug(1) });
    // INT1 leaves the instruction pointer at itself.
    rig.guest(|s| {
        put(s, EXIT_REASON, 0);
        put(s, EXIT_EVENT, 0x8000_0501);
        put(s, EXIT_LENGTH, 1);
        put(s, QUALIFICATION, 0);
        put(s, GUEST_RIP, 0x100);
    });
    assert_eq!(rig.run(), Exit::Exception { exception: Exception::debug(0) });
    assert_eq!(general(&mut rig).rip, 0x101);
}

#[test]
fn a_step_of_the_clients_leaves_no_trace_in_the_guest() {
    let mut rig = Rig::new();
    rig.vcpu.set_debug(GuestDebug { single_step: true, ..GuestDebug::default() });
    rig.guest(|s| {
        put(s, EXIT_REASON, 0);
        put(s, EXIT_EVENT, 0x8000_0301);
        put(s, QUALIFICATION, debug::DR6_BS);
    });
    assert_eq!(rig.run(), Exit::Debug { dr6: debug::DR6_FIXED | debug::DR6_BS });
    assert_eq!(rig.seen(GUEST_RFLAGS) & flags::TF, flags::TF);
    assert!(!general(&mut rig).flags.control(flags::TF));
}

#[test]
fn tables_of_the_guests_are_watched_only_for_shadow_paging() {
    let watched = primary::CR3_LOAD | primary::CR3_STORE;
    let mut rig = Rig::new();
    assert!(matches!(rig.intel.translation(), Translation::Nested(mmu::shadow::EntryFormat::Ept)));
    rig.halt();
    assert_eq!((rig.seen(PRIMARY_CONTROLS) & watched, rig.seen(EXCEPTIONS) >> 14 & 1), (0, 0));
    {
        let state = rig.vcpu.registers_mut(Groups::CONTROL);
        state.cr0 |= (Cr0::PE | Cr0::PG).bits();
        state.cr4 |= Cr4::PAE.bits();
        state.pdptr = [0x1001, 0x2001, 0x3001, 0x4001];
    }
    rig.halt();
    assert_eq!(rig.seen(PRIMARY_CONTROLS) & watched, primary::CR3_LOAD);
    assert_eq!([0, 1, 2, 3].map(|n| rig.seen(GUEST_PDPTES.nth(n))), [0x1001, 0x2001, 0x3001, 0x4001]);
    let mut rig = shadow();
    assert_eq!(rig.intel.translation(), Translation::Shadow);
    rig.halt();
    assert_eq!((rig.seen(PRIMARY_CONTROLS) & watched, rig.seen(EXCEPTIONS) >> 14 & 1), (watched, 1));
    assert_eq!((rig.seen(GUEST_CR3), rig.seen(SECONDARY_CONTROLS) & 0x82), (0x7000, 0));
}

#[test]
fn without_unrestricted_guests_only_protected_mode_is_entered() {
    let mut rig = Rig::new();
    assert!(rig.vcpu.can_enter());
    let mut rig = Rig::with(Options { ept: false, ..Options::default() });
    assert!(!rig.vcpu.can_enter());
    let mut rig = shadow();
    assert!(rig.vcpu.can_enter());
    rig.halt();
    take_steps();
    assert!(rig.vcpu.can_enter() && take_steps().is_empty(), "nothing has changed");
    rig.vcpu.registers_mut(Groups::SEGMENTS).seg[2].selector = 0x13;
    assert!(!rig.vcpu.can_enter());
}

#[test]
fn long_mode_is_told_to_the_processor() {
    let mut rig = shadow();
    {
        let state = rig.vcpu.registers_mut(Groups::ALL);
        state.cr0 |= Cr0::PG.bits();
        state.cr4 |= Cr4::PAE.bits();
        state.efer = (Efer::LME | Efer::LMA).bits();
        state.seg[1] = Segment::from_descriptor(0x08, 0x00af_9b00_0000_ffff);
        state.refresh();
        assert_eq!(state.mode, Mode::Long64);
    }
    rig.halt();
    assert_eq!(rig.seen(ENTRY_CONTROLS) & entry::LONG_MODE, entry::LONG_MODE);
    assert_eq!(rig.seen(GUEST_EFER), (Efer::LME | Efer::LMA | Efer::NXE).bits());
}

#[test]
fn task_priority_is_read_from_memory_and_written_by_exits() {
    let mut rig = Rig::new();
    rig.vcpu.registers_mut(Groups::CONTROL).cr8 = 5;
    rig.guest(|s| {
        // SAFETY: the page of the vCPU, whose address here is its physical one.
        assert_eq!(unsafe { ((get(s, VIRTUAL_APIC) + 0x80) as *const u8).read() }, 0x50);
        put(s, EXIT_REASON, reason::CR);
        put(s, QUALIFICATION, 8);
        put(s, EXIT_LENGTH, 4);
    });
    assert_eq!(rig.run(), Exit::Cr { op: CrOp::Write { number: 8, value: 0 }, len: 4 });
}

#[test]
fn the_time_stamp_counter_is_offset_and_scaled() {
    let mut rig = Rig::new();
    rig.vcpu.set_tsc(0x1000, 3 << 47);
    rig.halt();
    assert_eq!((rig.seen(TSC_OFFSET), rig.seen(TSC_MULTIPLIER)), (0x1000, 3 << 47));
    assert_eq!(rig.seen(PRIMARY_CONTROLS) & primary::RDTSC, 0);
    old_processor();
    let mut rig = shadow();
    rig.vcpu.set_tsc(0, 3 << 47);
    rig.halt();
    assert_eq!(rig.seen(PRIMARY_CONTROLS) & primary::RDTSC, primary::RDTSC);
}

#[test]
fn an_entry_that_the_processor_refuses_is_reported() {
    let mut rig = Rig::new();
    rig.vcpu.inject(interrupt(0x31));
    rig.entry(|s| {
        put(s, INSTRUCTION_ERROR, 7);
        crate::instructions::Entry::Refused
    });
    assert_eq!(rig.run(), Exit::FailEntry { reason: 7 });
    assert_eq!(rig.vcpu.take_unfinished_event(), Some(interrupt(0x31)));
    rig.guest(|s| put(s, EXIT_REASON, 0x8000_0021));
    assert_eq!(rig.run(), Exit::FailEntry { reason: 0x8000_0021 });
    // Neither counts as a launch.
    rig.halt();
    let launches: Vec<Step> = take_steps().into_iter().filter(|s| *s == run(false, false)).collect();
    assert_eq!(launches.len(), 3);
    rig.root = Root::NONE;
    assert_eq!(rig.run(), Exit::FailEntry { reason: 0 });
}

#[test]
fn int_n_through_a_task_gate_is_emulated() {
    let mut rig = Rig::new();
    rig.guest(|s| {
        put(s, EXIT_REASON, reason::TASK_SWITCH);
        put(s, VECTORING_EVENT, 0x8000_0421);
    });
    assert_eq!(rig.run(), Exit::Emulate);
    rig.guest(|s| {
        put(s, EXIT_REASON, reason::TASK_SWITCH);
        put(s, VECTORING_EVENT, 0x8000_0021);
    });
    assert_eq!(rig.run(), Exit::TaskSwitch);
    assert_eq!(rig.vcpu.take_unfinished_event(), Some(interrupt(0x21)));
}

#[test]
fn the_fpu_is_copied_only_for_who_asks() {
    let mut rig = Rig::new();
    rig.halt();
    rig.vcpu.registers_mut(Groups::ALL_BUT_FPU);
    take_steps();
    rig.halt();
    let steps = take_steps();
    assert!(!steps.contains(&Step::FpuRestore) && !steps.contains(&Step::FpuSave));
    rig.vcpu.registers(Groups::FPU);
    rig.vcpu.registers(Groups::FPU);
    assert_eq!(take_steps(), [Step::FpuSave]);
    rig.vcpu.registers_mut(Groups::FPU).fpu.legacy.fcw = 0x27f;
    rig.halt();
    assert_eq!(take_steps()[..2], [Step::FpuRestore, Step::IrqsOff]);
}

/// With shadow paging, and a guest in real mode with plain segments.
fn real_mode() -> Rig {
    let mut rig = Rig::with(Options { ept: false, ..Options::default() });
    let state = rig.vcpu.registers_mut(Groups::ALL);
    state.seg = [Segment::real(0x1234, 0); 6];
    state.flags.set(2 | flags::IOPL);
    state.refresh();
    rig
}

#[test]
fn real_mode_runs_as_virtual_8086_mode_and_shows_nothing_of_it() {
    let mut rig = real_mode();
    assert!(rig.vcpu.can_enter());
    rig.guest(|s| {
        put(s, GUEST_SELECTORS.nth(3), 0x5678);
        put(s, GUEST_BASES.nth(3), 0x5_6780);
        put(s, EXIT_REASON, 10);
    });
    rig.run();
    assert_eq!(rig.seen(GUEST_RFLAGS), 2 | flags::VM);
    assert_eq!((rig.seen(GUEST_RIGHTS.nth(1)), rig.seen(EXCEPTIONS)), (0xf3, u32::MAX));
    assert_eq!((rig.seen(GUEST_CR0) & 1, rig.seen(CR0_SHADOW) & 1), (1, 0));
    let state = rig.vcpu.registers(Groups::ALL);
    assert_eq!((state.flags.get(), state.cpl, state.mode), (2 | flags::IOPL, 0, Mode::Real));
    assert_eq!(state.seg[3], Segment::real(0x5678, 0));
    assert_eq!(state.seg[1], Segment::real(0x1234, 0));
    // Protected mode again: the segments are written anew.
    rig.vcpu.registers_mut(Groups::CONTROL).cr0 |= Cr0::PE.bits();
    rig.vcpu.registers_mut(Groups::SEGMENTS).refresh();
    rig.vcpu.registers_mut(Groups::SEGMENTS).seg[1].attr = x86::Attr(0x9b);
    assert!(rig.vcpu.can_enter());
    rig.halt();
    assert_eq!((rig.seen(GUEST_RIGHTS.nth(1)), rig.seen(GUEST_RIGHTS.nth(3))), (0x9b, 0x93));
}

#[test]
fn what_virtual_8086_mode_does_otherwise_is_the_cores() {
    let mut rig = real_mode();
    assert!(rig.vcpu.can_enter());
    rig.vcpu.inject(interrupt(8));
    take_steps();
    assert_eq!(rig.run(), Exit::Delivery);
    assert!(take_steps().is_empty());
    assert_eq!(rig.vcpu.take_unfinished_event(), Some(interrupt(8)));
    let met = |rig: &mut Rig, event: u32| {
        rig.guest(move |s| {
            put(s, EXIT_REASON, 0);
            put(s, EXIT_EVENT, event);
        });
        rig.run()
    };
    // #GP, #UD, #DE, INT3.
    for event in [0x8000_0b0d, 0x8000_0306, 0x8000_0300, 0x8000_0603] {
        assert_eq!(met(&mut rig, event), Exit::Emulate, "{event:#x}");
    }
    let plain = |vector| Exit::Exception { exception: Exception::plain(vector) };
    assert_eq!(met(&mut rig, 0x8000_0310), plain(Vector::MF));
    rig.vcpu.set_debug(GuestDebug { software_breakpoints: true, ..GuestDebug::default() });
    assert_eq!(met(&mut rig, 0x8000_0603), plain(Vector::BP));
}

#[test]
fn write_protection_of_supervisors_is_the_guests_own_with_nested_paging() {
    let wp = Cr0::WP.bits();
    let mut rig = Rig::new();
    rig.guest(move |s| {
        let cr0 = get(s, GUEST_CR0);
        put(s, GUEST_CR0, cr0 | wp);
        put(s, EXIT_REASON, reason::HLT);
    });
    rig.run();
    assert_eq!(rig.seen(CR0_MASK) & wp, 0);
    assert_eq!(rig.vcpu.registers(Groups::CONTROL).cr0 & wp, wp);
    // Shadow tables depend on it.
    let mut rig = shadow();
    assert!(rig.vcpu.can_enter());
    rig.halt();
    assert_eq!(rig.seen(CR0_MASK) & wp, wp);
}

#[test]
fn what_stays_is_not_written_again() {
    let mut rig = Rig::new();
    rig.halt();
    take_writes();
    rig.vcpu.registers_mut(Groups::GENERAL).rip += 2;
    rig.halt();
    assert_eq!(take_writes(), [GUEST_RIP.encoding()]);
    rig.vcpu.inject(interrupt(0x31));
    rig.halt();
    assert_eq!(take_writes(), [GUEST_RIP.encoding(), ENTRY_EVENT.encoding()]);
    rig.halt();
    assert_eq!(take_writes(), [GUEST_RIP.encoding()]);
    assert_eq!(rig.seen(ENTRY_EVENT) >> 31, 0, "it is not delivered twice");
    // Breakpoints leave something pending.
    rig.vcpu.registers_mut(Groups::DEBUG).dr7 |= 1;
    rig.halt();
    take_writes();
    rig.halt();
    assert_eq!(take_writes(), [GUEST_PENDING_DEBUG.encoding()]);
}

#[test]
fn mode_and_level_follow_the_guest_and_the_core() {
    let mut rig = shadow();
    assert!(rig.vcpu.can_enter());
    let level = |rig: &mut Rig, dpl: u32| {
        rig.guest(move |s| {
            for (n, rights) in [(1, 0xc09b), (2, 0xc093)] {
                put(s, GUEST_RIGHTS.nth(n), rights | dpl << 5);
            }
            put(s, EXIT_REASON, reason::HLT);
        });
        rig.run();
        rig.vcpu.registers(Groups::GENERAL).cpl
    };
    assert_eq!([level(&mut rig, 3), level(&mut rig, 3), level(&mut rig, 0)], [3, 3, 0]);
    let state = rig.vcpu.registers_mut(Groups::SEGMENTS);
    for n in [1, 2] {
        state.seg[n].attr = state.seg[n].attr.with_dpl(3);
        state.seg[n].selector |= 3;
    }
    state.refresh();
    assert!(rig.vcpu.can_enter());
    assert_eq!(level(&mut rig, 0), 0);
}

#[test]
fn segments_are_looked_at_again_only_when_they_or_the_mode_have_changed() {
    let mut rig = shadow();
    assert!(rig.vcpu.can_enter());
    rig.halt();
    rig.guest(|s| {
        // The guest has loaded something; the processor has checked it.
        put(s, GUEST_SELECTORS.nth(3), 0x28);
        put(s, EXIT_REASON, reason::HLT);
    });
    rig.run();
    take_steps();
    rig.vcpu.registers_mut(Groups::CONTROL).cr3 = 0x9000;
    take_steps();
    assert!(rig.vcpu.can_enter() && take_steps().is_empty());
    assert_eq!(rig.vcpu.registers(Groups::SEGMENTS).seg[3].selector, 0x28);
    let state = rig.vcpu.registers_mut(Groups::CONTROL);
    state.cr0 &= !Cr0::PE.bits();
    state.refresh();
    assert!(!rig.vcpu.can_enter(), "flat segments are none of virtual-8086 mode");
}

#[test]
fn only_segments_that_the_core_has_changed_are_written_again() {
    let mut rig = shadow();
    assert!(rig.vcpu.can_enter());
    rig.halt();
    let fields =
        |n| [GUEST_SELECTORS.nth(n).encoding(), GUEST_LIMITS.nth(n).encoding(), GUEST_RIGHTS.nth(n).encoding()];
    let segments = |writes: &[u32]| {
        let is_written = |n: &u32| fields(*n).iter().all(|field| writes.contains(field));
        (0..8).filter(is_written).collect::<Vec<_>>()
    };
    rig.vcpu.registers_mut(Groups::ALL_BUT_FPU).rip += 1;
    take_writes();
    assert!(rig.vcpu.can_enter());
    rig.halt();
    assert!(segments(&take_writes()).is_empty());
    rig.vcpu.registers_mut(Groups::SEGMENTS).seg[3].limit = 0x1234;
    rig.vcpu.registers_mut(Groups::SEGMENTS).gdtr.limit = 0x77;
    assert!(rig.vcpu.can_enter());
    rig.halt();
    assert_eq!(segments(&take_writes()), [3, 6, 7]);
    assert_eq!((rig.seen(GUEST_LIMITS.nth(3)), rig.seen(GUEST_GDTR_LIMIT)), (0x1234, 0x77));
}

#[test]
fn no_interrupt_comes_before_an_int_that_was_cut_short() {
    let mut rig = Rig::new();
    rig.vcpu.registers_mut(Groups::GENERAL).flags.set(2 | flags::IF);
    rig.guest(|s| {
        put(s, GUEST_RFLAGS, 2 | flags::IF);
        put(s, EXIT_REASON, reason::EPT_VIOLATION);
        put(s, VECTORING_EVENT, 0x8000_0421);
    });
    rig.run();
    assert_eq!(rig.vcpu.registers(Groups::GENERAL).shadow, Shadow::Sti);
    rig.vcpu.request_window(true, false);
    rig.halt();
    assert_eq!(rig.seen(GUEST_INTERRUPTIBILITY), blocked::STI);
    // Without interrupts there is nothing to hold back.
    rig.guest(|s| {
        put(s, GUEST_RFLAGS, 2);
        put(s, GUEST_INTERRUPTIBILITY, 0);
        put(s, EXIT_REASON, reason::EPT_VIOLATION);
        put(s, VECTORING_EVENT, 0x8000_0421);
    });
    rig.run();
    assert_eq!(rig.vcpu.registers(Groups::GENERAL).shadow, Shadow::None);
}

#[test]
fn instructions_that_cpuid_does_not_offer_are_undefined() {
    let mut rig = Rig::new();
    let both = secondary::INVPCID | secondary::RDTSCP;
    rig.halt();
    assert_eq!(rig.seen(SECONDARY_CONTROLS) & both, both);
    for (features, expected) in [
        (Features::INVPCID, secondary::INVPCID),
        (Features::RDPID, secondary::RDTSCP),
        (Features::RDTSCP, secondary::RDTSCP),
        (Features::PCID, 0),
    ] {
        rig.vcpu.set_features(features, 0, 36);
        rig.halt();
        assert_eq!(rig.seen(SECONDARY_CONTROLS) & both, expected);
    }
}

#[test]
fn what_umip_hides_exits_where_the_processor_has_none() {
    let capable = |bit: u64| set_msr(0x48b, 0xffff_ffff_0000_0000 & !((1 << 2) << 32) | (bit << 2) << 32);
    capable(1);
    let mut rig = Rig::new();
    assert!(rig.intel.features().contains(Features::UMIP));
    let tables = |rig: &mut Rig, cr4: Cr4| {
        rig.vcpu.registers_mut(Groups::CONTROL).cr4 = cr4.bits();
        rig.halt();
        assert_eq!(rig.seen(GUEST_CR4) & Cr4::UMIP.bits(), 0);
        assert_eq!(rig.seen(CR4_SHADOW), cr4.bits());
        rig.seen(SECONDARY_CONTROLS) & secondary::DESCRIPTOR_TABLES != 0
    };
    assert_eq!([tables(&mut rig, Cr4::UMIP), tables(&mut rig, Cr4::empty())], [true, false]);
    for reason in [reason::GDTR_IDTR, reason::LDTR_TR] {
        rig.guest(move |s| put(s, EXIT_REASON, reason));
        assert_eq!(rig.run(), Exit::Emulate);
    }
    capable(0);
    assert!(!Rig::new().intel.features().contains(Features::UMIP));
}
