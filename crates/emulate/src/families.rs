//! Which family of integer instructions an instruction belongs to, and whether the guest has it.
use iced_x86::{CpuidFeature, Instruction, OpKind};
use x86::Features;

use crate::{Cpu, Handler, Op, alu, bits, decimal, exchange, flow, misc, multiply, shift, stack_ops, string, transfer};

/// The function that executes `op`, if it is an integer instruction; `op` is complete but for it.
pub(crate) fn lookup<C: Cpu>(insn: &Instruction, op: &Op<C>) -> Option<Handler<C>> {
    let bytes = match insn.op0_kind() {
        OpKind::Register if insn.op_count() > 0 => insn.op0_register().size() as u8,
        OpKind::Memory => op.mem_size,
        _ => 0,
    };
    transfer::lookup(insn, op, bytes)
        .or_else(|| alu::lookup(insn, op, bytes))
        .or_else(|| flow::lookup(insn, op))
        .or_else(|| stack_ops::lookup(insn, op))
        .or_else(|| shift::lookup(insn, op, bytes))
        .or_else(|| bits::lookup(insn, op, bytes))
        .or_else(|| multiply::lookup(insn, op, bytes))
        .or_else(|| exchange::lookup(insn, op, bytes))
        .or_else(|| string::lookup(insn, op))
        .or_else(|| misc::lookup(insn, op))
        .or_else(|| decimal::lookup(insn))
}

/// Whether the guest's CPUID offers everything that `insn`, an integer instruction, needs.
pub(crate) fn offered(insn: &Instruction, features: Features) -> bool {
    insn.cpuid_features().iter().all(|&feature| {
        let needed = match feature {
            CpuidFeature::CMOV => Features::CMOV,
            CpuidFeature::CX8 => Features::CX8,
            CpuidFeature::CMPXCHG16B => Features::CX16,
            CpuidFeature::MOVBE => Features::MOVBE,
            CpuidFeature::POPCNT => Features::POPCNT,
            CpuidFeature::LZCNT => Features::LZCNT,
            CpuidFeature::BMI1 => Features::BMI1,
            CpuidFeature::BMI2 => Features::BMI2,
            CpuidFeature::ADX => Features::ADX,
            CpuidFeature::SSE => Features::SSE,
            CpuidFeature::SSE2 => Features::SSE2,
            CpuidFeature::SSE4_2 => Features::SSE42,
            CpuidFeature::CLFSH => Features::CLFLUSH,
            CpuidFeature::CLFLUSHOPT => Features::CLFLUSHOPT,
            CpuidFeature::CLWB => Features::CLWB,
            _ => Features::empty(),
        };
        features.contains(needed)
    }) && (features.contains(Features::LAHF64) || !is_lahf_in_long_mode(insn))
}

fn is_lahf_in_long_mode(insn: &Instruction) -> bool {
    use iced_x86::{Code, CodeSize};
    matches!(insn.code(), Code::Lahf | Code::Sahf) && insn.code_size() == CodeSize::Code64
}
