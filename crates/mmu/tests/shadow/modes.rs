//! The other paging modes, and what changes between them.
use mmu::testing::{Access, End, Machine};
use x86::{
    Cr0, Cr4,
    paging::{P, PS, U},
};

use crate::common::*;

fn protected(m: &mut Machine, cr0: Cr0, cr4: Cr4) {
    m.set_registers(0, |state| {
        (state.cr0, state.cr4, state.efer) = ((Cr0::PE | cr0).bits(), cr4.bits(), 0);
        state.cr3 = ROOT << 12;
        state.refresh();
    });
}

#[test]
fn without_paging_addresses_are_physical() {
    let mut m = machine(1);
    write(&mut m, 0, 0x12_3000, 5, 0x12_3000);
    assert_eq!(m.access(0, Access::read(0xffff_fff0)), End::Device(0xffff_fff0));
    let user = Access { user: true, fetch: true, ..Access::read(0x3000) };
    // SMEP and SMAP concern nobody then.
    protected(&mut m, Cr0::empty(), Cr4::SMEP | Cr4::SMAP);
    assert_eq!(m.access(0, user), End::Done(0x3000));
    read(&mut m, 0, 0x3000, 0x3000);
    assert_eq!(m.access(0, Access { user: false, ..user }), End::Done(0x3000));
    m.check();
}

#[test]
fn four_megabyte_pages_need_pse_and_reach_above_4_gib() {
    let mut m = machine(1);
    m.write(ROOT << 12 | 4, &0x0000_0087u32.to_le_bytes());
    protected(&mut m, Cr0::PG | Cr0::WP, Cr4::PSE);
    read(&mut m, 0, 0x40_5000, 0x5000);
    read(&mut m, 0, 0x60_5000, 0x20_5000);
    // Bits 20:13 are bits 39:32 of the address.
    m.write(ROOT << 12 | 8, &0x0000_2087u32.to_le_bytes());
    m.guest_flush();
    assert_eq!(m.access(0, Access::read(0x80_5000)), End::Device(0x1_0000_5000));
    // Bit 21 is reserved.
    m.write(ROOT << 12 | 8, &0x0020_0087u32.to_le_bytes());
    m.guest_flush();
    assert_eq!(m.access(0, Access::read(0x80_5000)), End::Fault(9));
    m.check();
    // Without PSE it is the table in frame 0.
    m.put(5 * 4, 0x77_0007);
    protected(&mut m, Cr0::PG | Cr0::WP, Cr4::empty());
    assert_eq!(m.access(0, Access::read(0x40_5000)), End::Device(0x77_0000));
    m.check();
}

#[test]
fn pdptes_are_used_as_they_were_loaded() {
    let mut m = machine(1);
    m.put(0x20 << 12, 0x21 << 12 | PWU);
    m.put(0x21 << 12 | 5 << 3, 0x100 << 12 | PWU);
    protected(&mut m, Cr0::PG | Cr0::WP, Cr4::PAE);
    m.set_registers(0, |state| state.pdptr = [0x20 << 12 | P, 0, 0, 0x20 << 12 | P]);
    read(&mut m, 0, 0x5000, 0x10_0000);
    read(&mut m, 0, 0xc000_5000, 0x10_0000);
    assert_eq!(m.access(0, Access::read(0x4000_5000)), End::Fault(0));
    // What is in memory where CR3 points does not matter any more.
    m.put(ROOT << 12, 0x30 << 12 | P);
    m.guest_flush();
    read(&mut m, 0, 0x5000, 0x10_0000);
    m.set_registers(0, |state| state.pdptr = [0, 0x20 << 12 | P, 0, 0]);
    read(&mut m, 0, 0x4000_5000, 0x10_0000);
    assert_eq!(m.access(0, Access::read(0x5000)), End::Fault(0));
    m.check();
}

#[test]
fn a_supervisor_without_wp_writes_read_only_pages() {
    for (user, smep, smap) in [(false, false, false), (true, false, false), (true, true, false), (true, false, true)] {
        let mut m = machine(1);
        let bits = P | if user { U } else { 0 };
        m.write(ROOT << 12, &(0x20u32 << 12 | 7).to_le_bytes());
        m.write(0x20 << 12 | 20, &(0x100u32 << 12 | bits as u32).to_le_bytes());
        let cr4 = if smep { Cr4::SMEP } else { Cr4::empty() } | if smap { Cr4::SMAP } else { Cr4::empty() };
        protected(&mut m, Cr0::PG, cr4);
        let write = Access { ac: smap, ..Access::write(0x5000, 3) };
        let of_user = |access| Access { user: true, ..access };
        let fetch = Access { fetch: true, ..Access::read(0x5000) };
        for _ in 0..2 {
            // Each undoes what the one before needs.
            assert_eq!(m.access(0, write), End::Done(0x10_0000));
            m.check();
            let fault = if smep { End::Fault(0x11) } else { End::Done(0x10_0000) };
            assert_eq!(m.access(0, fetch), fault, "SMEP {smep}");
            m.check();
            let expected = if user { End::Done(0x10_0000) } else { End::Fault(5) };
            assert_eq!(m.access(0, of_user(Access::read(0x5000))), expected);
            m.check();
            assert_eq!(m.access(0, of_user(write)), End::Fault(7));
            assert_eq!(
                m.access(0, of_user(fetch)),
                if user { expected } else { End::Fault(if smep { 0x15 } else { 5 }) }
            );
            m.check();
            if smap {
                assert_eq!(m.access(0, Access::read(0x5000)), End::Fault(1), "SMAP holds after a write with AC");
                m.check();
            }
        }
        // With WP the page is read-only for everybody: another role.
        protected(&mut m, Cr0::PG | Cr0::WP, cr4);
        assert_eq!(m.access(0, write), End::Fault(3));
        m.check();
    }
}

