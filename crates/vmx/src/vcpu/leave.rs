//! What the control structure says behind an exit, and what the exit means.
use hardware::{
    event::{self, CutShort},
    payload,
};
use hv::backend::{EventKind, Exit, Groups};
use platform::{Hardware, hardware::Watch};
use x86::{Exception, Shadow, Vector, debug, flags};

use super::{Guest, held, held::blocked};
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
    report: Report,
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

/// Breakpoints that are enabled in DR7.
const DR7_ENABLED: u64 = 0xff;

/// What mode and privilege level depend on, beside the control registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Levels {
    /// Access rights of CS and SS.
    rights: [u32; 2],
    virtual_8086: u64,
}

/// What the control structure has, and `state` only if somebody asks.
const LAZY: Groups = Groups::SEGMENTS.and(Groups::FPU);

impl<P: Hardware, I: Instructions> Guest<P, I> {
    /// Reads what every exit needs, and what belongs to its reason.
    pub(crate) fn read(&mut self, common: &Common<P>, vmcs: &Current<I>) {
        let reason = vmcs.read(EXIT_REASON);
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
        // The processor has taken the event, if there was one.
        fields.event.changed_unless(0);
        if reason == reason::TRIPLE_FAULT {
            fields.activity.changed();
        }
        let mut rflags = fields.rflags.get(vmcs);
        let held = fields.interruptibility.get(vmcs);
        self.traps = if held & blocked::MOV_SS != 0 { fields.pending_debug.get(vmcs) & held::TRAPS } else { 0 };
        if (rflags & flags::TF) | (self.asked.dr7(&self.state) & DR7_ENABLED) != 0 {
            fields.pending_debug.changed();
        }
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
            let levels = Levels { rights: sync::read_rights(vmcs), virtual_8086: rflags & flags::VM };
            if self.levels != Some(levels) {
                self.levels = Some(levels);
                sync::take_rights(levels.rights, state);
            }
        }
        self.note_nmi(&common.processor, held);
        self.known = None;
        self.stale = self.stale.and(LAZY);
        if common.nested {
            self.stale = self.stale.and(Groups::PAGING);
        } else {
            // The core asks for it before each entry.
            self.take_cr0(common, vmcs);
        }
        // SAFETY: as in `settle`.
        if unsafe { self.user_mode.told().is_loaded(true) } {
            self.stale = self.stale.and(Groups::MSRS);
        }
        self.left = Left { report, vectoring, vectoring_code };
    }

    /// What the exit means.
    pub(super) fn left(&mut self, common: &Common<P>) -> Exit {
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
