//! Events on their way into a guest, in the one form that all back ends share (their own: EVENTINJ,
//! VM-entry interruption information).
use x86::Exception;

/// What kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A processor exception.
    Exception(Exception),
    /// A non-maskable interrupt.
    Nmi,
    /// An external interrupt with its vector.
    Interrupt(u8),
    /// INT n, INT3, INTO or INT1 executed by the guest, whose delivery is being repeated. `len` is the
    /// instruction's length: the pushed RIP is behind it.
    Software {
        /// Vector.
        vector: u8,
        /// Instruction length in bytes.
        len: u8,
        /// INT3 and INTO are exceptions that ignore the VM86 rules of INT n.
        int3_or_into: bool,
    },
}

/// An event to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Which.
    pub kind: EventKind,
}
