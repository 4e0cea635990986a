//! Ioctls that read and replace the state of a vCPU.
use abi::*;
use irqchip::{LapicShared, lapic::StateError};
use mmu::{Paging, Request, TableMemory, walk, walk::load_pdptes};
use platform::Platform;
use x86::{CpuState, Cr0, Cr4, Efer, Features, debug};

use super::{AsyncPf, Inner, LocalApic, MpState, fpu, mmu::reread_pdptes, regs};
use crate::{
    Errno, Outcome,
    backend::{Backend, BackendVcpu, Groups},
    msr::{By, valid_efer},
    uaccess,
    vm::VmShared,
};

type Mem<B> = <<B as Backend>::Platform as Platform>::Memory;

impl<B: Backend> Inner<B> {
    pub(super) fn get_regs(&mut self) -> KvmRegs {
        regs::to_abi(self.cpu.registers(Groups::GENERAL.and(Groups::STATUS)))
    }

    /// KVM_SET_REGS. A pending exception belongs to the state that is replaced.
    pub(super) fn set_regs(&mut self, new: &KvmRegs) -> Result<Outcome<B>, Errno> {
        let state = self.cpu.registers_mut(Groups::GENERAL.and(Groups::STATUS).and(Groups::SEGMENTS));
        let moved = state.rip != new.rip;
        regs::from_abi(state, new);
        if moved {
            state.shadow = x86::Shadow::None;
            self.tx.abandon();
        }
        self.events.exception = None;
        Ok(Outcome::OK)
    }

    pub(super) fn get_sregs(&mut self) -> KvmSregs {
        self.show_cr8();
        let mut sregs = regs::sregs_to_abi(self.cpu.registers(Groups::SEGMENTS.and(Groups::CONTROL)));
        sregs.apic_base = self.apic_base();
        sregs.interrupt_bitmap = self.events.interrupt_bitmap();
        sregs
    }

    fn reread_pdptes<M: TableMemory>(&mut self, view: &M) {
        if self.rereads_pdptes() {
            reread_pdptes(self.cpu.registers_mut(Groups::CONTROL), view);
        }
    }

    pub(super) fn get_sregs2(&mut self, vm: &VmShared<B::Platform>, reader: usize) -> KvmSregs2 {
        let sregs = self.get_sregs();
        if let Some(view) = vm.space(self.smm.inside).view(reader) {
            self.reread_pdptes(&view);
        }
        let state = self.cpu.registers(Groups::CONTROL);
        if state.pae() {
            regs::extend(&sregs, KVM_SREGS2_FLAGS_PDPTRS_VALID, state.pdptr)
        } else {
            regs::extend(&sregs, 0, [0; 4])
        }
    }

    pub(super) fn set_sregs(
        &mut self,
        new: &KvmSregs,
        vm: &VmShared<B::Platform>,
        reader: usize,
    ) -> Result<Outcome<B>, Errno> {
        self.put_sregs(new)?;
        self.events.set_interrupt_bitmap(new.interrupt_bitmap, self.apic.is_some());
        let state = self.cpu.registers_mut(Groups::CONTROL);
        if state.pae()
            && let Some(view) = vm.space(self.smm.inside).view(reader)
        {
            // Tables that cannot be read leave no PDPTE present: the guest faults, nobody else.
            state.pdptr = load_pdptes(&view, state.cr3, self.physical_bits).ok().flatten().unwrap_or([0; 4]);
        }
        Ok(Outcome::OK)
    }

    pub(super) fn set_sregs2(
        &mut self,
        new: &KvmSregs2,
        vm: &VmShared<B::Platform>,
        reader: usize,
    ) -> Result<Outcome<B>, Errno> {
        if new.flags & !KVM_SREGS2_FLAGS_PDPTRS_VALID != 0 {
            return Err(Errno::EINVAL);
        }
        if new.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID == 0 {
            let mut sregs = regs::common(new);
            sregs.interrupt_bitmap = self.events.interrupt_bitmap();
            return self.set_sregs(&sregs, vm, reader);
        }
        let pae = new.cr0 & Cr0::PG.bits() != 0 && new.cr4 & Cr4::PAE.bits() != 0 && new.efer & Efer::LMA.bits() == 0;
        if !pae {
            return Err(Errno::EINVAL);
        }
        self.put_sregs(&regs::common(new))?;
        self.cpu.registers_mut(Groups::CONTROL).pdptr = new.pdptrs;
        self.pdptes_set = true;
        Ok(Outcome::OK)
    }

