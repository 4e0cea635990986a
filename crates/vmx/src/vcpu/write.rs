//! What the control structure gets before an entry. Most entries come behind exits that have changed a register or two, so whatever
//! depends on more than those is written only when it may have changed.
use hardware::{
    asked::UNSCALED,
    control::{Paging, Registers},
    payload,
};
use hv::backend::{EventKind, Groups};
use mmu::shadow::Root;
use platform::{
    Hardware,
    hardware::{Frames, Watch},
};
use x86::{Cr0, Cr4, Features, Vector, flags};

use super::{
    Guest, held,
    held::{blocked, held_back},
    settled::REST,
};
use crate::{
    backend::Common,
    control,
    controls::{entry, primary, secondary},
    detect::Processor,
    fields::{ENTRY_ERROR_CODE, ENTRY_LENGTH},
    guest_state::Form,
    inject::{self, Injection},
    instructions::Instructions,
    sync,
    vmcs::Current,
};

/// Groups that every entry writes, or somebody else.
const SMALL: Groups = Groups::GENERAL.and(Groups::STATUS).and(Groups::FPU);
/// Where the task priority is in the virtual-APIC page.
const TPR: usize = 0x80;

impl<P: Hardware, I: Instructions> Guest<P, I> {
    /// Writes what has changed into the control structure, which is the current one.
    #[inline(never)]
    pub(crate) fn write(&mut self, common: &Common<P>, root: Root, vmcs: &mut Current<I>) {
        if self.stale.any(REST) {
            self.take_rest(vmcs);
        }
        let changed = core::mem::replace(&mut self.changed, Groups(0));
        if self.asked.injected.is_some() {
            held::join(&mut self.asked.injected, self.traps);
            payload::apply(self.asked.injected.as_ref(), &mut self.state);
        }
        if changed.without(SMALL).0 != 0 || self.unsettled || root != self.root {
            self.settle(common, root, vmcs, changed);
        }
        let mut rflags =
            payload::rflags_to_run(self.state.flags.get(), &self.asked.debug, self.asked.injected.as_ref());
        if self.form == Form::Virtual8086 {
            rflags = rflags & !flags::IOPL | flags::VM;
        }
        let primary = self.primary | self.windows(&common.processor);
        let (fields, state) = (&mut *self.fields, &*self.state);
        fields.rip.put(vmcs, state.rip);
        fields.rsp.put(vmcs, state.gpr[4]);
        fields.rflags.put(vmcs, rflags);
        fields.primary.put(vmcs, primary);
        // The delivery of #DB clears a bit of it.
        fields.dr7.put(vmcs, self.asked.dr7(state));
        self.write_event(&common.processor, vmcs, rflags);
    }

    /// What stays as it is from one entry to the next, unless the core changes it.
    #[inline(never)]
    fn settle(&mut self, common: &Common<P>, root: Root, vmcs: &mut Current<I>, changed: Groups) {
        (self.unsettled, self.root) = (false, root);
        if changed.any(Groups::SEGMENTS.and(Groups::CONTROL)) {
            self.levels = None;
        }
        let (processor, known) = (&common.processor, self.known.take());
        self.fields.start(common, vmcs, self.virtual_apic.as_ref().map(Frames::hpa));
        let state = &*self.state;
        if changed.any(Groups::SEGMENTS) {
            if self.form == Form::Virtual8086 {
                sync::write_segments_8086(vmcs, state);
            } else {
                sync::write_segments(vmcs, state, common.nested, known.as_ref());
            }
        }
        if changed.any(Groups::MSRS) {
            sync::write_msrs(vmcs, state);
            // SAFETY: interrupts are off where there is a current control structure, and its vCPU runs on this thread.
            unsafe { self.user_mode.told().unload() };
        }
        if changed.any(Groups::CONTROL) && common.nested && state.pae() {
            sync::write_pdptes(vmcs, state);
        }
        let registers = control::registers(state, Paging::of(common.nested, root), processor);
        let ept_pointer = self.ept_pointer(common, root);
        let fields = &mut *self.fields;
        if !self.stale.any(Groups::PAGING) {
            fields.cr0.put(vmcs, registers.cr0);
            fields.cr3.put(vmcs, registers.cr3);
        }
        fields.cr0_shadow.put(vmcs, state.cr0);
        fields.cr4.put(vmcs, registers.cr4);
        fields.cr4_shadow.put(vmcs, state.cr4);
        if processor.switches_efer {
            fields.efer.put(vmcs, registers.efer);
        }
        fields.tsc_offset.put(vmcs, self.asked.tsc.offset);
        if processor.tsc_scaling {
            fields.tsc_multiplier.put(vmcs, self.asked.tsc.ratio);
        }
        if common.nested {
            fields.ept_pointer.put(vmcs, ept_pointer);
        }
        self.settle_controls(common, vmcs, &registers);
        self.registers = registers;
        self.ordinary = self.is_ordinary(common);
    }

