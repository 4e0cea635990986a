//! Registers and descriptors as numbers: every value has one meaning and comes back as it was, or as the manual says that
//! a processor would have it.
use proptest::prelude::*;
use x86::{Attr, CpuState, Cr0, Efer, Flags, Mode, Segment, debug, flags};

fn config() -> ProptestConfig {
    ProptestConfig { cases: if cfg!(miri) { 16 } else { 1000 }, failure_persistence: None, ..Default::default() }
}

const STATUS: [u64; 6] = [flags::CF, flags::PF, flags::AF, flags::ZF, flags::SF, flags::OF];

/// The combination of status flags with the number `n`.
fn status(n: usize) -> u64 {
    STATUS.iter().enumerate().map(|(i, flag)| if n >> i & 1 != 0 { *flag } else { 0 }).sum()
}

#[test]
fn every_combination_of_flags_is_kept_and_merged() {
    for now in (0..64).map(status) {
        let mut f = Flags::default();
        f.set_status(now);
        assert_eq!((f.status(), f.get()), (now, now | flags::FIXED));
        assert_eq!((f.cf(), f.zf()), (now & flags::CF != 0, now & flags::ZF != 0));
        for (cf, n) in [(false, 0), (true, flags::CF)] {
            let mut f = f;
            f.set_cf(cf);
            assert_eq!(f.status(), now & !flags::CF | n, "CF in {now:#x}");
        }
        for mask in (0..64).map(status) {
            let mut f = f;
            f.merge_status(mask, !now);
            assert_eq!(f.status(), now ^ mask, "{now:#x} {mask:#x}");
        }
    }
}

#[test]
fn every_breakpoint_of_dr7() {
    for enable in 0..0x100u64 {
        for control in 0..16u64 {
            for n in 0..4 {
                // The other breakpoints' bits are the opposite.
                let others = !(15 << (16 + 4 * n)) & 0xffff_0000 & !(control * 0x1111_0000);
                let dr7 = enable | control << (16 + 4 * n) | others;
                let found = debug::breakpoint(dr7, n);
                assert_eq!(found.is_some(), enable >> (2 * n) & 3 != 0);
                let Some((watch, len)) = found else { continue };
                let kinds = [debug::Watch::Execute, debug::Watch::Write, debug::Watch::Io, debug::Watch::Access];
                assert_eq!(watch, kinds[control as usize & 3]);
                assert_eq!(len, [1, 2, 8, 4][control as usize >> 2]);
            }
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn rflags_has_its_fixed_bits(value in any::<u64>()) {
        let mut f = Flags::default();
        f.set(value);
        prop_assert_eq!(f.get(), value & flags::WRITABLE | flags::FIXED);
    }

    #[test]
    fn descriptors_come_back(descriptor in any::<u64>(), selector in any::<u16>()) {
        let segment = Segment::from_descriptor(selector, descriptor);
        prop_assert_eq!(segment.to_descriptor(), descriptor);
        prop_assert_eq!(segment.selector, selector);
        prop_assert!(segment.base >> 32 == 0 && segment.attr.0 & Attr::UNUSABLE == 0);
        // The limit is the last byte's: all pages of a granular one count whole.
        let field = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
        let limit = if segment.attr.granular() { field << 12 | 0xfff } else { field };
        prop_assert_eq!(segment.limit, limit);
    }

    #[test]
    fn a_segment_survives_its_descriptor(base in any::<u32>(), limit in 0u32..1 << 20, attr in 0u16..1 << 12) {
        let limit = if attr & Attr::G != 0 { limit << 12 | 0xfff } else { limit };
        let segment = Segment { selector: 8, attr: Attr(attr), limit, base: base.into() };
        prop_assert_eq!(Segment::from_descriptor(8, segment.to_descriptor()), segment);
    }

    #[test]
    fn attributes_are_their_bits(attr in 0u16..1 << 13, dpl in 0u8..4, typ in 0u8..16) {
        let attr = Attr(attr);
        prop_assert_eq!((attr.with_dpl(dpl).dpl(), attr.with_dpl(dpl).with_dpl(attr.dpl())), (dpl, attr));
        prop_assert_eq!((attr.with_type(typ).typ(), attr.with_type(typ).with_type(attr.typ())), (typ, attr));
        prop_assert!(!attr.is_code() || attr.is_code_or_data());
    }

    #[test]
    fn mode_and_privilege_follow_from_the_registers(
        cr0 in any::<u64>(), efer in any::<u64>(), rflags in any::<u64>(), cs in 0u16..1 << 13, ss in 0u16..1 << 13,
    ) {
        let mut s = CpuState::reset(0);
        (s.cr0, s.efer) = (cr0, efer);
        s.flags.set(rflags);
        (s.seg[1].attr, s.seg[2].attr) = (Attr(cs), Attr(ss));
        s.refresh();
        let (protected, long) = (cr0 & Cr0::PE.bits() != 0, efer & Efer::LMA.bits() != 0);
        let v86 = protected && !long && rflags & flags::VM != 0;
        prop_assert_eq!(s.mode == Mode::Real, !protected);
        prop_assert_eq!(s.mode == Mode::Virtual8086, v86);
        prop_assert_eq!(s.mode == Mode::Long64, protected && long && cs & Attr::L != 0);
        prop_assert_eq!(s.cpl, if !protected { 0 } else if v86 { 3 } else { Attr(ss).dpl() });
        prop_assert_eq!(s.protected(), protected && !v86);
    }
}
