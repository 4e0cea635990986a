//! Why the guest stopped, from the processor's words into the core's (SDM vol. 3, appendix C and 28.2.1).
use hv::backend::{Access, CrOp, Exit, PioExit};
use x86::{Exception, Vector};

use crate::inject;

/// Basic exit reasons.
#[allow(missing_docs)]
pub mod reason {
    pub const EVENT: u32 = 0;
    pub const INTERRUPT: u32 = 1;
    pub const TRIPLE_FAULT: u32 = 2;
    pub const INIT: u32 = 3;
    pub const IO_SMI: u32 = 5;
    pub const OTHER_SMI: u32 = 6;
    pub const INTERRUPT_WINDOW: u32 = 7;
    pub const NMI_WINDOW: u32 = 8;
    pub const TASK_SWITCH: u32 = 9;
    pub const CPUID: u32 = 10;
    pub const GETSEC: u32 = 11;
    pub const HLT: u32 = 12;
    pub const INVD: u32 = 13;
    pub const INVLPG: u32 = 14;
    pub const RDPMC: u32 = 15;
    pub const RDTSC: u32 = 16;
    pub const RSM: u32 = 17;
    pub const VMCALL: u32 = 18;
    pub const VMCLEAR: u32 = 19;
    pub const VMXON: u32 = 27;
    pub const CR: u32 = 28;
    pub const DR: u32 = 29;
    pub const IO: u32 = 30;
    pub const RDMSR: u32 = 31;
    pub const WRMSR: u32 = 32;
    pub const INVALID_STATE: u32 = 33;
    pub const MSR_LOAD: u32 = 34;
    pub const MWAIT: u32 = 36;
    pub const MONITOR: u32 = 39;
    pub const PAUSE: u32 = 40;
    pub const MACHINE_CHECK: u32 = 41;
    pub const GDTR_IDTR: u32 = 46;
    pub const LDTR_TR: u32 = 47;
    pub const EPT_VIOLATION: u32 = 48;
    pub const INVEPT: u32 = 50;
    pub const RDTSCP: u32 = 51;
    pub const INVVPID: u32 = 53;
    pub const WBINVD: u32 = 54;
    pub const XSETBV: u32 = 55;
    /// The entry failed after the host's state had been left.
    pub const ENTRY_FAILED: u32 = 1 << 31;
}

/// The qualification of an exit for MOV CR, CLTS or LMSW.
mod cr {
    pub const TO: u64 = 0;
    pub const FROM: u64 = 1;
}

/// The qualification of an EPT violation.
mod ept {
    pub const WRITE: u64 = 1 << 1;
    pub const FETCH: u64 = 1 << 2;
    /// There is a linear address; the access was to what it translates to, not to one of the guest's tables.
    pub const LINEAR: u64 = 1 << 7;
    pub const FINAL: u64 = 1 << 8;
    /// IRET had unblocked NMIs.
    pub const NMI_UNBLOCKED: u64 = 1 << 12;
}

/// What the control structure says about an exit; fields that have no meaning for its reason are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Exit reason.
    pub reason: u32,
    /// Exit qualification.
    pub qualification: u64,
    /// Length of the instruction.
    pub len: u8,
    /// Exit interruption information.
    pub event: u32,
    /// Its error code.
    pub code: u32,
    /// Guest-physical address.
    pub gpa: u64,
}

/// An exit as the vCPU takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// For the core.
    Exit(Exit),
    /// #DB with these bits of DR6: the guest's, or the client's. RIP is `behind` so many bytes.
    Debug {
        /// Bits of DR6.
        dr6: u64,
        /// Length of INT1, which the processor leaves RIP at.
        behind: u8,
    },
    /// An NMI, which is the host's.
    Nmi,
    /// #MC: the host's.
    MachineCheck,
    /// The guest's state is none that the processor enters.
    InvalidState,
}

impl Report {
    /// Whether the qualification means something for `reason`.
    pub const fn has_qualification(reason: u32) -> bool {
        matches!(
            reason & 0xffff,
            reason::EVENT
                | reason::TASK_SWITCH
                | reason::CR
                | reason::DR
                | reason::IO
                | reason::INVLPG
                | reason::INVALID_STATE
                | reason::MSR_LOAD
                | reason::EPT_VIOLATION
        )
    }

    /// Whether the length of an instruction means something.
    pub const fn has_len(reason: u32) -> bool {
        !matches!(
            reason & 0xffff,
            reason::INTERRUPT
                | reason::TRIPLE_FAULT
                | reason::INTERRUPT_WINDOW
                | reason::NMI_WINDOW
                | reason::EPT_VIOLATION
                | reason::INVALID_STATE
        )
    }

