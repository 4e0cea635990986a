//! Gates: descriptors that hold an entry point instead of a segment (SDM vol. 3, 5.8.3 and 6.11).
use x86::segment::system_type;

/// A call, interrupt, trap or task gate. The offset of a 16-byte gate is completed from its upper half.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    /// Code or TSS selector.
    pub selector: u16,
    /// Entry point; 16 bits for 16-bit gates.
    pub offset: u64,
    /// Type, with S as bit 4.
    pub typ: u8,
    /// Who may use it.
    pub dpl: u8,
    /// Present.
    pub present: bool,
    /// Parameters of a call gate.
    pub parameters: u8,
    /// Interrupt stack table entry of a long-mode interrupt gate, 0 for none.
    pub ist: u8,
}

impl Gate {
    /// Parses the first eight bytes.
    pub fn parse(raw: u64) -> Self {
        let typ = (raw >> 40 & 0x1f) as u8;
        let wide = matches!(typ, system_type::CALL_GATE | system_type::INTERRUPT_GATE | system_type::TRAP_GATE);
        let high = if wide { raw >> 32 & 0xffff_0000 } else { 0 };
        Self {
            selector: (raw >> 16) as u16,
            offset: raw & 0xffff | high,
            typ,
            dpl: (raw >> 45 & 3) as u8,
            present: raw >> 47 & 1 != 0,
            parameters: (raw >> 32 & 0x1f) as u8,
            ist: (raw >> 32 & 7) as u8,
        }
    }

    /// Bytes of each value that it pushes outside of long mode.
    pub fn size(&self) -> u8 {
        if self.typ & 8 != 0 { 4 } else { 2 }
    }

    /// An interrupt gate, which clears IF; else a trap gate.
    pub fn clears_if(&self) -> bool {
        matches!(self.typ, system_type::INTERRUPT_GATE | system_type::INTERRUPT_GATE16)
    }
}
