//! Registers between the core's form and the control structure, group by group.
use x86::{CpuState, Seg, Segment, Table};

use crate::{
    fields::{
        GUEST_BASES, GUEST_GDTR_BASE, GUEST_GDTR_LIMIT, GUEST_IDTR_BASE, GUEST_IDTR_LIMIT, GUEST_LIMITS, GUEST_PDPTES,
        GUEST_RIGHTS, GUEST_SELECTORS, GUEST_SYSENTER_CS, GUEST_SYSENTER_EIP, GUEST_SYSENTER_ESP, LDTR, TR,
    },
    guest_state,
    instructions::Instructions,
    segment,
    vmcs::Current,
};

fn write_segment<I: Instructions>(vmcs: &mut Current<I>, n: u32, segment: &Segment, rights: u32) {
    vmcs.write(GUEST_SELECTORS.nth(n), segment.selector);
    vmcs.write(GUEST_LIMITS.nth(n), segment.limit);
    vmcs.write(GUEST_RIGHTS.nth(n), rights);
    vmcs.write(GUEST_BASES.nth(n), segment.base);
}

fn read_segment<I: Instructions>(vmcs: &Current<I>, n: u32) -> Segment {
    Segment {
        selector: vmcs.read(GUEST_SELECTORS.nth(n)),
        attr: segment::attr(vmcs.read(GUEST_RIGHTS.nth(n))),
        limit: vmcs.read(GUEST_LIMITS.nth(n)),
        base: vmcs.read(GUEST_BASES.nth(n)),
    }
}

/// Access rights of every segment in virtual-8086 mode.
const RIGHTS_8086: u32 = 0xf3;

/// The segments of real mode, for virtual-8086 mode.
pub fn write_segments_8086<I: Instructions>(vmcs: &mut Current<I>, state: &CpuState) {
    for (n, segment) in (0..).zip(&state.seg) {
        write_segment(vmcs, n, segment, RIGHTS_8086);
    }
    write_tables(vmcs, state);
}

/// Back: loads have changed selectors and bases, and nothing else, as in real mode.
pub fn read_segments_8086<I: Instructions>(vmcs: &Current<I>, state: &mut CpuState) {
    for (n, segment) in (0..).zip(&mut state.seg) {
        let Segment { selector, base, .. } = read_segment(vmcs, n);
        (segment.selector, segment.base) = (selector, base);
    }
}

/// Segment and descriptor-table registers, as they are in the control structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    seg: [Segment; 6],
    tables: [Segment; 2],
    /// GDTR and IDTR.
    descriptors: [Table; 2],
    cpl: u8,
}

impl Segments {
    /// Those of `state`, which have been read or written there.
    pub fn of(state: &CpuState) -> Self {
        let tables = [state.ldtr, state.tr];
        Self { seg: state.seg, tables, descriptors: [state.gdtr, state.idtr], cpl: state.cpl }
    }
}

/// Segment and descriptor-table registers. `unrestricted`: the processor takes those of real mode. What `known` says is there
/// already is not written.
pub fn write_segments<I: Instructions>(
    vmcs: &mut Current<I>,
    state: &CpuState,
    unrestricted: bool,
    known: Option<&Segments>,
) {
    for (n, segment) in state.seg.iter().enumerate() {
        // That of SS shows the level.
        if known.is_some_and(|known| known.seg[n] == *segment && known.cpl == state.cpl) {
            continue;
        }
        let segment = match n {
            n if n == Seg::Cs as usize => {
                write_segment(vmcs, n as u32, segment, segment::code_rights(segment));
                continue;
            }
            // It shows the privilege level, also if it cannot be used.
            n if n == Seg::Ss as usize => Segment { attr: segment.attr.with_dpl(state.cpl), ..*segment },
            _ if unrestricted => *segment,
            _ => guest_state::mended(segment),
        };
        write_segment(vmcs, n as u32, &segment, segment::data_rights(&segment));
    }
    let same =
        |known: &Segments| known.tables == [state.ldtr, state.tr] && known.descriptors == [state.gdtr, state.idtr];
    if !known.is_some_and(same) {
        write_tables(vmcs, state);
    }
}

fn write_tables<I: Instructions>(vmcs: &mut Current<I>, state: &CpuState) {
    write_segment(vmcs, LDTR, &state.ldtr, segment::table_rights(&state.ldtr));
    write_segment(vmcs, TR, &state.tr, segment::task_rights(&state.tr));
    vmcs.write(GUEST_GDTR_BASE, state.gdtr.base);
    vmcs.write(GUEST_GDTR_LIMIT, state.gdtr.limit.into());
    vmcs.write(GUEST_IDTR_BASE, state.idtr.base);
    vmcs.write(GUEST_IDTR_LIMIT, state.idtr.limit.into());
}

