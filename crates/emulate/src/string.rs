//! MOVS, CMPS, SCAS, STOS and LODS. With a REP prefix each element is a transaction: its registers are committed
//! before the next begins, so that a fault leaves an instruction that can simply be started again.
use iced_x86::{Instruction, Mnemonic};
use x86::{CpuState, Mode, Seg, flags};

use crate::{
    Access, Cpu, Handler, Op, Res, Stop, address, alu,
    op::{gpr, prefix},
    operand::{Width, by_width},
};

const ES: u8 = Seg::Es as u8;
const AX: u8 = gpr::RAX as u8;
const CX: u8 = gpr::RCX as u8;
const SI: u8 = gpr::RSI as u8;
const DI: u8 = gpr::RDI as u8;

/// What a bulk operation costs of [`Cpu::ELEMENTS`].
const BULK_COST: u64 = 64;

/// One of the five instructions.
trait Kind {
    /// Ends when ZF is no longer what the prefix asks for.
    const COMPARES: bool = false;
    /// Does one element. `A` is the width of addresses.
    fn element<C: Cpu, W: Width, A: Width>(cpu: &mut C, op: &Op<C>) -> Res;
    /// Does up to `count` elements at once and returns how many; 0 if that is not possible here.
    #[inline(always)]
    fn bulk<C: Cpu, W: Width, A: Width>(_cpu: &mut C, _op: &Op<C>, _count: u64) -> u64 {
        0
    }
}

/// Moves the index register `reg` by `count` elements.
#[inline(always)]
fn advance<W: Width, A: Width>(state: &mut CpuState, reg: u8, count: u64) {
    let bytes = count.wrapping_mul(W::BYTES);
    let bytes = if state.flags.control(flags::DF) { bytes.wrapping_neg() } else { bytes };
    A::set(state, reg, A::get(state, reg).wrapping_add(bytes));
}

#[inline(always)]
fn load<C: Cpu, W: Width, A: Width>(cpu: &mut C, seg: u8, reg: u8) -> Res<u64> {
    let offset = A::get(cpu.state(), reg);
    let at = address::segment_offset(cpu, seg, offset, W::BYTES, false)?;
    Ok(cpu.load::<W>(at, Access::Program)?.low())
}

#[inline(always)]
fn store<C: Cpu, W: Width, A: Width>(cpu: &mut C, value: u64) -> Res {
    let offset = A::get(cpu.state(), DI);
    let at = address::segment_offset(cpu, ES, offset, W::BYTES, true)?;
    cpu.store(at, W::from_low(value), Access::Program)
}

/// How many elements of `count` from the offset in `reg` on lie in one page and in the segment, with its linear
/// address; 0 if not even one does.
fn run<C: Cpu, W: Width, A: Width>(cpu: &mut C, seg: u8, reg: u8, count: u64, write: bool) -> (u64, u64) {
    let offset = A::get(cpu.state(), reg);
    let Ok(at) = address::segment_offset(cpu, seg, offset, W::BYTES, write) else {
        return (0, 0);
    };
    // Up to the end of the page, and before the offset wraps.
    let to_wrap = A::zero_extend(u64::MAX) - offset;
    let room = (0x1000 - (at & 0xfff)).min(to_wrap.saturating_add(1));
    let count = count.min(room / W::BYTES);
    if count == 0 || address::segment_offset(cpu, seg, offset, count * W::BYTES, write).is_err() {
        return (0, 0);
    }
    (count, at)
}

/// Whether elements can be done in bulk at all: ascending, and nobody watches single accesses.
fn plain<C: Cpu>(cpu: &C) -> bool {
    let state = cpu.state();
    let checked = state.cpl == 3 && state.flags.control(flags::AC);
    !(state.flags.control(flags::DF) || checked || cpu.data_breakpoints())
}

enum Movs {}
impl Kind for Movs {
    #[inline(always)]
    fn element<C: Cpu, W: Width, A: Width>(cpu: &mut C, op: &Op<C>) -> Res {
        let value = load::<C, W, A>(cpu, op.seg, SI)?;
        store::<C, W, A>(cpu, value)?;
        let state = cpu.state_mut();
        advance::<W, A>(state, SI, 1);
        advance::<W, A>(state, DI, 1);
        Ok(())
    }

    fn bulk<C: Cpu, W: Width, A: Width>(cpu: &mut C, op: &Op<C>, count: u64) -> u64 {
        if count < 2 || !plain(cpu) {
            return 0;
        }
        let (count, from) = run::<C, W, A>(cpu, op.seg, SI, count, false);
        let (count, to) = run::<C, W, A>(cpu, ES, DI, count, true);
        // Elements that overlap their own copy would not be read whole by a copy of single bytes.
        let distance = to.wrapping_sub(from);
        if count == 0 || distance.wrapping_add(W::BYTES - 1) < 2 * W::BYTES - 1 && distance != 0 {
            return 0;
        }
        let done = cpu.copy_forward(from, to, count * W::BYTES).min(count * W::BYTES) / W::BYTES;
        if done > 0 {
            let state = cpu.state_mut();
            advance::<W, A>(state, SI, done);
            advance::<W, A>(state, DI, done);
        }
        done
    }
}

