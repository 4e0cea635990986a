//! What fuzzing shadow paging has found, each as the smallest guest that shows it.
use abi::KVM_MEM_LOG_DIRTY_PAGES;
use mmu::testing::{Access, End, Machine};
use x86::{
    Cr0,
    paging::{A, D, P, U, W},
};

const CLIENT: u64 = 0x5000_0000_0000;

/// With CR0.WP clear the supervisor's write to a user's read-only page makes the page the supervisor's. Taking the right to
/// write away, for the dirty log, leaves a page that is neither: it allows less than the guest's entry, which is right.
#[test]
fn a_log_begins_while_the_supervisor_has_written_a_read_only_page() {
    let mut m = Machine::new(1);
    m.set_slot(0, 0, 0, 32, CLIENT);
    m.put(0x1000, 0x2000 | P | W | U | A);
    m.put(0x2000 + 4 * 5, 0x5000 | P | U | A | D);
    m.set_registers(0, |s| {
        (s.cr0, s.cr3) = (Cr0::PE.bits() | Cr0::PG.bits(), 0x1000);
        s.refresh();
    });
    assert_eq!(m.access(0, Access::write(0x5000, 1)), End::Done(0x5000));
    m.set_slot(0, KVM_MEM_LOG_DIRTY_PAGES, 0, 32, CLIENT);
    m.check();
    assert!(m.get_dirty_log(0));
    // Nothing is lost by it: the supervisor writes again, which is logged, and the user reads but does not write.
    assert_eq!(m.access(0, Access::write(0x5008, 2)), End::Done(0x5008));
    m.check();
    assert!(m.get_dirty_log(0));
    let user = Access { user: true, ..Access::read(0x5008) };
    assert_eq!(m.access(0, user), End::Done(0x5008));
    assert_eq!(m.access(0, Access { write: Some(3), ..user }), End::Fault(7));
    m.check();
}