    /// Whether those in the registers are not what the processor would use.
    pub(crate) fn rereads_pdptes(&self) -> bool {
        self.cpu.rereads_pdptes() && !self.pdptes_set
    }

    /// The registers, checked: nothing changes if one of them is not possible.
    fn put_sregs(&mut self, new: &KvmSregs) -> Result<(), Errno> {
        if !valid_sregs(new, self.known_features()) || new.cr8 > 15 {
            return Err(Errno::EINVAL);
        }
        self.set_apic_base(new.apic_base, By::Client).map_err(|_| Errno::EINVAL)?;
        self.pdptes_set = false;
        let state = self.cpu.registers_mut(Groups::ALL);
        let at = (state.seg[1].selector, state.seg[1].base);
        regs::sregs_from_abi(state, new);
        let reset = state.rip == 0xfff0 && new.cs.selector == 0xf000 && state.cr0 & Cr0::PE.bits() == 0;
        let moved = at != (new.cs.selector, new.cs.base);
        if let Some(apic) = &mut self.apic {
            // Checked above.
            let _ = apic.lapic.set_cr8(new.cr8);
        }
        self.flush_guest();
        if moved {
            self.tx.abandon();
        }
        // Clients of old do not wake the boot processor when they reset it.
        if reset && self.mp == MpState::Halted {
            self.mp = MpState::Runnable;
        }
        Ok(())
    }

    /// What control registers may ask for: before KVM_SET_CPUID2 everything.
    pub(super) fn known_features(&self) -> Features {
        if self.cpuid.entries().is_empty() { Features::all() } else { self.features }
    }

    pub(super) fn get_fpu(&mut self) -> KvmFpu {
        fpu::to_abi(&self.cpu.registers(Groups::FPU).fpu)
    }

    pub(super) fn set_fpu(&mut self, new: &KvmFpu) -> Result<Outcome<B>, Errno> {
        fpu::from_abi(&mut self.cpu.registers_mut(Groups::FPU).fpu, new);
        Ok(Outcome::OK)
    }

    pub(super) fn get_xsave(&mut self, arg: u64, backend: &B) -> Result<Outcome<B>, Errno> {
        let mut bytes = platform::fallible::try_vec(0, size_of::<KvmXsave>())?;
        fpu::to_xsave(&self.cpu.registers(Groups::FPU).fpu, backend.xcr0(), &mut bytes);
        uaccess::put_bytes::<Mem<B>>(arg, &bytes)?;
        Ok(Outcome::OK)
    }

    pub(super) fn set_xsave(&mut self, arg: u64, backend: &B) -> Result<Outcome<B>, Errno> {
        let bytes = uaccess::get_bytes::<Mem<B>>(arg, size_of::<KvmXsave>())?;
        fpu::from_xsave(&mut self.cpu.registers_mut(Groups::FPU).fpu, &bytes, backend.xcr0())?;
        Ok(Outcome::OK)
    }

    pub(super) fn get_xcrs(&mut self) -> KvmXcrs {
        fpu::to_xcrs(self.cpu.registers(Groups::FPU).xcr0)
    }

    pub(super) fn set_xcrs(&mut self, new: &KvmXcrs, backend: &B) -> Result<Outcome<B>, Errno> {
        if let Some(xcr0) = fpu::from_xcrs(new, backend.xcr0())? {
            self.cpu.registers_mut(Groups::FPU).xcr0 = xcr0;
        }
        Ok(Outcome::OK)
    }

    pub(super) fn get_debugregs(&mut self) -> KvmDebugregs {
        let state = self.cpu.registers(Groups::DEBUG);
        KvmDebugregs { db: state.dr, dr6: state.dr6, dr7: state.dr7, ..KvmDebugregs::default() }
    }

    pub(super) fn set_debugregs(&mut self, new: &KvmDebugregs) -> Result<Outcome<B>, Errno> {
        if new.flags != 0 || new.dr6 >> 32 != 0 || new.dr7 >> 32 != 0 {
            return Err(Errno::EINVAL);
        }
        let state = self.cpu.registers_mut(Groups::DEBUG);
        state.dr = new.db;
        state.dr6 = new.dr6 | debug::DR6_FIXED;
        state.dr7 = new.dr7 & debug::DR7_VOLATILE | debug::DR7_FIXED;
        Ok(Outcome::OK)
    }