    /// Control fields that depend on what the guest does.
    fn settle_controls(&mut self, common: &Common<P>, vmcs: &mut Current<I>, registers: &Registers) {
        let on = |wanted: bool, bits: u32| if wanted { bits } else { 0 };
        let processor = &common.processor;
        let scaled = self.asked.tsc.ratio != UNSCALED && !processor.tsc_scaling;
        // Nested paging with PAE: the four roots are read when CR3 is loaded (row B05).
        let pae = common.nested && self.state.pae();
        self.primary = processor.primary
            | on(!common.nested || pae, primary::CR3_LOAD)
            | on(!common.nested, primary::CR3_STORE | primary::INVLPG)
            | on(scaled, primary::RDTSC);
        if processor.has_secondary() {
            // What CPUID does not offer is #UD.
            let has = |features: Features| self.features.intersects(features);
            let refused = on(!has(Features::INVPCID), secondary::INVPCID)
                | on(!has(Features::RDTSCP.union(Features::RDPID)), secondary::RDTSCP);
            let hidden = processor.umip_by_exits && self.state.cr4 & Cr4::UMIP.bits() != 0;
            let wanted = common.secondary | on(hidden, secondary::DESCRIPTOR_TABLES);
            self.fields.secondary.put(vmcs, wanted & !refused);
        }
        self.fields.entry.put(vmcs, processor.entry | on(registers.long_mode(), entry::LONG_MODE));
        let bit = |vector: Vector| 1u32 << vector.0;
        // #DB and #AC: a guest can raise them without end while one is delivered, and must not hold the processor by that.
        // #UD: the other vendor's hypercall instruction. #MC is the host's.
        let exceptions = bit(Vector::DB)
            | bit(Vector::UD)
            | bit(Vector::AC)
            | bit(Vector::MC)
            | on(!common.nested, bit(Vector::PF))
            | on(self.asked.debug.software_breakpoints, bit(Vector::BP));
        let exceptions = if self.form == Form::Virtual8086 { u32::MAX } else { exceptions };
        self.fields.exceptions.put(vmcs, exceptions);
        if let Some(page) = &self.virtual_apic {
            // SAFETY: a page of this vCPU's own, which the processor only reads while the guest runs.
            unsafe { page.as_ptr().add(TPR).write((self.state.cr8 << 4) as u8) };
        }
    }

    /// The event to be delivered, and what is held back.
    fn write_event(&mut self, processor: &Processor, vmcs: &mut Current<I>, rflags: u64) {
        let protected = self.state.cr0 & Cr0::PE.bits() != 0;
        let injection =
            self.asked.injected.as_ref().map_or(Injection::default(), |event| inject::encode(event, protected));
        if injection.has_code() {
            vmcs.write(ENTRY_ERROR_CODE, injection.code);
        }
        if injection.has_len() {
            // The return address is behind the instruction: without a length there is none to go behind.
            let len = if processor.zero_length { injection.len } else { injection.len.max(1) };
            vmcs.write(ENTRY_LENGTH, len);
        }
        self.fields.event.put_once(vmcs, injection.info);
        let injected = self.asked.injected.map(|event| event.kind);
        let (mut held, pending) = held_back(self.state.shadow, rflags, self.traps, injected.is_some());
        if processor.virtual_nmis && self.asked.nmi_blocked && injected != Some(EventKind::Nmi) {
            held |= blocked::NMI;
        }
        self.fields.interruptibility.put(vmcs, held);
        self.fields.pending_debug.put_once(vmcs, pending);
        self.fields.activity.put(vmcs, 0);
    }
}
