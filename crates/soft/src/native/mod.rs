//! x87, MMX, SSE and AVX arithmetic of the guest, executed by the host's own vector unit.
//!
//! For each distinct instruction (form, registers, immediate) a *stub* is generated once: a small function that loads the
//! instruction's operands from the guest's [`CpuState`], executes the very instruction, with its memory operand replaced
//! by a buffer in the `Context`, and writes the results back. So every result, down to denormals and NaN
//! payloads, is the hardware's.
//!
//! What a guest could do to its host through this, and why it cannot:
//! - *Unmasked exceptions.* SSE and AVX run with all exceptions masked; which of them the instruction raised is read
//!   from MXCSR afterwards and compared with the guest's masks, before results are written back (`simd`). The x87
//!   runs with the guest's own control word, because it reports an unmasked exception only at the next waiting
//!   instruction, and the stub has none (`x87`): what the hardware does about each kind of exception (results that
//!   are biased, stores that do not happen) is then exact.
//!   When all exceptions are masked and no stack fault can happen, an x87 instruction runs on its operands alone
//!   (`light`), five times as fast.
//! - *Host registers.* Operands in general registers go through RAX, RCX and RDX. A stub follows the system's calling
//!   convention: the control bits of MXCSR and of the x87 are as before when it returns, the x87 stack is empty, DF
//!   is clear. RSP and RBP never hold a guest's value.
//! - *Host state in the guest.* Only destinations are written back. The x87's pointers are kept by `emulate`.
//! - *Memory.* Stubs touch the guest's registers and the context, both of fixed size, and nothing else. Guest memory
//!   is read and written by [`execute`] through [`Cpu`], so that faults are the guest's.
//! - *Features that the host lacks.* A form that the host's CPUID does not have is #UD, whatever the guest was offered.
//!
//! What differs from a processor: PE beside an unmasked overflow or underflow of SSE is always set, not only when the
//! significand was rounded; DPPS and DPPD with unmasked exceptions report those of all their steps, not of the first
//! that traps; FCOMI and FCMOVcc keep C1, as AMD's processors do, on every host.
//!
//! This is the one part of the software CPU that has to run generated code, which is why it is unsafe: `code` owns
//! the memory that is writable at one address and executable at another, `assemble` writes stubs, `stubs` finds
//! them.
//!
//! [`CpuState`]: x86::CpuState
use std::{io, ptr::NonNull};

use emulate::{Access, Cpu, Op, Res, Stop};
use hv::backend::VectorUnit;
use platform::fallible;

mod assemble;
mod code;
mod context;
mod host;
mod light;
mod simd;
mod stubs;
mod x87;

#[cfg(test)]
mod tests;

pub use host::offered;

use context::Context;
use stubs::{Kind, Stub, Stubs};

/// Why vector instructions cannot be executed here.
#[derive(Debug)]
pub enum NativeError {
    /// No memory for tables.
    OutOfMemory,
    /// The system refuses memory that can be executed.
    Executable(io::Error),
}

impl std::fmt::Display for NativeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OutOfMemory => f.write_str("no memory for the vector unit's tables"),
            Self::Executable(error) => write!(f, "the system refuses executable memory: {error}"),
        }
    }
}

impl std::error::Error for NativeError {}

/// Makes the tables that all vector units share.
pub(crate) fn prepare() {
    let _ = iced_x86::Encoder::try_new(64);
}

/// The vector unit of one guest processor: its stubs and the buffers that they use.
#[derive(Debug)]
pub struct Native {
    stubs: Stubs,
    /// Owned; reached by raw pointer only, because stubs write to it.
    context: NonNull<Context>,
}

// SAFETY: `context` is owned by this value alone, and nothing in it belongs to a thread.
unsafe impl Send for Native {}

impl Native {
    /// Allocates tables and executable memory (512 KiB of address space, touched as it fills).
    pub fn new() -> Result<Self, NativeError> {
        let context = fallible::try_box(Context::default()).map_err(|_| NativeError::OutOfMemory)?;
        let stubs = Stubs::new()?;
        Ok(Self { stubs, context: NonNull::from(Box::leak(context)) })
    }

    /// How many stubs exist, and how often all of them were thrown away for room.
    pub fn statistics(&self) -> (usize, u64) {
        self.stubs.statistics()
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: the pointer came from Box::leak and is not used after this.
        drop(unsafe { Box::from_raw(self.context.as_ptr()) });
    }
}

/// A processor that has a vector unit.
pub trait Host: Cpu {
    /// Its vector unit.
    fn native(&mut self) -> &mut Native;
}

/// Executes the vector instruction `op`, which `emulate` has checked; `memory` is the linear address of its memory
/// operand. What [`Cpu::vector`] asks for.
pub fn execute<C: Host>(cpu: &mut C, op: &Op<C>, memory: Option<u64>) -> Res {
    let native = cpu.native();
    let context = native.context;
    let stub = native.stubs.find(op).ok_or(Stop::UD)?;
    run(cpu, context, stub, op, memory, |cpu| cpu.native().stubs.find_complete(op))
}

