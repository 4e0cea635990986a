//! Which instruction forms there are: every `Code` of the decoder that exists in the mode and whose features a guest of
//! the software CPU is offered, without those that cannot be compared, which are listed with their reasons.
use iced_x86::{Code, CpuidFeature, Mnemonic, OpCodeOperandKind as K};
use x86::Features;

use super::Shape;
use crate::machine::host_is_amd;

/// Whether a guest with `features` has what belongs to `feature`.
fn offered(feature: CpuidFeature, features: Features) -> bool {
    use CpuidFeature::*;
    let needed = match feature {
        INTEL8086 | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | CPUID | FPU287 | FPU387 | MULTIBYTENOP
        | PAUSE | RDPMC => Features::empty(),
        ADX => Features::ADX,
        AES => Features::AES,
        AVX => Features::AVX,
        AVX2 => Features::AVX2,
        BMI1 => Features::BMI1,
        BMI2 => Features::BMI2,
        CLFLUSHOPT => Features::CLFLUSHOPT,
        CLFSH => Features::CLFLUSH,
        CLWB => Features::CLWB,
        CMOV => Features::CMOV,
        CMPXCHG16B => Features::CX16,
        CX8 => Features::CX8,
        F16C => Features::F16C,
        FMA => Features::FMA,
        FPU => Features::FPU,
        FSGSBASE => Features::FSGSBASE,
        FXSR => Features::FXSR,
        INVPCID => Features::INVPCID,
        LZCNT => Features::LZCNT,
        MMX => Features::MMX,
        MONITOR => Features::MONITOR,
        MOVBE => Features::MOVBE,
        MSR => Features::MSR,
        PCLMULQDQ => Features::PCLMULQDQ,
        POPCNT => Features::POPCNT,
        PREFETCHW => Features::PREFETCHW,
        RDPID => Features::RDPID,
        RDRAND => Features::RDRAND,
        RDSEED => Features::RDSEED,
        RDTSCP => Features::RDTSCP,
        SEP => Features::SEP,
        SHA => Features::SHA,
        SMAP => Features::SMAP,
        SSE => Features::SSE,
        SSE2 => Features::SSE2,
        SSE3 => Features::SSE3,
        SSE4A => Features::SSE4A,
        SSE4_1 => Features::SSE41,
        SSE4_2 => Features::SSE42,
        SSSE3 => Features::SSSE3,
        SYSCALL => Features::SYSCALL,
        TSC => Features::TSC,
        VAES => Features::VAES,
        VPCLMULQDQ => Features::VPCLMULQDQ,
        XSAVE => Features::XSAVE,
        XSAVEC => Features::XSAVEC,
        XSAVEOPT => Features::XSAVEOPT,
        _ => return false,
    };
    features.contains(needed)
}

/// Why a form that guests have cannot be compared.
pub fn excluded(code: Code) -> Option<&'static str> {
    use Mnemonic::*;
    Some(match code.mnemonic() {
        Syscall | Sysenter => "enters the host's kernel, whose answer is not the processor's",
        Cpuid => "the hypervisor's answer, not the processor's",
        Int1 => "the hypervisor below the host may report it at its own address",
        Vmcall | Vmmcall => "calls the host's hypervisor",
        Fstenv | Fstcw | Fstsw | Fsave | Fclex | Finit | Feni | Fdisi | Fsetpm => {
            "WAIT and the instruction behind it, each of which is proven"
        }
        Prefetch | Prefetchw | Prefetchwt1 | Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 => {
            "another name of a reserved NOP (0F 0D, 0F 18), which is proven"
        }
        Nop if code.op_code().op_count() > 0 => "another name of a reserved NOP (0F 1F), which is proven",
        Lfs | Lgs | Lss | Call | Jmp if host_is_amd() && is_far64(code) => {
            "Intel's alone: the host's vendor has no 64-bit far pointers"
        }
        Ud0 if host_is_amd() && code.op_code().op_count() > 0 => {
            "Intel's alone: the host's vendor has no operands of UD0"
        }
        Xgetbv => "the host has enabled more of XCR0 than a guest can be offered",
        Sgdt | Sidt | Sldt | Str | Smsw => "the host's kernel answers in the processor's place (UMIP)",
        _ => return None,
    })
}

fn is_far64(code: Code) -> bool {
    use Code::*;
    matches!(code, Lfs_r64_m1664 | Lgs_r64_m1664 | Lss_r64_m1664 | Call_m1664 | Jmp_m1664)
}

