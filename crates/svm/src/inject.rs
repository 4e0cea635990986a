//! Events between the core's form and EVENTINJ's, which is also EXITINTINFO's (APM vol. 2, 15.20): the error code is in the upper
//! half.
use hardware::event::{self, CutShort, ERROR_CODE, kind, pack};
use hv::backend::{Event, EventKind};
use x86::{Exception, Vector};

/// EVENTINJ for an event.
pub fn encode(event: &Event) -> u64 {
    match event.kind {
        EventKind::Interrupt(vector) => pack(kind::INTERRUPT, vector).into(),
        EventKind::Nmi => pack(kind::NMI, Vector::NMI.0).into(),
        EventKind::Software { vector, int3_or_into: true, .. } => pack(kind::EXCEPTION, vector).into(),
        EventKind::Software { vector, .. } => pack(kind::SOFTWARE_INTERRUPT, vector).into(),
        EventKind::Exception(Exception { vector, code, .. }) => {
            // The processor refuses an error code for a vector that has none, and pushes none in real mode.
            let code = code.filter(|_| vector.has_error_code());
            let info = pack(kind::EXCEPTION, vector.0) | code.map_or(0, |_| ERROR_CODE);
            u64::from(info) | u64::from(code.unwrap_or(0)) << 32
        }
    }
}

/// What EXITINTINFO says. `cr2` and `dr6` are the guest's.
pub fn decode(info: u64, cr2: u64, dr6: u64) -> CutShort {
    event::decode(info as u32, (info >> 32) as u32, cr2, dr6)
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
        for (kind, expected) in [
            (EventKind::Interrupt(0x31), 0x8000_0031),
            (EventKind::Nmi, 0x8000_0202),
            (EventKind::Exception(Exception::plain(Vector::UD)), 0x8000_0306),
            (EventKind::Exception(Exception::with_code(Vector::GP, 0x18)), 0x18_8000_0b0d),
            (EventKind::Exception(Exception::page_fault(0x1000, 2)), 0x2_8000_0b0e),
            // A client may give #UD an error code.
            (EventKind::Exception(Exception::with_code(Vector::UD, 1)), 0x8000_0306),
            (software(false, 0x80), 0x8000_0480),
            (software(true, 3), 0x8000_0303),
        ] {
            assert_eq!(encode(&event(kind)), expected, "{kind:?}");
        }
    }

    #[test]
    fn the_error_code_is_above_the_rest() {
        let event = event(EventKind::Exception(Exception::page_fault(0x1234_5000, 7)));
        assert_eq!(decode(encode(&event), 0x1234_5000, 0), CutShort::Event(event));
    }
}
