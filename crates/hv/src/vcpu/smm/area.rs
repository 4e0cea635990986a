//! The state save area of system management mode: 512 bytes at SMBASE + 0xfe00, in which the processor leaves its registers
//! and from which RSM takes them back.
//!
//! A processor with long mode has the layout of APM vol. 2, table 10-1; one without the older one of 32 bits (revision
//! identifier 0x20000), as firmware written for KVM and QEMU knows it.
use x86::{Attr, CpuState, Segment, Shadow, Table, debug};

/// Bytes of the area.
pub(super) const SIZE: usize = 512;
/// Where it is, from SMBASE.
pub(super) const OFFSET: u64 = 0xfe00;

/// Revision identifiers: SMBASE can be relocated (bit 17), and which layout.
const REVISION_32: u32 = 0x2_0000;
const REVISION_64: u32 = 0x2_0064;

/// The bytes of the area; offsets are from its beginning.
pub(super) struct Area(pub(super) [u8; SIZE]);

/// Whose layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Of a processor without long mode.
    Bits32,
    /// Of one with it.
    Bits64,
}

/// Places of a layout.
struct Places {
    revision: (usize, u32),
    base: usize,
    /// General register 0, and the distance to the next.
    gpr: (usize, isize),
    gprs: usize,
    rip: usize,
    rflags: usize,
    dr6: usize,
    dr7: usize,
    cr0: usize,
    cr3: usize,
    cr4: usize,
    /// Interrupt shadow of the interrupted instruction boundary, in a byte that the manual leaves reserved.
    shadow: usize,
    /// Limit and base.
    gdtr: (usize, usize),
    idtr: (usize, usize),
}

const PLACES_32: Places = Places {
    revision: (0xfc, REVISION_32),
    base: 0xf8,
    gpr: (0x1d0, 4),
    gprs: 8,
    rip: 0x1f0,
    rflags: 0x1f4,
    dr6: 0x1cc,
    dr7: 0x1c8,
    cr0: 0x1fc,
    cr3: 0x1f8,
    cr4: 0x114,
    shadow: 0x11a,
    gdtr: (0x170, 0x174),
    idtr: (0x154, 0x158),
};

const PLACES_64: Places = Places {
    revision: (0xfc, REVISION_64),
    base: 0x100,
    gpr: (0x1f8, -8),
    gprs: 16,
    rip: 0x178,
    rflags: 0x170,
    dr6: 0x168,
    dr7: 0x160,
    cr0: 0x158,
    cr3: 0x150,
    cr4: 0x148,
    shadow: 0xcb,
    gdtr: (0x64, 0x68),
    idtr: (0x84, 0x88),
};

/// What DR6 holds.
const DR6_KEPT: u64 = debug::DR6_BD | debug::DR6_BS | debug::DR6_BT | 0xf;

/// EFER, in the layout of 64 bits.
const EFER: usize = 0xd0;

/// A segment register's places in the layout of 32 bits: selector, and attributes with limit and base behind them.
const SEGMENTS_32: [(usize, usize); 8] = [
    (0x1a8, 0x184),
    (0x1ac, 0x190),
    (0x1b0, 0x19c),
    (0x1b4, 0x12c),
    (0x1b8, 0x138),
    (0x1bc, 0x144),
    (0x1c0, 0x178),
    (0x1c4, 0x15c),
];
/// The same in the layout of 64 bits: 16 bytes each.
const SEGMENTS_64: [usize; 8] = [0, 0x10, 0x20, 0x30, 0x40, 0x50, 0x70, 0x90];

impl Layout {
    fn places(self) -> &'static Places {
        match self {
            Self::Bits32 => &PLACES_32,
            Self::Bits64 => &PLACES_64,
        }
    }
}

/// Attributes as bits 55:40 of a descriptor have them, without the limit's.
fn raw(segment: &Segment) -> u32 {
    let attr = segment.attr.stored();
    u32::from(attr & 0xff) | u32::from(attr & 0xf00) << 4
}

fn segment(selector: u16, raw: u32, limit: u32, base: u64) -> Segment {
    Segment { selector, attr: Attr::from_stored((raw & 0xff | raw >> 4 & 0xf00) as u16), limit, base }
}

fn segments(state: &mut CpuState) -> [&mut Segment; 8] {
    let [es, cs, ss, ds, fs, gs] = &mut state.seg;
    [es, cs, ss, ds, fs, gs, &mut state.ldtr, &mut state.tr]
}

