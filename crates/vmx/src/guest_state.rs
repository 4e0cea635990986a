//! Whether the processor would enter a guest with these segments, if it has no unrestricted guests: they have to be what loads in
//! protected mode leave (SDM vol. 3, 27.3.1.2). Right after a switch of modes they are not: until the guest has loaded them again,
//! the core executes its instructions.
//!
//! Real mode runs as virtual-8086 mode while its segments have limits of 64 KiB and bases of 16 times the selector. At privilege
//! level 3, with I/O privilege level 0 and every exception intercepted, whatever differs between the two modes faults, and the
//! core executes it.
use x86::{Attr, CpuState, Cr0, Mode, Seg, Segment, flags};

/// Why not.
pub type Reason = &'static str;

/// The segment's requested privilege level.
const fn rpl(segment: &Segment) -> u8 {
    (segment.selector & 3) as u8
}

const fn is_local(segment: &Segment) -> bool {
    segment.selector & 4 != 0
}

/// DS, ES, FS or GS as the processor gets it. A selector left from real mode may have any requested privilege level; the
/// descriptor's level, which nothing but such a check looks at before the next load, follows it.
pub fn mended(segment: &Segment) -> Segment {
    let attr = segment.attr;
    let checked = !attr.unusable() && attr.typ() < 12 && attr.dpl() < rpl(segment);
    Segment { attr: if checked { attr.with_dpl(rpl(segment)) } else { attr }, ..*segment }
}

/// How a guest without unrestricted mode can be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As it is.
    Itself,
    /// Its real mode as virtual-8086 mode.
    Virtual8086,
    /// Not at all.
    None,
}

/// How the guest can be entered with `state`.
pub fn form(state: &CpuState) -> Form {
    if state.mode == Mode::Real {
        let plain = |s: &Segment| s.base == u64::from(s.selector) << 4 && s.limit == 0xffff && s.attr.type_bit1();
        return if state.seg.iter().all(plain) && tables(state).is_ok() { Form::Virtual8086 } else { Form::None };
    }
    if check(state).is_ok() { Form::Itself } else { Form::None }
}

/// What is known to be wrong with the state of a guest that has no unrestricted mode.
///
/// # Errors
/// The first thing found.
pub fn check(state: &CpuState) -> Result<(), Reason> {
    if state.cr0 & Cr0::PE.bits() == 0 {
        return Err("real mode");
    }
    tables(state)?;
    if state.mode == Mode::Virtual8086 {
        return state.seg.iter().try_for_each(virtual_8086);
    }
    let (cs, ss) = (&state.seg[Seg::Cs as usize], &state.seg[Seg::Ss as usize]);
    code(cs, ss, state)?;
    stack(ss, cs, state.cpl)?;
    for n in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
        data(&state.seg[n as usize])?;
    }
    if state.flags.control(flags::VM) {
        return Err("virtual-8086 mode in long mode");
    }
    Ok(())
}

fn virtual_8086(segment: &Segment) -> Result<(), Reason> {
    let right = segment.base == u64::from(segment.selector) << 4
        && segment.limit == 0xffff
        && segment.attr.0 & 0xff == Attr::P | Attr::S | 3 << 5 | 3;
    if right { Ok(()) } else { Err("a segment that is none of virtual-8086 mode") }
}

fn code(cs: &Segment, ss: &Segment, state: &CpuState) -> Result<(), Reason> {
    let attr = cs.attr;
    if attr.unusable() || !attr.is_code() || !attr.present() {
        return Err("CS is no code segment");
    }
    let conforming = attr.type_bit2();
    let level = if ss.attr.unusable() { state.cpl } else { ss.attr.dpl() };
    if conforming && attr.dpl() > level || !conforming && attr.dpl() != level {
        return Err("the privilege level of CS is not the current one");
    }
    if attr.long() && attr.big() && state.long_mode() {
        return Err("CS has both L and D");
    }
    if cs.base >> 32 != 0 { Err("the base of CS is above 4 GiB") } else { Ok(()) }
}

fn stack(ss: &Segment, cs: &Segment, cpl: u8) -> Result<(), Reason> {
    if rpl(ss) != rpl(cs) {
        return Err("the requested privilege levels of CS and SS differ");
    }
    let attr = ss.attr;
    if attr.unusable() {
        return if rpl(ss) == cpl { Ok(()) } else { Err("the privilege level is not that of the selector in SS") };
    }
    if !attr.is_code_or_data() || attr.is_code() || !attr.type_bit1() || !attr.present() {
        return Err("SS is no writable data segment");
    }
    if attr.dpl() != rpl(ss) {
        return Err("the privilege level of SS is not its selector's");
    }
    if ss.base >> 32 != 0 { Err("the base of SS is above 4 GiB") } else { Ok(()) }
}

fn data(segment: &Segment) -> Result<(), Reason> {
    let attr = segment.attr;
    if attr.unusable() || !attr.present() {
        return Ok(());
    }
    if !attr.is_code_or_data() || attr.is_code() && !attr.type_bit1() {
        return Err("a data segment register holds no readable segment");
    }
    Ok(())
}

