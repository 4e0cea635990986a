//! General and system registers between the client's structures and the canonical state.
use abi::{KvmDtable, KvmRegs, KvmSegment, KvmSregs, KvmSregs2};
use x86::{Attr, CpuState, Segment, Table};

/// Where RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP stand in the register file; R8 to R15 follow in order.
const ORDER: [usize; 16] = [0, 3, 1, 2, 6, 7, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];

/// KVM_GET_REGS.
pub(crate) fn to_abi(state: &CpuState) -> KvmRegs {
    let [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15] = ORDER.map(|i| state.gpr[i]);
    let (rip, rflags) = (state.rip, state.flags.get());
    KvmRegs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

/// KVM_SET_REGS.
pub(crate) fn from_abi(state: &mut CpuState, r: &KvmRegs) {
    let values =
        [r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15];
    for (i, value) in ORDER.into_iter().zip(values) {
        state.gpr[i] = value;
    }
    state.rip = r.rip;
    state.flags.set(r.rflags);
    state.refresh();
}

/// A segment as the client sees it.
pub(crate) fn segment_to_abi(s: &Segment) -> KvmSegment {
    let bit = |mask: u16| u8::from(s.attr.0 & mask != 0);
    KvmSegment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.attr.typ(),
        present: bit(Attr::P),
        dpl: s.attr.dpl(),
        db: bit(Attr::DB),
        s: bit(Attr::S),
        l: bit(Attr::L),
        g: bit(Attr::G),
        avl: bit(Attr::AVL),
        unusable: bit(Attr::UNUSABLE),
        padding: 0,
    }
}

/// A segment as the client gives it. One that is not present is not usable, as VT-x has it.
pub(crate) fn segment_from_abi(s: &KvmSegment) -> Segment {
    let bit = |value: u8, mask: u16| if value & 1 != 0 { mask } else { 0 };
    let attr = u16::from(s.type_ & 15)
        | bit(s.s, Attr::S)
        | u16::from(s.dpl & 3) << 5
        | bit(s.present, Attr::P)
        | bit(s.avl, Attr::AVL)
        | bit(s.l, Attr::L)
        | bit(s.db, Attr::DB)
        | bit(s.g, Attr::G)
        | bit(s.unusable | u8::from(s.present & 1 == 0), Attr::UNUSABLE);
    Segment { selector: s.selector, attr: Attr(attr), limit: s.limit, base: s.base }
}

fn table_to_abi(t: &Table) -> KvmDtable {
    KvmDtable { base: t.base, limit: t.limit, padding: [0; 3] }
}

fn table_from_abi(t: &KvmDtable) -> Table {
    Table { base: t.base, limit: t.limit }
}

/// KVM_GET_SREGS without what is not a register: `apic_base`, `interrupt_bitmap`.
pub(crate) fn sregs_to_abi(s: &CpuState) -> KvmSregs {
    let [es, cs, ss, ds, fs, gs] = [0, 1, 2, 3, 4, 5].map(|i: usize| segment_to_abi(&s.seg[i]));
    KvmSregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr: segment_to_abi(&s.tr),
        ldt: segment_to_abi(&s.ldtr),
        gdt: table_to_abi(&s.gdtr),
        idt: table_to_abi(&s.idtr),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: 0,
        interrupt_bitmap: [0; 4],
    }
}

/// KVM_SET_SREGS into the registers; values have been checked.
pub(crate) fn sregs_from_abi(state: &mut CpuState, s: &KvmSregs) {
    state.seg = [&s.es, &s.cs, &s.ss, &s.ds, &s.fs, &s.gs].map(segment_from_abi);
    state.tr = segment_from_abi(&s.tr);
    state.ldtr = segment_from_abi(&s.ldt);
    state.gdtr = table_from_abi(&s.gdt);
    state.idtr = table_from_abi(&s.idt);
    (state.cr0, state.cr2, state.cr3, state.cr4) = (s.cr0 | x86::Cr0::ET.bits(), s.cr2, s.cr3, s.cr4);
    state.cr8 = s.cr8 & 15;
    state.efer = s.efer;
    state.refresh();
}

/// The part of [`KvmSregs2`] that it shares with [`KvmSregs`].
pub(crate) fn common(s: &KvmSregs2) -> KvmSregs {
    let KvmSregs2 { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, .. } = *s;
    let interrupt_bitmap = [0; 4];
    KvmSregs { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, interrupt_bitmap }
}

/// [`KvmSregs2`] from what it shares with [`KvmSregs`], and the PDPTEs.
pub(crate) fn extend(s: &KvmSregs, flags: u64, pdptrs: [u64; 4]) -> KvmSregs2 {
    let KvmSregs { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, .. } = *s;
    KvmSregs2 { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, flags, pdptrs }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn general_registers_round_trip_in_the_abis_order() {
        let mut state = CpuState::reset(0);
        let regs = KvmRegs {
            rax: 1,
            rbx: 2,
            rcx: 3,
            rdx: 4,
            rsi: 5,
            rdi: 6,
            rsp: 7,
            rbp: 8,
            r8: 9,
            r15: 16,
            rip: 17,
            rflags: 0x202,
            ..KvmRegs::default()
        };
        from_abi(&mut state, &regs);
        assert_eq!(to_abi(&state), regs);
        assert_eq!((state.gpr[0], state.gpr[3], state.gpr[4], state.gpr[6]), (1, 2, 7, 5));
    }

    #[test]
    fn reserved_flags_are_forced() {
        let mut state = CpuState::reset(0);
        from_abi(&mut state, &KvmRegs { rflags: u64::MAX, ..KvmRegs::default() });
        assert_eq!(to_abi(&state).rflags, x86::flags::WRITABLE | 2);
    }

    #[test]
    fn system_registers_round_trip() {
        let state = CpuState::reset(0x600);
        let sregs = sregs_to_abi(&state);
        assert_eq!((sregs.cs.selector, sregs.cs.base, sregs.cs.type_), (0xf000, 0xffff_0000, 11));
        let mut other = CpuState::reset(0);
        sregs_from_abi(&mut other, &sregs);
        assert_eq!(sregs_to_abi(&other), sregs);
        assert_eq!(common(&extend(&sregs, 1, [1, 2, 3, 4])), sregs);
    }

    #[test]
    fn a_segment_that_is_not_present_is_unusable() {
        let s = segment_from_abi(&KvmSegment { s: 1, type_: 3, ..KvmSegment::default() });
        assert!(s.attr.unusable());
        let s = segment_from_abi(&KvmSegment { s: 1, type_: 3, present: 1, ..KvmSegment::default() });
        assert!(!s.attr.unusable());
    }
}
