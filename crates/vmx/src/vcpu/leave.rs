//! What the control structure says behind an exit, and what the exit means.
use hardware::{
    event::{self, CutShort},
    payload,
};
use hv::backend::{EventKind, Exit, Groups};
use platform::Hardware;
use x86::{Exception, Shadow, Vector, debug, flags};

use super::{Guest, held, held::blocked, settled::REST};
use crate::{
    backend::Common,
    exit::{Decoded, Report, reason},
    fields::{
        EXIT_ERROR_CODE, EXIT_EVENT, EXIT_LENGTH, EXIT_REASON, GUEST_PHYSICAL, QUALIFICATION, VECTORING_ERROR_CODE,
        VECTORING_EVENT,
    },
    guest_state::Form,
    inject,
    instructions::Instructions,
    sync,
    vmcs::Current,
};

/// What the processor says about one stay in the guest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Left {
    pub(super) report: Report,
    vectoring: u32,
    vectoring_code: u32,
}

impl Left {
    /// The guest did not run: the processor does not like its state.
    pub(crate) const fn entry_failed(&self) -> bool {
        self.report.reason & reason::ENTRY_FAILED != 0
    }

    /// An NMI of the host's.
    pub(crate) fn is_nmi(&self) -> bool {
        self.report.reason == reason::EVENT && inject::met(self.report.event).nmi
    }

    /// A machine check, while the guest ran or was entered.
    pub(crate) fn is_machine_check(&self) -> bool {
        self.report.reason & 0xffff == reason::MACHINE_CHECK
            || self.report.reason == reason::EVENT && inject::met(self.report.event).vector == Vector::MC
    }
}

/// What mode and privilege level depend on, beside the control registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Levels {
    /// Access rights of CS and SS.
    rights: [u32; 2],
    virtual_8086: u64,
}

/// What the processor has behind an exit, and `state` only if somebody asks. `long`: MSRs of long mode have been loaded.
pub(crate) fn lazy(nested: bool, long: bool) -> Groups {
    let on = |has: bool, groups: Groups| if has { groups } else { Groups(0) };
    Groups::SEGMENTS.and(Groups::FPU).and(on(nested, Groups::PAGING)).and(on(long, Groups::MSRS))
}

impl<P: Hardware, I: Instructions> Guest<P, I> {
    /// Reads what every exit needs, and what belongs to its reason. `went_on`: behind an entry of a settled guest.
    #[inline]
    pub(crate) fn read(&mut self, common: &Common<P>, went_on: bool, vmcs: &Current<I>) {
        let reason = vmcs.read(EXIT_REASON);
        if !self.read_plain(common, reason, went_on, vmcs) {
            self.settled = false;
            self.read_all(common, reason, vmcs);
        }
    }

    /// The same, whatever the reason is.
    #[inline(never)]
    fn read_all(&mut self, common: &Common<P>, reason: u32, vmcs: &Current<I>) {
        let mut report = Report { reason, ..Report::default() };
        if Report::has_qualification(reason) {
            report.qualification = vmcs.read(QUALIFICATION);
        }
        if reason & reason::ENTRY_FAILED != 0 {
            self.left = Left { report, ..Left::default() };
            return;
        }
        if Report::has_len(reason) {
            report.len = vmcs.read(EXIT_LENGTH) as u8;
        }
        if reason == reason::EVENT {
            report.event = vmcs.read(EXIT_EVENT);
            report.code = vmcs.read(EXIT_ERROR_CODE);
        }
        if reason == reason::EPT_VIOLATION {
            report.gpa = vmcs.read(GUEST_PHYSICAL);
        }
        let vectoring = if Report::has_vectoring(reason) { vmcs.read(VECTORING_EVENT) } else { 0 };
        let vectoring_code = if vectoring != 0 { vmcs.read(VECTORING_ERROR_CODE) } else { 0 };
        let fields = &mut *self.fields;
        if reason == reason::TRIPLE_FAULT {
            fields.activity.changed();
        }
        let mut rflags = fields.rflags.get(vmcs);
        let held = fields.interruptibility.get(vmcs);
        self.traps = if held & blocked::MOV_SS != 0 { fields.pending_debug.get(vmcs) & held::TRAPS } else { 0 };
        if rflags & flags::TF != 0 || self.has_breakpoints() {
            self.fields.pending_debug.changed();
        }
        let fields = &mut *self.fields;
        let state = &mut *self.state;
        if self.form == Form::Virtual8086 {
            rflags = rflags & !(flags::VM | flags::IOPL) | state.flags.get() & flags::IOPL;
        }
        state.rip = fields.rip.get(vmcs);
        state.gpr[4] = fields.rsp.get(vmcs);
        state.flags.set(payload::rflags_of_guest(rflags, state, &self.asked.debug));
        state.shadow = if held & blocked::MOV_SS != 0 {
            Shadow::MovSs
        } else if held & blocked::STI != 0 {
            Shadow::Sti
        } else {
            Shadow::None
        };
        if self.form == Form::Virtual8086 {
            state.refresh();
        } else {
            self.take_levels(vmcs, rflags);
        }
        self.note_nmi(&common.processor, held);
        self.known = None;
        self.stale = self.stale.without(REST).and(self.lazy);
        if !common.nested {
            // The core asks for it before each entry.
            self.take_cr0(common, vmcs);
        }
        self.left = Left { report, vectoring, vectoring_code };
    }

