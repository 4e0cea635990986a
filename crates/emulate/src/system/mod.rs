//! System instructions and everything that changes mode, privilege or segments.
//!
//! How to read it: [`event`] delivers exceptions and interrupts, [`control`] has the rules of the control registers,
//! [`task`] the hardware task switch; those serve the hypervisor as well. `descriptor`, `gate`, `tss` and
//! `task_state` are the structures in memory that these work on. The rest are families of instructions.
#[cfg(test)]
mod access_tests;
mod call_gate;
pub mod control;
pub mod control_moves;
mod counters;
pub mod debug;
mod descriptor;
pub mod event;
mod far;
#[cfg(test)]
mod fuzz_tests;
mod gate;
mod interrupt;
mod interrupt_flag;
mod io;
mod iret;
mod processor;
#[cfg(test)]
mod register_tests;
mod registers;
mod segment;
mod syscall;
mod tables;
pub mod task;
mod task_state;
#[cfg(test)]
mod task_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod transfer_tests;
mod tss;
mod verify;

use iced_x86::{Code, Instruction};

use crate::{Cpu, Flush, Handler, Res, stack::Stack};

/// Recomputes what derives from mode and privilege level, after an instruction has changed them.
fn privilege_changed<C: Cpu>(cpu: &mut C) {
    cpu.state_mut().refresh();
    cpu.flush(Flush::Rights);
}

/// Checks that `items` values of `size` bytes can be pushed, as far as the segment is concerned.
fn room<C: Cpu>(cpu: &C, stack: &Stack, size: u8, items: u64) -> Res {
    let size = size as u64;
    for n in 1..=items {
        let at = stack.pointer.wrapping_sub(n * size) & stack.mask;
        stack.linear(cpu, at, size, true)?;
    }
    Ok(())
}

/// The function that executes `insn`, if it belongs to this family.
pub fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    let code = insn.code();
    control_flow(code).or_else(|| segments(code)).or_else(|| registers_of_the_system(code)).or_else(|| others(code))
}

fn control_flow<C: Cpu>(code: Code) -> Option<Handler<C>> {
    use Code::*;
    Some(match code {
        Int_imm8 => interrupt::int,
        Int3 => interrupt::int3,
        Into => interrupt::into,
        Int1 => interrupt::int1,
        Iretw => iret::iret::<C, 2>,
        Iretd => iret::iret::<C, 4>,
        Iretq => iret::iret::<C, 8>,
        Syscall => syscall::syscall,
        Sysretd => syscall::sysret::<C, false>,
        Sysretq => syscall::sysret::<C, true>,
        Sysenter => syscall::sysenter,
        Sysexitd => syscall::sysexit::<C, false>,
        Sysexitq => syscall::sysexit::<C, true>,
        Swapgs => syscall::swapgs,
        Jmp_ptr1616 | Jmp_ptr1632 => far::jmp_direct,
        Jmp_m1616 => far::jmp_indirect::<C, 2>,
        Jmp_m1632 => far::jmp_indirect::<C, 4>,
        Jmp_m1664 => far::jmp_indirect::<C, 8>,
        Call_ptr1616 => far::call_direct::<C, 2>,
        Call_ptr1632 => far::call_direct::<C, 4>,
        Call_m1616 => far::call_indirect::<C, 2>,
        Call_m1632 => far::call_indirect::<C, 4>,
        Call_m1664 => far::call_indirect::<C, 8>,
        Retfw | Retfw_imm16 => far::ret::<C, 2>,
        Retfd | Retfd_imm16 => far::ret::<C, 4>,
        Retfq | Retfq_imm16 => far::ret::<C, 8>,
        _ => return None,
    })
}