impl Area {
    /// An area that holds nothing.
    pub(super) const EMPTY: Self = Self([0; SIZE]);

    /// The registers, and where SMRAM is.
    pub(super) fn save(&mut self, layout: Layout, state: &mut CpuState, base: u32) {
        let places = layout.places();
        let wide = layout == Layout::Bits64;
        self.put(places.revision.0, places.revision.1.into(), 4);
        self.put(places.base, base.into(), 4);
        let word = if wide { 8 } else { 4 };
        for (n, value) in state.gpr.iter().take(places.gprs).enumerate() {
            self.put(gpr(places, n), *value, word);
        }
        for (at, value) in [
            (places.rip, state.rip),
            (places.rflags, state.flags.get()),
            (places.dr6, state.dr6),
            (places.dr7, state.dr7),
            (places.cr0, state.cr0),
            (places.cr3, state.cr3),
            (places.cr4, state.cr4),
        ] {
            self.put(at, value, word);
        }
        let shadow = match state.shadow {
            Shadow::None => 0,
            Shadow::MovSs => 1,
            Shadow::Sti => 2,
        };
        self.put(places.shadow, shadow, 1);
        for ((limit, base), table) in [(places.gdtr, state.gdtr), (places.idtr, state.idtr)] {
            self.put(limit, table.limit.into(), 4);
            self.put(base, table.base, word);
        }
        if wide {
            self.put(EFER, state.efer, 8);
        }
        for (n, from) in segments(state).into_iter().enumerate() {
            let (selector, raw, limit, base) = (from.selector.into(), raw(from).into(), from.limit.into(), from.base);
            if wide {
                let at = SEGMENTS_64[n];
                self.put(at, selector, 2);
                self.put(at + 2, raw, 2);
                self.put(at + 4, limit, 4);
                self.put(at + 8, base, 8);
            } else {
                let (at, hidden) = SEGMENTS_32[n];
                self.put(at, selector, 4);
                // Where a descriptor's second half has them.
                self.put(hidden, raw << 8, 4);
                self.put(hidden + 4, limit, 4);
                self.put(hidden + 8, base, 4);
            }
        }
    }

    /// Puts the registers back; whether they make sense is the caller's to see. Where SMRAM is from now on.
    pub(super) fn load(&self, layout: Layout, state: &mut CpuState) -> u32 {
        let places = layout.places();
        let wide = layout == Layout::Bits64;
        let word = if wide { 8 } else { 4 };
        for n in 0..places.gprs {
            if let Some(register) = state.gpr.get_mut(n) {
                *register = self.get(gpr(places, n), word);
            }
        }
        state.rip = self.get(places.rip, word);
        state.flags.set(self.get(places.rflags, word));
        state.dr6 = self.get(places.dr6, 4) & DR6_KEPT | debug::DR6_FIXED;
        state.dr7 = self.get(places.dr7, 4) & debug::DR7_VOLATILE | debug::DR7_FIXED;
        state.cr0 = self.get(places.cr0, word);
        state.cr3 = self.get(places.cr3, word);
        state.cr4 = self.get(places.cr4, word);
        state.efer = if wide { self.get(EFER, 8) } else { 0 };
        state.shadow = match self.get(places.shadow, 1) {
            0 => Shadow::None,
            bits if bits & 1 != 0 => Shadow::MovSs,
            _ => Shadow::Sti,
        };
        let table = |(limit, base)| Table { limit: self.get(limit, 2) as u16, base: self.get(base, word) };
        state.gdtr = table(places.gdtr);
        state.idtr = table(places.idtr);
        for (n, to) in segments(state).into_iter().enumerate() {
            *to = if wide {
                let at = SEGMENTS_64[n];
                let (selector, raw) = (self.get(at, 2) as u16, self.get(at + 2, 2) as u32);
                segment(selector, raw, self.get(at + 4, 4) as u32, self.get(at + 8, 8))
            } else {
                let (at, hidden) = SEGMENTS_32[n];
                let (selector, raw) = (self.get(at, 2) as u16, self.get(hidden, 4) as u32 >> 8);
                segment(selector, raw, self.get(hidden + 4, 4) as u32, self.get(hidden + 8, 4))
            };
        }
        self.get(places.base, 4) as u32
    }

    fn put(&mut self, at: usize, value: u64, bytes: usize) {
        if let Some(to) = self.0.get_mut(at..at + bytes) {
            to.copy_from_slice(&value.to_le_bytes()[..bytes]);
        }
    }