impl VectorUnit for Native {
    fn execute<C: Cpu>(&mut self, cpu: &mut C, op: &Op<C>, memory: Option<u64>) -> Res {
        let stub = self.stubs.find(op).ok_or(Stop::UD)?;
        run(cpu, self.context, stub, op, memory, |_| self.stubs.find_complete(op))
    }
}

/// Runs `stub`, which belongs to `op`; `complete` finds the one that works under all conditions.
#[inline(always)]
fn run<C: Cpu>(
    cpu: &mut C,
    context: NonNull<Context>,
    stub: Stub,
    op: &Op<C>,
    memory: Option<u64>,
    complete: impl FnOnce(&mut C) -> Option<Stub>,
) -> Res {
    match stub.kind {
        Kind::Plain => {
            load_operand(cpu, context, op, memory)?;
            call(cpu, context, stub);
            Ok(())
        }
        Kind::Store => {
            call(cpu, context, stub);
            store_operand(cpu, context, op, memory)
        }
        Kind::Flags => {
            load_operand(cpu, context, op, memory)?;
            call(cpu, context, stub);
            simd::take_flags(cpu, context);
            Ok(())
        }
        Kind::Float | Kind::FloatFlags | Kind::FloatStore => {
            if stub.kind != Kind::FloatStore {
                load_operand(cpu, context, op, memory)?;
            } else if let Some(linear) = memory {
                // A store that cannot happen faults before the exceptions of its operand.
                cpu.probe_write(linear, op.mem_size as u64, Access::Program)?;
            }
            simd::execute(cpu, context, stub, op)?;
            match stub.kind {
                Kind::FloatFlags => simd::take_flags(cpu, context),
                Kind::FloatStore => store_operand(cpu, context, op, memory)?,
                _ => {}
            }
            simd::commit(cpu, context);
            Ok(())
        }
        Kind::Light | Kind::LightStore => x87::execute_light(cpu, context, stub, op, memory, complete),
        Kind::X87 | Kind::X87Store => x87::execute(cpu, context, stub, op, memory),
    }
}

/// Runs a stub on the registers of `cpu`.
#[inline(always)]
fn call<C: Cpu>(cpu: &mut C, context: NonNull<Context>, stub: Stub) {
    // SAFETY: `stub` was found in this processor's live table, so its code exists, follows the System V calling
    // convention, and accesses nothing but the two objects it is given, which are live and not otherwise borrowed.
    unsafe { (stub.entry)(cpu.state_mut(), context.as_ptr()) }
}

/// Reads the memory operand into the context's buffer.
#[inline(always)]
fn load_operand<C: Cpu>(cpu: &mut C, context: NonNull<Context>, op: &Op<C>, memory: Option<u64>) -> Res {
    let Some(linear) = memory else { return Ok(()) };
    let mut words = [0u128; 2];
    match op.mem_size {
        1 => words[0] = cpu.load::<u8>(linear, Access::Program)? as u128,
        2 => words[0] = cpu.load::<u16>(linear, Access::Program)? as u128,
        4 => words[0] = cpu.load::<u32>(linear, Access::Program)? as u128,
        8 => words[0] = cpu.load::<u64>(linear, Access::Program)? as u128,
        10 => {
            words[0] = cpu.load::<u64>(linear, Access::Program)? as u128
                | (cpu.load::<u16>(linear.wrapping_add(8), Access::Program)? as u128) << 64;
        }
        16 => words[0] = cpu.load(linear, Access::Program)?,
        32 => {
            words[0] = cpu.load(linear, Access::Program)?;
            words[1] = cpu.load(linear.wrapping_add(16), Access::Program)?;
        }
        _ => return Err(Stop::UD),
    }
    // SAFETY: the context is live, and no stub runs.
    let memory = unsafe { &mut (*context.as_ptr()).memory };
    memory[0] = words[0];
    if op.mem_size == 32 {
        memory[1] = words[1];
    }
    Ok(())
}

/// Writes the memory operand from the context's buffer.
fn store_operand<C: Cpu>(cpu: &mut C, context: NonNull<Context>, op: &Op<C>, memory: Option<u64>) -> Res {
    let Some(linear) = memory else { return Ok(()) };
    // SAFETY: the context is live, and no stub runs.
    let words = unsafe { (*context.as_ptr()).memory };
    match op.mem_size {
        1 => cpu.store(linear, words[0] as u8, Access::Program),
        2 => cpu.store(linear, words[0] as u16, Access::Program),
        4 => cpu.store(linear, words[0] as u32, Access::Program),
        8 => cpu.store(linear, words[0] as u64, Access::Program),
        10 => {
            cpu.probe_write(linear, 10, Access::Program)?;
            cpu.store(linear, words[0] as u64, Access::Program)?;
            cpu.store(linear.wrapping_add(8), (words[0] >> 64) as u16, Access::Program)
        }
        16 => cpu.store(linear, words[0], Access::Program),
        _ => Err(Stop::UD),
    }
}
