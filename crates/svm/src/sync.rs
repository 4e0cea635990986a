//! Registers between the core's form and the control block, group by group.
use hardware::control::CR0_FREE;
use x86::{Attr, CpuState, Seg, Shadow, flags};

use crate::{
    segment,
    vmcb::{SHADOW, Save, Vmcb, VmcbSegment, clean, int_control},
};

/// Writes a register of the control block; the part that it belongs to is no longer as the processor knows it.
pub fn put<T: PartialEq>(place: &mut T, value: T, part: u64, dirty: &mut u64) {
    if *place != value {
        *place = value;
        *dirty |= part;
    }
}

/// General registers, which are written and read with every entry.
pub fn write_general(vmcb: &mut Vmcb, state: &CpuState, rflags: u64) {
    let save = &mut vmcb.save;
    (save.rax, save.rsp, save.rip, save.rflags) = (state.gpr[0], state.gpr[4], state.rip, rflags);
    vmcb.control.int_state = if state.shadow == Shadow::None { 0 } else { SHADOW };
}

/// Back, with `rflags` as the guest has them, but for the status flags. Mode and privilege level follow; of the segments only what
/// they depend on.
pub fn read_general(vmcb: &Vmcb, state: &mut CpuState, rflags: u64) {
    let save = &vmcb.save;
    (state.gpr[0], state.gpr[4], state.rip) = (save.rax, save.rsp, save.rip);
    let before = state.flags.others();
    state.flags.set_others(rflags);
    // The processor does not tell which of the two it is; this one holds back more.
    state.shadow = if vmcb.control.int_state & SHADOW == 0 { Shadow::None } else { Shadow::MovSs };
    let code = Attr(save.segments[Seg::Cs as usize].attributes);
    let changed = (before ^ state.flags.others()) & flags::VM != 0;
    if changed || state.seg[Seg::Cs as usize].attr != code || state.cpl != save.cpl {
        state.seg[Seg::Cs as usize].attr = code;
        let stack = &mut state.seg[Seg::Ss as usize].attr;
        *stack = stack.with_dpl(save.cpl);
        state.refresh();
    }
}

/// Segment and descriptor-table registers.
pub fn write_segments(save: &mut Save, state: &CpuState) {
    for (to, from) in save.segments.iter_mut().zip(&state.seg) {
        *to = segment::to_vmcb(from);
    }
    save.ldtr = segment::to_vmcb(&state.ldtr);
    // QEMU's processor keeps a loaded TSS as it was before it was busy, and ends itself at an interrupt of level 3 if it
    // finds a busy one here: what has not changed is left as it is.
    if segment::task(&save.tr) != state.tr {
        save.tr = segment::to_vmcb(&state.tr);
    }
    let table = |t: &x86::Table| VmcbSegment { base: t.base, limit: t.limit.into(), ..VmcbSegment::default() };
    save.gdtr = table(&state.gdtr);
    save.idtr = table(&state.idtr);
    save.cpl = state.cpl;
}

/// Back.
pub fn read_segments(save: &Save, state: &mut CpuState) {
    for (to, from) in state.seg.iter_mut().zip(&save.segments) {
        *to = segment::code_or_data(from);
    }
    let ss = Seg::Ss as usize;
    state.seg[ss] = segment::stack(&save.segments[ss], save.cpl);
    state.ldtr = segment::local_table(&save.ldtr);
    state.tr = segment::task(&save.tr);
    let table = |t: &VmcbSegment| x86::Table { base: t.base, limit: t.limit as u16 };
    state.gdtr = table(&save.gdtr);
    state.idtr = table(&save.idtr);
}

/// The registers of SYSCALL and SYSENTER, and KERNEL_GS_BASE: what VMLOAD loads.
pub fn write_msrs(save: &mut Save, state: &CpuState) {
    (save.star, save.lstar, save.cstar, save.sfmask) = (state.star, state.lstar, state.cstar, state.sfmask);
    save.kernel_gs_base = state.kernel_gs_base;
    (save.sysenter_cs, save.sysenter_esp, save.sysenter_eip) =
        (state.sysenter_cs, state.sysenter_esp, state.sysenter_eip);
}

/// Back.
pub fn read_msrs(save: &Save, state: &mut CpuState) {
    (state.star, state.lstar, state.cstar, state.sfmask) = (save.star, save.lstar, save.cstar, save.sfmask);
    state.kernel_gs_base = save.kernel_gs_base;
    (state.sysenter_cs, state.sysenter_esp, state.sysenter_eip) =
        (save.sysenter_cs, save.sysenter_esp, save.sysenter_eip);
}

/// Control registers that the guest changes without an exit.
pub fn read_control(save: &Save, state: &mut CpuState, nested: bool) {
    state.cr0 = state.cr0 & !CR0_FREE | save.cr0 & CR0_FREE;
    state.cr2 = save.cr2;
    if nested {
        state.cr3 = save.cr3;
    }
}

