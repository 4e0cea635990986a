//! An interrupt on its way to local APICs, whoever sent it: an IOAPIC pin, an MSI or another processor.

/// What the receiving local APIC does (SDM vol. 3, 11.6.1; three bits on the wire).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector goes to every destination.
    Fixed,
    /// The vector goes to the one destination with the lowest priority.
    LowestPriority,
    /// System management interrupt; no vector.
    Smi,
    /// Reserved (remote read on old processors): ignored.
    Reserved,
    /// Non-maskable interrupt; no vector.
    Nmi,
    /// INIT; no vector.
    Init,
    /// Start-up: the vector is the page number of the first instruction.
    StartUp,
    /// As if from an external 8259A: the vector comes from its acknowledge cycle.
    ExtInt,
}

impl DeliveryMode {
    /// From the three bits of a register or message.
    pub const fn from_bits(bits: u32) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::Reserved,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => Self::ExtInt,
        }
    }
}

/// How the destination field is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestMode {
    /// With the APIC id.
    Physical,
    /// With the logical destination register.
    Logical,
}

/// Trigger mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Edge.
    Edge,
    /// Level: the IOAPIC waits for the end of interrupt.
    Level,
}

/// Destination shorthand of the interrupt command register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shorthand {
    /// The destination field counts.
    None,
    /// The sender.
    SelfOnly,
    /// Everyone.
    AllIncludingSelf,
    /// Everyone but the sender.
    AllExcludingSelf,
}

/// An interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// APIC id or logical destination: 8 bits from xAPIC sources, 32 from x2APIC ones.
    pub dest: u32,
    /// How `dest` is compared.
    pub dest_mode: DestMode,
    /// Stands in for `dest` unless `None`.
    pub shorthand: Shorthand,
    /// What the receivers do.
    pub delivery_mode: DeliveryMode,
    /// The vector, where the mode has one.
    pub vector: u8,
    /// Trigger mode.
    pub trigger: Trigger,
    /// The level bit; a level-triggered message with `false` is a de-assertion, which nobody acts on.
    pub assert: bool,
    /// MSI's redirection hint: deliver to one destination only, as lowest priority does.
    pub redirect_hint: bool,
}

impl Message {
    /// A fixed, edge-triggered interrupt to the APIC with id `dest`.
    pub const fn fixed(dest: u32, vector: u8) -> Self {
        Self {
            dest,
            dest_mode: DestMode::Physical,
            shorthand: Shorthand::None,
            delivery_mode: DeliveryMode::Fixed,
            vector,
            trigger: Trigger::Edge,
            assert: true,
            redirect_hint: false,
        }
    }

    /// Whether only one of the destinations gets it.
    pub const fn arbitrated(&self) -> bool {
        matches!(self.delivery_mode, DeliveryMode::LowestPriority) || self.redirect_hint
    }
}