/// Back.
pub fn read_segments<I: Instructions>(vmcs: &Current<I>, state: &mut CpuState) {
    for (n, to) in state.seg.iter_mut().enumerate() {
        *to = read_segment(vmcs, n as u32);
    }
    state.ldtr = read_segment(vmcs, LDTR);
    state.tr = read_segment(vmcs, TR);
    state.gdtr = Table { base: vmcs.read(GUEST_GDTR_BASE), limit: vmcs.read(GUEST_GDTR_LIMIT) as u16 };
    state.idtr = Table { base: vmcs.read(GUEST_IDTR_BASE), limit: vmcs.read(GUEST_IDTR_LIMIT) as u16 };
}

/// Access rights of CS and SS.
pub fn read_rights<I: Instructions>(vmcs: &Current<I>) -> [u32; 2] {
    [Seg::Cs, Seg::Ss].map(|n| vmcs.read(GUEST_RIGHTS.nth(n as u32)))
}

/// Of the segments, what mode and privilege level depend on.
pub fn take_rights(rights: [u32; 2], state: &mut CpuState) {
    for (n, rights) in [Seg::Cs, Seg::Ss].into_iter().zip(rights) {
        state.seg[n as usize].attr = segment::attr(rights);
    }
    state.refresh();
}

/// The registers of SYSENTER: those of SYSCALL are exchanged with the host's around each stay in the guest.
pub fn write_msrs<I: Instructions>(vmcs: &mut Current<I>, state: &CpuState) {
    vmcs.write(GUEST_SYSENTER_CS, state.sysenter_cs as u32);
    vmcs.write(GUEST_SYSENTER_ESP, state.sysenter_esp);
    vmcs.write(GUEST_SYSENTER_EIP, state.sysenter_eip);
}

/// The four page-directory pointers of a guest with PAE paging, which walks its own tables.
pub fn write_pdptes<I: Instructions>(vmcs: &mut Current<I>, state: &CpuState) {
    for (n, pdpte) in (0..).zip(state.pdptr) {
        vmcs.write(GUEST_PDPTES.nth(n), pdpte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Recorder, with_vmcs};
    use x86::{Attr, Cr0, Efer, Mode};

    #[test]
    fn segments_come_back_as_they_went() {
        with_vmcs(|vmcs: &mut Current<Recorder>| {
            let mut from = CpuState::reset(0);
            (from.gdtr, from.idtr) = (Table { base: 0x5000, limit: 0x27 }, Table { base: 0x6000, limit: 0x7ff });
            for unrestricted in [false, true] {
                write_segments(vmcs, &from, unrestricted, None);
                let mut to = CpuState::reset(0);
                to.seg = [Segment::default(); 6];
                read_segments(vmcs, &mut to);
                let all = |s: &CpuState| (s.seg, s.ldtr, s.tr, s.gdtr, s.idtr);
                assert_eq!(all(&to), all(&from));
            }
        });
    }

    #[test]
    fn a_selector_of_real_mode_is_mended_only_where_it_has_to_be() {
        with_vmcs(|vmcs: &mut Current<Recorder>| {
            let mut state = CpuState::reset(0);
            state.seg[Seg::Fs as usize] = Segment::real(0xc803, 0);
            write_segments(vmcs, &state, true, None);
            assert_eq!(vmcs.read(GUEST_RIGHTS.nth(4)), 0x93);
            write_segments(vmcs, &state, false, None);
            assert_eq!(vmcs.read(GUEST_RIGHTS.nth(4)), 0xf3);
        });
    }

    #[test]
    fn mode_and_level_follow_without_the_other_segments() {
        with_vmcs(|vmcs: &mut Current<Recorder>| {
            let mut state = CpuState::reset(0);
            state.cr0 |= (Cr0::PE | Cr0::PG).bits();
            state.efer |= (Efer::LME | Efer::LMA).bits();
            vmcs.write(GUEST_RIGHTS.nth(1), 0xa0fb);
            vmcs.write(GUEST_RIGHTS.nth(2), 0x1_0060);
            take_rights(read_rights(vmcs), &mut state);
            assert_eq!((state.mode, state.cpl), (Mode::Long64, 3));
            assert!(state.seg[2].attr.unusable() && state.seg[1].attr == Attr(0xafb));
        });
    }
}
