//! Every instruction form that the guest can have, with random registers, operands and modes.
use emulate::testing::Random;
use iced_x86::{Code, Encoder, EncodingKind, Instruction, OpCodeOperandKind, OpKind, Register};
use x86::{Exception, Vector, flags, fpu::Legacy};

use super::{
    hardware::{Hardware, Registers},
    machine::{BUFFER, Machine},
};

/// What is not compared here: state images and privileged or integer instructions.
fn is_candidate(code: Code) -> bool {
    use iced_x86::Mnemonic::*;
    if !matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
        return false;
    }
    let skip = matches!(
        code.mnemonic(),
        Fxsave | Fxsave64 | Fxrstor | Fxrstor64 | Xsave | Xsave64 | Xrstor | Xrstor64 | Xsaveopt | Xsaveopt64
            | Xsavec | Xsavec64 | Xgetbv | Xsetbv | Fldenv | Frstor
            // Two instructions to the decoder: WAIT and the rest.
            | Fstenv | Fstcw | Fsave | Fstsw | Fclex | Finit | Feni | Fdisi | Fsetpm | Fstdw | Fstsg
            // Integer instructions.
            | Crc32 | Movnti | Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 | Lfence | Mfence | Sfence
    );
    let x87 = (Code::Fadd_m32fp as u16..=Code::Fcomip_st0_sti as u16).contains(&(code as u16));
    let vector = code.cpuid_features().iter().any(|f| {
        use iced_x86::CpuidFeature::*;
        matches!(
            f,
            MMX | SSE
                | SSE2
                | SSE3
                | SSSE3
                | SSE4_1
                | SSE4_2
                | SSE4A
                | AES
                | PCLMULQDQ
                | SHA
                | AVX
                | AVX2
                | FMA
                | F16C
                | VAES
                | VPCLMULQDQ
        )
    });
    // Not offered to guests.
    let gfni = code.cpuid_features().contains(&iced_x86::CpuidFeature::GFNI);
    !skip && !gfni && (x87 || vector || code == Code::Wait)
}

/// A random instance of the form; memory operands are at R10 + R11 * scale + displacement.
fn instance(code: Code, r: &mut Random, encoder: &mut Encoder) -> Option<(Vec<u8>, Instruction)> {
    use OpCodeOperandKind as K;
    let info = code.op_code();
    let want_memory = r.one_in(2);
    let gprs = [0u32, 1, 2, 3, 5, 6, 8, 9, 12, 13, 14, 15];
    let mut insn = Instruction::new();
    insn.set_code(code);
    let mut immediates = 0;
    for i in 0..info.op_count() {
        let gpr = gprs[r.below(12) as usize];
        // Few registers, so that operands coincide now and then.
        let vector = if r.one_in(2) { r.below(4) } else { r.below(16) } as u32;
        let register = match info.op_kind(i) {
            K::r32_reg | K::r32_rm | K::r32_vvvv => Register::EAX + gpr,
            K::r64_reg | K::r64_rm | K::r64_vvvv => Register::RAX + gpr,
            K::r32_or_mem if !want_memory => Register::EAX + gpr,
            K::r64_or_mem if !want_memory => Register::RAX + gpr,
            K::mm_or_mem if !want_memory => Register::MM0 + vector % 8,
            K::xmm_or_mem if !want_memory => Register::XMM0 + vector,
            K::ymm_or_mem if !want_memory => Register::YMM0 + vector,
            K::mm_reg | K::mm_rm => Register::MM0 + vector % 8,
            K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => Register::XMM0 + vector,
            K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => Register::YMM0 + vector,
            K::st0 => Register::ST0,
            K::sti_opcode => Register::ST0 + vector % 8,
            K::ax => Register::AX,
            K::imm8 => {
                let kind = if immediates == 0 { OpKind::Immediate8 } else { OpKind::Immediate8_2nd };
                insn.try_set_op_kind(i, kind).ok()?;
                if immediates == 0 {
                    insn.set_immediate8(r.bits() as u8);
                } else {
                    insn.set_immediate8_2nd(r.bits() as u8);
                }
                immediates += 1;
                continue;
            }
            K::seg_rDI => {
                insn.try_set_op_kind(i, OpKind::MemorySegRDI).ok()?;
                continue;
            }
            kind @ (K::mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::mem_vsib32x
            | K::mem_vsib32y
            | K::mem_vsib64x
            | K::mem_vsib64y) => {
                insn.try_set_op_kind(i, OpKind::Memory).ok()?;
                insn.set_memory_base(Register::R10);
                insn.set_memory_index(match kind {
                    K::mem_vsib32x | K::mem_vsib64x => Register::XMM0 + vector,
                    K::mem_vsib32y | K::mem_vsib64y => Register::YMM0 + vector,
                    _ => Register::R11,
                });
                insn.set_memory_index_scale(1 << r.below(4));
                insn.set_memory_displ_size(8);
                // Now and then misaligned, which some forms are not to be.
                let sha = matches!(code.cpuid_features(), [iced_x86::CpuidFeature::SHA]);
                let misaligned = if r.below(4) == 0 && !sha { r.below(64) } else { 0 };
                insn.set_memory_displacement64(64 * r.below(4) + misaligned);
                continue;
            }
            _ => return None,
        };
        insn.try_set_op_kind(i, OpKind::Register).ok()?;
        insn.try_set_op_register(i, register).ok()?;
    }
    encoder.set_buffer(Vec::new());
    encoder.encode(&insn, 0).ok()?;
    Some((encoder.take_buffer(), insn))
}

