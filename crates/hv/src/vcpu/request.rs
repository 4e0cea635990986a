//! Bits of a vCPU's request word. Any of them makes the guest leave at its next instruction boundary; the run loop
//! takes them all at once and acts on each before it enters again.

/// Leave the guest and look around: nothing more.
pub const KICK: u32 = 1;
/// Translations of guest-physical addresses changed.
pub const TLB_FLUSH_PHYSICAL: u32 = 1 << 1;
/// An interrupt, NMI, INIT or SIPI has been put where this vCPU looks for it.
pub const EVENT: u32 = 1 << 3;
/// The local APIC's timer has expired.
pub const TIMER: u32 = 1 << 4;
/// The clock that the guest reads (kvmclock) changed.
pub const CLOCK: u32 = 1 << 5;
/// The routing table changed: look again which vectors an IOAPIC waits for.
pub const SCAN_IOAPIC: u32 = 1 << 6;
/// Another vCPU asked that this one wakes from HLT (KVM_HC_KICK_CPU).
pub const UNHALT: u32 = 1 << 7;
/// Set by packaging, also from a signal handler or an interrupt: a signal for the thread that is inside KVM_RUN
/// has arrived, and KVM_RUN returns EINTR. Only to be set between the platform's `Waiter::attach(Some(word))`
/// and `attach(None)`; followed by `Waiter::wake` unless the thread itself sets it.
pub const SIGNAL: u32 = 1 << 31;