    fn get(&self, at: usize, bytes: usize) -> u64 {
        let mut value = [0; 8];
        if let Some(from) = self.0.get(at..at + bytes) {
            value[..bytes].copy_from_slice(from);
        }
        u64::from_le_bytes(value)
    }
}

fn gpr(places: &Places, n: usize) -> usize {
    places.gpr.0.wrapping_add_signed(places.gpr.1 * n as isize)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn state() -> CpuState {
        let mut state = CpuState::reset(0);
        state.gpr = core::array::from_fn(|n| 0x1111_1111 * (n as u64 + 1));
        (state.rip, state.cr3, state.cr4, state.cr0) = (0x1234_5678, 0x9000, 0x20, 0x11);
        state.flags.set(0x246);
        (state.gdtr, state.idtr) = (Table { base: 0x5000, limit: 0x27 }, Table { base: 0x6000, limit: 0x7ff });
        for (n, segment) in segments(&mut state).into_iter().enumerate() {
            *segment = Segment::from_descriptor(8 * n as u16, 0x00cf_9300_0000_ffff | (n as u64) << 16);
        }
        state.shadow = Shadow::Sti;
        state.dr6 = debug::DR6_FIXED | debug::DR6_BD | debug::DR6_BS | debug::DR6_BT | 5;
        state
    }

    #[test]
    fn registers_come_back_from_either_layout() {
        for layout in [Layout::Bits32, Layout::Bits64] {
            let (mut area, mut before) = (Area::EMPTY, state());
            area.save(layout, &mut before, 0x3_0000);
            let mut after = CpuState::reset(0);
            assert_eq!(area.load(layout, &mut after), 0x3_0000);
            let gprs = layout.places().gprs;
            assert_eq!(after.gpr[..gprs], before.gpr[..gprs]);
            let of = |s: &mut CpuState| {
                let all: Vec<Segment> = segments(s).into_iter().map(|s| *s).collect();
                (all, s.gdtr, s.idtr, s.rip, s.flags.get(), [s.cr0, s.cr3, s.cr4, s.dr6, s.dr7], s.shadow)
            };
            assert_eq!(of(&mut after), of(&mut before), "{layout:?}");
        }
    }

    /// Offsets from SMBASE + 0x8000, as APM vol. 2 table 10-1 and SeaBIOS have them.
    #[test]
    fn registers_are_where_firmware_looks_for_them() {
        let mut before = state();
        let mut area = Area::EMPTY;
        area.save(Layout::Bits64, &mut before, 0xa_0000);
        let at = |offset: usize, bytes| area.get(offset - 0x7e00, bytes);
        assert_eq!((at(0x7efc, 4), at(0x7f00, 4)), (0x2_0064, 0xa_0000));
        assert_eq!((at(0x7ff8, 8), at(0x7ff0, 8), at(0x7f80, 8)), (before.gpr[0], before.gpr[1], before.gpr[15]));
        assert_eq!((at(0x7f78, 8), at(0x7f58, 8), at(0x7f48, 8)), (before.rip, 0x11, 0x20));
        // CS: selector, attributes, limit, base.
        assert_eq!((at(0x7e10, 2), at(0x7e12, 2), at(0x7e14, 4), at(0x7e18, 8)), (8, 0xc093, 0xffff_ffff, 1));
        area.save(Layout::Bits32, &mut before, 0xa_0000);
        let at = |offset: usize| area.get(offset - 0x7e00, 4);
        assert_eq!((at(0x7efc), at(0x7ef8)), (0x2_0000, 0xa_0000));
        assert_eq!((at(0x7fd0), at(0x7fd4), at(0x7ff0)), (before.gpr[0], before.gpr[1], before.rip));
        assert_eq!((at(0x7fac), at(0x7f90), at(0x7f94), at(0x7f98)), (8, 0xc0_9300, 0xffff_ffff, 1));
    }

    #[test]
    fn a_segment_that_cannot_be_used_is_not_present() {
        let mut before = state();
        before.seg[4].attr = Attr(before.seg[4].attr.0 | Attr::UNUSABLE);
        let (mut area, mut after) = (Area::EMPTY, CpuState::reset(0));
        area.save(Layout::Bits64, &mut before, 0);
        area.load(Layout::Bits64, &mut after);
        assert!(after.seg[4].attr.unusable() && !after.seg[3].attr.unusable());
    }
}
