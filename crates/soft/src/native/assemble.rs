//! Writes stubs.
//!
//! A stub is `fn(state: rdi, context: rsi)`. Vector registers keep the numbers that the guest uses; a general register
//! operand becomes RAX; RCX, RDX and R8 are scratch.
use std::mem::offset_of;

use emulate::{
    Op,
    op::{NO_REG, class},
};
use iced_x86::{Code, Encoder, EncodingKind, Instruction, MemoryOperand, Mnemonic, OpKind, Register};
use x86::{CpuState, Fpu, fpu::Legacy};

use super::{
    context::{FATAL, FLAGS, FSW, FX, HOST_FCW, HOST_MXCSR, MEMORY, MXCSR, RAISED},
    light::{self, Conditions, Light},
    stubs::Kind,
};

/// Whether `code` is executed as an x87 instruction.
#[inline(always)]
pub(super) fn is_x87(code: Code) -> bool {
    (Code::Fadd_m32fp as u16..=Code::Fcomip_st0_sti as u16).contains(&(code as u16))
}

/// How an x87 instruction is concerned with RFLAGS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum X87Flags {
    Ignores,
    Reads,
    Writes,
}

pub(super) fn x87_flags(code: Code) -> X87Flags {
    use Mnemonic::*;
    match code.mnemonic() {
        Fcmovb | Fcmove | Fcmovbe | Fcmovu | Fcmovnb | Fcmovne | Fcmovnbe | Fcmovnu => X87Flags::Reads,
        Fcomi | Fcomip | Fucomi | Fucomip => X87Flags::Writes,
        _ => X87Flags::Ignores,
    }
}

fn x87_stores(code: Code) -> bool {
    use Mnemonic::*;
    matches!(code.mnemonic(), Fst | Fstp | Fist | Fistp | Fisttp | Fbstp)
}

/// What the operands of an SSE or AVX instruction do not tell.
struct Traits {
    /// Reads rounding and other modes from MXCSR, and raises exceptions.
    float: bool,
    /// Status flags are (part of) its result, and operand 0 is not.
    flags: bool,
    /// Reads XMM0 besides its operands.
    reads_xmm0: bool,
    /// Its result is XMM0, which is no operand.
    writes_xmm0: bool,
    /// Its result is ECX.
    writes_rcx: bool,
    /// Reads RAX and RDX (lengths of explicit-length strings).
    reads_lengths: bool,
}

fn traits(code: Code) -> Traits {
    use Mnemonic::*;
    let m = code.mnemonic();
    let compare = matches!(m, Comiss | Comisd | Ucomiss | Ucomisd | Vcomiss | Vcomisd | Vucomiss | Vucomisd);
    let explicit = matches!(
        m,
        Pcmpestri | Pcmpestri64 | Pcmpestrm | Pcmpestrm64 | Vpcmpestri | Vpcmpestri64 | Vpcmpestrm | Vpcmpestrm64
    );
    let index = matches!(m, Pcmpestri | Pcmpestri64 | Pcmpistri | Vpcmpestri | Vpcmpestri64 | Vpcmpistri);
    let mask = matches!(m, Pcmpestrm | Pcmpestrm64 | Pcmpistrm | Vpcmpestrm | Vpcmpestrm64 | Vpcmpistrm);
    Traits {
        float: compare || is_float(code),
        flags: compare || index || mask || matches!(m, Ptest | Vptest | Vtestps | Vtestpd),
        reads_xmm0: matches!(m, Blendvps | Blendvpd | Pblendvb | Sha256rnds2),
        writes_xmm0: mask,
        writes_rcx: index,
        reads_lengths: explicit,
    }
}

/// VCVTPS2PH, whose result is in the context's buffer also if it goes to a register.
pub(super) fn is_to_half(code: Code) -> bool {
    code.mnemonic() == Mnemonic::Vcvtps2ph
}