/// Random registers and memory, the same for both.
fn prepare(m: &mut Machine, insn: &Instruction, r: &mut Random) {
    let at = m.at();
    let s = &mut m.state;
    for (i, gpr) in s.gpr.iter_mut().enumerate() {
        *gpr = match (i, r.below(4)) {
            (7, _) => at + r.below(256),
            (10, _) => at + 2048,
            (11, _) => 64 * r.below(4),
            (_, 0) => r.below(20),
            _ => r.bits(),
        };
    }
    s.flags.set(r.bits() & flags::STATUS);
    let l = &mut s.fpu.legacy;
    l.mxcsr = match r.below(3) {
        0 => 0x1f80,
        1 => 0x1f80 | r.bits() as u32 & 0xe07f,
        _ => r.bits() as u32 & 0xffff,
    };
    l.fcw = match r.below(3) {
        0 => 0x37f,
        1 => 0x7f | r.bits() as u16 & 0x1f00,
        _ => 0x40 | r.bits() as u16 & 0x1f3f,
    };
    l.fsw = r.bits() as u16 & 0x7f00;
    if r.one_in(2) {
        l.fsw |= r.bits() as u16 & 0x7f;
    }
    // An unmasked exception that is pending keeps nearly everything from running: seldom.
    if r.below(16) != 0 {
        l.fsw &= !0x3f | l.fcw;
    }
    if l.fsw & !l.fcw & 0x3f != 0 {
        l.fsw |= 0x8080;
    }
    l.ftw = match r.below(3) {
        0 => 0xff,
        1 => r.bits() as u8 | r.bits() as u8,
        _ => r.bits() as u8,
    };
    (l.fip, l.fdp, l.fop) = (0, 0, 0);
    for st in &mut l.st {
        *st = r.f80().to_le_bytes();
    }
    for v in l.xmm.iter_mut().chain(&mut s.fpu.ymm_hi) {
        *v = r.vector().to_le_bytes();
    }
    for chunk in m.buffer.0.chunks_exact_mut(16) {
        let value = if r.below(4) == 0 { r.f80().to_le_bytes() } else { r.vector().to_le_bytes() };
        chunk.copy_from_slice(&value);
    }
    let index = insn.memory_index();
    if index.is_vector_register() {
        let n = index.number();
        let narrow =
            matches!(insn.code().op_code().op_kind(1), OpCodeOperandKind::mem_vsib32x | OpCodeOperandKind::mem_vsib32y);
        for v in [&mut s.fpu.legacy.xmm[n], &mut s.fpu.ymm_hi[n]] {
            let mut word = 0u128;
            for lane in 0..if narrow { 4 } else { 2 } {
                let value = (r.below(200) as i64 - 100) as u128;
                let (bits, mask) = if narrow { (32, u32::MAX as u128) } else { (64, u64::MAX as u128) };
                word |= (value & mask) << (lane * bits);
            }
            *v = word.to_le_bytes();
        }
    }
}

