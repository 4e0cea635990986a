//! Events as both vendors' processors write them: EVENTINJ and EXITINTINFO (APM vol. 2, 15.20), VM-entry interruption information
//! and IDT-vectoring information (SDM vol. 3, 25.8.3 and 25.9.3). The lower 32 bits are the same; where the error code is, and what
//! an instruction's own event is called, each back end knows.
use hv::backend::{Event, EventKind};
use x86::{CpuState, Exception, Shadow, Vector, debug::DR6_FIXED, flags};

/// There is an event.
pub const VALID: u32 = 1 << 31;
/// It has an error code.
pub const ERROR_CODE: u32 = 1 << 11;

/// Bits 10:8.
#[allow(missing_docs)]
pub mod kind {
    pub const INTERRUPT: u32 = 0;
    pub const NMI: u32 = 2;
    pub const EXCEPTION: u32 = 3;
    /// INT n.
    pub const SOFTWARE_INTERRUPT: u32 = 4;
    /// INT1; Intel's only.
    pub const PRIVILEGED: u32 = 5;
    /// INT3 and INTO; Intel's only, AMD's are exceptions.
    pub const SOFTWARE_EXCEPTION: u32 = 6;
}

/// An event of one of the kinds.
pub const fn pack(kind: u32, vector: u8) -> u32 {
    VALID | kind << 8 | vector as u32
}

/// The kind of `info`.
pub const fn kind_of(info: u32) -> u32 {
    info >> 8 & 7
}

/// What an exit cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutShort {
    /// Nothing.
    Nothing,
    /// An event that is to be injected again.
    Event(Event),
    /// INT n, INT3, INTO or INT1: the instruction pointer is still at it, and the guest executes it again.
    Instruction,
}

/// INT n has begun ([`CutShort::Instruction`]), so that no interrupt comes before it: what STI has held back goes on waiting.
pub fn hold_back(state: &mut CpuState) {
    if state.shadow == Shadow::None && state.flags.control(flags::IF) {
        state.shadow = Shadow::Sti;
    }
}

/// What the processor says that an exit cut short, with its error code. `cr2` and `dr6` are the guest's: an exception has written
/// them already.
pub fn decode(info: u32, code: u32, cr2: u64, dr6: u64) -> CutShort {
    if info & VALID == 0 {
        return CutShort::Nothing;
    }
    let vector = Vector(info as u8);
    let kind = match kind_of(info) {
        kind::INTERRUPT => EventKind::Interrupt(vector.0),
        kind::NMI => EventKind::Nmi,
        // Only the instructions raise these.
        kind::EXCEPTION if matches!(vector, Vector::BP | Vector::OF) => return CutShort::Instruction,
        kind::EXCEPTION => EventKind::Exception(Exception {
            vector,
            code: (info & ERROR_CODE != 0).then_some(code),
            payload: match vector {
                Vector::PF => cr2,
                Vector::DB => dr6 ^ DR6_FIXED,
                _ => 0,
            },
        }),
        kind::SOFTWARE_INTERRUPT | kind::PRIVILEGED | kind::SOFTWARE_EXCEPTION => return CutShort::Instruction,
        _ => return CutShort::Nothing,
    };
    CutShort::Event(Event { kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_short_comes_again() {
        let exception = |exception| EventKind::Exception(exception);
        for (info, code, kind) in [
            (0x8000_00ff, 0, EventKind::Interrupt(0xff)),
            (0x8000_0202, 0, EventKind::Nmi),
            (0x8000_0300, 0, exception(Exception::plain(Vector::DE))),
            (0x8000_0b08, 0, exception(Exception::with_code(Vector::DF, 0))),
            (0x8000_0b0e, 7, exception(Exception::page_fault(0x1234_5000, 7))),
            (0x8000_0301, 0, exception(Exception::debug(0x4001))),
        ] {
            let back = decode(info, code, 0x1234_5000, DR6_FIXED | 0x4001);
            assert_eq!(back, CutShort::Event(Event { kind }), "{info:#x}");
            assert_eq!(decode(info & !VALID, code, 0, 0), CutShort::Nothing, "{info:#x}");
        }
    }

    #[test]
    fn instructions_are_executed_again() {
        // INT 0x80, INT1, INT3 and INTO, the last two as Intel's and as AMD's processors call them.
        for info in [0x8000_0480, 0x8000_0501, 0x8000_0603, 0x8000_0604, 0x8000_0303, 0x8000_0304] {
            assert_eq!(decode(info, 0, 0, 0), CutShort::Instruction, "{info:#x}");
        }
    }

    #[test]
    fn a_kind_that_no_processor_has_is_nothing() {
        assert_eq!(decode(pack(1, 0x20), 0, 0, 0), CutShort::Nothing);
        assert_eq!(decode(pack(7, 0x20), 0, 0, 0), CutShort::Nothing);
    }
}
