use super::*;
use crate::{Options, exit::code, testing::*};
use hv::backend::CrOp;
use std::vec::Vec;
use x86::{Cr0, Cr4, Efer, Mode, Seg, flags};

fn general(rig: &mut Rig) -> &mut CpuState {
    rig.vcpu.registers_mut(Groups::GENERAL)
}

fn interrupt(vector: u8) -> Event {
    Event { kind: EventKind::Interrupt(vector) }
}

#[test]
fn a_new_vcpu_is_in_reset_state() {
    let mut rig = Rig::new();
    rig.enter(Exit::Hlt { len: 0 });
    let save = &rig.seen().save;
    assert_eq!((save.rip, save.rflags, save.cpl), (0xfff0, 2, 0));
    assert_eq!(save.segments[1].base, 0xffff_0000);
    assert_eq!(save.efer, (Efer::SVME | Efer::NXE).bits());
    assert_eq!((save.dr6, save.dr7, save.cr3), (debug::DR6_FIXED, debug::DR7_FIXED, 0x7000));
    let control = &rig.seen().control;
    assert!(control.iopm_base != 0 && control.msrpm_base != 0 && control.nested_control == 0);
}

#[test]
fn what_the_guest_changes_is_seen() {
    let mut rig = Rig::new();
    rig.exit_with(|vmcb| {
        (vmcb.save.rax, vmcb.save.rip, vmcb.save.rflags) = (7, 0x1000, 2 | flags::ZF);
        vmcb.save.segments[Seg::Fs as usize].base = 0x5000;
        vmcb.save.kernel_gs_base = 0x6000;
        vmcb.control.exit_code = code::CPUID;
    });
    assert_eq!(rig.run(), Exit::Cpuid { len: 0 });
    let state = rig.vcpu.registers(Groups::GENERAL.and(Groups::STATUS));
    assert_eq!((state.gpr[0], state.rip, state.flags.zf()), (7, 0x1000, true));
    assert_eq!(rig.vcpu.registers(Groups::SEGMENTS).seg[Seg::Fs as usize].base, 0x5000);
    assert_eq!(rig.vcpu.registers(Groups::MSRS).kernel_gs_base, 0x6000);
}

#[test]
fn what_nobody_changed_is_not_written_again() {
    let mut rig = Rig::new();
    rig.enter(Exit::Hlt { len: 0 });
    // The processor may keep a segment in a form of its own, which is lost if it is written.
    rig.exit_with(|vmcb| {
        vmcb.save.segments[0].attributes = 0x92;
        vmcb.control.exit_code = code::HLT;
    });
    rig.run();
    general(&mut rig).rip = 0x2000;
    rig.enter(Exit::Hlt { len: 0 });
    assert_eq!((rig.seen().save.segments[0].attributes, rig.seen().save.rip), (0x92, 0x2000));
    rig.vcpu.registers_mut(Groups::SEGMENTS);
    rig.enter(Exit::Hlt { len: 0 });
    assert_eq!(rig.seen().save.segments[0].attributes, 0x93);
}

#[test]
fn the_fpu_is_copied_only_for_who_asks() {
    let mut rig = Rig::new();
    rig.vcpu.registers_mut(Groups::ALL_BUT_FPU);
    rig.enter(Exit::Hlt { len: 0 });
    let steps = take_steps();
    assert!(!steps.contains(&Step::FpuRestore) && !steps.contains(&Step::FpuSave));
    rig.vcpu.registers(Groups::FPU);
    rig.vcpu.registers(Groups::FPU);
    assert_eq!(take_steps(), [Step::FpuSave]);
    rig.vcpu.registers_mut(Groups::FPU).fpu.legacy.fcw = 0x27f;
    rig.enter(Exit::Hlt { len: 0 });
    assert_eq!(take_steps()[..2], [Step::FpuRestore, Step::IrqsOff]);
}