fn to_hardware(m: &Machine) -> Registers {
    let mut h = Registers { xsave: [0; 1088], gpr: m.state.gpr, flags: 0, code: 0, signal: 0 };
    h.flags = m.state.flags.get() & flags::STATUS | 0x202;
    let l: &Legacy = &m.state.fpu.legacy;
    let x = &mut h.xsave;
    x[0..2].copy_from_slice(&l.fcw.to_le_bytes());
    x[2..4].copy_from_slice(&l.fsw.to_le_bytes());
    x[4] = l.ftw;
    x[24..28].copy_from_slice(&l.mxcsr.to_le_bytes());
    x[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
    for i in 0..8 {
        x[32 + 16 * i..42 + 16 * i].copy_from_slice(&l.st[i][..10]);
    }
    for i in 0..16 {
        x[160 + 16 * i..176 + 16 * i].copy_from_slice(&l.xmm[i]);
        x[576 + 16 * i..592 + 16 * i].copy_from_slice(&m.state.fpu.ymm_hi[i]);
    }
    x[512] = 7;
    h
}

/// The first difference between guest and hardware.
fn difference(m: &Machine, h: &Registers, mxcsr_mask: u32) -> Option<String> {
    // A component in its initial configuration may be left out of the image.
    let present = h.xsave[512];
    let s = &m.state;
    let l = &s.fpu.legacy;
    let x = &h.xsave;
    let word = |at: usize| u16::from_le_bytes([x[at], x[at + 1]]);
    let mut all = Vec::new();
    for i in (0..16).filter(|&i| i != 4) {
        if s.gpr[i] != h.gpr[i] {
            all.push(format!("gpr{i} {:#x}, hardware {:#x}", s.gpr[i], h.gpr[i]));
        }
    }
    if (s.flags.get() ^ h.flags) & flags::STATUS != 0 {
        all.push(format!("flags {:#x}, hardware {:#x}", s.flags.get(), h.flags & flags::STATUS));
    }
    let mxcsr = u32::from_le_bytes([x[24], x[25], x[26], x[27]]);
    if (l.mxcsr ^ mxcsr) & mxcsr_mask != 0 {
        all.push(format!("mxcsr {:#x}, hardware {mxcsr:#x}", l.mxcsr));
    }
    if present & 1 != 0 {
        if (l.fcw, l.fsw, l.ftw) != (word(0), word(2), x[4]) {
            all.push(format!(
                "fcw {:#x} fsw {:#x} ftw {:#x}, hardware {:#x} {:#x} {:#x}",
                l.fcw,
                l.fsw,
                l.ftw,
                word(0),
                word(2),
                x[4]
            ));
        }
        for i in 0..8 {
            if l.st[i][..10] != x[32 + 16 * i..42 + 16 * i] {
                all.push(format!("st{i} {:02x?}, hardware {:02x?}", &l.st[i][..10], &x[32 + 16 * i..42 + 16 * i]));
            }
        }
    }
    for i in 0..16 {
        let zero = [0; 16];
        let xmm = if present & 2 != 0 { &x[160 + 16 * i..176 + 16 * i] } else { &zero };
        let hi = if present & 4 != 0 { &x[576 + 16 * i..592 + 16 * i] } else { &zero };
        if l.xmm[i] != xmm {
            all.push(format!("xmm{i} {:02x?}, hardware {xmm:02x?}", l.xmm[i]));
        }
        if s.fpu.ymm_hi[i] != hi {
            all.push(format!("ymm{i} hi {:02x?}, hardware {hi:02x?}", s.fpu.ymm_hi[i]));
        }
    }
    if all.is_empty() { None } else { Some(all.join("; ")) }
}

/// Which signal the host would send for the guest's exception.
fn signal(exception: Option<Exception>) -> i32 {
    match exception.map(|e| e.vector) {
        Some(Vector::UD) => libc::SIGILL,
        Some(Vector::MF | Vector::XM) => libc::SIGFPE,
        Some(_) => libc::SIGSEGV,
        None => -1,
    }
}

/// Compares `code` `rounds` times; returns how many were executed and a description of the first difference.
fn compare(code: Code, rounds: u32, m: &mut Machine, hardware: &Hardware, r: &mut Random) -> (u32, Option<String>) {
    use iced_x86::Mnemonic::*;
    let mut encoder = Encoder::new(64);
    let mut done = 0;
    for _ in 0..rounds {
        let Some((bytes, insn)) = instance(code, r, &mut encoder) else { continue };
        prepare(m, &insn, r);
        if matches!(code.mnemonic(), Dpps | Dppd | Vdpps | Vdppd) {
            // They stop at the first of several steps that raises an unmasked exception; ours runs them all.
            m.state.fpu.legacy.mxcsr |= 0x1f80;
        }
        let before = m.state.clone();
        let memory = m.buffer.clone();
        let mut h = to_hardware(m);
        m.code = hardware.code();
        if let Ok(op) = emulate::decode::<Machine>(&bytes, m.state.mode, m.features) {
            assert!(!op.is_memory() || op.mem_size > 0, "{code:?} has an operand without size");
        }
        let result = m.step(&bytes);
        let guest_memory = std::mem::replace(&mut m.buffer.0, memory.0);
        // The hardware works on the same addresses.
        let raised = hardware.run(&bytes, &mut h);
        let name = format!("{:?}", code.mnemonic());
        if name.starts_with("Fcmov") || name.contains("comi") && name.starts_with('F') {
            // C1: see `light`.
            h.xsave[3] = h.xsave[3] & !2 | (m.state.fpu.legacy.fsw >> 8) as u8 & 2;
        }
        let guest_raised = match result {
            Ok(()) => 0,
            Err(stop) => signal(stop.exception(0)),
        };
        done += 1;
        let what = if guest_raised != raised {
            Some(format!("guest {result:?}, hardware signal {raised}"))
        } else if let Some(i) = (0..BUFFER).find(|&i| guest_memory[i] != m.buffer.0[i]) {
            Some(format!("memory +{i}: {:02x?}, hardware {:02x?}", &guest_memory[i..i + 16], &m.buffer.0[i..i + 16]))
        } else {
            // PE beside an unmasked OE or UE: see `simd`.
            let l = &before.fpu.legacy;
            let imprecise = guest_raised == libc::SIGFPE && !l.mxcsr & (3 << 10) != 0;
            difference(m, &h, if imprecise { !0x20 } else { !0 })
        };
        if let Some(what) = what {
            let l = &before.fpu.legacy;
            let context = format!(
                "{code:?} {bytes:02x?} mxcsr {:#x} fcw {:#x} fsw {:#x} ftw {:#x}: {what}",
                l.mxcsr, l.fcw, l.fsw, l.ftw
            );
            return (done, Some(context));
        }
    }
    (done, None)
}

#[test]
fn every_form_does_what_the_hardware_does() {
    if !std::arch::is_x86_feature_detected!("avx") {
        println!("skipped: the comparison needs a host with AVX");
        return;
    }
    let hardware = Hardware::get();
    let mut m = Machine::new();
    let mut r = Random::new(&[0x1234_5678_9abc_def1]);
    let (mut forms, mut runs) = (0, 0);
    let mut failures = Vec::new();
    let rounds = std::env::var("REKVM_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
    for code in Code::values().filter(|&c| is_candidate(c)) {
        let (done, failure) = compare(code, rounds, &mut m, &hardware, &mut r);
        forms += (done > 0) as u32;
        runs += done;
        failures.extend(failure);
    }
    println!("{forms} forms, {runs} runs, {} differ", failures.len());
    assert!(failures.is_empty(), "{} forms differ:\n{}", failures.len(), failures.join("\n"));
    assert!(forms > 1000, "only {forms} forms");
}