/// Whether MXCSR matters. RCPPS, RSQRTPS and moves, shuffles, logic, blends have nothing to do with it.
fn is_float(code: Code) -> bool {
    use Mnemonic::*;
    if matches!(code.cpuid_features(), [iced_x86::CpuidFeature::FMA | iced_x86::CpuidFeature::F16C]) {
        return true;
    }
    matches!(
        code.mnemonic(),
        Addps
            | Addpd
            | Addss
            | Addsd
            | Subps
            | Subpd
            | Subss
            | Subsd
            | Mulps
            | Mulpd
            | Mulss
            | Mulsd
            | Divps
            | Divpd
            | Divss
            | Divsd
            | Sqrtps
            | Sqrtpd
            | Sqrtss
            | Sqrtsd
            | Minps
            | Minpd
            | Minss
            | Minsd
            | Maxps
            | Maxpd
            | Maxss
            | Maxsd
            | Cmpps
            | Cmppd
            | Cmpss
            | Cmpsd
            | Addsubps
            | Addsubpd
            | Haddps
            | Haddpd
            | Hsubps
            | Hsubpd
            | Dpps
            | Dppd
            | Roundps
            | Roundpd
            | Roundss
            | Roundsd
            | Cvtpi2ps
            | Cvtpi2pd
            | Cvtps2pi
            | Cvttps2pi
            | Cvtpd2pi
            | Cvttpd2pi
            | Cvtsi2ss
            | Cvtsi2sd
            | Cvtss2si
            | Cvttss2si
            | Cvtsd2si
            | Cvttsd2si
            | Cvtps2pd
            | Cvtpd2ps
            | Cvtss2sd
            | Cvtsd2ss
            | Cvtdq2ps
            | Cvtps2dq
            | Cvttps2dq
            | Cvtpd2dq
            | Cvttpd2dq
            | Cvtdq2pd
            | Vaddps
            | Vaddpd
            | Vaddss
            | Vaddsd
            | Vsubps
            | Vsubpd
            | Vsubss
            | Vsubsd
            | Vmulps
            | Vmulpd
            | Vmulss
            | Vmulsd
            | Vdivps
            | Vdivpd
            | Vdivss
            | Vdivsd
            | Vsqrtps
            | Vsqrtpd
            | Vsqrtss
            | Vsqrtsd
            | Vminps
            | Vminpd
            | Vminss
            | Vminsd
            | Vmaxps
            | Vmaxpd
            | Vmaxss
            | Vmaxsd
            | Vcmpps
            | Vcmppd
            | Vcmpss
            | Vcmpsd
            | Vaddsubps
            | Vaddsubpd
            | Vhaddps
            | Vhaddpd
            | Vhsubps
            | Vhsubpd
            | Vdpps
            | Vdppd
            | Vroundps
            | Vroundpd
            | Vroundss
            | Vroundsd
            | Vcvtsi2ss
            | Vcvtsi2sd
            | Vcvtss2si
            | Vcvttss2si
            | Vcvtsd2si
            | Vcvttsd2si
            | Vcvtps2pd
            | Vcvtpd2ps
            | Vcvtss2sd
            | Vcvtsd2ss
            | Vcvtdq2ps
            | Vcvtps2dq
            | Vcvttps2dq
            | Vcvtpd2dq
            | Vcvttpd2dq
            | Vcvtdq2pd
    )
}

const STATE: Register = Register::RDI;
const CONTEXT: Register = Register::RSI;

fn state_at(offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(STATE, offset as i64)
}

fn context_at(offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(CONTEXT, offset as i64)
}

fn fpu_at(offset: usize) -> MemoryOperand {
    state_at(offset_of!(CpuState, fpu) + offset)
}

fn gpr_slot(n: u8) -> MemoryOperand {
    state_at(offset_of!(CpuState, gpr) + 8 * (n & 15) as usize)
}

fn xmm_slot(n: u8) -> MemoryOperand {
    fpu_at(offset_of!(Fpu, legacy) + offset_of!(Legacy, xmm) + 16 * (n & 15) as usize)
}

fn ymm_hi_slot(n: u8) -> MemoryOperand {
    fpu_at(offset_of!(Fpu, ymm_hi) + 16 * (n & 15) as usize)
}

fn mm_slot(n: u8, byte: usize) -> MemoryOperand {
    fpu_at(offset_of!(Fpu, legacy) + offset_of!(Legacy, st) + 16 * (n & 7) as usize + byte)
}

fn xmm(n: u8) -> Register {
    Register::XMM0 + (n & 15) as u32
}

fn ymm(n: u8) -> Register {
    Register::YMM0 + (n & 15) as u32
}

fn mm(n: u8) -> Register {
    Register::MM0 + (n & 7) as u32
}

fn class_of(reg: u8) -> u8 {
    reg & 0xf0
}

/// Collects a stub. What cannot be encoded is noted, and the stub given up at the end.
struct Assembler<'a> {
    encoder: &'a mut Encoder,
    failed: bool,
}