/// TR and LDTR.
fn tables(state: &CpuState) -> Result<(), Reason> {
    let (tr, ldtr) = (&state.tr, &state.ldtr);
    if is_local(tr) {
        return Err("TR is of the local table");
    }
    let usable = !tr.attr.unusable();
    if usable && (tr.attr.is_code_or_data() || !matches!(tr.attr.typ() | 2, 3 | 11)) {
        return Err("TR is no task-state segment");
    }
    if usable && state.long_mode() && tr.attr.typ() | 2 != 11 {
        return Err("TR is no 64-bit task-state segment");
    }
    let usable = !ldtr.attr.unusable() && ldtr.attr.present();
    if usable && (is_local(ldtr) || ldtr.attr.is_code_or_data() || ldtr.attr.typ() != 2) {
        return Err("LDTR is no local descriptor table");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest in 32-bit protected mode with flat segments.
    fn flat() -> CpuState {
        let mut state = CpuState::reset(0);
        state.cr0 |= Cr0::PE.bits();
        for segment in &mut state.seg {
            *segment = Segment::from_descriptor(0x10, 0x00cf_9300_0000_ffff);
        }
        state.seg[1] = Segment::from_descriptor(0x08, 0x00cf_9b00_0000_ffff);
        state.refresh();
        state
    }

    #[test]
    fn protected_mode_with_its_segments_loaded_can_be_entered() {
        assert_eq!(check(&flat()), Ok(()));
    }

    #[test]
    fn real_mode_and_what_is_left_of_it_cannot() {
        let mut state = CpuState::reset(0);
        assert!(check(&state).is_err());
        // MOV CR0 has just set PE: the stack segment's selector may be anything.
        state.cr0 |= Cr0::PE.bits();
        state.seg[Seg::Ss as usize].selector = 0x9003;
        state.refresh();
        assert!(check(&state).is_err());
        state.seg[Seg::Ss as usize].selector = 0x9000;
        assert_eq!(check(&state), Ok(()));
    }

    #[test]
    fn each_rule_is_looked_at() {
        type Change = fn(&mut CpuState);
        let changes: [(&str, Change); 10] = [
            ("CS", |s| s.seg[1].attr = s.seg[1].attr.with_type(3)),
            ("CS level", |s| s.seg[1].attr = s.seg[1].attr.with_dpl(3)),
            ("CS base", |s| s.seg[1].base = 1 << 32),
            ("SS", |s| s.seg[2].attr = s.seg[2].attr.with_type(1)),
            ("SS level", |s| s.seg[2].attr = s.seg[2].attr.with_dpl(3)),
            ("SS selector", |s| s.seg[2].selector = 0x13),
            ("DS", |s| s.seg[3].attr = s.seg[3].attr.with_type(9)),
            ("TR", |s| s.tr.selector = 4),
            ("TR type", |s| s.tr.attr = s.tr.attr.with_type(2)),
            ("LDTR", |s| s.ldtr.attr = s.ldtr.attr.with_type(9)),
        ];
        for (name, change) in changes {
            let mut state = flat();
            change(&mut state);
            assert!(check(&state).is_err(), "{name}");
        }
    }

    #[test]
    fn null_segments_and_conforming_code_are_right() {
        let mut state = flat();
        state.seg[4].attr = Attr(Attr::UNUSABLE);
        state.seg[5].attr = Attr(0);
        state.seg[1].attr = state.seg[1].attr.with_type(15);
        assert_eq!(check(&state), Ok(()));
    }

    #[test]
    fn virtual_8086_mode_has_segments_of_its_own() {
        let mut state = flat();
        state.flags.set_control(flags::VM, flags::VM);
        state.refresh();
        assert!(check(&state).is_err());
        for segment in &mut state.seg {
            *segment = Segment::real(0x1234, 3);
        }
        assert_eq!(check(&state), Ok(()));
        state.seg[0].limit = 0xf_ffff;
        assert!(check(&state).is_err());
    }

    #[test]
    fn real_mode_runs_as_virtual_8086_mode_while_its_segments_are_plain() {
        let mut state = CpuState::reset(0);
        assert_eq!(form(&state), Form::None, "code at the top of memory");
        state.seg[1] = Segment::real(0xf000, 0);
        assert_eq!(form(&state), Form::Virtual8086);
        state.seg[3].limit = u32::MAX;
        assert_eq!(form(&state), Form::None, "big real mode");
        assert_eq!(form(&flat()), Form::Itself);
    }

    #[test]
    fn a_selector_from_real_mode_is_mended() {
        let left = Segment::real(0xc803, 0);
        assert_eq!(mended(&left).attr.dpl(), 3);
        assert_eq!(mended(&Segment::real(0xc800, 0)).attr.dpl(), 0);
        assert_eq!(mended(&Segment { attr: Attr(Attr::UNUSABLE), ..left }).attr.dpl(), 0);
    }
}