/// The forms of code of `bits` bits that a guest with `features` has and that nothing but the decoder's history keeps
/// from existing; those of [`excluded`] are among them.
pub fn forms(bits: u32, features: Features) -> Vec<Code> {
    Code::values()
        .filter(|&code| {
            let info = code.op_code();
            let in_mode = match bits {
                64 => info.mode64(),
                32 => info.mode32(),
                _ => info.mode16(),
            };
            // Xeon Phi's encodings and those that only the first 80386 and 80486 had are no part of the architecture.
            let name = format!("{code:?}");
            let history = ["KNC", "386", "486", "Cyrix", "Geode"].iter().any(|part| name.contains(part));
            in_mode
                && !history
                && info.is_instruction()
                && code.cpuid_features().iter().all(|&feature| offered(feature, features))
        })
        .collect()
}

/// The shapes that `code` can have.
pub fn shapes(code: Code, bits: u32) -> Vec<Shape> {
    let info = code.op_code();
    let mut shapes = Vec::new();
    let kinds: Vec<K> = (0..info.op_count()).map(|i| info.op_kind(i)).collect();
    let either = kinds.iter().any(|kind| {
        matches!(
            kind,
            K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::mm_or_mem | K::xmm_or_mem | K::ymm_or_mem
        )
    });
    let memory = kinds.iter().any(|kind| matches!(kind, K::mem));
    let vsib =
        kinds.iter().any(|kind| matches!(kind, K::mem_vsib32x | K::mem_vsib32y | K::mem_vsib64x | K::mem_vsib64y));
    let moffs = kinds.contains(&K::mem_offs);
    let string = kinds.iter().any(|kind| matches!(kind, K::seg_rSI | K::es_rDI | K::seg_rDI | K::seg_rBX_al));
    let other_segment = kinds.iter().any(|kind| matches!(kind, K::seg_rSI | K::seg_rDI | K::seg_rBX_al));
    if either || memory {
        if either {
            shapes.push(Shape::Register);
        }
        shapes.extend([Shape::Base, Shape::Displacement, Shape::Index, Shape::Absolute, Shape::Segment]);
        shapes.extend([Shape::AddressSize, Shape::Crossing]);
        if bits != 16 {
            shapes.push(Shape::IndexOnly);
        }
        if bits == 64 {
            shapes.push(Shape::Relative);
        }
    } else if vsib {
        shapes.extend([Shape::Index, Shape::IndexOnly, Shape::Segment, Shape::AddressSize, Shape::Crossing]);
        if bits == 16 {
            // With 16-bit addresses there is no index.
            shapes = vec![Shape::AddressSize];
        }
    } else if moffs {
        shapes.extend([Shape::Absolute, Shape::Segment, Shape::AddressSize, Shape::Crossing]);
    } else if string {
        shapes.extend([Shape::Implicit, Shape::AddressSize, Shape::Crossing]);
        if other_segment {
            shapes.push(Shape::Segment);
        }
    } else if is_stack(code) {
        shapes.extend([Shape::Implicit, Shape::Crossing]);
    } else {
        shapes.push(Shape::Register);
    }
    if is_byte(code) {
        shapes.retain(|&shape| shape != Shape::Crossing);
    }
    shapes
}

/// Whether all that `code` accesses is bytes, which cross nothing.
fn is_byte(code: Code) -> bool {
    use Mnemonic::*;
    let m = code.mnemonic();
    let hint = matches!(m, Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetch | Prefetchw);
    let line = matches!(m, Clflush | Clflushopt | Clwb | Invlpg | Lea);
    let string = matches!(m, Movsb | Stosb | Lodsb | Cmpsb | Scasb | Insb | Outsb | Xlatb | Maskmovq | Maskmovdqu)
        || m == Vmaskmovdqu;
    let info = code.op_code();
    let operand = (0..info.op_count()).any(|i| info.op_kind(i) == K::r8_or_mem);
    let size = info.memory_size().size();
    hint || line || (string && size <= 1) || operand || size == 1 && !is_stack(code)
}

/// Whether the only memory that `code` accesses is the stack.
pub fn is_stack(code: Code) -> bool {
    use Mnemonic::*;
    matches!(
        code.mnemonic(),
        Push | Pop
            | Pusha
            | Pushad
            | Popa
            | Popad
            | Pushf
            | Pushfd
            | Pushfq
            | Popf
            | Popfd
            | Popfq
            | Enter
            | Leave
            | Call
            | Ret
            | Retf
            | Iret
            | Iretd
            | Iretq
    )
}

/// Instructions that go elsewhere than to the next one.
pub fn is_flow(code: Code) -> bool {
    use iced_x86::{FlowControl, Instruction};
    let mut insn = Instruction::new();
    insn.set_code(code);
    matches!(
        insn.flow_control(),
        FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::ConditionalBranch
            | FlowControl::Return
            | FlowControl::Call
            | FlowControl::IndirectCall
            | FlowControl::Interrupt
            | FlowControl::Exception
    )
}