#[test]
fn the_fpu_is_loaded_once_a_run() {
    let mut rig = Rig::new();
    rig.vcpu.load(&Atomic::at_entry());
    rig.enter(Exit::Hlt { len: 0 });
    rig.enter(Exit::Hlt { len: 0 });
    rig.vcpu.put(&Atomic::at_entry());
    let fpu = |step: &Step| matches!(step, Step::FpuLoad | Step::FpuPut);
    let steps: Vec<Step> = take_steps().into_iter().filter(fpu).collect();
    assert_eq!(steps, [Step::FpuLoad, Step::FpuPut]);
}

#[test]
fn an_event_is_injected_once() {
    let mut rig = Rig::new();
    rig.vcpu.inject(interrupt(0x31));
    rig.enter(Exit::Hlt { len: 0 });
    assert_eq!(rig.seen().control.event_inject, 0x8000_0031);
    assert_eq!(rig.vcpu.take_unfinished_event(), None);
    rig.enter(Exit::Hlt { len: 0 });
    assert_eq!(rig.seen().control.event_inject, 0);
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
    let mut rig = Rig::new();
    rig.vcpu.inject(Event { kind: EventKind::Nmi });
    rig.exit_with(|vmcb| {
        vmcb.control.exit_code = code::PF;
        vmcb.control.exit_int_info = vmcb.control.event_inject;
        (vmcb.control.exit_info_1, vmcb.control.exit_info_2) = (2, 0x8000);
    });
    assert_eq!(rig.run(), Exit::PageFault { gva: 0x8000, code: 2, implicit: false });
    assert_eq!(rig.vcpu.take_unfinished_event(), Some(Event { kind: EventKind::Nmi }));
    assert!(!rig.vcpu.nmi_blocked());
}

#[test]
fn an_nmi_blocks_others_until_iret() {
    let mut rig = Rig::new();
    rig.vcpu.inject(Event { kind: EventKind::Nmi });
    rig.enter(Exit::Hlt { len: 0 });
    assert!(rig.vcpu.nmi_blocked());
    rig.exit_with(|vmcb| vmcb.control.exit_code = code::IRET);
    // The emulator executes it, and says that the handler has ended.
    assert_eq!(rig.run(), Exit::Emulate);
    assert_eq!(rig.seen().control.intercepts[3] >> 20 & 1, 1);
    rig.vcpu.set_nmi_blocked(false);
    rig.enter(Exit::Hlt { len: 0 });
    assert_eq!(rig.seen().control.intercepts[3] >> 20 & 1, 0);
}

#[test]
fn an_nmi_waits_for_the_end_of_a_shadow_by_one_instruction() {
    let mut rig = Rig::new();
    rig.vcpu.request_window(false, true);
    rig.enter(Exit::Hlt { len: 0 });
    general(&mut rig).shadow = Shadow::MovSs;
    take_steps();
    assert_eq!(rig.run(), Exit::Emulate);
    assert!(take_steps().is_empty());
}

#[test]
fn an_interrupt_window_is_asked_for_and_reported() {
    let mut rig = Rig::new();
    rig.vcpu.request_window(true, false);
    rig.exit_with(|vmcb| vmcb.control.exit_code = code::VINTR);
    assert_eq!(rig.run(), Exit::InterruptWindow);
    let control = &rig.seen().control;
    assert_eq!((control.intercepts[3] >> 4 & 1, control.int_control >> 8 & 1), (1, 1));
    rig.vcpu.request_window(false, false);
    rig.enter(Exit::Hlt { len: 0 });
    let control = &rig.seen().control;
    assert_eq!((control.intercepts[3] >> 4 & 1, control.int_control >> 8 & 1), (0, 0));
}

#[test]
fn a_page_fault_brings_its_address_and_rf() {
    let mut rig = Rig::new();
    rig.vcpu.inject(Event { kind: EventKind::Exception(Exception::page_fault(0x1234, 6)) });
    rig.enter(Exit::Hlt { len: 0 });
    let vmcb = rig.seen();
    assert_eq!((vmcb.save.cr2, vmcb.control.event_inject), (0x1234, 0x6_8000_0b0e));
    assert_eq!(vmcb.save.rflags & flags::RF, flags::RF);
    assert_eq!(rig.vcpu.registers(Groups::CONTROL).cr2, 0x1234);
}