fn segments<C: Cpu>(code: Code) -> Option<Handler<C>> {
    use Code::*;
    const ES: u8 = 0;
    const SS: u8 = 2;
    const DS: u8 = 3;
    const FS: u8 = 4;
    const GS: u8 = 5;
    Some(match code {
        Mov_Sreg_rm16 | Mov_Sreg_r32m16 | Mov_Sreg_r64m16 => segment::mov_to,
        Mov_rm16_Sreg => segment::mov_from::<C, 2>,
        Mov_r32m16_Sreg => segment::mov_from::<C, 4>,
        Mov_r64m16_Sreg => segment::mov_from::<C, 8>,
        Pushw_ES | Pushw_CS | Pushw_SS | Pushw_DS | Pushw_FS | Pushw_GS => segment::push::<C, 2>,
        Pushd_ES | Pushd_CS | Pushd_SS | Pushd_DS | Pushd_FS | Pushd_GS => segment::push::<C, 4>,
        Pushq_FS | Pushq_GS => segment::push::<C, 8>,
        Popw_ES | Popw_SS | Popw_DS | Popw_FS | Popw_GS => segment::pop::<C, 2>,
        Popd_ES | Popd_SS | Popd_DS | Popd_FS | Popd_GS => segment::pop::<C, 4>,
        Popq_FS | Popq_GS => segment::pop::<C, 8>,
        Les_r16_m1616 => segment::load_pointer::<C, ES, 2>,
        Les_r32_m1632 => segment::load_pointer::<C, ES, 4>,
        Lds_r16_m1616 => segment::load_pointer::<C, DS, 2>,
        Lds_r32_m1632 => segment::load_pointer::<C, DS, 4>,
        Lss_r16_m1616 => segment::load_pointer::<C, SS, 2>,
        Lss_r32_m1632 => segment::load_pointer::<C, SS, 4>,
        Lss_r64_m1664 => segment::load_pointer::<C, SS, 8>,
        Lfs_r16_m1616 => segment::load_pointer::<C, FS, 2>,
        Lfs_r32_m1632 => segment::load_pointer::<C, FS, 4>,
        Lfs_r64_m1664 => segment::load_pointer::<C, FS, 8>,
        Lgs_r16_m1616 => segment::load_pointer::<C, GS, 2>,
        Lgs_r32_m1632 => segment::load_pointer::<C, GS, 4>,
        Lgs_r64_m1664 => segment::load_pointer::<C, GS, 8>,
        Lar_r16_rm16 => verify::lar::<C, 2>,
        Lar_r32_r32m16 => verify::lar::<C, 4>,
        Lar_r64_r64m16 => verify::lar::<C, 8>,
        Lsl_r16_rm16 => verify::lsl::<C, 2>,
        Lsl_r32_r32m16 => verify::lsl::<C, 4>,
        Lsl_r64_r64m16 => verify::lsl::<C, 8>,
        Verr_rm16 | Verr_r32m16 | Verr_r64m16 => verify::verify::<C, false>,
        Verw_rm16 | Verw_r32m16 | Verw_r64m16 => verify::verify::<C, true>,
        Arpl_rm16_r16 | Arpl_r32m16_r32 => verify::arpl,
        Rdfsbase_r32 => processor::read_base::<C, FS, 4>,
        Rdfsbase_r64 => processor::read_base::<C, FS, 8>,
        Rdgsbase_r32 => processor::read_base::<C, GS, 4>,
        Rdgsbase_r64 => processor::read_base::<C, GS, 8>,
        Wrfsbase_r32 => processor::write_base::<C, FS, 4>,
        Wrfsbase_r64 => processor::write_base::<C, FS, 8>,
        Wrgsbase_r32 => processor::write_base::<C, GS, 4>,
        Wrgsbase_r64 => processor::write_base::<C, GS, 8>,
        _ => return None,
    })
}

