//! Descriptors in memory: finding, reading and marking them, and the checks that all users of a kind of segment
//! share (SDM vol. 3, 3.4.5, 3.5 and 5.2 to 5.8).
use x86::{Attr, CpuState, Segment, Vector, segment::system_type};

use crate::{Access, Cpu, Res, Stop};

/// How often a lost race for the accessed bit is repeated before the bit is left as the others made it.
const ATTEMPTS: u32 = 64;

/// A descriptor and where it was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    /// The selector that named it.
    pub selector: u16,
    /// Its linear address.
    pub linear: u64,
    /// Its first eight bytes.
    pub raw: u64,
}

/// The error code of a fault about `selector`; `ext` is 1 while an event is delivered that the program did not ask for.
pub(crate) const fn code(selector: u16, ext: u32) -> u32 {
    (selector & 0xfffc) as u32 | ext
}

/// A fault about `selector`.
pub(crate) const fn fault(vector: Vector, selector: u16, ext: u32) -> Stop {
    Stop::fault_code(vector, code(selector, ext))
}

/// Whether `selector` is a null selector.
pub(crate) const fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// What a segment register holds after a null selector was loaded. The DPL stays meaningful: the current privilege
/// level is that of SS.
pub(crate) const fn null_segment(selector: u16, dpl: u8) -> Segment {
    Segment { selector, attr: Attr(Attr::UNUSABLE).with_dpl(dpl), limit: 0, base: 0 }
}

/// The linear address of a system structure: 32 bits outside of long mode.
pub(crate) fn system_address(state: &CpuState, linear: u64) -> u64 {
    if state.long_mode() { linear } else { linear as u32 as u64 }
}

/// The linear address of the descriptor of `bytes` bytes that `selector` names; None if it is not inside its table.
pub(crate) fn locate(state: &CpuState, selector: u16, bytes: u64) -> Option<u64> {
    let offset = (selector & 0xfff8) as u64;
    let (base, limit) = if selector & 4 == 0 {
        (state.gdtr.base, state.gdtr.limit as u64)
    } else {
        if state.ldtr.attr.unusable() || !state.ldtr.attr.present() {
            return None;
        }
        (state.ldtr.base, state.ldtr.limit as u64)
    };
    (offset + bytes - 1 <= limit).then(|| system_address(state, base.wrapping_add(offset)))
}

/// Reads the descriptor that `selector`, not null, names. Outside of its table: `vector`(selector).
pub(crate) fn read<C: Cpu>(cpu: &mut C, selector: u16, vector: Vector, ext: u32) -> Res<Descriptor> {
    let linear = locate(cpu.state(), selector, 8).ok_or(fault(vector, selector, ext))?;
    let raw = cpu.load(linear, Access::System)?;
    Ok(Descriptor { selector, linear, raw })
}

/// Reads the upper half of a 16-byte system descriptor or gate of long mode: bits 63:32 of its base or offset.
pub(crate) fn read_upper<C: Cpu>(cpu: &mut C, d: &Descriptor, vector: Vector, ext: u32) -> Res<u64> {
    let linear = locate(cpu.state(), d.selector, 16).ok_or(fault(vector, d.selector, ext))?;
    cpu.load(linear.wrapping_add(8), Access::System)
}

impl Descriptor {
    /// The attributes.
    pub fn attr(&self) -> Attr {
        self.segment().attr
    }

    /// As a segment register that holds `self.selector`.
    pub fn segment(&self) -> Segment {
        Segment::from_descriptor(self.selector, self.raw)
    }

    /// As a code segment register for the privilege level `cpl`, which becomes the selector's RPL.
    pub fn code_segment(&self, cpl: u8) -> Segment {
        Segment::from_descriptor(self.selector & !3 | cpl as u16, self.raw)
    }

    /// The system type, None for code and data.
    pub fn system_type(&self) -> Option<u8> {
        let attr = self.attr();
        (!attr.is_code_or_data()).then(|| attr.typ())
    }

    /// Sets the accessed bit of a code or data descriptor in memory, if it is not set.
    pub fn mark_accessed<C: Cpu>(&mut self, cpu: &mut C) -> Res {
        let at = self.linear.wrapping_add(5);
        for _ in 0..ATTEMPTS {
            let old = (self.raw >> 40) as u8;
            if old & 1 != 0 {
                break;
            }
            let seen = cpu.compare_exchange(at, old, old | 1, Access::System)?;
            let now = if seen == old { old | 1 } else { seen };
            self.raw = self.raw & !(0xff << 40) | (now as u64) << 40;
        }
        self.raw |= 1 << 40;
        Ok(())
    }

    /// Sets or clears the busy bit of a TSS descriptor in memory.
    pub fn set_busy<C: Cpu>(&mut self, cpu: &mut C, busy: bool) -> Res {
        let at = self.linear.wrapping_add(5);
        let old = (self.raw >> 40) as u8;
        let new = old & !2 | (busy as u8) << 1;
        if old != new {
            if cpu.compare_exchange(at, old, new, Access::System)? != old {
                return Err(Stop::RESTART);
            }
            self.raw = self.raw & !(0xff << 40) | (new as u64) << 40;
        }
        Ok(())
    }
}

/// Checks and reads the stack segment for the privilege level `level` (SDM vol. 3, 5.8.5): what breaks a rule raises
/// `vector`(selector), an absent segment #SS(selector).
pub(crate) fn stack_segment<C: Cpu>(cpu: &mut C, selector: u16, level: u8, vector: Vector, ext: u32) -> Res<Segment> {
    if is_null(selector) {
        return Err(Stop::fault_code(vector, ext));
    }
    let mut d = read(cpu, selector, vector, ext)?;
    let attr = d.attr();
    if (selector & 3) as u8 != level || attr.dpl() != level || !is_writable_data(attr) {
        return Err(fault(vector, selector, ext));
    }
    if !attr.present() {
        return Err(fault(Vector::SS, selector, ext));
    }
    d.mark_accessed(cpu)?;
    Ok(d.segment())
}

/// A data segment that can be written.
pub(crate) const fn is_writable_data(attr: Attr) -> bool {
    attr.is_code_or_data() && attr.0 & 8 == 0 && attr.type_bit1()
}

/// A code segment that every level may call.
pub(crate) const fn is_conforming(attr: Attr) -> bool {
    attr.is_code() && attr.type_bit2()
}

/// Whether a type names a task-state segment; 16 or 32 bits, busy or not.
pub(crate) const fn is_tss(typ: u8) -> bool {
    matches!(
        typ,
        system_type::TSS16_AVAILABLE | system_type::TSS16_BUSY | system_type::TSS_AVAILABLE | system_type::TSS_BUSY
    )
}

/// Nulls the data segment registers that the program at the outer level `cpl` must not keep (SDM vol. 3, 5.8.6). The
/// bases stay: those of FS and GS count in 64-bit mode whatever the selector.
pub(crate) fn drop_inner_segments(state: &mut CpuState, cpl: u8) {
    use x86::Seg::*;
    for seg in [Es, Ds, Fs, Gs] {
        let attr = state.seg[seg as usize].attr;
        if !attr.unusable() && !is_conforming(attr) && attr.dpl() < cpl {
            let segment = &mut state.seg[seg as usize];
            segment.selector = 0;
            segment.attr.0 |= Attr::UNUSABLE;
        }
    }
}
