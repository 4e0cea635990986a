//! MOV to and from control registers, CLTS, LMSW, SMSW, XSETBV and XGETBV (SDM vol. 2).
use x86::{Cr0, Cr4, Features};

use super::{
    control, registers,
    tables::{check_umip, require_supervisor},
};
use crate::{
    Cpu, Intercept, Op, Res, Stop, TranslationChange,
    fpu::in_use,
    op::gpr::{RAX, RCX, RDX},
};

/// LMSW changes these; it can set PE but not clear it.
const MSW: u64 = 0xf;

/// MOV CRn, r; `WIDE` in 64-bit mode.
pub(super) fn mov_to<C: Cpu, const WIDE: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    let number = op.regs[0];
    if !matches!(number, 0 | 2 | 3 | 4 | 8) {
        return Err(Stop::UD);
    }
    require_supervisor(cpu)?;
    let value = registers::read(cpu.state(), op.regs[1]);
    let value = if WIDE { value } else { value as u32 as u64 };
    match number {
        2 => {
            cpu.state_mut().cr2 = value;
            Ok(())
        }
        0 | 3 | 4 => write_translation(cpu, number, value),
        _ if value >> 4 != 0 => Err(Stop::GP0),
        _ => cpu.intercept(Intercept::WriteCr8(value), op),
    }
}

/// Writes CR0, CR3 or CR4.
fn write_translation<C: Cpu>(cpu: &mut C, number: u8, value: u64) -> Res {
    cpu.before_translation_change(TranslationChange::Instruction)?;
    match number {
        0 => control::write_cr0(cpu, value),
        3 => control::write_cr3(cpu, value),
        _ => control::write_cr4(cpu, value),
    }
}

/// MOV to CR0, CR3 or CR4 in 64-bit code, of which the processor has told all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovToCr {
    /// Which.
    pub number: u8,
    /// What is written.
    pub value: u64,
    /// Length of the instruction.
    pub len: u8,
}

impl MovToCr {
    /// The one that begins with `bytes`; `gpr` are the general registers.
    pub fn of(bytes: [u8; 4], gpr: &[u64; 16]) -> Option<Self> {
        let (modrm, high, len) = match bytes {
            [0x0f, 0x22, modrm, _] => (modrm, 0, 3),
            // REX.B.
            [0x41, 0x0f, 0x22, modrm] => (modrm, 8, 4),
            _ => return None,
        };
        let (number, register) = (modrm >> 3 & 7, usize::from(modrm & 7 | high));
        let moves = modrm >> 6 == 3 && matches!(number, 0 | 3 | 4);
        moves.then_some(Self { number, value: *gpr.get(register)?, len })
    }

    /// Executes it, and advances RIP. On `Err` the registers are as before.
    pub fn execute<C: Cpu>(&self, cpu: &mut C) -> Res {
        require_supervisor(cpu)?;
        write_translation(cpu, self.number, self.value)?;
        let state = cpu.state_mut();
        state.rip = state.rip.wrapping_add(self.len.into());
        Ok(())
    }
}

/// MOV r, CRn.
pub(super) fn mov_from<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let number = op.regs[1];
    if !matches!(number, 0 | 2 | 3 | 4 | 8) {
        return Err(Stop::UD);
    }
    require_supervisor(cpu)?;
    let state = cpu.state_mut();
    let value = match number {
        0 => state.cr0,
        2 => state.cr2,
        3 => state.cr3,
        4 => state.cr4,
        _ => return cpu.intercept(Intercept::ReadCr8, op),
    };
    registers::write(state, op.regs[0], SIZE, value);
    Ok(())
}

/// CLTS.
pub(super) fn clts<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    require_supervisor(cpu)?;
    cpu.state_mut().cr0 &= !Cr0::TS.bits();
    Ok(())
}

/// LMSW.
pub(super) fn lmsw<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    require_supervisor(cpu)?;
    let word = registers::read_rm16(cpu, op, 0)? as u64;
    cpu.before_translation_change(TranslationChange::Instruction)?;
    let old = cpu.state().cr0;
    control::write_cr0(cpu, old & !(MSW & !Cr0::PE.bits()) | word & MSW)
}

/// SMSW.
pub(super) fn smsw<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    check_umip(cpu)?;
    let value = cpu.state().cr0;
    registers::write_rm16(cpu, op, SIZE, value)
}

/// XSETBV.
pub(super) fn xsetbv<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    require_xsave(cpu)?;
    require_supervisor(cpu)?;
    let gpr = &cpu.state().gpr;
    let value = gpr[RAX] & 0xffff_ffff | gpr[RDX] << 32;
    if gpr[RCX] as u32 != 0 {
        return Err(Stop::GP0);
    }
    control::check_xcr0(cpu.xcr0_supported(), value)?;
    cpu.state_mut().xcr0 = value;
    Ok(())
}

/// XGETBV: XCR0, or with ECX = 1 the components that are in use.
pub(super) fn xgetbv<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    require_xsave(cpu)?;
    let with_in_use = cpu.features().contains(Features::XGETBV1);
    let state = cpu.state_mut();
    let value = match state.gpr[RCX] as u32 {
        0 => state.xcr0,
        1 if with_in_use => state.xcr0 & in_use(&state.fpu),
        _ => return Err(Stop::GP0),
    };
    state.gpr[RAX] = value & 0xffff_ffff;
    state.gpr[RDX] = value >> 32;
    Ok(())
}

fn require_xsave<C: Cpu>(cpu: &C) -> Res {
    let on = cpu.features().contains(Features::XSAVE) && cpu.state().cr4 & Cr4::OSXSAVE.bits() != 0;
    if on { Ok(()) } else { Err(Stop::UD) }
}
