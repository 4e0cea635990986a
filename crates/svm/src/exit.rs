//! Why the guest stopped, from the processor's words into the core's (APM vol. 2, appendix C).
use hv::backend::{Access, CrOp, Exit, PioExit};
use x86::{Exception, Vector};

/// Exit codes.
#[allow(missing_docs)]
pub mod code {
    pub const READ_CR0: u64 = 0x0;
    pub const READ_CR15: u64 = 0xf;
    pub const WRITE_CR0: u64 = 0x10;
    pub const WRITE_CR8: u64 = 0x18;
    pub const WRITE_CR15: u64 = 0x1f;
    pub const READ_DR0: u64 = 0x20;
    pub const WRITE_DR15: u64 = 0x3f;
    pub const EXCEPTION_0: u64 = 0x40;
    pub const DB: u64 = 0x41;
    pub const BP: u64 = 0x43;
    pub const UD: u64 = 0x46;
    pub const PF: u64 = 0x4e;
    pub const AC: u64 = 0x51;
    pub const MC: u64 = 0x52;
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const SMI: u64 = 0x62;
    pub const INIT: u64 = 0x63;
    pub const VINTR: u64 = 0x64;
    pub const CR0_SELECTIVE: u64 = 0x65;
    pub const RDTSC: u64 = 0x6e;
    pub const RDPMC: u64 = 0x6f;
    pub const CPUID: u64 = 0x72;
    pub const RSM: u64 = 0x73;
    pub const IRET: u64 = 0x74;
    pub const INVD: u64 = 0x76;
    pub const PAUSE: u64 = 0x77;
    pub const HLT: u64 = 0x78;
    pub const INVLPG: u64 = 0x79;
    pub const INVLPGA: u64 = 0x7a;
    pub const IO: u64 = 0x7b;
    pub const MSR: u64 = 0x7c;
    pub const TASK_SWITCH: u64 = 0x7d;
    pub const SHUTDOWN: u64 = 0x7f;
    pub const VMRUN: u64 = 0x80;
    pub const VMMCALL: u64 = 0x81;
    pub const VMLOAD: u64 = 0x82;
    pub const SKINIT: u64 = 0x86;
    pub const RDTSCP: u64 = 0x87;
    pub const WBINVD: u64 = 0x89;
    pub const MONITOR: u64 = 0x8a;
    pub const MWAIT: u64 = 0x8b;
    pub const MWAIT_ARMED: u64 = 0x8c;
    pub const XSETBV: u64 = 0x8d;
    pub const RDPRU: u64 = 0x8e;
    pub const NESTED_PAGE_FAULT: u64 = 0x400;
    /// VMRUN has refused the control block.
    pub const INVALID: u64 = u64::MAX;
}

/// EXITINFO1 of port I/O.
mod io {
    pub const IN: u64 = 1 << 0;
    pub const STRING: u64 = 1 << 2;
    pub const SIZES: u64 = 7;
}

/// EXITINFO1 of nested page faults: that of page faults, and where the fault was met.
mod nested {
    pub const WRITE: u64 = 1 << 1;
    pub const FETCH: u64 = 1 << 4;
    pub const TABLE_WALK: u64 = 1 << 33;
}

/// EXITINFO1 of control-register accesses, with decode assists: it was a MOV, from or to the register of bits 3:0.
const MOV_CR: u64 = 1 << 63;

/// What the control block says about an exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// EXITCODE.
    pub code: u64,
    /// EXITINFO1.
    pub info_1: u64,
    /// EXITINFO2.
    pub info_2: u64,
    /// Where the instruction is.
    pub rip: u64,
    /// Where it ends, if the processor tells: 0 if not.
    pub next_rip: u64,
}

/// An exit as the vCPU takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// For the core.
    Exit(Exit),
    /// The guest can take an interrupt now.
    Window,
    /// #DB: the guest's, or the client's.
    Debug,
    /// #MC: the host's.
    MachineCheck,
}

impl Report {
    /// Length of the instruction, 0 if not known.
    fn len(&self, next: u64) -> u8 {
        let len = next.wrapping_sub(self.rip);
        if (1..=15).contains(&len) { len as u8 } else { 0 }
    }

    #[inline]
    fn port_io(&self) -> PioExit {
        PioExit {
            port: (self.info_1 >> 16) as u16,
            // One of three bits for 1, 2 and 4.
            size: (self.info_1 >> 4 & io::SIZES) as u8,
            write: self.info_1 & io::IN == 0,
            string: self.info_1 & io::STRING != 0,
            len: self.len(self.info_2),
        }
    }