#[test]
fn a_debug_exception_of_the_guests_goes_to_the_guest() {
    let mut rig = Rig::new();
    rig.vcpu.registers_mut(Groups::DEBUG).dr7 = 0x2401;
    rig.exit_with(|vmcb| {
        vmcb.control.exit_code = code::DB;
        vmcb.save.dr6 |= 1;
    });
    let exception = Exception::debug(1);
    assert_eq!(rig.run(), Exit::Exception { exception });
    rig.vcpu.registers_mut(Groups::DEBUG).dr6 |= debug::DR6_BS | 2;
    rig.vcpu.inject(Event { kind: EventKind::Exception(exception) });
    rig.enter(Exit::Hlt { len: 0 });
    // B0 to B3 are this exception's, the others stay; general detect is off in its handler.
    let state = rig.vcpu.registers(Groups::DEBUG);
    assert_eq!((state.dr6, state.dr7), (debug::DR6_FIXED | debug::DR6_BS | 1, 0x401));
    assert_eq!(rig.seen().save.rflags & flags::RF, 0);
}

#[test]
fn a_step_of_the_clients_leaves_no_trace_in_the_guest() {
    let mut rig = Rig::new();
    rig.vcpu.set_debug(GuestDebug { single_step: true, ..GuestDebug::default() });
    rig.exit_with(|vmcb| {
        vmcb.control.exit_code = code::DB;
        vmcb.save.dr6 |= debug::DR6_BS;
    });
    assert_eq!(rig.run(), Exit::Debug { dr6: debug::DR6_FIXED | debug::DR6_BS });
    assert_eq!(rig.seen().save.rflags & flags::TF, flags::TF);
    let state = rig.vcpu.registers(Groups::GENERAL.and(Groups::DEBUG));
    assert_eq!((state.flags.control(flags::TF), state.dr6), (false, debug::DR6_FIXED));
    // A trap flag of the guest's own stays.
    general(&mut rig).flags.set_control(flags::TF, flags::TF);
    rig.enter(Exit::Hlt { len: 0 });
    assert!(general(&mut rig).flags.control(flags::TF));
}

#[test]
fn registers_that_differ_from_the_guests_are_intercepted() {
    let mut rig = Rig::new();
    rig.enter(Exit::Hlt { len: 0 });
    assert_eq!(rig.seen().control.intercepts[0] & 0x1_0001, 0x1_0001);
    {
        let state = rig.vcpu.registers_mut(Groups::CONTROL);
        state.cr0 = (Cr0::PE | Cr0::PG | Cr0::WP | Cr0::ET).bits();
        state.cr4 = (Cr4::PAE | Cr4::MCE).bits();
    }
    rig.enter(Exit::Hlt { len: 0 });
    assert_eq!(rig.seen().control.intercepts[0] & 0x11_0011, 0x10_0000);
    rig.exit_with(|vmcb| {
        vmcb.save.cr0 |= Cr0::TS.bits();
        vmcb.control.exit_code = code::WRITE_CR8;
    });
    assert_eq!(rig.run(), Exit::Cr { op: CrOp::Other, len: 0 });
    assert!(rig.vcpu.registers(Groups::CONTROL).cr0 & Cr0::TS.bits() != 0);
}

#[test]
fn nested_paging_is_used_where_it_is_wanted_and_there() {
    use hv::backend::{Backend, Translation};
    let translation = |npt| {
        let amd: crate::Amd<TestHost, Recorder> = crate::Amd::new(Options { npt }, &MaySleep::at_entry()).unwrap();
        amd.translation()
    };
    assert_eq!(translation(true), Translation::Shadow);
    svm_features(1);
    assert_eq!(
        [translation(true), translation(false)],
        [Translation::Nested(mmu::shadow::EntryFormat::X86), Translation::Shadow]
    );
}

