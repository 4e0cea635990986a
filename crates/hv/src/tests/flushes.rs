//! Who asks the processor to forget translations, apart from changes of memory (`requests`): each change of what the
//! registers say about them that is not an instruction of the guest's own.
use abi::*;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use platform::table::CheckedTablePage;
use std::{panic::catch_unwind, sync::Arc, thread, vec::Vec};
use x86::{Cr0, Cr4, Efer, exception::pf};

use crate::{
    backend::{Access, BackendVcpu, CrOp, Exit, FlushTlb, Groups, Translation},
    testing::{CODE, Machine, below, cx, script::Note},
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

#[test]
fn memory_of_system_management_mode() {
    let m = running(Machine::new());
    let flushed = || m.script.take_notes().contains(&Note::Flushed(FlushTlb::Physical));
    let set = |size| m.set_slot(1 << 16, 0x3_0000, size, m.ram.at()).unwrap();
    // A new slot is in nobody's way.
    set(0x1_0000);
    again(&m);
    assert!(!flushed());
    // The handler sees other memory than the guest, and then other memory than before.
    m.vcpu.ioctl(KVM_SMI, 0, &cx()).unwrap();
    again(&m);
    assert!(flushed());
    set(0);
    again(&m);
    assert!(flushed());
}

/// Long mode with tables at 0x5000: a root that vCPUs can share.
fn long(state: &mut x86::CpuState) {
    state.cr0 |= (Cr0::PE | Cr0::PG).bits();
    state.cr4 |= Cr4::PAE.bits();
    state.efer |= (Efer::LME | Efer::LMA).bits();
    state.cr3 = 0x5000;
    state.refresh();
}

#[test]
fn a_vcpu_that_ends_as_the_last_on_an_old_root() {
    let m = Machine::on(Translation::Shadow);
    let (other, _run) = Machine::new_vcpu(&m.vm, 1);
    m.use_supported_cpuid(&other);
    m.state(long);
    other.with_inner(|inner| long(inner.cpu.registers_mut(Groups::ALL)));
    let other_script = m.backend.script(1);
    other_script.exit(Exit::Shutdown);
    other.ioctl(KVM_RUN, 0, &cx()).unwrap();
    let m = running(m);
    // Every table goes; the first vCPU takes a new root, the second keeps what is left of the old one.
    m.set_slot(1, 0x10_0000, 4096, m.ram.at()).unwrap();
    m.set_slot(1, 0x10_0000, 0, m.ram.at()).unwrap();
    again(&m);
    m.script.take_notes();
    again(&m);
    assert!(!m.script.take_notes().iter().any(|note| matches!(note, Note::Flushed(_))));
    drop(other);
    again(&m);
    let notes = m.script.take_notes();
    assert!(notes.contains(&Note::Flushed(FlushTlb::Physical)), "its root was freed: {notes:?}");
}

#[test]
fn a_frame_that_becomes_a_root_is_written_by_no_processor_unseen() {
    let m = Machine::paged(Translation::Shadow);
    m.script.exit(Exit::PageFault { gva: 0x5000, code: pf::WRITE, implicit: false });
    let m = running(m);
    let (other, _run) = Machine::new_vcpu(&m.vm, 1);
    m.use_supported_cpuid(&other);
    let script = m.backend.script(1);
    let run_other = || {
        script.exit(Exit::Shutdown);
        other.ioctl(KVM_RUN, 0, &cx()).unwrap();
        script.take_notes().contains(&Note::Flushed(FlushTlb::Physical))
    };
    run_other();
    assert!(!run_other(), "without a reason");
    m.state(long);
    again(&m);
    assert!(run_other());
}

/// While the vCPU is in the guest, and its processor knows the tables that `tables` finds from the root, `change` is made.
/// They outlive it until the processor has left the guest.
fn outlive_a_stay(m: &Machine, tables: fn(u64) -> Vec<u64>, change: impl FnOnce()) {
    let [inside, changed, alive] = [(); 3].map(|()| Arc::new(AtomicBool::new(false)));
    let (entered, over, found) = (inside.clone(), changed.clone(), alive.clone());
    m.script.entry(move |_, env| {
        let tables = tables(env.root.hpa);
        entered.store(true, SeqCst);
        // The change waits for this processor to leave; or it does not, which will show.
        while env.requests.load(SeqCst) == 0 && !over.load(SeqCst) {
            thread::yield_now();
        }
        let walk = catch_unwind(|| tables.iter().for_each(|table| _ = CheckedTablePage::live_entry(*table, 0)));
        found.store(walk.is_ok(), SeqCst);
        Exit::Shutdown
    });
    thread::scope(|s| {
        s.spawn(|| m.run().unwrap());
        while !inside.load(SeqCst) {
            thread::yield_now();
        }
        change();
        changed.store(true, SeqCst);
    });
    assert!(alive.load(SeqCst), "a table was freed under a processor");
}

#[test]
fn tables_that_a_processor_walks_outlive_its_stay() {
    let m = Machine::on(Translation::Shadow);
    m.set_slot(1, 0x10_0000, 4096, m.ram.at()).unwrap();
    m.script.exit(Exit::PageFault { gva: CODE, code: pf::FETCH, implicit: false });
    let change = || _ = m.set_slot(1, 0x10_0000, 0, m.ram.at()).unwrap();
    outlive_a_stay(&m, |root| below(root, 0..1), change);
}

#[test]
fn tables_that_the_host_wants_back_outlive_the_stay_too() {
    let m = Machine::on(Translation::Shadow);
    m.script.exit(Exit::PageFault { gva: CODE, code: pf::FETCH, implicit: false });
    let change = || assert_ne!(m.vm.shrink_shadow(1000), 0);
    outlive_a_stay(&m, |root| below(root, 0..1), change);
}

#[test]
fn tables_beyond_a_new_bound_outlive_the_stay_too() {
    const SLOTS: u64 = 100;
    let m = Machine::on(Translation::Shadow);
    for n in 1..=SLOTS {
        // Each needs a table of its own.
        m.set_slot(n as u32, n << 21, 4096, m.ram.at()).unwrap();
        m.script.exit(Exit::PageFault { gva: n << 21, code: 0, implicit: false });
    }
    m.vm.ioctl(KVM_SET_NR_MMU_PAGES, 1000, &cx()).unwrap();
    let change = || _ = m.vm.ioctl(KVM_SET_NR_MMU_PAGES, 64, &cx()).unwrap();
    outlive_a_stay(&m, |root| below(below(root, 0..1)[0], 1..=SLOTS as usize), change);
}

#[test]
fn small_nested_tables_outlive_the_stay_when_their_log_ends() {
    const AT: u64 = 0x20_0000;
    let m = Machine::on(Translation::Nested(mmu::shadow::EntryFormat::X86));
    let set = |flags| {
        let (size, ram) = (0x2000, m.ram.at());
        let mut region =
            KvmUserspaceMemoryRegion { slot: 1, flags, guest_phys_addr: AT, memory_size: size, userspace_addr: ram };
        m.vm_ioctl(KVM_SET_USER_MEMORY_REGION, &mut region).unwrap();
    };
    set(KVM_MEM_LOG_DIRTY_PAGES);
    m.script.exit(Exit::NestedPageFault { gpa: AT, access: Access::Read, table_walk: false });
    outlive_a_stay(&m, |root| below(below(below(root, 0..1)[0], 0..1)[0], 1..2), || set(0));
}

/// Nested tables up to their bound, which the first vCPU knows while the second runs as `second` says.
fn recycled_by_another_vcpu(second_has_run: bool, second: Exit) {
    // Each slot needs a table of its own; three more lead there, and four are kept free for a fault.
    const SLOTS: usize = mmu::shadow::LEAST_PAGES - 4 - 2;
    let m = Machine::on(Translation::Nested(mmu::shadow::EntryFormat::X86));
    let (other, _run) = Machine::new_vcpu(&m.vm, 1);
    m.use_supported_cpuid(&other);
    let script = m.backend.script(1);
    let run = || _ = other.ioctl(KVM_RUN, 0, &cx()).unwrap();
    if second_has_run {
        script.exit(Exit::Shutdown);
        run();
    }
    for n in 1..=SLOTS as u64 {
        m.set_slot(n as u32, n << 21, 4096, m.ram.at()).unwrap();
        m.script.exit(Exit::NestedPageFault { gpa: n << 21, access: Access::Read, table_walk: false });
    }
    script.exit(second);
    script.exit(Exit::Shutdown);
    let tables = |root| below(below(below(root, 0..1)[0], 0..1)[0], 1..=SLOTS);
    outlive_a_stay(&m, tables, run);
    assert!(m.vm.shrink_shadow(usize::MAX) < SLOTS, "none was recycled");
    m.in_order();
}

#[test]
fn nested_tables_that_another_vcpus_fault_recycles_outlive_the_stay() {
    recycled_by_another_vcpu(true, Exit::NestedPageFault { gpa: 0, access: Access::Read, table_walk: false });
}

#[test]
fn nested_tables_that_another_vcpus_first_root_recycles_outlive_the_stay() {
    recycled_by_another_vcpu(false, Exit::Shutdown);
}

#[test]
fn nested_tables_that_a_vcpu_walks_for_the_first_time() {
    let m = Machine::on(Translation::Nested(mmu::shadow::EntryFormat::X86));
    again(&m);
    let notes = m.script.take_notes();
    let until_entry = notes.iter().take_while(|note| **note != Note::Entered);
    assert!(until_entry.into_iter().any(|note| *note == Note::Flushed(FlushTlb::Physical)), "{notes:?}");
}
