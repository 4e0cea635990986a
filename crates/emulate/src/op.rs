//! One decoded instruction, in the form that is kept in caches and executed many times.
use iced_x86::Code;
use x86::{CpuState, Mode};

use crate::Res;

/// Executes one instruction. RIP is already the next instruction's.
pub type Handler<C> = fn(&mut C, &Op<C>) -> Res;

/// Register number that stands for "none" in `base` and `index`.
pub const NO_REG: u8 = 0xff;
/// Register number of RIP as `base`.
pub const RIP: u8 = 0x20;
/// Register numbers of AH, CH, DH, BH are 16 to 19.
pub const HIGH_BYTE: u8 = 16;

/// Numbers of the general registers.
#[allow(missing_docs)]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R11: usize = 11;
}

/// What is added to the number of a vector register operand, in [`Op::regs`].
pub mod class {
    /// x87 stack register.
    pub const ST: u8 = 0x80;
    /// MMX register.
    pub const MM: u8 = 0x90;
    /// 128-bit register.
    pub const XMM: u8 = 0xa0;
    /// 256-bit register.
    pub const YMM: u8 = 0xb0;
}

/// Bits of [`Op::prefix`].
pub mod prefix {
    /// LOCK.
    pub const LOCK: u8 = 1;
    /// REP or REPE.
    pub const REP: u8 = 2;
    /// REPNE.
    pub const REPNE: u8 = 4;
}

/// A decoded instruction and the function that executes it on a `C`.
#[derive(Debug)]
pub struct Op<C> {
    /// What executes it.
    pub run: Handler<C>,
    /// The immediate, sign-extended to 64 bits as the instruction defines; the displacement from the next
    /// instruction of a near branch; offset and (from bit 32) selector of a far one; a second immediate from bit 32;
    /// what FNSTENV shows as FOP, of an x87 instruction.
    pub imm: u64,
    /// Displacement of the memory operand, from the next instruction if `base` is [`RIP`]. A 64-bit absolute
    /// address (MOV moffs) is in `imm` instead.
    pub disp: i32,
    /// The instruction form.
    pub code: Code,
    /// Length in bytes, 1 to 15.
    pub len: u8,
    /// Numbers of the register operands by operand position: general registers 0 to 15 and the high bytes from
    /// [`HIGH_BYTE`]; segment, control and debug registers by their own number; ST, MM, XMM and YMM registers with
    /// their [`class`] added. [`NO_REG`] otherwise.
    pub regs: [u8; 4],
    /// Position of the memory operand, or [`NO_REG`].
    pub mem: u8,
    /// Base register of the memory operand, [`RIP`] or [`NO_REG`].
    pub base: u8,
    /// Index register or [`NO_REG`].
    pub index: u8,
    /// log2 of the index's scale.
    pub scale: u8,
    /// Segment register of the memory operand, override applied.
    pub seg: u8,
    /// Size in bytes of the memory operand, 0 if it depends (XSAVE) or there is none.
    pub mem_size: u8,
    /// Address size in bytes: 2, 4, 8.
    pub address_size: u8,
    /// Operand size in bytes as prefixes give it: 2, 4, 8.
    pub operand_size: u8,
    /// [`prefix`] bits.
    pub prefix: u8,
    /// How the memory operand is addressed, one of [`crate::address::form`].
    pub form: u8,
    /// The mode that it was decoded for, and the only one in which it may be executed.
    pub mode: Mode,
    /// It may use [`CpuState::fpu`].
    pub vector: bool,
}

impl<C> Clone for Op<C> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<C> Copy for Op<C> {}

impl<C> Op<C> {
    /// VMCALL or VMMCALL.
    pub fn is_hypercall(&self) -> bool {
        matches!(self.code, Code::Vmcall | Code::Vmmcall)
    }

    /// SYSCALL or SYSENTER, or what returns from them: whether they exist in a mode depends on the vendor.
    pub fn is_system_call(&self) -> bool {
        let ways = [Code::Syscall, Code::Sysenter, Code::Sysretd, Code::Sysretq, Code::Sysexitd, Code::Sysexitq];
        ways.contains(&self.code)
    }

    /// INT3.
    pub fn is_int3(&self) -> bool {
        self.code == Code::Int3
    }

    /// Whether it has a memory operand.
    #[inline(always)]
    pub fn is_memory(&self) -> bool {
        self.mem != NO_REG
    }

    /// Whether operand number `slot` is a register.
    #[inline(always)]
    pub fn has_register(&self, slot: usize) -> bool {
        self.regs[slot] != NO_REG
    }

    /// Offset of the memory operand in its segment, wrapped to the address size.
    #[inline(always)]
    pub fn offset(&self, state: &CpuState) -> u64 {
        let mut offset = self.disp as i64 as u64;
        if self.base < 16 {
            offset = offset.wrapping_add(state.gpr[self.base as usize & 15]);
        } else if self.base == RIP {
            offset = offset.wrapping_add(state.rip);
        }
        if self.index < 16 {
            offset = offset.wrapping_add(state.gpr[self.index as usize & 15] << self.scale);
        }
        self.wrap(offset)
    }

    /// `offset` wrapped to the address size.
    #[inline(always)]
    pub fn wrap(&self, offset: u64) -> u64 {
        match self.address_size {
            8 => offset,
            4 => offset as u32 as u64,
            _ => offset as u16 as u64,
        }
    }
}