fn registers_of_the_system<C: Cpu>(code: Code) -> Option<Handler<C>> {
    use Code::*;
    use tables::{GDTR, IDTR};
    Some(match code {
        Lgdt_m1632_16 => tables::load_table::<C, GDTR, 2>,
        Lgdt_m1632 => tables::load_table::<C, GDTR, 4>,
        Lgdt_m1664 => tables::load_table::<C, GDTR, 8>,
        Lidt_m1632_16 => tables::load_table::<C, IDTR, 2>,
        Lidt_m1632 => tables::load_table::<C, IDTR, 4>,
        Lidt_m1664 => tables::load_table::<C, IDTR, 8>,
        Sgdt_m1632_16 => tables::store_table::<C, GDTR, 2>,
        Sgdt_m1632 => tables::store_table::<C, GDTR, 4>,
        Sgdt_m1664 => tables::store_table::<C, GDTR, 8>,
        Sidt_m1632_16 => tables::store_table::<C, IDTR, 2>,
        Sidt_m1632 => tables::store_table::<C, IDTR, 4>,
        Sidt_m1664 => tables::store_table::<C, IDTR, 8>,
        Lldt_rm16 | Lldt_r32m16 | Lldt_r64m16 => tables::lldt,
        Ltr_rm16 | Ltr_r32m16 | Ltr_r64m16 => tables::ltr,
        Sldt_rm16 => tables::sldt::<C, 2>,
        Sldt_r32m16 => tables::sldt::<C, 4>,
        Sldt_r64m16 => tables::sldt::<C, 8>,
        Str_rm16 => tables::str::<C, 2>,
        Str_r32m16 => tables::str::<C, 4>,
        Str_r64m16 => tables::str::<C, 8>,
        Mov_cr_r32 => control_moves::mov_to::<C, false>,
        Mov_cr_r64 => control_moves::mov_to::<C, true>,
        Mov_r32_cr => control_moves::mov_from::<C, 4>,
        Mov_r64_cr => control_moves::mov_from::<C, 8>,
        Clts => control_moves::clts,
        Lmsw_rm16 | Lmsw_r32m16 | Lmsw_r64m16 => control_moves::lmsw,
        Smsw_rm16 => control_moves::smsw::<C, 2>,
        Smsw_r32m16 => control_moves::smsw::<C, 4>,
        Smsw_r64m16 => control_moves::smsw::<C, 8>,
        Xsetbv => control_moves::xsetbv,
        Xgetbv => control_moves::xgetbv,
        Mov_dr_r32 => debug::mov_to::<C, false>,
        Mov_dr_r64 => debug::mov_to::<C, true>,
        Mov_r32_dr => debug::mov_from::<C, 4>,
        Mov_r64_dr => debug::mov_from::<C, 8>,
        Rdmsr => counters::rdmsr,
        Wrmsr => counters::wrmsr,
        Rdtsc => counters::rdtsc,
        Rdtscp => counters::rdtscp,
        Rdpid_r32 | Rdpid_r64 => counters::rdpid,
        Rdpmc => counters::rdpmc,
        Rdrand_r16 => counters::random::<C, 2, false>,
        Rdrand_r32 => counters::random::<C, 4, false>,
        Rdrand_r64 => counters::random::<C, 8, false>,
        Rdseed_r16 => counters::random::<C, 2, true>,
        Rdseed_r32 => counters::random::<C, 4, true>,
        Rdseed_r64 => counters::random::<C, 8, true>,
        _ => return None,
    })
}

fn others<C: Cpu>(code: Code) -> Option<Handler<C>> {
    use Code::*;
    Some(match code {
        Cli => interrupt_flag::cli,
        Sti => interrupt_flag::sti,
        Stac => interrupt_flag::access_flag::<C, true>,
        Clac => interrupt_flag::access_flag::<C, false>,
        Cpuid => processor::cpuid,
        Hlt => processor::hlt,
        Invd | Wbinvd | Wbnoinvd => processor::wbinvd,
        Invlpg_m => processor::invlpg,
        Invpcid_r32_m128 | Invpcid_r64_m128 => processor::invpcid,
        Monitorw | Monitord | Monitorq => processor::monitor,
        Mwait => processor::mwait,
        Vmcall | Vmmcall => processor::hypercall,
        Rsm => processor::rsm,
        In_AL_imm8 => io::input::<C, 1, false>,
        In_AX_imm8 => io::input::<C, 2, false>,
        In_EAX_imm8 => io::input::<C, 4, false>,
        In_AL_DX => io::input::<C, 1, true>,
        In_AX_DX => io::input::<C, 2, true>,
        In_EAX_DX => io::input::<C, 4, true>,
        Out_imm8_AL => io::output::<C, 1, false>,
        Out_imm8_AX => io::output::<C, 2, false>,
        Out_imm8_EAX => io::output::<C, 4, false>,
        Out_DX_AL => io::output::<C, 1, true>,
        Out_DX_AX => io::output::<C, 2, true>,
        Out_DX_EAX => io::output::<C, 4, true>,
        Insb_m8_DX => io::input_string::<C, 1>,
        Insw_m16_DX => io::input_string::<C, 2>,
        Insd_m32_DX => io::input_string::<C, 4>,
        Outsb_DX_m8 => io::output_string::<C, 1>,
        Outsw_DX_m16 => io::output_string::<C, 2>,
        Outsd_DX_m32 => io::output_string::<C, 4>,
        _ => return None,
    })
}