    /// Reads what mode and privilege level follow from.
    pub(super) fn take_levels(&mut self, vmcs: &Current<I>, rflags: u64) {
        let levels = Levels { rights: sync::read_rights(vmcs), virtual_8086: rflags & flags::VM };
        if self.levels != Some(levels) {
            self.levels = Some(levels);
            sync::take_rights(levels.rights, &mut self.state);
        }
    }

    /// Whether breakpoints are enabled while the guest runs.
    pub(super) fn has_breakpoints(&self) -> bool {
        self.asked.dr7(&self.state) & debug::DR7_ENABLED != 0
    }

    /// What the exit means.
    #[inline]
    pub(super) fn left(&mut self, common: &Common<P>) -> Exit {
        if let Some(exit) = self.left.report.plain() {
            // None of these cuts a delivery short.
            (self.asked.injected, self.asked.unfinished) = (None, None);
            return exit;
        }
        self.left_otherwise(common)
    }

    /// The same, but for exits that settle.
    #[inline(never)]
    fn left_otherwise(&mut self, common: &Common<P>) -> Exit {
        let Left { report, vectoring, vectoring_code } = self.left;
        if !self.left.entry_failed() {
            self.asked.injected = None;
        }
        let cut_short = event::decode(vectoring, vectoring_code, self.state.cr2, self.state.dr6);
        self.asked.unfinished = None;
        if let CutShort::Event(event) = cut_short {
            self.asked.unfinished = Some(event);
            if event.kind == EventKind::Nmi {
                // It comes again.
                self.asked.nmi_blocked = false;
            }
        }
        if cut_short == CutShort::Instruction {
            event::hold_back(&mut self.state);
        }
        if common.processor.virtual_nmis && report.nmi_unblocked(cut_short != CutShort::Nothing) {
            self.asked.nmi_blocked = true;
        }
        match report.decode(&self.state.gpr) {
            // In real mode the same instruction does what it does, or faults in another way.
            Decoded::Exit(Exit::Exception { exception })
                if self.form == Form::Virtual8086 && !self.is_exception_of_real_mode(exception.vector) =>
            {
                Exit::Emulate
            }
            // INT n through a task gate: the emulator executes all of it.
            Decoded::Exit(Exit::TaskSwitch) if cut_short == CutShort::Instruction => Exit::Emulate,
            Decoded::Exit(exit) => exit,
            Decoded::MachineCheck | Decoded::Nmi => Exit::Interrupted,
            Decoded::Debug { dr6, behind } => {
                self.state.rip = self.state.rip.wrapping_add(behind.into());
                if self.asked.is_debugged() {
                    Exit::Debug { dr6: dr6 | debug::DR6_FIXED }
                } else {
                    Exit::Exception { exception: Exception::debug(dr6) }
                }
            }
            Decoded::InvalidState => {
                self.tell_state(common, report.qualification);
                Exit::FailEntry { reason: report.reason.into() }
            }
        }
    }

    /// Whether an exception in virtual-8086 mode is what real mode would have met.
    fn is_exception_of_real_mode(&self, vector: Vector) -> bool {
        match vector {
            // The core does not execute what raises these.
            Vector::MF | Vector::XM => true,
            Vector::BP => self.asked.debug.software_breakpoints,
            _ => false,
        }
    }
}