    /// KVM_TRANSLATE (row A11): a supervisor's read, which sets accessed bits as on Linux.
    pub(super) fn translate(
        &mut self,
        arg: u64,
        vm: &VmShared<B::Platform>,
        reader: usize,
    ) -> Result<Outcome<B>, Errno> {
        let mut answer: KvmTranslation = uaccess::get::<Mem<B>, _>(arg)?;
        let view = vm.space(self.smm.inside).view(reader).ok_or(Errno::EIO)?;
        self.reread_pdptes(&view);
        let state = self.cpu.registers(Groups::CONTROL);
        let paging = Paging::new(state, self.features, self.physical_bits);
        let found = walk(&view, &paging, answer.linear_address, Request::READ.lift_smap()).ok();
        drop(view);
        answer.physical_address = found.map_or(u64::MAX, |t| t.gpa);
        // As Linux has it, which tells no rights.
        (answer.valid, answer.writeable, answer.usermode) = (found.is_some().into(), 1, 0);
        uaccess::put::<Mem<B>, _>(arg, &answer)?;
        Ok(Outcome::OK)
    }

    pub(super) fn set_mp_state(&mut self, new: &KvmMpState, lapic: &LapicShared) -> Result<Outcome<B>, Errno> {
        let mp = MpState::from_abi(new.mp_state, lapic.sipi_vector(), self.apic.is_some())?;
        if mp.is_after_init() && (self.smm.inside || lapic.smi_pending()) {
            return Err(Errno::EINVAL);
        }
        self.mp = mp;
        if self.mp != MpState::Runnable {
            self.unhalted = false;
        }
        Ok(Outcome::OK)
    }

    #[inline(never)]
    pub(super) fn get_lapic(&mut self, arg: u64, vm: &VmShared<B::Platform>) -> Result<Outcome<B>, Errno> {
        let apic = self.apic.as_mut().ok_or(Errno::EINVAL)?;
        apic.timer_expired(&self.tsc);
        let state = apic.lapic.state(vm.chips.ids_32bit(), LocalApic::<B::Platform>::now(&self.tsc));
        uaccess::put::<Mem<B>, _>(arg, &state)?;
        Ok(Outcome::OK)
    }

    #[inline(never)]
    pub(super) fn set_lapic(&mut self, arg: u64, vm: &VmShared<B::Platform>) -> Result<Outcome<B>, Errno> {
        let new: KvmLapicState = uaccess::get::<Mem<B>, _>(arg)?;
        let apic = self.apic.as_mut().ok_or(Errno::EINVAL)?;
        let now = LocalApic::<B::Platform>::now(&self.tsc);
        apic.lapic.set_state(&new, vm.chips.ids_32bit(), now).map_err(|_: StateError| Errno::EINVAL)?;
        apic.arm(&self.tsc);
        self.show_cr8();
        Ok(Outcome::OK)
    }

    /// The state after reset.
    #[inline(never)]
    pub(super) fn reset(&mut self) {
        *self.cpu.registers_mut(Groups::ALL) = CpuState::reset(0);
    }

    /// INIT (SDM vol. 3, table 9-1): as reset, but FPU, XCR0, CR0.CD and NW, and most MSRs stay.
    pub(crate) fn init(&mut self, boot: bool) {
        let signature = self.cpuid.signature();
        let state = self.cpu.registers_mut(Groups::ALL);
        let old = state.clone();
        *state = CpuState::reset(signature);
        let kept = Cr0::CD.bits() | Cr0::NW.bits();
        state.cr0 = state.cr0 & !kept | old.cr0 & kept;
        (state.fpu, state.xcr0, state.tsc_aux) = (old.fpu, old.xcr0, old.tsc_aux);
        (state.star, state.lstar, state.cstar, state.sfmask) = (old.star, old.lstar, old.cstar, old.sfmask);
        (state.sysenter_cs, state.sysenter_esp, state.sysenter_eip) =
            (old.sysenter_cs, old.sysenter_esp, old.sysenter_eip);
        state.kernel_gs_base = old.kernel_gs_base;
        self.flush_guest();
        self.cpu.set_nmi_blocked(false);
        self.events.clear();
        self.tx.abandon();
        self.unhalted = false;
        self.async_pf = AsyncPf::default();
        if let Some(apic) = &mut self.apic {
            apic.lapic.init();
            apic.arm(&self.tsc);
        }
        self.mp = if boot { MpState::Runnable } else { MpState::InitReceived };
    }

