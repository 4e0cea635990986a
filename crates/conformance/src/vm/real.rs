//! The smallest machine: one vCPU in real mode, flat segments, its code in the middle of 64 KiB of memory.
use abi::KvmSegment;
use iced_x86::{IcedError, code_asm::CodeAssembler};

use super::{Vcpu, Vm};
use crate::device::{Device, Memory};

/// Where the code of a [`RealMode`] machine starts: gpa, and instruction pointer with a code segment of 0.
pub const CODE: u64 = 0x1000;

/// Moves a real-mode segment to `base`, a multiple of 16 below 1 MiB.
pub fn at(segment: &mut KvmSegment, base: u64) {
    (segment.base, segment.selector) = (base, (base >> 4) as u16);
}

/// Assembles code that starts at `ip`.
///
/// # Panics
/// If it cannot be encoded.
pub fn assemble(bits: u32, ip: u64, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bits).expect("16, 32 or 64 bits");
    code(&mut assembler).expect("instructions that exist");
    assembler.assemble(ip).expect("code that can be encoded")
}

/// A VM with 64 KiB of memory at 0 (slot 0) and one vCPU in real mode, all segments with base 0, stack from 0x8000 down.
/// Nothing is at 0x10000 and above, where a segment of 0x1000 begins.
pub struct RealMode {
    /// The VM.
    pub vm: Vm,
    /// Its memory, from gpa 0.
    pub memory: Memory,
    /// Its vCPU.
    pub vcpu: Vcpu,
}

impl RealMode {
    /// With code from the assembler.
    pub fn new(device: &Device, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        Self::with_code(device.vm(), &assemble(16, CODE, code))
    }

    /// With code that may run for long without an exit: interrupts are allowed, though none comes. Bochs 2.7 lets no
    /// interrupt of the host's end a guest that blocks its own.
    pub fn spinning(device: &Device, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        let machine = Self::new(device, code);
        machine.vcpu.edit_regs(|r| r.rflags = 0x202);
        machine
    }

    /// In a VM that has been prepared (interrupt controllers, capabilities), with code as bytes.
    pub fn with_code(vm: Vm, code: &[u8]) -> Self {
        let memory = vm.memory(0, 0, 0x10000);
        memory.write(CODE as usize, code);
        let vcpu = vm.vcpu(0);
        Self::start(&vcpu, CODE);
        Self { vm, memory, vcpu }
    }

    /// Brings a vCPU to `ip` in real mode with flat segments.
    pub fn start(vcpu: &Vcpu, ip: u64) {
        vcpu.edit_sregs(|s| {
            for segment in [&mut s.cs, &mut s.ds, &mut s.es, &mut s.fs, &mut s.gs, &mut s.ss] {
                at(segment, 0);
            }
        });
        vcpu.edit_regs(|r| (r.rip, r.rsp, r.rflags) = (ip, 0x8000, 2));
    }

    /// Points the real-mode vector `vector` at 0:`ip`.
    pub fn set_vector(&self, vector: u8, ip: u16) {
        self.memory.set_u32(usize::from(vector) * 4, u32::from(ip));
    }

    /// Puts code at `ip`.
    pub fn put_code(&self, ip: u16, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        self.memory.write(ip.into(), &assemble(16, ip.into(), code));
    }
}