#[test]
fn a_supervisor_without_wp_writes_large_read_only_pages() {
    let mut m = machine(1);
    m.put(0x20 << 12, 0x200 << 12 | P | U | PS);
    protected(&mut m, Cr0::PG, Cr4::PAE);
    m.set_registers(0, |state| state.pdptr = [0x20 << 12 | P, 0, 0, 0]);
    let of_user = |access| Access { user: true, ..access };
    for _ in 0..2 {
        assert_eq!(m.access(0, of_user(Access::read(0x5000))), End::Done(0x20_5000));
        assert_eq!(m.access(0, Access::write(0x5000, 1)), End::Done(0x20_5000));
        m.check();
        assert_eq!(m.access(0, of_user(Access::write(0x5000, 1))), End::Fault(7));
        m.check();
    }
}

/// A read by user mode takes the supervisor's right to write back. Were it remembered elsewhere, nothing would say so: when
/// the frame becomes a table, no entry is found that can be written.
#[test]
fn what_a_supervisor_without_wp_could_write_is_forgotten_when_a_user_reads_it() {
    let mut m = paged(2);
    for cpu in [0, 1] {
        m.set_registers(cpu, |state| state.cr0 &= !Cr0::WP.bits());
    }
    map(&mut m, 0x5000, 0x100, P | U);
    write(&mut m, 1, 0x5000, 0x123 << 12 | PWU, 0x10_0000);
    assert_eq!(m.access(0, Access { user: true, ..Access::read(0x5000) }), End::Done(0x10_0000));
    m.put(entry_at(0x20_0000, 2), 0x100 << 12 | PWU);
    read(&mut m, 0, 0x20_0000, 0x12_3000);
    write(&mut m, 1, 0x5000, 0x124 << 12 | PWU, 0x10_0000);
    m.guest_flush();
    read(&mut m, 0, 0x20_0000, 0x12_4000);
}

#[test]
fn smep_and_smap_hold() {
    let mut m = paged(1);
    map(&mut m, 0x5000, 0x100, PWU);
    m.set_registers(0, |state| state.cr4 |= (Cr4::SMEP | Cr4::SMAP).bits());
    let fetch = Access { fetch: true, ..Access::read(0x5000) };
    assert_eq!(m.access(0, fetch), End::Fault(0x11));
    assert_eq!(m.access(0, Access { user: true, ..fetch }), End::Done(0x10_0000));
    assert_eq!(m.access(0, fetch), End::Fault(0x11));
    assert_eq!(m.access(0, Access::read(0x5000)), End::Fault(1));
    assert_eq!(m.access(0, Access { ac: true, ..Access::read(0x5000) }), End::Done(0x10_0000));
    assert_eq!(m.access(0, Access::read(0x5000)), End::Fault(1));
    m.check();
}

#[test]
fn one_table_read_in_two_formats_is_two_pages() {
    let mut m = machine(1);
    // As 8-byte entries, and as pairs of 4-byte ones.
    m.put(ROOT << 12, 0x20 << 12 | 7);
    m.put(0x20 << 12, 0x21 << 12 | 7);
    m.put(0x20 << 12 | 5 << 3, 0x100 << 12 | 7);
    m.put(0x21 << 12 | 5 << 3, 0x101 << 12 | 7);
    protected(&mut m, Cr0::PG | Cr0::WP, Cr4::empty());
    assert_eq!(m.access(0, Access::read(0xa000)), End::Done(0x10_0000));
    protected(&mut m, Cr0::PG | Cr0::WP, Cr4::PAE);
    m.set_registers(0, |state| state.pdptr = [ROOT << 12 | P, 0, 0, 0]);
    read(&mut m, 0, 0x5000, 0x10_0000);
    // A write is seen in both.
    m.put(0x20 << 12 | 5 << 3, 0x102 << 12 | 7);
    m.guest_flush();
    read(&mut m, 0, 0x5000, 0x10_2000);
    protected(&mut m, Cr0::PG | Cr0::WP, Cr4::empty());
    read(&mut m, 0, 0xa000, 0x10_2000);
}

/// Row B06.
#[test]
fn a_root_at_no_memory_harms_only_its_guest() {
    let mut m = paged(2);
    map(&mut m, 0x5000, 0x100, PWU);
    for cr3 in [0x7777_0000, 0xff_ffff_f000] {
        m.set_registers(0, |state| state.cr3 = cr3);
        assert_eq!(m.access(0, Access::read(0x5000)), End::Fault(0));
        assert_eq!(m.access(0, Access { user: true, ..Access::write(0x5000, 0) }), End::Fault(6));
        m.check();
        read(&mut m, 1, 0x5000, 0x10_0000);
    }
    // An entry in the middle that leads nowhere.
    m.put(entry_at(0x20_0000, 2), 0x7777 << 12 | PWU);
    assert_eq!(m.access(1, Access::read(0x20_0000)), End::Fault(0));
    long(&mut m, 0);
    read(&mut m, 0, 0x5000, 0x10_0000);
}