    /// SIPI: real mode at page `vector`.
    pub(super) fn start_at(&mut self, vector: u8) {
        let state = self.cpu.registers_mut(Groups::ALL);
        let cs = &mut state.seg[x86::Seg::Cs as usize];
        cs.selector = u16::from(vector) << 8;
        cs.base = u64::from(vector) << 12;
        state.rip = 0;
        state.refresh();
        self.mp = MpState::Runnable;
    }

    /// INIT and SIPI that have come, as KVM_GET_MP_STATE shows them.
    pub(super) fn pull_init_sipi(&mut self, vm: &VmShared<B::Platform>, index: usize) {
        let lapic = &vm.vcpu(index).lapic;
        if self.apic.is_none() || self.smm.inside || !lapic.has_init_or_sipi() {
            return;
        }
        if lapic.take_init() {
            self.init(vm.is_boot_cpu(index as u32));
        }
        if self.mp == MpState::InitReceived
            && let Some(vector) = lapic.take_sipi()
        {
            self.mp = MpState::SipiReceived(vector);
        }
    }
}

/// Whether a processor with `features` can be in this state.
pub(super) fn valid_sregs(s: &KvmSregs, features: Features) -> bool {
    let paging = s.cr0 & Cr0::PG.bits() != 0;
    let (pae, lme, lma) =
        (s.cr4 & Cr4::PAE.bits() != 0, s.efer & Efer::LME.bits() != 0, s.efer & Efer::LMA.bits() != 0);
    let modes = if lme && paging { pae && lma } else { !lma && (s.cs.l == 0 || !paging) };
    let cr0 = s.cr0 >> 32 == 0
        && (!paging || s.cr0 & Cr0::PE.bits() != 0)
        && (s.cr0 & Cr0::NW.bits() == 0 || s.cr0 & Cr0::CD.bits() != 0);
    modes && cr0 && s.cr4 & !allowed_cr4(features) == 0 && valid_efer(s.efer, features)
}

/// CR4 bits that a processor with `features` has.
fn allowed_cr4(features: Features) -> u64 {
    let mut allowed = Cr4::PCE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::TSD;
    for (feature, bit) in [
        (Features::VME, Cr4::VME | Cr4::PVI),
        (Features::DE, Cr4::DE),
        (Features::PSE, Cr4::PSE),
        (Features::PAE, Cr4::PAE),
        (Features::MCE, Cr4::MCE),
        (Features::PGE, Cr4::PGE),
        (Features::UMIP, Cr4::UMIP),
        (Features::FSGSBASE, Cr4::FSGSBASE),
        (Features::PCID, Cr4::PCIDE),
        (Features::XSAVE, Cr4::OSXSAVE),
        (Features::SMEP, Cr4::SMEP),
        (Features::SMAP, Cr4::SMAP),
    ] {
        if features.contains(feature) {
            allowed |= bit;
        }
    }
    allowed.bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_states_are_refused() {
        let good = regs::sregs_to_abi(&CpuState::reset(0));
        let long = KvmSregs { cr0: 0x8000_0011, cr4: 0x20, efer: 0x500, ..good };
        assert!(valid_sregs(&good, Features::all()) && valid_sregs(&long, Features::all()));
        for bad in [
            KvmSregs { cr0: 0x8000_0010, ..good },    // PG without PE
            KvmSregs { cr0: 1 << 32 | 0x10, ..good }, // reserved
            KvmSregs { cr0: 0x2000_0010, ..good },    // NW without CD
            KvmSregs { cr4: 1 << 25, ..good },        // reserved
            KvmSregs { cr4: 0, ..long },              // long mode without PAE
            KvmSregs { efer: 0x100, ..long },         // LME and paging without LMA
            KvmSregs { efer: 0x400, ..good },         // LMA without paging
            KvmSregs { efer: 1 << 12, ..good },       // SVME
        ] {
            assert!(!valid_sregs(&bad, Features::all()), "{bad:?}");
        }
        assert!(!valid_sregs(&long, Features::all() - Features::LM));
    }
}
