//! Arithmetic: everything that [`Cpu::vector`] executes. What has to be checked is known when the instruction is
//! decoded, so each combination has a handler of its own.
use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction};
use x86::{Features, Vector};

use super::check::{self, Isa, Sse, Vex};
use super::moves::has_memory;
use super::registers::enter_mmx;
use super::{is_x87, pointers};
use crate::{Cpu, Handler, Op, Res, Stop, address};

const XM: Stop = Stop::fault(Vector::XM);

/// An SSE or AVX instruction on XMM, YMM and general registers.
fn vector<C: Cpu, I: Isa, const MEM: bool, const WRITE: bool, const ALIGNED: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    if !MEM {
        return cpu.vector(op, None);
    }
    let linear = address::linear(cpu, op, op.mem_size as u64, WRITE);
    let linear = if ALIGNED { address::require_alignment(cpu, op, 16, linear)? } else { linear? };
    cpu.vector(op, Some(linear))
}

/// An MMX instruction, or an SSE instruction with an MMX operand (`SSE`: CR4.OSFXSR counts too).
fn mmx<C: Cpu, const F: u64, const SSE: bool, const ALIGNED: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    if SSE {
        <Sse<F> as Isa>::check(cpu)?;
    }
    check::mmx::<C, F>(cpu)?;
    let memory = if op.is_memory() {
        let linear = address::linear(cpu, op, op.mem_size as u64, false);
        Some(if ALIGNED { address::require_alignment(cpu, op, 16, linear)? } else { linear? })
    } else {
        None
    };
    // MMX registers are physical x87 registers, which the state numbers from the stack top. #XM of a conversion
    // leaves the x87 changed all the same; other faults do not.
    let before = cpu.state().fpu.legacy;
    enter_mmx(cpu.state_mut());
    let result = cpu.vector(op, memory);
    if result.is_err_and(|stop| stop != XM) {
        let now = &mut cpu.state_mut().fpu.legacy;
        (now.fsw, now.ftw, now.st) = (before.fsw, before.ftw, before.st);
    }
    result
}

/// An x87 instruction that computes.
fn x87<C: Cpu, const F: u64, const WRITE: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    check::x87_waiting(cpu)?;
    if F != 0 && cpu.features().bits() & F != F {
        return Err(Stop::UD);
    }
    if !op.is_memory() {
        cpu.vector(op, None)?;
        pointers::note(cpu.state_mut(), op, None);
        return Ok(());
    }
    let linear = address::linear(cpu, op, op.mem_size as u64, WRITE)?;
    let offset = op.offset(cpu.state());
    cpu.vector(op, Some(linear))?;
    pointers::note(cpu.state_mut(), op, Some(offset));
    Ok(())
}

/// Whether the memory operand is the destination.
fn writes_memory(insn: &Instruction) -> bool {
    if is_x87(insn.code()) {
        use Code::*;
        return matches!(
            insn.code(),
            Fst_m32fp
                | Fstp_m32fp
                | Fst_m64fp
                | Fstp_m64fp
                | Fstp_m80fp
                | Fist_m16int
                | Fist_m32int
                | Fistp_m16int
                | Fistp_m32int
                | Fistp_m64int
                | Fisttp_m16int
                | Fisttp_m32int
                | Fisttp_m64int
                | Fbstp_m80bcd
        );
    }
    insn.op_count() > 0 && insn.op_kind(0) == iced_x86::OpKind::Memory
}

/// Whether a 16-byte memory operand of this legacy SSE instruction may be misaligned. The manuals have the SHA
/// instructions fault, AMD's processors do not: nothing that works on either depends on the fault.
fn unaligned(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Pcmpestrm_xmm_xmmm128_imm8
            | Pcmpestrm64_xmm_xmmm128_imm8
            | Pcmpestri_xmm_xmmm128_imm8
            | Pcmpestri64_xmm_xmmm128_imm8
            | Pcmpistrm_xmm_xmmm128_imm8
            | Pcmpistri_xmm_xmmm128_imm8
    ) || matches!(code.cpuid_features(), [CpuidFeature::SHA])
}

/// Integer instructions that CPUID counts as SSE; they belong to other families.
fn is_integer(code: Code) -> bool {
    use iced_x86::Mnemonic::*;
    matches!(
        code.mnemonic(),
        Crc32
            | Lfence
            | Mfence
            | Sfence
            | Prefetchnta
            | Prefetcht0
            | Prefetcht1
            | Prefetcht2
            | Movnti
            | Clflush
            | Pause
            | Popcnt
    )
}

fn is_mmx(insn: &Instruction) -> bool {
    // CVTPI2PS and CVTPI2PD of a memory operand leave the x87 alone.
    (0..insn.op_count()).any(|i| insn.op_register(i).is_mm())
}

pub(super) fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    let code = insn.code();
    if is_x87(code) {
        return lookup_x87(insn);
    }
    if is_integer(code) {
        return None;
    }
    match code.encoding() {
        EncodingKind::Legacy if is_mmx(insn) => lookup_mmx(insn),
        EncodingKind::Legacy => lookup_sse(insn),
        EncodingKind::VEX => lookup_vex(insn),
        _ => None,
    }
}

