//! Events between the core's form and that of VM-entry interruption information, which is also the IDT-vectoring information's and
//! the exit interruption information's (SDM vol. 3, 25.8.3 and 25.9.2).
use hardware::event::{ERROR_CODE, kind, kind_of, pack};
use hv::backend::{Event, EventKind};
use x86::{Exception, Vector};

/// In the information about an exit: IRET had unblocked NMIs before it met this.
pub const NMI_UNBLOCKED: u32 = 1 << 12;

/// What the entry fields get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    /// VM-entry interruption information.
    pub info: u32,
    /// Its error code, if `info` says that there is one.
    pub code: u32,
    /// Length of the instruction, for software's events.
    pub len: u32,
}

impl Injection {
    /// Whether it has an error code.
    pub const fn has_code(&self) -> bool {
        self.info & ERROR_CODE != 0
    }

    /// Whether an instruction's length belongs to it.
    pub const fn has_len(&self) -> bool {
        matches!(kind_of(self.info), kind::SOFTWARE_INTERRUPT | kind::PRIVILEGED | kind::SOFTWARE_EXCEPTION)
    }
}

/// For `event`. `protected`: the guest is in protected mode, where some vectors push an error code; the processor insists.
pub fn encode(event: &Event, protected: bool) -> Injection {
    match event.kind {
        EventKind::Interrupt(vector) => Injection { info: pack(kind::INTERRUPT, vector), ..Injection::default() },
        EventKind::Nmi => Injection { info: pack(kind::NMI, Vector::NMI.0), ..Injection::default() },
        EventKind::Software { vector, len, int3_or_into } => {
            let kind = if int3_or_into { kind::SOFTWARE_EXCEPTION } else { kind::SOFTWARE_INTERRUPT };
            Injection { info: pack(kind, vector), code: 0, len: len.into() }
        }
        EventKind::Exception(Exception { vector, code, .. }) => {
            let info = pack(kind::EXCEPTION, vector.0);
            if protected && vector.has_error_code() && vector != Vector::CP {
                Injection { info: info | ERROR_CODE, code: code.unwrap_or(0), len: 0 }
            } else {
                Injection { info, ..Injection::default() }
            }
        }
    }
}

/// An intercepted exception or NMI, as the exit tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Met {
    /// Its vector.
    pub vector: Vector,
    /// INT1, which is a #DB behind the instruction.
    pub int1: bool,
    /// It was a non-maskable interrupt.
    pub nmi: bool,
}

/// From exit interruption information.
pub fn met(info: u32) -> Met {
    let kind = kind_of(info);
    Met { vector: Vector(info as u8), int1: kind == kind::PRIVILEGED, nmi: kind == kind::NMI }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn event(kind: EventKind) -> Event {
        Event { kind }
    }

    #[test]
    fn events_are_encoded_as_the_manual_says() {
        let software = |int3_or_into, vector| EventKind::Software { vector, len: 2, int3_or_into };
        let gp = EventKind::Exception(Exception::with_code(Vector::GP, 0x18));
        for (kind, protected, info, code, len) in [
            (EventKind::Interrupt(0x31), true, 0x8000_0031, 0, 0),
            (EventKind::Nmi, true, 0x8000_0202, 0, 0),
            (EventKind::Exception(Exception::plain(Vector::UD)), true, 0x8000_0306, 0, 0),
            (gp, true, 0x8000_0b0d, 0x18, 0),
            // Real mode pushes none.
            (gp, false, 0x8000_030d, 0, 0),
            (EventKind::Exception(Exception::page_fault(0x1000, 2)), true, 0x8000_0b0e, 2, 0),
            // A client may give #UD an error code, and #GP none.
            (EventKind::Exception(Exception::with_code(Vector::UD, 1)), true, 0x8000_0306, 0, 0),
            (EventKind::Exception(Exception::plain(Vector::GP)), true, 0x8000_0b0d, 0, 0),
            (software(false, 0x80), true, 0x8000_0480, 0, 2),
            (software(true, 3), true, 0x8000_0603, 0, 2),
        ] {
            let injection = encode(&event(kind), protected);
            assert_eq!(injection, Injection { info, code, len }, "{kind:?}");
            assert_eq!((injection.has_code(), injection.has_len()), (info & 0x800 != 0, len != 0), "{kind:?}");
        }
    }

    #[test]
    fn an_exception_is_told_from_an_nmi() {
        assert_eq!(met(0x8000_0202), Met { vector: Vector::NMI, int1: false, nmi: true });
        assert_eq!(met(0x8000_0b0e), Met { vector: Vector::PF, int1: false, nmi: false });
        assert_eq!(met(0x8000_0501), Met { vector: Vector::DB, int1: true, nmi: false });
    }
}
