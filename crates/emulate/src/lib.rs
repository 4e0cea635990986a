//! The instruction emulator: executes one decoded x86 instruction at a time against a processor that it
//! sees only through the trait [`Cpu`].
//!
//! It serves twice. The hypervisor core uses it when the hardware cannot finish an instruction by itself (device
//! memory, page-table writes, real mode on old processors), and the software CPU is an interpreter loop around
//! it. Because it is the second, it knows the whole integer and system instruction set, in 16, 32 and 64 bits,
//! with the exact order of exceptions that the manuals give.
//!
//! An instruction is a transaction: registers change only when everything that can stop it has succeeded. A
//! stopped instruction ([`Stop`]) is executed again from its start, and the [`Cpu`] answers the accesses that
//! it has already made in the same way, so that a device sees each of them once. One iteration of a REP
//! counts as an instruction.
//!
//! How to read it: [`op`] is the form in which an instruction is kept, [`mod@decode`] makes it from bytes and picks
//! the function that executes it, and each other module is a family of instructions. Exceptions and interrupts
//! enter the guest through [`event`].
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "testing"))]
extern crate std;

pub mod address;
mod alu;
mod bits;
mod condition;
pub mod cpu;
mod decimal;
pub mod decode;
mod exchange;
mod families;
pub mod fetch;
mod flow;
pub mod fpu;
mod misc;
mod multiply;
pub mod op;
mod operand;
pub mod plain;
mod shift;
pub mod stack;
mod stack_ops;
pub mod stop;
mod string;
pub mod system;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod transfer;

pub use cpu::{Access, Cpu, Flush, Intercept, TranslationChange};
pub use decode::{DecodeError, decode};
pub use fetch::{fetch_decode, step};
pub use op::{Handler, Op};
pub use plain::{Invlpg, Plain, is_repeated_write};
pub use stop::{Res, Stop};
pub use system::{control_moves::MovToCr, event};
