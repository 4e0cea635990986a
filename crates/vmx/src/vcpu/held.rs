//! What an instruction holds back until the next one has ended: events behind STI and MOV SS, and the traps of MOV SS itself.
use hv::backend::{Event, EventKind};
use x86::{Shadow, Vector, debug, flags};

/// Interruptibility: blocking by STI, by MOV SS, by NMI.
pub(super) mod blocked {
    pub(in crate::vcpu) const STI: u32 = 1 << 0;
    pub(in crate::vcpu) const MOV_SS: u32 = 1 << 1;
    pub(in crate::vcpu) const NMI: u32 = 1 << 3;
}

/// Pending debug exceptions: breakpoints that were met, and that one of them was enabled. The single step follows from the flags.
pub(super) const TRAPS: u64 = 0xf | 1 << 12;

/// Blocking by STI or MOV SS as the processor takes it, and the debug exception that it wants to find pending then: with TF set it
/// insists on the single step that the instruction has held back (SDM vol. 3, 27.3.1.5). `traps` are those of MOV SS; if the core
/// has executed the instruction behind it, they are due at once. An event that is delivered ends all of it.
pub(super) fn held_back(shadow: Shadow, rflags: u64, traps: u64, injected: bool) -> (u32, u64) {
    let traced = rflags & flags::TF != 0;
    match shadow {
        _ if injected => (0, 0),
        // STI does not hold back a single step: if one is due, interrupts no longer wait either.
        Shadow::Sti if rflags & flags::IF != 0 && !traced => (blocked::STI, traps),
        Shadow::MovSs => (blocked::MOV_SS, traps | if traced { debug::DR6_BS } else { 0 }),
        Shadow::Sti | Shadow::None => (0, traps),
    }
}

/// A debug exception that is to be delivered tells of `traps`, too.
pub(super) fn join(injected: &mut Option<Event>, traps: u64) {
    if let Some(Event { kind: EventKind::Exception(exception) }) = injected
        && exception.vector == Vector::DB
    {
        exception.payload |= traps & 0xf;
    }
}
