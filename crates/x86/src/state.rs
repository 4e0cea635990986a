//! The architectural state of one guest processor.
use crate::{Attr, Cr0, Cr4, Efer, Flags, Fpu, Segment, Table, control, debug, flags};

/// A segment register, numbered as instructions encode it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Seg {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

/// How instructions are decoded and addresses formed, derived from CR0, EFER, EFLAGS.VM and CS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Mode {
    /// Real-address mode.
    #[default]
    Real,
    /// Virtual-8086 mode.
    Virtual8086,
    /// Protected (or compatibility) mode, CS.D clear.
    Protected16,
    /// Protected (or compatibility) mode, CS.D set.
    Protected32,
    /// 64-bit mode.
    Long64,
}

impl Mode {
    /// Default operand bits for the decoder: 16, 32 or 64.
    pub const fn bitness(self) -> u32 {
        match self {
            Self::Real | Self::Virtual8086 | Self::Protected16 => 16,
            Self::Protected32 => 32,
            Self::Long64 => 64,
        }
    }
}

/// Interrupts held back for one instruction (SDM vol. 3, 6.8.3; interruptibility state).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Shadow {
    /// Nothing held back.
    #[default]
    None,
    /// The previous instruction was STI that set IF.
    Sti,
    /// The previous instruction was MOV SS or POP SS: debug traps wait too.
    MovSs,
}

/// Every register that instructions can see. The derived fields `mode` and `cpl` are kept by
/// [`CpuState::refresh`], which whoever changes CR0, EFER, EFLAGS.VM, CS or SS calls.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer: an offset in CS.
    pub rip: u64,
    /// RFLAGS.
    pub flags: Flags,
    /// Derived: how to decode.
    pub mode: Mode,
    /// Derived: current privilege level, SS.DPL in protected mode, 0 in real mode, 3 in virtual-8086 mode.
    pub cpl: u8,
    /// STI or MOV SS shadow.
    pub shadow: Shadow,
    /// ES, CS, SS, DS, FS, GS; index with [`Seg`].
    pub seg: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: Table,
    /// Interrupt descriptor table.
    pub idtr: Table,
    /// Control register 0.
    pub cr0: u64,
    /// Linear address of the last page fault.
    pub cr2: u64,
    /// Page-table root.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Task priority, bits 7:4 of the local APIC's TPR.
    pub cr8: u64,
    /// Extended control register 0.
    pub xcr0: u64,
    /// Extended feature enables.
    pub efer: u64,
    /// The four PDPTEs, loaded with CR3 in PAE mode (SDM vol. 3, 4.4.1).
    pub pdptr: [u64; 4],
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// Debug status.
    pub dr6: u64,
    /// Debug control.
    pub dr7: u64,
    /// SYSCALL target selectors.
    pub star: u64,
    /// SYSCALL target in 64-bit mode.
    pub lstar: u64,
    /// SYSCALL target in compatibility mode.
    pub cstar: u64,
    /// RFLAGS bits that SYSCALL clears.
    pub sfmask: u64,
    /// What SWAPGS exchanges with GS.base.
    pub kernel_gs_base: u64,
    /// SYSENTER code selector.
    pub sysenter_cs: u64,
    /// SYSENTER stack pointer.
    pub sysenter_esp: u64,
    /// SYSENTER instruction pointer.
    pub sysenter_eip: u64,
    /// What RDTSCP and RDPID return.
    pub tsc_aux: u64,
    /// x87, SSE and AVX registers.
    pub fpu: Fpu,
}

impl CpuState {
    /// The state after reset (SDM vol. 3, table 9-1); `signature` is CPUID.1:EAX, which RDX shows. The x87 is as FNINIT
    /// leaves it, where all of Linux's vCPUs begin: a processor's would hold zeros, with a control word of 0x40.
    pub fn reset(signature: u32) -> Self {
        let data = Segment::real(0, 0);
        let mut code = Segment::real(0xf000, 0);
        code.base = 0xffff_0000;
        code.attr = Attr(Attr::P | Attr::S | 11);
        let system = |typ| Segment { selector: 0, attr: Attr(Attr::P | typ), limit: 0xffff, base: 0 };
        let mut gpr = [0; 16];
        gpr[2] = signature as u64;
        let mut state = Self {
            gpr,
            rip: 0xfff0,
            flags: Flags::default(),
            mode: Mode::Real,
            cpl: 0,
            shadow: Shadow::None,
            seg: [data, code, data, data, data, data],
            ldtr: system(2),
            tr: system(11),
            gdtr: Table { base: 0, limit: 0xffff },
            idtr: Table { base: 0, limit: 0xffff },
            cr0: control::CR0_RESET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            xcr0: control::xcr0::X87,
            efer: 0,
            pdptr: [0; 4],
            dr: [0; 4],
            dr6: debug::DR6_FIXED,
            dr7: debug::DR7_FIXED,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_aux: 0,
            fpu: Fpu::default(),
        };
        state.refresh();
        state
    }

    /// Recomputes `mode` and `cpl` from the registers that they derive from.
    pub fn refresh(&mut self) {
        let cs = self.seg[Seg::Cs as usize].attr;
        (self.mode, self.cpl) = if self.cr0 & Cr0::PE.bits() == 0 {
            (Mode::Real, 0)
        } else if self.flags.control(flags::VM) && self.efer & Efer::LMA.bits() == 0 {
            (Mode::Virtual8086, 3)
        } else {
            let mode = if self.efer & Efer::LMA.bits() != 0 && cs.long() {
                Mode::Long64
            } else if cs.big() {
                Mode::Protected32
            } else {
                Mode::Protected16
            };
            (mode, self.seg[Seg::Ss as usize].attr.dpl())
        };
    }

    /// Long mode is active (64-bit or compatibility mode).
    #[inline]
    pub fn long_mode(&self) -> bool {
        self.efer & Efer::LMA.bits() != 0
    }

    /// The linear address of the next instruction (SDM vol. 1, 3.5): code has no base in 64-bit mode, and elsewhere addresses have
    /// 32 bits.
    #[inline(always)]
    pub fn linear_rip(&self) -> u64 {
        match self.mode {
            Mode::Long64 => self.rip,
            _ => self.seg[Seg::Cs as usize].base.wrapping_add(self.rip) & 0xffff_ffff,
        }
    }

    /// Paging is on.
    #[inline]
    pub fn paging(&self) -> bool {
        self.cr0 & Cr0::PG.bits() != 0
    }

    /// PAE paging outside of long mode: a load of CR3 loads four page-directory pointers (SDM vol. 3, 4.4.1).
    #[inline]
    pub fn pae(&self) -> bool {
        self.paging() && self.cr4 & Cr4::PAE.bits() != 0 && !self.long_mode()
    }

    /// Protected mode without virtual-8086.
    #[inline]
    pub fn protected(&self) -> bool {
        !matches!(self.mode, Mode::Real | Mode::Virtual8086)
    }

    /// Number of linear-address bits that must be sign extended: 57 with CR4.LA57, else 48.
    #[inline]
    pub fn linear_bits(&self) -> u32 {
        if self.cr4 & Cr4::LA57.bits() != 0 { 57 } else { 48 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_is_real_mode_at_the_top() {
        let s = CpuState::reset(0x600);
        assert_eq!((s.mode, s.cpl, s.rip, s.seg[1].base), (Mode::Real, 0, 0xfff0, 0xffff_0000));
        assert_eq!(s.flags.get(), flags::FIXED);
        assert_eq!(s.cr0 & Cr0::ET.bits(), Cr0::ET.bits());
    }
}