/// Virtual interrupts: the guest's CR8, and one that waits until the guest can take it if `window` is set.
pub fn write_interrupts(vmcb: &mut Vmcb, cr8: u64, window: bool, dirty: &mut u64) {
    let mut value = int_control::V_INTR_MASKING | cr8 & int_control::V_TPR;
    if window {
        // It never arrives: the guest exits when it could.
        value |= int_control::V_IRQ | int_control::V_IGN_TPR | int_control::V_INTR_PRIO;
    }
    put(&mut vmcb.control.int_control, value, clean::TPR, dirty);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::vmcb;
    use x86::{Cr0, Efer, Mode, Segment};

    fn state() -> CpuState {
        let mut state = CpuState::reset(0x600);
        state.gpr = core::array::from_fn(|n| 0x100 + n as u64);
        state.rip = 0x1234;
        state.kernel_gs_base = 7;
        (state.star, state.lstar, state.cstar, state.sfmask) = (1, 2, 3, 4);
        (state.sysenter_cs, state.sysenter_esp, state.sysenter_eip) = (5, 6, 8);
        state
    }

    #[test]
    fn registers_come_back_as_they_went() {
        let (mut vmcb, from) = (vmcb(), state());
        write_general(&mut vmcb, &from, from.flags.get() | flags::CF);
        write_segments(&mut vmcb.save, &from);
        write_msrs(&mut vmcb.save, &from);
        let mut to = CpuState::reset(0);
        read_general(&vmcb, &mut to, vmcb.save.rflags);
        to.flags.set_status(vmcb.save.rflags);
        read_segments(&vmcb.save, &mut to);
        read_msrs(&vmcb.save, &mut to);
        assert_eq!((to.gpr[0], to.gpr[4], to.rip), (0x100, 0x104, 0x1234));
        assert!(to.flags.cf());
        assert_eq!((to.seg, to.ldtr, to.tr, to.gdtr, to.idtr), (from.seg, from.ldtr, from.tr, from.gdtr, from.idtr));
        assert_eq!((to.star, to.lstar, to.cstar, to.sfmask, to.kernel_gs_base), (1, 2, 3, 4, 7));
        assert_eq!((to.sysenter_cs, to.sysenter_esp, to.sysenter_eip), (5, 6, 8));
    }

    #[test]
    fn a_task_register_that_has_not_changed_is_left_as_the_processor_has_it() {
        let (mut vmcb, mut state) = (vmcb(), state());
        vmcb.save.tr = VmcbSegment { selector: 0x50, attributes: 0x89, limit: 0x67, base: 0x3000 };
        read_segments(&vmcb.save, &mut state);
        assert_eq!(state.tr.attr.typ(), 11);
        write_segments(&mut vmcb.save, &state);
        assert_eq!(vmcb.save.tr.attributes, 0x89);
        state.tr.base += 8;
        write_segments(&mut vmcb.save, &state);
        assert_eq!((vmcb.save.tr.attributes, vmcb.save.tr.base), (0x8b, 0x3008));
    }

    #[test]
    fn mode_and_level_follow_without_the_other_segments() {
        let mut vmcb = vmcb();
        let mut state = CpuState::reset(0);
        state.cr0 |= (Cr0::PE | Cr0::PG).bits();
        state.efer |= (Efer::LME | Efer::LMA).bits();
        vmcb.save.segments[1] = segment::to_vmcb(&Segment::from_descriptor(0x33, 0x00af_fb00_0000_ffff));
        vmcb.save.cpl = 3;
        read_general(&vmcb, &mut state, 2);
        assert_eq!((state.mode, state.cpl), (Mode::Long64, 3));
    }

    #[test]
    fn the_shadow_of_an_instruction_is_kept() {
        let (mut vmcb, mut state) = (vmcb(), state());
        for (shadow, bit, back) in
            [(Shadow::None, 0, Shadow::None), (Shadow::Sti, 1, Shadow::MovSs), (Shadow::MovSs, 1, Shadow::MovSs)]
        {
            state.shadow = shadow;
            write_general(&mut vmcb, &state, 2);
            assert_eq!(vmcb.control.int_state, bit);
            read_general(&vmcb, &mut state, 2);
            assert_eq!(state.shadow, back);
        }
    }

    #[test]
    fn only_what_the_guest_can_change_is_read_from_cr0() {
        let (mut vmcb, mut state) = (vmcb(), state());
        vmcb.save.cr0 = u64::MAX;
        (vmcb.save.cr2, vmcb.save.cr3) = (0x1000, 0x2000);
        state.cr0 = Cr0::ET.bits();
        read_control(&vmcb.save, &mut state, false);
        assert_eq!((state.cr0, state.cr2, state.cr3), ((Cr0::ET | Cr0::TS | Cr0::MP).bits(), 0x1000, 0));
        read_control(&vmcb.save, &mut state, true);
        assert_eq!(state.cr3, 0x2000);
    }

    #[test]
    fn a_window_is_a_virtual_interrupt() {
        let (mut vmcb, mut dirty) = (vmcb(), 0);
        write_interrupts(&mut vmcb, 5, false, &mut dirty);
        assert_eq!((vmcb.control.int_control, dirty), (1 << 24 | 5, clean::TPR));
        dirty = 0;
        write_interrupts(&mut vmcb, 5, false, &mut dirty);
        assert_eq!(dirty, 0);
        write_interrupts(&mut vmcb, 5, true, &mut dirty);
        assert_eq!((vmcb.control.int_control, dirty), (1 << 24 | 1 << 20 | 0xf << 16 | 1 << 8 | 5, clean::TPR));
    }
}
