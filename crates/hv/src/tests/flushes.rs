//! Who asks the processor to forget translations, apart from changes of memory (`requests`): each change of what the
//! registers say about them that is not an instruction of the guest's own.
use abi::*;
use x86::{Cr4, Efer};

use crate::{
    backend::{CrOp, Exit, FlushTlb, Translation},
    testing::{CODE, Machine, cx, script::Note},
};

/// Whether a flush of everything comes before the next entry into the guest.
#[track_caller]
fn assert_flushed(m: &Machine) {
    let notes = m.script.take_notes();
    let until_entry = notes.iter().take_while(|note| **note != Note::Entered);
    assert!(until_entry.into_iter().any(|note| *note == Note::Flushed(FlushTlb::All)), "{notes:?}");
}

/// A machine that has run once, and what it noted then forgotten.
fn running(m: Machine) -> Machine {
    m.script.exit(Exit::Shutdown);
    m.run().unwrap();
    m.script.take_notes();
    m
}

fn again(m: &Machine) {
    m.script.exit(Exit::Shutdown);
    m.run().unwrap();
}

#[test]
fn nothing_is_flushed_without_a_reason() {
    let m = running(Machine::new());
    again(&m);
    assert!(!m.script.take_notes().iter().any(|note| matches!(note, Note::Flushed(_))));
}

#[test]
fn registers_that_the_client_sets() {
    let m = running(Machine::new());
    let mut sregs: KvmSregs = m.get(KVM_GET_SREGS);
    sregs.cr3 = 0x5000;
    m.ioctl(KVM_SET_SREGS, &mut sregs).unwrap();
    again(&m);
    assert_flushed(&m);
}

#[test]
fn no_execute_switched_by_the_client_and_by_the_guest() {
    let efer = 0xc000_0080;
    let m = running(Machine::new());
    let mut msrs = [0u8; 8 + 16];
    msrs[0] = 1;
    msrs[8..12].copy_from_slice(&u32::to_le_bytes(efer));
    msrs[16..24].copy_from_slice(&Efer::NXE.bits().to_le_bytes());
    m.client.with_bytes(&mut msrs, |arg| m.vcpu.ioctl(KVM_SET_MSRS, arg, &cx())).unwrap();
    again(&m);
    assert_flushed(&m);
    m.script.entry(move |state, _| {
        (state.gpr[1], state.gpr[0], state.gpr[2]) = (efer.into(), 0, 0);
        Exit::MsrWrite { len: 2 }
    });
    m.script.exit(Exit::Shutdown);
    m.run().unwrap();
    let notes = m.script.take_notes();
    assert_eq!(notes.iter().filter(|note| **note == Note::Flushed(FlushTlb::All)).count(), 1, "{notes:?}");
}

#[test]
fn control_registers_that_the_core_loads_for_the_guest() {
    let m = running(Machine::new());
    m.poke(CODE, &[0x0f, 0x22, 0xd8]); // mov cr3, eax
    m.script.entry(|state, _| {
        state.gpr[0] = 0x5000;
        Exit::Cr { op: CrOp::Other, len: 3 }
    });
    again(&m);
    assert_eq!(m.state(|s| s.cr3), 0x5000);
    let notes = m.script.take_notes();
    assert!(notes.contains(&Note::Flushed(FlushTlb::All)), "{notes:?}");
}

#[test]
fn init() {
    let m = running(Machine::with_irqchip());
    m.vcpu.with_inner(|inner| inner.init(true));
    again(&m);
    assert_flushed(&m);
}

#[test]
fn other_tables_than_before() {
    let m = running(Machine::on(Translation::Shadow));
    // Nothing told the core but the registers themselves.
    m.state(|s| s.cr4 |= Cr4::PAE.bits());
    again(&m);
    assert_flushed(&m);
}