fn lookup_x87<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    const CMOV: u64 = Features::CMOV.bits();
    const SSE3: u64 = Features::SSE3.bits();
    let write = writes_memory(insn);
    match insn.code().cpuid_features() {
        [CpuidFeature::FPU | CpuidFeature::FPU387] if write => Some(x87::<C, 0, true>),
        [CpuidFeature::FPU | CpuidFeature::FPU387] => Some(x87::<C, 0, false>),
        [CpuidFeature::FPU, CpuidFeature::CMOV] => Some(x87::<C, CMOV, false>),
        [CpuidFeature::FPU, CpuidFeature::SSE3] => Some(x87::<C, SSE3, true>),
        _ => None,
    }
}

fn lookup_mmx<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    const MMX: u64 = Features::MMX.bits();
    // Of these only CVTPD2PI and its truncating sister have a 16-byte operand. The feature SSE brings instructions
    // on MMX registers alone, which need no CR4.OSFXSR.
    use Code::*;
    let converts = matches!(
        insn.code(),
        Cvtpi2ps_xmm_mmm64
            | Cvtpi2pd_xmm_mmm64
            | Cvtps2pi_mm_xmmm64
            | Cvttps2pi_mm_xmmm64
            | Cvtpd2pi_mm_xmmm128
            | Cvttpd2pi_mm_xmmm128
    );
    const SSE: u64 = MMX | Features::SSE.bits();
    const SSE2: u64 = MMX | Features::SSE2.bits();
    const SSSE3: u64 = MMX | Features::SSSE3.bits();
    match insn.code().cpuid_features() {
        [CpuidFeature::MMX] => Some(mmx::<C, MMX, false, false>),
        [CpuidFeature::SSE] if converts => Some(mmx::<C, SSE, true, false>),
        [CpuidFeature::SSE2] if converts => Some(mmx::<C, SSE2, true, true>),
        [CpuidFeature::SSE] => Some(mmx::<C, SSE, false, false>),
        [CpuidFeature::SSE2] => Some(mmx::<C, SSE2, false, false>),
        [CpuidFeature::SSSE3] => Some(mmx::<C, SSSE3, false, false>),
        _ => None,
    }
}

/// The handler for a register or memory form.
fn form<C: Cpu, I: Isa>(insn: &Instruction) -> Handler<C> {
    let aligned = !I::VEX && insn.memory_size().size() == 16 && !unaligned(insn.code());
    match (has_memory(insn), writes_memory(insn), aligned) {
        (false, ..) => vector::<C, I, false, false, false>,
        (true, true, _) => vector::<C, I, true, true, false>,
        (true, false, false) => vector::<C, I, true, false, false>,
        (true, false, true) => vector::<C, I, true, false, true>,
    }
}

fn lookup_sse<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    Some(match insn.code().cpuid_features() {
        [CpuidFeature::SSE] => form::<C, Sse<{ Features::SSE.bits() }>>(insn),
        [CpuidFeature::SSE2] => form::<C, Sse<{ Features::SSE2.bits() }>>(insn),
        [CpuidFeature::SSE3] => form::<C, Sse<{ Features::SSE3.bits() }>>(insn),
        [CpuidFeature::SSSE3] => form::<C, Sse<{ Features::SSSE3.bits() }>>(insn),
        [CpuidFeature::SSE4_1] => form::<C, Sse<{ Features::SSE41.bits() }>>(insn),
        [CpuidFeature::SSE4_2] => form::<C, Sse<{ Features::SSE42.bits() }>>(insn),
        [CpuidFeature::SSE4A] => form::<C, Sse<{ Features::SSE4A.bits() }>>(insn),
        [CpuidFeature::AES] => form::<C, Sse<{ Features::AES.bits() }>>(insn),
        [CpuidFeature::PCLMULQDQ] => form::<C, Sse<{ Features::PCLMULQDQ.bits() }>>(insn),
        [CpuidFeature::SHA] => form::<C, Sse<{ Features::SHA.bits() }>>(insn),
        _ => return None,
    })
}

fn lookup_vex<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    Some(match insn.code().cpuid_features() {
        [CpuidFeature::AVX] => form::<C, Vex<0>>(insn),
        [CpuidFeature::AVX2] => form::<C, Vex<{ Features::AVX2.bits() }>>(insn),
        [CpuidFeature::FMA] => form::<C, Vex<{ Features::FMA.bits() }>>(insn),
        [CpuidFeature::F16C] => form::<C, Vex<{ Features::F16C.bits() }>>(insn),
        [CpuidFeature::AES, CpuidFeature::AVX] => form::<C, Vex<{ Features::AES.bits() }>>(insn),
        [CpuidFeature::VAES] => form::<C, Vex<{ Features::VAES.bits() }>>(insn),
        [CpuidFeature::PCLMULQDQ, CpuidFeature::AVX] => form::<C, Vex<{ Features::PCLMULQDQ.bits() }>>(insn),
        [CpuidFeature::VPCLMULQDQ] => form::<C, Vex<{ Features::VPCLMULQDQ.bits() }>>(insn),
        _ => return None,
    })
}