    /// Whether the exit may have cut the delivery of an event short: those for an instruction that the guest has begun have not.
    pub const fn has_vectoring(reason: u32) -> bool {
        !matches!(
            reason,
            reason::CPUID
                | reason::HLT
                | reason::INVLPG
                | reason::RDPMC
                | reason::RDTSC
                | reason::VMCALL
                | reason::CR
                | reason::DR
                | reason::IO
                | reason::RDMSR
                | reason::WRMSR
                | reason::MWAIT
                | reason::MONITOR
                | reason::PAUSE
                | reason::GDTR_IDTR
                | reason::LDTR_TR
                | reason::RDTSCP
                | reason::WBINVD
                | reason::XSETBV
        )
    }

    /// The exit, if it is for an instruction that the core carries out with general registers (`Groups::PLAIN`).
    #[inline]
    pub fn plain(&self) -> Option<Exit> {
        let len = self.len;
        Some(match self.reason {
            reason::CPUID => Exit::Cpuid { len },
            reason::IO => Exit::Pio(self.port_io()),
            reason::RDMSR => Exit::MsrRead { len },
            reason::WRMSR => Exit::MsrWrite { len },
            reason::HLT => Exit::Hlt { len },
            reason::PAUSE => Exit::Pause { len },
            reason::VMCALL => Exit::Hypercall { len },
            _ => return None,
        })
    }

    /// Whether [`Self::plain`] is for exits of `reason`.
    #[inline]
    pub const fn is_plain(reason: u32) -> bool {
        matches!(
            reason,
            reason::CPUID | reason::IO | reason::RDMSR | reason::WRMSR | reason::HLT | reason::PAUSE | reason::VMCALL
        )
    }

    /// Whether IRET had unblocked NMIs before it met what ended the guest's stay. `vectoring`: an event was on its way.
    pub fn nmi_unblocked(&self, vectoring: bool) -> bool {
        let unblocked = match self.reason {
            reason::EVENT => {
                let met = inject::met(self.event);
                self.event & inject::NMI_UNBLOCKED != 0 && met.vector != Vector::DF && !met.nmi
            }
            reason::EPT_VIOLATION => self.qualification & ept::NMI_UNBLOCKED != 0,
            _ => false,
        };
        unblocked && !vectoring
    }

    fn event(&self) -> Decoded {
        let met = inject::met(self.event);
        if met.nmi {
            return Decoded::Nmi;
        }
        Decoded::Exit(match met.vector {
            Vector::MC => return Decoded::MachineCheck,
            Vector::DB => {
                let behind = if met.int1 { self.len } else { 0 };
                return Decoded::Debug { dr6: self.qualification, behind };
            }
            Vector::PF => Exit::PageFault { gva: self.qualification, code: self.code, implicit: false },
            Vector::AC => Exit::Exception { exception: Exception::with_code(Vector::AC, self.code) },
            vector => Exit::Exception { exception: Exception::plain(vector) },
        })
    }

    fn control(&self, gpr: &[u64; 16]) -> Exit {
        let register = (self.qualification >> 8 & 15) as u8;
        let op = match (self.qualification & 15, self.qualification >> 4 & 3) {
            (number @ (0 | 3 | 4 | 8), cr::TO) => {
                CrOp::Write { number: number as u8, value: gpr[usize::from(register)] }
            }
            (8, cr::FROM) => CrOp::ReadCr8 { gpr: register },
            _ => CrOp::Other,
        };
        Exit::Cr { op, len: self.len }
    }

    fn port_io(&self) -> PioExit {
        let q = self.qualification;
        PioExit {
            port: (q >> 16) as u16,
            size: (q & 7) as u8 + 1,
            write: q & 8 == 0,
            string: q & 16 != 0,
            len: self.len,
        }
    }

    fn nested_page_fault(&self) -> Exit {
        let q = self.qualification;
        let access = if q & ept::FETCH != 0 {
            Access::Fetch
        } else if q & ept::WRITE != 0 {
            Access::Write
        } else {
            Access::Read
        };
        let table_walk = q & (ept::LINEAR | ept::FINAL) == ept::LINEAR;
        Exit::NestedPageFault { gpa: self.gpa, access, table_walk }
    }

