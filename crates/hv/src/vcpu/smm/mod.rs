//! System management mode (APM vol. 2, chapter 10; SDM vol. 3, chapter 32): an SMI takes the processor to the firmware's
//! handler behind SMBASE, RSM takes it back.
//!
//! In the mode the guest sees memory of its own: the client's slots of address space 1 (KVM_CAP_MULTI_ADDRESS_SPACE), where it
//! puts SMRAM in the place of what others see. A back end that looks addresses up in the slots runs the handler by itself.
//! Tables for a processor are only made of address space 0: with them the hypervisor executes the handler's instructions,
//! which are few.
mod area;

use x86::{Attr, CpuState, Cr0, Efer, Features, Segment, Shadow, Table, debug};

use super::{Inner, MpState, Run, Step, regs, state_ioctl::valid_sregs};
use crate::{
    Errno,
    backend::{Backend, BackendVcpu, Event, EventKind, FlushTlb, Groups},
    vm::VmShared,
};
use area::{Area, Layout};

/// SMBASE after reset.
const BASE_RESET: u32 = 0x3_0000;
/// Where the handler begins, from SMBASE.
const ENTRY: u64 = 0x8000;

/// System management mode of one vCPU. Whether an SMI is pending stands where interrupts arrive (`irqchip::LapicShared`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Smm {
    /// The handler runs.
    pub(crate) inside: bool,
    /// NMIs were blocked already when it began: RSM leaves them so.
    pub(crate) inside_nmi: bool,
    /// SMBASE.
    pub(crate) base: u32,
    /// SMIs taken: MSR_SMI_COUNT.
    pub(crate) count: u64,
}

impl Default for Smm {
    fn default() -> Self {
        Self { inside: false, inside_nmi: false, base: BASE_RESET, count: 0 }
    }
}

impl<B: Backend> Inner<B> {
    fn smm_layout(&self) -> Layout {
        if self.features.contains(Features::LM) { Layout::Bits64 } else { Layout::Bits32 }
    }

    /// From now on the guest sees the memory of system management mode, or no longer.
    pub(super) fn set_inside_smm(&mut self, inside: bool) {
        if self.smm.inside != inside {
            self.smm.inside = inside;
            self.cpu.flush(FlushTlb::Physical);
            self.mmu.flushed = true;
        }
    }

    /// Saves the registers and goes to the handler.
    fn enter_smm(&mut self, vm: &VmShared<B::Platform>, reader: usize) {
        self.smm.count += 1;
        let (layout, base) = (self.smm_layout(), self.smm.base);
        self.set_inside_smm(true);
        let state = self.cpu.registers_mut(Groups::ALL);
        let mut area = Area::EMPTY;
        area.save(layout, state, base);
        smm_registers(state, base);
        // Firmware that has no memory there loses what was to be saved, as on a board.
        let at = u64::from(base) + area::OFFSET;
        let _ = vm.write_smram(reader, at, &area.0);
        self.smm.inside_nmi = self.cpu.nmi_blocked();
        self.cpu.set_nmi_blocked(true);
    }

    /// RSM. False: the saved state is none that a processor can be in, and it shuts down.
    fn leave_smm(&mut self, vm: &VmShared<B::Platform>, reader: usize) -> bool {
        let (layout, features) = (self.smm_layout(), self.known_features());
        let mut area = Area::EMPTY;
        let at = u64::from(self.smm.base) + area::OFFSET;
        let read = vm.space(true).view(reader).is_some_and(|view| mmu::PhysMem::read(&*view, at, &mut area.0).is_ok());
        self.set_inside_smm(false);
        if !self.smm.inside_nmi {
            self.cpu.set_nmi_blocked(false);
        }
        self.smm.inside_nmi = false;
        if !read {
            return false;
        }
        let (physical_bits, base) = (self.physical_bits, self.smm.base);
        let state = self.cpu.registers_mut(Groups::ALL);
        let mut before = Area::EMPTY;
        before.save(Layout::Bits64, state, base);
        let Some(base) = resume(&area, layout, state, features, |state| {
            let view = vm.space(false).view(reader);
            view.and_then(|view| mmu::walk::load_pdptes(&*view, state.cr3, physical_bits).ok().flatten())
        }) else {
            // The client may go on all the same: with registers that a processor can have.
            before.load(Layout::Bits64, state);
            state.refresh();
            return false;
        };
        self.smm.base = base;
        true
    }
}

/// Takes the registers out of `area`; where SMRAM is from now on. None: they are none that a processor can have.
fn resume(
    area: &Area,
    layout: Layout,
    state: &mut CpuState,
    features: Features,
    pdptes: impl FnOnce(&CpuState) -> Option<[u64; 4]>,
) -> Option<u32> {
    let base = area.load(layout, state);
    state.cr0 |= Cr0::ET.bits();
    // LMA follows from the others.
    let long = state.efer & Efer::LME.bits() != 0 && state.paging();
    state.efer = state.efer & !Efer::LMA.bits() | if long { Efer::LMA.bits() } else { 0 };
    state.refresh();
    if !valid_sregs(&regs::sregs_to_abi(state), features) {
        return None;
    }
    if state.pae() {
        state.pdptr = pdptes(state)?;
    }
    Some(base)
}

/// The registers at the beginning of the handler: real mode with limits of 4 GiB, nothing that interrupts.
fn smm_registers(state: &mut CpuState, base: u32) {
    let attr = Attr(Attr::G | Attr::P | Attr::S | 3);
    let data = Segment { selector: 0, attr, limit: u32::MAX, base: 0 };
    let code = Segment { selector: (base >> 4) as u16, base: base.into(), ..data };
    state.seg = [data, code, data, data, data, data];
    state.rip = ENTRY;
    state.flags.set(0);
    state.shadow = Shadow::None;
    state.cr0 &= !(Cr0::PE | Cr0::EM | Cr0::TS | Cr0::PG).bits();
    (state.cr4, state.efer) = (0, 0);
    state.idtr = Table::default();
    state.dr7 = debug::DR7_FIXED;
    state.refresh();
}

impl<B: Backend> Run<'_, B> {
    /// Takes an SMI if there is one. It comes before NMI and interrupts, but after what is already on its way in.
    pub(super) fn accept_smi(&mut self) -> Result<Step, Errno> {
        if self.inner.smm.inside || !self.shared.lapic.smi_pending() {
            return Ok(Step::Continue);
        }
        let events = &mut self.inner.events;
        if let Some(exception) = events.exception.take_if(|_| events.injected.is_none()) {
            events.injected = Some(Event { kind: EventKind::Exception(exception) });
        }
        if let Some(event) = events.injected {
            return self.deliver(event);
        }
        self.shared.lapic.take_smi();
        self.inner.enter_smm(self.vm, self.index);
        Ok(Step::Continue)
    }

    /// RSM, which outside of system management mode is #UD.
    pub(crate) fn rsm(&mut self) -> Result<Step, Errno> {
        if !self.inner.smm.inside {
            return self.undefined();
        }
        if !self.inner.leave_smm(self.vm, self.index) {
            self.inner.events.triple_fault = true;
        }
        Ok(Step::Continue)
    }

    /// Whether the hypervisor executes what the guest does now.
    pub(super) fn executes_smm(&self) -> bool {
        self.inner.smm.inside && self.vm.shadow.is_some()
    }
}

impl MpState {
    /// A state in which INIT would have been taken, which waits while an SMI is handled.
    pub(super) fn is_after_init(self) -> bool {
        matches!(self, Self::InitReceived | Self::SipiReceived(_))
    }
}
