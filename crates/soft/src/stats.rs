//! What the software CPU counts.

/// Counters of one vCPU since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Guest instructions executed; those of a block that was left early are estimated.
    pub instructions: u64,
    /// Blocks decoded.
    pub blocks: u64,
    /// Blocks compared with memory again.
    pub verified: u64,
    /// Times that the whole block cache was emptied because it was full.
    pub cache_flushes: u64,
    /// Block look-ups that neither a link nor the jump cache answered.
    pub lookups: u64,
    /// Data translations made.
    pub data_misses: u64,
    /// Fetch translations made.
    pub fetch_misses: u64,
    /// How many of both the adversarial TLB answered.
    pub recalled: u64,
    /// Translations forgotten at the guest's or the core's request (pages and address spaces alike).
    pub tlb_flushes: u64,
    /// Stores that changed decoded code.
    pub code_writes: u64,
    /// Instructions executed one by one: page crossings, single steps, breakpoints.
    pub steps: u64,
    /// Exceptions delivered.
    pub exceptions: u64,
    /// Interrupts and other events that were injected.
    pub injected: u64,
}

impl Stats {
    /// The names under which they are read, in the order of [`Self::values`].
    pub const NAMES: &'static [&'static str] = &[
        "soft_instructions",
        "soft_blocks",
        "soft_verified",
        "soft_cache_flushes",
        "soft_lookups",
        "soft_data_misses",
        "soft_fetch_misses",
        "soft_recalled",
        "soft_tlb_flushes",
        "soft_code_writes",
        "soft_steps",
        "soft_exceptions",
        "soft_injected",
    ];

    /// The counters in order.
    pub const fn values(&self) -> [u64; Self::NAMES.len()] {
        [
            self.instructions,
            self.blocks,
            self.verified,
            self.cache_flushes,
            self.lookups,
            self.data_misses,
            self.fetch_misses,
            self.recalled,
            self.tlb_flushes,
            self.code_writes,
            self.steps,
            self.exceptions,
            self.injected,
        ]
    }
}