impl Assembler<'_> {
    fn put(&mut self, insn: Result<Instruction, iced_x86::IcedError>) {
        self.failed |= !insn.is_ok_and(|insn| self.encoder.encode(&insn, 0).is_ok());
    }
    fn load_xmm(&mut self, vex: bool, n: u8) {
        let code = if vex { Code::VEX_Vmovups_xmm_xmmm128 } else { Code::Movups_xmm_xmmm128 };
        self.put(Instruction::with2(code, xmm(n), xmm_slot(n)));
    }
    fn load_ymm(&mut self, n: u8) {
        self.load_xmm(true, n);
        let code = Code::VEX_Vinsertf128_ymm_ymm_xmmm128_imm8;
        self.put(Instruction::with4(code, ymm(n), ymm(n), ymm_hi_slot(n), 1u32));
    }
    /// Writes an XMM register back; for VEX instructions with what is above, which they clear.
    fn store_vector(&mut self, vex: bool, n: u8) {
        if vex {
            self.put(Instruction::with2(Code::VEX_Vmovups_xmmm128_xmm, xmm_slot(n), xmm(n)));
            let code = Code::VEX_Vextractf128_xmmm128_ymm_imm8;
            self.put(Instruction::with3(code, ymm_hi_slot(n), ymm(n), 1u32));
        } else {
            self.put(Instruction::with2(Code::Movups_xmmm128_xmm, xmm_slot(n), xmm(n)));
        }
    }
    fn load_gpr(&mut self, to: Register, n: u8) {
        self.put(Instruction::with2(Code::Mov_r64_rm64, to, gpr_slot(n)));
    }
    fn store_gpr(&mut self, n: u8, from: Register) {
        self.put(Instruction::with2(Code::Mov_rm64_r64, gpr_slot(n), from));
    }
    fn load_mm(&mut self, n: u8) {
        self.put(Instruction::with2(Code::Movq_mm_mmm64, mm(n), mm_slot(n, 0)));
    }
    fn store_mm(&mut self, n: u8) {
        self.put(Instruction::with2(Code::Movq_mmm64_mm, mm_slot(n, 0), mm(n)));
        self.put(Instruction::with2(Code::Mov_rm16_imm16, mm_slot(n, 8), 0xffffu32));
    }
    fn take_flags(&mut self) {
        self.put(Ok(Instruction::with(Code::Pushfq)));
        self.put(Instruction::with1(Code::Pop_rm64, context_at(FLAGS)));
    }
    fn control(&mut self, code: Code, at: usize) {
        self.put(Instruction::with1(code, context_at(at)));
    }
    /// Bytes so far.
    fn position(&mut self) -> usize {
        let buffer = self.encoder.take_buffer();
        let len = buffer.len();
        self.encoder.set_buffer(buffer);
        len
    }
    /// The guest's instruction.
    fn guest<C>(&mut self, op: &Op<C>) {
        let start = self.position();
        // A general register operand has 32 or 64 bits, which the form alone knows.
        for gpr in [Register::EAX, Register::RAX] {
            if rebuild(op, gpr).is_some_and(|insn| self.encoder.encode(&insn, 0).is_ok()) {
                return;
            }
            // A failed attempt leaves bytes behind.
            let mut buffer = self.encoder.take_buffer();
            buffer.truncate(start);
            self.encoder.set_buffer(buffer);
        }
        self.failed = true;
    }
}

/// The instruction of `op`, with `[rsi]` as its memory operand and `gpr` for a general register.
fn rebuild<C>(op: &Op<C>, gpr: Register) -> Option<Instruction> {
    let mut insn = Instruction::new();
    insn.set_code(op.code);
    let mut immediates = 0;
    for i in 0..insn.op_count() {
        let reg = op.regs.get(i as usize).copied().unwrap_or(NO_REG);
        if op.mem as u32 == i {
            insn.try_set_op_kind(i, OpKind::Memory).ok()?;
            insn.set_memory_base(CONTEXT);
        } else if reg != NO_REG {
            let register = match class_of(reg) {
                class::XMM => xmm(reg),
                class::YMM => ymm(reg),
                class::MM => mm(reg),
                class::ST => Register::ST0 + (reg & 7) as u32,
                _ => gpr,
            };
            insn.try_set_op_kind(i, OpKind::Register).ok()?;
            insn.try_set_op_register(i, register).ok()?;
        } else {
            immediates += 1;
            if immediates == 1 {
                insn.try_set_op_kind(i, OpKind::Immediate8).ok()?;
                insn.set_immediate8(op.imm as u8);
            } else {
                insn.try_set_op_kind(i, OpKind::Immediate8_2nd).ok()?;
                insn.set_immediate8_2nd((op.imm >> 32) as u8);
            }
        }
    }
    Some(insn)
}

