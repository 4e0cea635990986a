//! Control registers that a processor leaves to the hypervisor.
use abi::*;
use emulate::{Invlpg, MovToCr};
use platform::MaySleep;
use x86::{Cr0, Mode};

use crate::{
    Errno,
    backend::{Backend, BackendVcpu, CrOp, FlushTlb, Groups},
    vcpu::{Run, Step},
};

impl<B: Backend> Run<'_, B> {
    pub(super) fn control(&mut self, op: CrOp, len: u8, cx: &MaySleep) -> Result<Step, Errno> {
        match op {
            CrOp::Write { number: 8, value } => self.write_cr8(value, len),
            CrOp::ReadCr8 { gpr } => {
                self.inner.show_cr8();
                let cr8 = self.inner.cpu.registers(Groups::SWITCHES).cr8;
                self.inner.cpu.registers_mut(Groups::GENERAL).gpr[usize::from(gpr & 15)] = cr8;
                self.skip(len);
                Ok(Step::Continue)
            }
            // The emulator knows the rules of CR0, CR3 and CR4.
            CrOp::Write { number, value } => {
                let known = (len != 0).then_some(MovToCr { number, value, len });
                self.write_control(known, cx)
            }
            CrOp::Other => {
                let bytes = self.first_bytes();
                let gpr = &self.inner.cpu.registers(Groups::GENERAL).gpr;
                let known = bytes.and_then(|bytes| MovToCr::of(bytes, gpr));
                self.write_control(known, cx)
            }
        }
    }

    /// MOV to CR0, CR3 or CR4, if it is known to be that. In 64-bit code where paging stays on no segment has a say in it, and
    /// it need not be decoded.
    fn write_control(&mut self, known: Option<MovToCr>, cx: &MaySleep) -> Result<Step, Errno> {
        let state = self.inner.cpu.registers(Groups::GENERAL.and(Groups::CONTROL));
        let modes = (Cr0::PE | Cr0::PG | Cr0::CD | Cr0::NW).bits();
        let simple = known.filter(|mov| {
            let same_mode = mov.number != 0 || (mov.value ^ state.cr0) & modes == 0;
            matches!(mov.number, 0 | 3 | 4) && state.mode == Mode::Long64 && same_mode
        });
        self.emulate_known(simple, cx)
    }

    /// INVLPG. Its address is known, or is in a register; else the instruction is emulated.
    pub(super) fn invlpg(&mut self, gva: Option<u64>, len: u8, cx: &MaySleep) -> Result<Step, Errno> {
        let Some((gva, len)) = gva.map(|gva| (gva, len)).or_else(|| self.invlpg_at_rip()) else {
            return self.emulate(cx);
        };
        self.inner.cpu.flush(FlushTlb::Page(gva));
        if let Some(shadow) = &self.vm.shadow {
            let vm = self.vm;
            let (index, cpu) = (self.index, &mut self.inner.cpu);
            shadow.guest_flushed_page(index, gva, &vm.memory, || {
                vm.vcpus.flush_tlbs_by(index, cpu);
            })?;
        }
        self.skip(len);
        Ok(Step::Continue)
    }

    /// Address and length of the INVLPG at CS:RIP, if that is easy to see.
    fn invlpg_at_rip(&mut self) -> Option<(u64, u8)> {
        let bytes = self.first_bytes()?;
        let state = self.inner.cpu.registers(Groups::GENERAL.and(Groups::CONTROL));
        // Elsewhere segments have a say in it.
        let Invlpg { register, len } = (state.mode == Mode::Long64).then(|| Invlpg::of(bytes)).flatten()?;
        Some((*state.gpr.get(usize::from(register))?, len))
    }

    /// MOV to CR8: the task priority. Without a local APIC in the hypervisor the client hears of a lower one, which may
    /// let an interrupt through (row A13).
    fn write_cr8(&mut self, value: u64, len: u8) -> Result<Step, Errno> {
        if value > 15 {
            return self.refuse();
        }
        let inner = &mut *self.inner;
        let state = inner.cpu.registers_mut(Groups::SWITCHES);
        let lowered = value < state.cr8;
        state.cr8 = value;
        self.skip(len);
        if let Some(apic) = &mut self.inner.apic {
            // Checked above.
            let _ = apic.lapic.set_cr8(value);
            return Ok(Step::Continue);
        }
        if !lowered {
            return Ok(Step::Continue);
        }
        self.page.reason(KVM_EXIT_SET_TPR)?;
        Ok(Step::ToClient)
    }
}