    /// The exit. `gpr` are the guest's general registers.
    pub fn decode(&self, gpr: &[u64; 16]) -> Decoded {
        if let Some(exit) = self.plain() {
            return Decoded::Exit(exit);
        }
        let len = self.len;
        if self.reason & reason::ENTRY_FAILED != 0 {
            return match self.reason & 0xffff {
                reason::INVALID_STATE => Decoded::InvalidState,
                reason::MACHINE_CHECK => Decoded::MachineCheck,
                _ => Decoded::Exit(Exit::FailEntry { reason: self.reason.into() }),
            };
        }
        Decoded::Exit(match self.reason {
            reason::EVENT => return self.event(),
            reason::MACHINE_CHECK => return Decoded::MachineCheck,
            reason::INTERRUPT | reason::INIT | reason::IO_SMI | reason::OTHER_SMI => Exit::Interrupted,
            reason::TRIPLE_FAULT => Exit::Shutdown,
            reason::INTERRUPT_WINDOW => Exit::InterruptWindow,
            reason::NMI_WINDOW => Exit::NmiWindow,
            reason::TASK_SWITCH => Exit::TaskSwitch,
            reason::INVD | reason::WBINVD => Exit::CacheFlush { len },
            reason::RDPMC => Exit::Rdpmc { len },
            reason::RSM => Exit::Rsm,
            // Instructions of a hypervisor, which the guest is not offered.
            reason::GETSEC | reason::VMCLEAR..=reason::VMXON | reason::INVEPT | reason::INVVPID => {
                Exit::Exception { exception: Exception::plain(Vector::UD) }
            }
            reason::CR => self.control(gpr),
            reason::INVLPG => Exit::Invlpg { gva: Some(self.qualification), len },
            reason::DR | reason::RDTSC | reason::RDTSCP | reason::GDTR_IDTR | reason::LDTR_TR => Exit::Emulate,
            reason::MWAIT => Exit::MonitorMwait { len, wait: true },
            reason::MONITOR => Exit::MonitorMwait { len, wait: false },
            reason::EPT_VIOLATION => self.nested_page_fault(),
            reason::XSETBV => Exit::Xsetbv { len },
            reason => Exit::Unknown { reason: reason.into() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(report: Report) -> Exit {
        match report.decode(&core::array::from_fn(|n| 0x100 + n as u64)) {
            Decoded::Exit(exit) => exit,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_address_of_invlpg_is_read() {
        assert!(Report::has_qualification(reason::INVLPG));
        let report = Report { reason: reason::INVLPG, qualification: 0x1234, len: 3, ..Report::default() };
        assert_eq!(decode(report), Exit::Invlpg { gva: Some(0x1234), len: 3 });
    }

    fn plain(reason: u32) -> Report {
        Report { reason, len: 2, ..Report::default() }
    }

    fn with(reason: u32, qualification: u64) -> Report {
        Report { qualification, ..plain(reason) }
    }

    #[test]
    fn port_io_is_taken_apart() {
        // out dx, al at port 0x3f8; in eax, 0x60; rep insb.
        let pio = |port, size, write, string| Exit::Pio(PioExit { port, size, write, string, len: 2 });
        assert_eq!(decode(with(30, 0x3f8 << 16)), pio(0x3f8, 1, true, false));
        assert_eq!(decode(with(30, 0x60 << 16 | 1 << 6 | 8 | 3)), pio(0x60, 4, false, false));
        assert_eq!(decode(with(30, 0x60 << 16 | 1 << 5 | 1 << 4 | 8)), pio(0x60, 1, false, true));
    }

    #[test]
    fn what_is_written_to_control_registers_is_known_and_others_emulated() {
        let op = |op| Exit::Cr { op, len: 2 };
        assert_eq!(decode(with(28, 9 << 8 | 8)), op(CrOp::Write { number: 8, value: 0x109 }));
        assert_eq!(decode(with(28, 9 << 8 | 1 << 4 | 8)), op(CrOp::ReadCr8 { gpr: 9 }));
        for number in [0, 3, 4] {
            let written = op(CrOp::Write { number, value: 0x109 });
            assert_eq!(decode(with(28, 9 << 8 | u64::from(number))), written);
        }
        // mov from cr3, clts, lmsw.
        for qualification in [1 << 4 | 3, 2 << 4, 3 << 4 | 0x11 << 16] {
            assert_eq!(decode(with(28, qualification)), op(CrOp::Other), "{qualification:#x}");
        }
    }

    #[test]
    fn ept_violations_say_what_was_tried() {
        let fault = |access, table_walk| Exit::NestedPageFault { gpa: 0xfee0_0300, access, table_walk };
        for (qualification, expected) in [
            (0x181, fault(Access::Read, false)),
            (0x182, fault(Access::Write, false)),
            (0x184, fault(Access::Fetch, false)),
            // A walk with accessed bits counts as both.
            (0x083, fault(Access::Write, true)),
            // The load of PDPTEs has no linear address.
            (0x001, fault(Access::Read, false)),
        ] {
            let report = Report { gpa: 0xfee0_0300, ..with(48, qualification) };
            assert_eq!(decode(report), expected, "{qualification:#x}");
        }
    }

    #[test]
    fn exceptions_come_with_what_belongs_to_them() {
        let event = |event, qualification, code| Report { event, code, ..with(0, qualification) };
        assert_eq!(decode(event(0x8000_0b0e, 0x4567, 7)), Exit::PageFault { gva: 0x4567, code: 7, implicit: false });
        assert_eq!(decode(event(0x8000_0306, 0, 0)), Exit::Exception { exception: Exception::plain(Vector::UD) });
        assert_eq!(decode(event(0x8000_0603, 0, 0)), Exit::Exception { exception: Exception::plain(Vector::BP) });
        let ac = Exit::Exception { exception: Exception::with_code(Vector::AC, 0) };
        assert_eq!(decode(event(0x8000_0b11, 0, 0)), ac);
        let gprs = [0; 16];
        assert_eq!(event(0x8000_0301, 0x4001, 0).decode(&gprs), Decoded::Debug { dr6: 0x4001, behind: 0 });
        assert_eq!(event(0x8000_0501, 0, 0).decode(&gprs), Decoded::Debug { dr6: 0, behind: 2 });
        assert_eq!(event(0x8000_0202, 0, 0).decode(&gprs), Decoded::Nmi);
        assert_eq!(event(0x8000_0312, 0, 0).decode(&gprs), Decoded::MachineCheck);
    }

    #[test]
    fn exits_have_the_numbers_of_the_manual() {
        let ud = Exit::Exception { exception: Exception::plain(Vector::UD) };
        for (reason, expected) in [
            (1, Exit::Interrupted),
            (2, Exit::Shutdown),
            (3, Exit::Interrupted),
            (7, Exit::InterruptWindow),
            (8, Exit::NmiWindow),
            (9, Exit::TaskSwitch),
            (10, Exit::Cpuid { len: 2 }),
            (11, ud),
            (12, Exit::Hlt { len: 2 }),
            (13, Exit::CacheFlush { len: 2 }),
            (14, Exit::Invlpg { gva: Some(0), len: 2 }),
            (15, Exit::Rdpmc { len: 2 }),
            (16, Exit::Emulate),
            (17, Exit::Rsm),
            (18, Exit::Hypercall { len: 2 }),
            (19, ud),
            (27, ud),
            (29, Exit::Emulate),
            (31, Exit::MsrRead { len: 2 }),
            (32, Exit::MsrWrite { len: 2 }),
            (36, Exit::MonitorMwait { len: 2, wait: true }),
            (39, Exit::MonitorMwait { len: 2, wait: false }),
            (40, Exit::Pause { len: 2 }),
            (49, Exit::Unknown { reason: 49 }),
            (50, ud),
            (51, Exit::Emulate),
            (53, ud),
            (54, Exit::CacheFlush { len: 2 }),
            (55, Exit::Xsetbv { len: 2 }),
            (0x8000_0022, Exit::FailEntry { reason: 0x8000_0022 }),
        ] {
            assert_eq!(decode(plain(reason)), expected, "{reason}");
        }
        assert_eq!(plain(0x8000_0021).decode(&[0; 16]), Decoded::InvalidState);
        assert_eq!(plain(41).decode(&[0; 16]), Decoded::MachineCheck);
    }

    #[test]
    fn instructions_cut_no_event_short() {
        for (reasons, expected) in
            [(&[0, 1, 2, 9, 48, 49, 0x8000_0021][..], true), (&[10, 12, 18, 28, 30, 31, 32, 40, 55], false)]
        {
            assert!(reasons.iter().all(|reason| Report::has_vectoring(*reason) == expected), "{reasons:?}");
        }
    }

    #[test]
    fn an_iret_that_faulted_leaves_nmis_blocked() {
        let fault = |event| Report { event, ..plain(0) };
        assert!(fault(0x8000_1b0e).nmi_unblocked(false));
        assert!(!fault(0x8000_1b0e).nmi_unblocked(true));
        assert!(!fault(0x8000_0b0e).nmi_unblocked(false));
        assert!(!fault(0x8000_1b08).nmi_unblocked(false));
        assert!(with(48, 0x1182).nmi_unblocked(false) && !with(48, 0x182).nmi_unblocked(false));
        assert!(!plain(10).nmi_unblocked(false));
    }
}