    fn nested_page_fault(&self) -> Exit {
        let access = if self.info_1 & nested::FETCH != 0 {
            Access::Fetch
        } else if self.info_1 & nested::WRITE != 0 {
            Access::Write
        } else {
            Access::Read
        };
        Exit::NestedPageFault { gpa: self.info_2, access, table_walk: self.info_1 & nested::TABLE_WALK != 0 }
    }

    /// The exit. `gpr` are the guest's general registers, `assists` says whether the processor decodes MOV CR and INVLPG.
    pub fn decode(&self, gpr: &[u64; 16], assists: bool) -> Decoded {
        if self.code == code::IO {
            // The commonest by far.
            return Decoded::Exit(Exit::Pio(self.port_io()));
        }
        let len = self.len(self.next_rip);
        Decoded::Exit(match self.code {
            code::WRITE_CR8 if assists && self.info_1 & MOV_CR != 0 => {
                let value = gpr[(self.info_1 & 15) as usize];
                Exit::Cr { op: CrOp::Write { number: 8, value }, len }
            }
            code::READ_CR0..=code::READ_CR15 | code::WRITE_CR0..=code::WRITE_CR15 | code::CR0_SELECTIVE => {
                Exit::Cr { op: CrOp::Other, len }
            }
            // IRET: the emulator tells that it ends an NMI handler.
            code::READ_DR0..=code::WRITE_DR15 | code::IRET | code::RDTSC | code::RDTSCP => Exit::Emulate,
            code::DB => return Decoded::Debug,
            code::MC => return Decoded::MachineCheck,
            code::BP | code::UD => {
                Exit::Exception { exception: Exception::plain(Vector((self.code - code::EXCEPTION_0) as u8)) }
            }
            code::AC => Exit::Exception { exception: Exception::with_code(Vector::AC, self.info_1 as u32) },
            code::PF => Exit::PageFault { gva: self.info_2, code: self.info_1 as u32, implicit: false },
            code::INTR | code::NMI | code::SMI | code::INIT => Exit::Interrupted,
            code::VINTR => return Decoded::Window,
            code::RDPMC => Exit::Rdpmc { len },
            code::CPUID => Exit::Cpuid { len },
            code::RSM => Exit::Rsm,
            code::INVD | code::WBINVD => Exit::CacheFlush { len },
            code::INVLPG => Exit::Invlpg { gva: assists.then_some(self.info_1), len },
            code::PAUSE => Exit::Pause { len },
            code::HLT => Exit::Hlt { len },
            code::MSR if self.info_1 & 1 != 0 => Exit::MsrWrite { len },
            code::MSR => Exit::MsrRead { len },
            code::TASK_SWITCH => Exit::TaskSwitch,
            code::SHUTDOWN => Exit::Shutdown,
            code::VMMCALL => Exit::Hypercall { len },
            // Instructions of a hypervisor, which the guest is not offered.
            code::VMRUN | code::VMLOAD..=code::SKINIT | code::INVLPGA | code::RDPRU => {
                Exit::Exception { exception: Exception::plain(Vector::UD) }
            }
            code::MONITOR => Exit::MonitorMwait { len, wait: false },
            code::MWAIT | code::MWAIT_ARMED => Exit::MonitorMwait { len, wait: true },
            code::XSETBV => Exit::Xsetbv { len },
            code::NESTED_PAGE_FAULT => self.nested_page_fault(),
            code::INVALID => Exit::FailEntry { reason: u32::MAX.into() },
            reason => Exit::Unknown { reason },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(code: u64, info_1: u64, info_2: u64) -> Exit {
        let report = Report { code, info_1, info_2, rip: 0x1000, next_rip: 0 };
        match report.decode(&[0; 16], false) {
            Decoded::Exit(exit) => exit,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn port_io_is_taken_apart() {
        // out dx, al at port 0x3f8, one byte long; in eax, 0x60, two bytes; rep insb.
        let out = PioExit { port: 0x3f8, size: 1, write: true, string: false, len: 1 };
        assert_eq!(decode(code::IO, 0x3f8 << 16 | 1 << 4, 0x1001), Exit::Pio(out));
        let input = PioExit { port: 0x60, size: 4, write: false, string: false, len: 2 };
        assert_eq!(decode(code::IO, 0x60 << 16 | 1 << 6 | 1, 0x1002), Exit::Pio(input));
        let string = PioExit { port: 0x60, size: 1, write: false, string: true, len: 2 };
        assert_eq!(decode(code::IO, 0x60 << 16 | 1 << 4 | 1 << 3 | 1 << 2 | 1, 0x1002), Exit::Pio(string));
    }

    #[test]
    fn lengths_are_told_where_the_processor_knows_them() {
        for (next_rip, len) in [(0x1002, 2), (0x100f, 15), (0, 0), (0x1000, 0), (0x1010, 0)] {
            let report = Report { code: code::CPUID, rip: 0x1000, next_rip, ..Report::default() };
            assert_eq!(report.decode(&[0; 16], true), Decoded::Exit(Exit::Cpuid { len }), "{next_rip:#x}");
        }
    }

    #[test]
    fn nested_page_faults_say_what_was_tried() {
        let fault = |access, table_walk| Exit::NestedPageFault { gpa: 0xfee0_0300, access, table_walk };
        for (info, expected) in [
            (1 << 32 | 4, fault(Access::Read, false)),
            (1 << 32 | 6, fault(Access::Write, false)),
            (1 << 32 | 0x14, fault(Access::Fetch, false)),
            (1 << 33 | 6, fault(Access::Write, true)),
        ] {
            assert_eq!(decode(code::NESTED_PAGE_FAULT, info, 0xfee0_0300), expected, "{info:#x}");
        }
    }

    #[test]
    fn a_write_of_cr8_is_known_with_decode_assists() {
        let mut gpr = [0; 16];
        gpr[9] = 5;
        let report = Report { code: code::WRITE_CR8, info_1: MOV_CR | 9, rip: 0x1000, next_rip: 0x1004, info_2: 0 };
        let write = Exit::Cr { op: CrOp::Write { number: 8, value: 5 }, len: 4 };
        assert_eq!(report.decode(&gpr, true), Decoded::Exit(write));
        let other = Exit::Cr { op: CrOp::Other, len: 4 };
        assert_eq!(report.decode(&gpr, false), Decoded::Exit(other));
    }

    #[test]
    fn exits_have_the_codes_of_the_manual() {
        let plain = |vector| Exit::Exception { exception: Exception::plain(vector) };
        for (code, expected) in [
            (0x00, Exit::Cr { op: CrOp::Other, len: 0 }),
            (0x14, Exit::Cr { op: CrOp::Other, len: 0 }),
            (0x27, Exit::Emulate),
            (0x37, Exit::Emulate),
            (0x43, plain(Vector::BP)),
            (0x46, plain(Vector::UD)),
            (0x60, Exit::Interrupted),
            (0x61, Exit::Interrupted),
            (0x65, Exit::Cr { op: CrOp::Other, len: 0 }),
            (0x72, Exit::Cpuid { len: 0 }),
            (0x74, Exit::Emulate),
            (0x76, Exit::CacheFlush { len: 0 }),
            (0x78, Exit::Hlt { len: 0 }),
            (0x7c, Exit::MsrRead { len: 0 }),
            (0x7d, Exit::TaskSwitch),
            (0x7f, Exit::Shutdown),
            (0x80, plain(Vector::UD)),
            (0x81, Exit::Hypercall { len: 0 }),
            (0x83, plain(Vector::UD)),
            (0x86, plain(Vector::UD)),
            (0x89, Exit::CacheFlush { len: 0 }),
            (0x8b, Exit::MonitorMwait { len: 0, wait: true }),
            (0x8d, Exit::Xsetbv { len: 0 }),
            (u64::MAX, Exit::FailEntry { reason: 0xffff_ffff }),
            (0x401, Exit::Unknown { reason: 0x401 }),
        ] {
            assert_eq!(decode(code, 0, 0), expected, "{code:#x}");
        }
        assert_eq!(decode(0x7c, 1, 0), Exit::MsrWrite { len: 0 });
        assert_eq!(decode(0x4e, 0x7, 0x4567), Exit::PageFault { gva: 0x4567, code: 7, implicit: false });
        for (code, expected) in [(0x41, Decoded::Debug), (0x52, Decoded::MachineCheck), (0x64, Decoded::Window)] {
            assert_eq!(Report { code, ..Report::default() }.decode(&[0; 16], false), expected);
        }
    }
}
