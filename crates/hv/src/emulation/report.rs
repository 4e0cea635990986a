//! What is told when an instruction cannot be emulated (row E06): bytes, mode and registers, to the client and to the
//! operator's log.
use core::fmt;

use abi::*;
use mmu::PhysMem;
use platform::{Level, Platform};
use x86::{CpuState, Mode, Seg};

use crate::{
    Errno,
    backend::{Backend, BackendVcpu, Groups},
    stats::Counter,
    vcpu::{Run, Step},
};

/// An instruction that could not be emulated.
struct Report<'a> {
    state: &'a CpuState,
    bytes: &'a [u8],
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.state;
        let mode = match s.mode {
            Mode::Real => "real mode",
            Mode::Virtual8086 => "virtual-8086 mode",
            Mode::Protected16 => "16-bit protected mode",
            Mode::Protected32 => "32-bit protected mode",
            Mode::Long64 => "64-bit mode",
        };
        write!(f, "cannot emulate at {:#x}:{:#x} in {mode}, CPL {}:", s.seg[Seg::Cs as usize].selector, s.rip, s.cpl)?;
        if self.bytes.is_empty() {
            write!(f, " (instruction cannot be read)")?;
        }
        for byte in self.bytes {
            write!(f, " {byte:02x}")?;
        }
        write!(
            f,
            "; CR0 {:#x} CR3 {:#x} CR4 {:#x} EFER {:#x} RFLAGS {:#x}",
            s.cr0,
            s.cr3,
            s.cr4,
            s.efer,
            s.flags.get()
        )?;
        let names = ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI"];
        for (name, value) in names.iter().zip(s.gpr) {
            write!(f, " {name} {value:#x}")?;
        }
        Ok(())
    }
}

impl<B: Backend> Run<'_, B> {
    /// KVM_EXIT_INTERNAL_ERROR for the instruction at CS:RIP.
    pub(crate) fn emulation_failed(&mut self) -> Result<Step, Errno> {
        self.shared.stats.count(Counter::EmulationFail);
        let mut bytes = [0; 15];
        let len = self.instruction_bytes(&mut bytes);
        let report = Report { state: self.inner.cpu.registers(Groups::ALL), bytes: &bytes[..len] };
        B::Platform::log(Level::Warning, format_args!("vCPU {}: {report}", self.index));
        let failure = KvmRunEmulationFailure {
            suberror: KVM_INTERNAL_ERROR_EMULATION,
            ndata: if len == 0 { 0 } else { 3 },
            flags: if len == 0 { 0 } else { KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES },
            insn_size: len as u8,
            insn_bytes: bytes,
        };
        self.page.exit(KVM_EXIT_INTERNAL_ERROR, &failure)?;
        Ok(Step::ToClient)
    }

    /// The bytes at CS:RIP, as far as they can be read; how many.
    fn instruction_bytes(&mut self, to: &mut [u8; 15]) -> usize {
        let inner = &mut *self.inner;
        let state = inner.cpu.registers(Groups::ALL);
        let paging = mmu::Paging::new(state, inner.features, inner.physical_bits);
        let linear = state.seg[Seg::Cs as usize].base.wrapping_add(state.rip);
        let linear = if state.mode == Mode::Long64 { state.rip } else { linear & 0xffff_ffff };
        let Some(view) = self.vm.space(inner.smm.inside).view(self.index) else { return 0 };
        let mut len = 0;
        for (offset, byte) in to.iter_mut().enumerate() {
            let at = linear.wrapping_add(offset as u64);
            let Some(translation) = mmu::translate(&view, &paging, at) else { break };
            let Ok(value) = view.load::<u8>(translation.gpa) else { break };
            *byte = value;
            len += 1;
        }
        len
    }
}