#[test]
fn nested_paging_leaves_cr3_to_the_guest() {
    svm_features(1);
    let mut rig = Rig::with(Options { npt: true });
    rig.vcpu.registers_mut(Groups::CONTROL).cr3 = 0x9000;
    rig.exit_with(|vmcb| {
        vmcb.save.cr3 = 0xa000;
        vmcb.control.exit_code = code::HLT;
    });
    rig.run();
    let vmcb = rig.seen();
    assert_eq!((vmcb.control.nested_control, vmcb.control.nested_cr3, vmcb.save.cr3), (1, 0x7000, 0x9000));
    assert_eq!(rig.vcpu.registers(Groups::CONTROL).cr3, 0xa000);
}

#[test]
fn the_time_stamp_counter_is_offset_and_scaled() {
    let mut rig = Rig::new();
    rig.vcpu.set_tsc(0x1000, 3 << 47);
    rig.enter(Exit::Hlt { len: 0 });
    let control = &rig.seen().control;
    // No such ability: RDTSC and RDTSCP exit.
    assert_eq!((control.tsc_offset, control.intercepts[3] >> 14 & 1, control.intercepts[4] >> 7 & 1), (0x1000, 1, 1));
    svm_features(1 << 4);
    let mut rig = Rig::new();
    rig.vcpu.set_tsc(0, 3 << 47);
    rig.enter(Exit::Hlt { len: 0 });
    assert_eq!(rig.seen().control.intercepts[3] >> 14 & 1, 0);
    assert!(take_steps().contains(&Step::WriteMsr(crate::local::TSC_RATIO, 3 << 31)));
    rig.enter(Exit::Hlt { len: 0 });
    assert!(!take_steps().iter().any(|step| matches!(step, Step::WriteMsr(..))));
}

#[test]
fn an_entry_that_the_processor_refuses_is_reported() {
    let mut rig = Rig::new();
    rig.exit_with(|vmcb| vmcb.control.exit_code = code::INVALID);
    assert_eq!(rig.run(), Exit::FailEntry { reason: 0xffff_ffff });
    rig.root = Root::NONE;
    assert_eq!(rig.run(), Exit::FailEntry { reason: 0 });
}

#[test]
fn int_n_through_a_task_gate_is_emulated() {
    let mut rig = Rig::new();
    rig.exit_with(|vmcb| {
        vmcb.control.exit_code = code::TASK_SWITCH;
        vmcb.control.exit_int_info = 0x8000_0421;
    });
    assert_eq!(rig.run(), Exit::Emulate);
    rig.exit_with(|vmcb| {
        vmcb.control.exit_code = code::TASK_SWITCH;
        vmcb.control.exit_int_info = 0x8000_0021;
    });
    assert_eq!(rig.run(), Exit::TaskSwitch);
    assert_eq!(rig.vcpu.take_unfinished_event(), Some(interrupt(0x21)));
}

#[test]
fn mode_follows_the_guest() {
    let mut rig = Rig::new();
    rig.vcpu.registers_mut(Groups::CONTROL).cr0 |= Cr0::PE.bits();
    rig.exit_with(|vmcb| {
        vmcb.save.segments[1].attributes = 0xc9b;
        vmcb.save.cpl = 3;
        vmcb.control.exit_code = code::HLT;
    });
    rig.run();
    let state = rig.vcpu.registers(Groups::GENERAL);
    assert_eq!((state.mode, state.cpl), (Mode::Protected32, 3));
}

#[test]
fn no_interrupt_comes_before_an_int_that_was_cut_short() {
    let mut rig = Rig::new();
    for (rflags, shadow) in [(2 | flags::IF, Shadow::Sti), (2, Shadow::None)] {
        rig.exit_with(move |vmcb| {
            vmcb.save.rflags = rflags;
            vmcb.control.int_state = 0;
            vmcb.control.exit_code = code::NESTED_PAGE_FAULT;
            vmcb.control.exit_int_info = 0x8000_0421;
        });
        rig.run();
        assert_eq!(rig.vcpu.registers(Groups::GENERAL).shadow, shadow);
        rig.enter(Exit::Hlt { len: 0 });
        assert_eq!(rig.seen().control.int_state != 0, shadow != Shadow::None);
    }
}