/// The code of the stub for `op` and what has to be done around it; None if there is no such instruction.
/// The returned vector is to be given back to the encoder.
/// x87 instructions get a light stub if they can, unless `complete` is set.
pub(super) fn stub<C>(encoder: &mut Encoder, op: &Op<C>, complete: bool) -> Option<(Vec<u8>, Kind, Conditions)> {
    let mut buffer = encoder.take_buffer();
    buffer.clear();
    encoder.set_buffer(buffer);
    let mut a = Assembler { encoder, failed: false };
    let mut conditions = Conditions::default();
    let (kind, branch) = if !is_x87(op.code) {
        simd(&mut a, op)
    } else if let (Some(plan), false) = (light::plan(op.code, st_operand(op), op.is_memory()), complete) {
        conditions = plan.conditions();
        (x87_light(&mut a, op, &plan), None)
    } else {
        (x87(&mut a, op), None)
    };
    a.put(Ok(Instruction::with(Code::Retnq)));
    let failed = a.failed;
    let mut code = encoder.take_buffer();
    if let Some((at, target)) = branch {
        *code.get_mut(at)? = u8::try_from(target - at - 1).ok()?;
    }
    if failed { None } else { Some((code, kind, conditions)) }
}

fn x87<C>(a: &mut Assembler<'_>, op: &Op<C>) -> Kind {
    let image_mxcsr = FX + offset_of!(Legacy, mxcsr);
    // FXRSTOR loads MXCSR too: the host's own.
    a.control(Code::Stmxcsr_m32, image_mxcsr);
    a.control(Code::Fxrstor64_m512byte, FX);
    let flags = x87_flags(op.code);
    if flags == X87Flags::Reads {
        a.put(Instruction::with1(Code::Push_rm64, context_at(FLAGS)));
        a.put(Ok(Instruction::with(Code::Popfq)));
    }
    a.guest(op);
    if flags == X87Flags::Writes {
        a.take_flags();
    }
    a.control(Code::Fxsave64_m512byte, FX);
    a.put(Ok(Instruction::with(Code::Fninit)));
    if x87_stores(op.code) && op.is_memory() { Kind::X87Store } else { Kind::X87 }
}

/// The number of the x87 register operand that is not ST(0), or 0.
fn st_operand<C>(op: &Op<C>) -> u8 {
    op.regs.iter().filter(|&&r| r != NO_REG && class_of(r) == class::ST).map(|r| r & 7).max().unwrap_or(0)
}

/// A stub that loads the instruction's operands on the host's empty stack and leaves it empty. See [`light`].
fn x87_light<C>(a: &mut Assembler<'_>, op: &Op<C>, plan: &Light) -> Kind {
    let flags = x87_flags(op.code);
    // The exceptions that are flagged afterwards are to be this instruction's: fnstsw ax; test al, 0x3f; je; fnclex.
    for byte in [0xdf, 0xe0, 0xa8, 0x3f, 0x74, 0x02, 0xdb, 0xe2] {
        a.encoder.write_u8(byte);
    }
    a.control(Code::Fnstcw_m2byte, HOST_FCW);
    a.put(Instruction::with1(Code::Fldcw_m2byte, fpu_at(offset_of!(Fpu, legacy) + offset_of!(Legacy, fcw))));
    if let Some(i) = plan.other {
        a.put(Instruction::with1(Code::Fld_m80fp, mm_slot(i, 0)));
    }
    if plan.full & 1 != 0 {
        a.put(Instruction::with1(Code::Fld_m80fp, mm_slot(0, 0)));
    }
    if flags == X87Flags::Reads {
        a.put(Instruction::with1(Code::Push_rm64, context_at(FLAGS)));
        a.put(Ok(Instruction::with(Code::Popfq)));
    }
    // On the host's stack the other operand is ST(1).
    let mut moved = *op;
    for reg in &mut moved.regs {
        if *reg != NO_REG && class_of(*reg) == class::ST && *reg & 7 != 0 {
            *reg = class::ST | 1;
        }
    }
    a.guest(&moved);
    a.control(Code::Fnstsw_m2byte, FSW);
    if flags == X87Flags::Writes {
        a.take_flags();
    }
    for i in plan.results.into_iter().flatten() {
        a.put(Instruction::with1(Code::Fstp_m80fp, mm_slot(i, 0)));
    }
    for _ in 0..plan.drop {
        a.put(Instruction::with1(Code::Fstp_sti, Register::ST0));
    }
    a.control(Code::Fldcw_m2byte, HOST_FCW);
    // Whoever unmasks exceptions in this process must not find ours.
    a.put(Ok(Instruction::with(Code::Fnclex)));
    if x87_stores(op.code) && op.is_memory() { Kind::LightStore } else { Kind::Light }
}