enum Stos {}
impl Kind for Stos {
    #[inline(always)]
    fn element<C: Cpu, W: Width, A: Width>(cpu: &mut C, _op: &Op<C>) -> Res {
        let value = W::get(cpu.state(), AX);
        store::<C, W, A>(cpu, value)?;
        advance::<W, A>(cpu.state_mut(), DI, 1);
        Ok(())
    }

    fn bulk<C: Cpu, W: Width, A: Width>(cpu: &mut C, _op: &Op<C>, count: u64) -> u64 {
        if count < 2 || !plain(cpu) {
            return 0;
        }
        let (count, to) = run::<C, W, A>(cpu, ES, DI, count, true);
        if count == 0 {
            return 0;
        }
        let value = W::from_low(cpu.state().gpr[gpr::RAX]);
        let done = cpu.fill_forward(to, value, count).min(count);
        if done > 0 {
            advance::<W, A>(cpu.state_mut(), DI, done);
        }
        done
    }
}

enum Lods {}
impl Kind for Lods {
    #[inline(always)]
    fn element<C: Cpu, W: Width, A: Width>(cpu: &mut C, op: &Op<C>) -> Res {
        let value = load::<C, W, A>(cpu, op.seg, SI)?;
        let state = cpu.state_mut();
        W::set(state, AX, value);
        advance::<W, A>(state, SI, 1);
        Ok(())
    }
}

enum Cmps {}
impl Kind for Cmps {
    const COMPARES: bool = true;
    #[inline(always)]
    fn element<C: Cpu, W: Width, A: Width>(cpu: &mut C, op: &Op<C>) -> Res {
        let a = load::<C, W, A>(cpu, op.seg, SI)?;
        let b = load::<C, W, A>(cpu, ES, DI)?;
        let state = cpu.state_mut();
        alu::set_compare::<W>(state, a, b);
        advance::<W, A>(state, SI, 1);
        advance::<W, A>(state, DI, 1);
        Ok(())
    }
}

enum Scas {}
impl Kind for Scas {
    const COMPARES: bool = true;
    #[inline(always)]
    fn element<C: Cpu, W: Width, A: Width>(cpu: &mut C, _op: &Op<C>) -> Res {
        let b = load::<C, W, A>(cpu, ES, DI)?;
        let state = cpu.state_mut();
        let a = W::get(state, AX);
        alu::set_compare::<W>(state, a, b);
        advance::<W, A>(state, DI, 1);
        Ok(())
    }
}

fn once<C: Cpu, K: Kind, W: Width, A: Width>(cpu: &mut C, op: &Op<C>) -> Res {
    K::element::<C, W, A>(cpu, op)
}

fn repeated<C: Cpu, K: Kind, W: Width, A: Width>(cpu: &mut C, op: &Op<C>) -> Res {
    let mut budget = C::ELEMENTS;
    loop {
        let count = A::get(cpu.state(), CX);
        if count == 0 {
            return Ok(());
        }
        let single = cpu.state().flags.control(flags::TF);
        let mut done = if single { 0 } else { K::bulk::<C, W, A>(cpu, op, count) };
        if done == 0 {
            K::element::<C, W, A>(cpu, op)?;
            done = 1;
            budget -= 1;
        } else {
            budget = budget.saturating_sub(BULK_COST);
        }
        let state = cpu.state_mut();
        A::set(state, CX, count - done);
        let wanted = op.prefix & prefix::REPNE == 0;
        if count == done || K::COMPARES && state.flags.zf() != wanted {
            return Ok(());
        }
        if single {
            // A single-step trap comes after every element and finds RIP at the instruction.
            state.rip = previous(op, state.rip);
            return Ok(());
        }
        if budget == 0 {
            return Err(Stop::RESTART);
        }
    }
}

fn previous<C>(op: &Op<C>, rip: u64) -> u64 {
    let rip = rip.wrapping_sub(op.len as u64);
    if op.mode == Mode::Long64 { rip } else { rip as u32 as u64 }
}

/// Decides how `op` is executed, if it is of this family.
pub(crate) fn lookup<C: Cpu>(insn: &Instruction, op: &Op<C>) -> Option<Handler<C>> {
    if !insn.is_string_instruction() {
        return None;
    }
    match insn.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => pick::<C, Movs>(op),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => pick::<C, Stos>(op),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => pick::<C, Lods>(op),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => pick::<C, Cmps>(op),
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => pick::<C, Scas>(op),
        _ => None,
    }
}

fn pick<C: Cpu, K: Kind>(op: &Op<C>) -> Option<Handler<C>> {
    by_width!(op.mem_size, W => Some(match op.address_size {
        2 => pick_repeat::<C, K, W, u16>(op),
        4 => pick_repeat::<C, K, W, u32>(op),
        _ => pick_repeat::<C, K, W, u64>(op),
    }))
}

fn pick_repeat<C: Cpu, K: Kind, W: Width, A: Width>(op: &Op<C>) -> Handler<C> {
    if op.prefix & (prefix::REP | prefix::REPNE) != 0 { repeated::<C, K, W, A> } else { once::<C, K, W, A> }
}