/// Position of a branch displacement that has to be set, and its target.
type Branch = Option<(usize, usize)>;

fn simd<C>(a: &mut Assembler<'_>, op: &Op<C>) -> (Kind, Branch) {
    let vex = op.code.encoding() == EncodingKind::VEX;
    let t = traits(op.code);
    let has = |wanted: u8| op.regs.iter().any(|&r| r != NO_REG && class_of(r) == wanted);
    load_operands(a, op, &t, vex);
    if t.float {
        a.control(Code::Stmxcsr_m32, HOST_MXCSR);
        a.control(Code::Ldmxcsr_m32, MXCSR);
    }
    a.guest(op);
    if t.flags {
        a.take_flags();
    }
    if is_to_half(op.code) && op.regs[0] != NO_REG {
        a.put(Instruction::with2(Code::VEX_Vmovups_xmmm128_xmm, context_at(MEMORY), xmm(op.regs[0])));
    }
    let mut branch = None;
    if t.float {
        a.control(Code::Stmxcsr_m32, RAISED);
        a.control(Code::Ldmxcsr_m32, HOST_MXCSR);
        a.put(Instruction::with2(Code::Mov_r32_rm32, Register::EDX, context_at(RAISED)));
        a.put(Instruction::with2(Code::Test_rm32_r32, context_at(FATAL), Register::EDX));
        // jne to behind the write-back.
        a.encoder.write_u8(0x75);
        a.encoder.write_u8(0);
        branch = Some(a.position());
    }
    store_results(a, op, &t, vex);
    let end = a.position();
    if has(class::MM) || matches!(op.code.mnemonic(), Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd) {
        a.put(Ok(Instruction::with(Code::Emms)));
    }
    if has(class::YMM) {
        a.put(Ok(Instruction::with(Code::VEX_Vzeroupper)));
    }
    let stores = op.mem == 0 && !t.flags;
    let kind = match (t.float, t.flags, stores) {
        (false, false, false) => Kind::Plain,
        (false, false, true) => Kind::Store,
        (false, true, _) => Kind::Flags,
        (true, false, false) => Kind::Float,
        (true, false, true) => Kind::FloatStore,
        (true, true, _) => Kind::FloatFlags,
    };
    (kind, branch.map(|behind| (behind - 1, end)))
}

fn load_operands<C>(a: &mut Assembler<'_>, op: &Op<C>, t: &Traits, vex: bool) {
    // Operands of both widths may be the same register.
    let wide = op.regs.iter().any(|&r| r != NO_REG && class_of(r) == class::YMM);
    for (i, &reg) in op.regs.iter().enumerate() {
        if reg == NO_REG {
            continue;
        }
        match class_of(reg) {
            class::XMM if wide => a.load_ymm(reg),
            class::XMM => a.load_xmm(vex, reg),
            class::YMM => a.load_ymm(reg),
            class::MM => a.load_mm(reg),
            class::ST => a.failed = true,
            _ if i > 0 => a.load_gpr(Register::RAX, reg),
            _ => {}
        }
    }
    if t.reads_xmm0 {
        a.load_xmm(vex, 0);
    }
    if t.reads_lengths {
        a.load_gpr(Register::RAX, 0);
        a.load_gpr(Register::RDX, 2);
    }
}

fn store_results<C>(a: &mut Assembler<'_>, op: &Op<C>, t: &Traits, vex: bool) {
    if t.writes_xmm0 {
        a.store_vector(vex, 0);
    }
    if t.writes_rcx {
        a.store_gpr(1, Register::RCX);
    }
    let to = op.regs[0];
    if t.flags || to == NO_REG {
        return;
    }
    match class_of(to) {
        class::XMM | class::YMM => a.store_vector(vex, to),
        class::MM => a.store_mm(to),
        _ => a.store_gpr(to, Register::RAX),
    }
}
