//! What makes the guest stop (APM vol. 2, 15.9 and appendix B): fixed for most of it, and changing with what the guest does
//! and the client wants for the rest.

/// The six intercept vectors.
pub type Intercepts = [u32; 6];

/// Index of the vector of control registers: bit n for reads of CRn, bit 16 + n for writes.
const CR: usize = 0;
/// Debug registers, alike.
const DR: usize = 1;
/// Exceptions, by vector.
const EXCEPTIONS: usize = 2;
/// Offset 0xc.
const EVENTS: usize = 3;
/// Offset 0x10.
const MORE: usize = 4;

const CR0: u32 = 1 << 0 | 1 << 16;
const READ_CR3: u32 = 1 << 3;
const WRITE_CR3: u32 = 1 << 19;
const READ_CR4: u32 = 1 << 4;
const WRITE_CR4: u32 = 1 << 20;
const WRITE_CR8: u32 = 1 << 24;

const DB: u32 = 1 << 1;
const BP: u32 = 1 << 3;
const UD: u32 = 1 << 6;
const PF: u32 = 1 << 14;
const AC: u32 = 1 << 17;
const MC: u32 = 1 << 18;

/// Bits of the vector at offset 0xc.
mod event {
    pub const INTR: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const SMI: u32 = 1 << 2;
    pub const INIT: u32 = 1 << 3;
    pub const VINTR: u32 = 1 << 4;
    /// Writes of CR0 that change more than TS and MP.
    pub const CR0_SELECTIVE: u32 = 1 << 5;
    pub const RDTSC: u32 = 1 << 14;
    pub const RDPMC: u32 = 1 << 15;
    pub const CPUID: u32 = 1 << 18;
    pub const RSM: u32 = 1 << 19;
    pub const IRET: u32 = 1 << 20;
    pub const INVD: u32 = 1 << 22;
    pub const PAUSE: u32 = 1 << 23;
    pub const HLT: u32 = 1 << 24;
    pub const INVLPG: u32 = 1 << 25;
    pub const INVLPGA: u32 = 1 << 26;
    pub const IO: u32 = 1 << 27;
    pub const MSR: u32 = 1 << 28;
    pub const TASK_SWITCH: u32 = 1 << 29;
    pub const SHUTDOWN: u32 = 1 << 31;
}

/// Bits of the vector at offset 0x10.
mod more {
    pub const VMRUN: u32 = 1 << 0;
    pub const VMMCALL: u32 = 1 << 1;
    pub const VMLOAD: u32 = 1 << 2;
    pub const VMSAVE: u32 = 1 << 3;
    pub const STGI: u32 = 1 << 4;
    pub const CLGI: u32 = 1 << 5;
    pub const SKINIT: u32 = 1 << 6;
    pub const RDTSCP: u32 = 1 << 7;
    pub const WBINVD: u32 = 1 << 9;
    pub const MONITOR: u32 = 1 << 10;
    pub const MWAIT: u32 = 1 << 11;
    pub const MWAIT_ARMED: u32 = 1 << 12;
    pub const XSETBV: u32 = 1 << 13;
    pub const RDPRU: u32 = 1 << 14;
}

/// What the intercepts depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The processor walks tables of the core's: whatever the guest does to its own is told.
    pub shadow: bool,
    /// CR0 in the processor is not the guest's.
    pub cr0_differs: bool,
    /// CR4 in the processor is not the guest's.
    pub cr4_differs: bool,
    /// An interrupt waits for the guest to take it.
    pub interrupt_window: bool,
    /// IRET ends an NMI handler.
    pub iret: bool,
    /// #BP is the client's.
    pub breakpoints: bool,
    /// The guest's time-stamp counter cannot be had from the processor.
    pub tsc: bool,
    /// Loops of PAUSE are noticed by the processor.
    pub pause: bool,
}

impl Wanted {
    /// The vectors.
    pub fn vectors(&self) -> Intercepts {
        let on = |wanted: bool, bits: u32| if wanted { bits } else { 0 };
        let mut vectors = [0; 6];
        // CR8 is written rarely on processors with V_TPR, and the core wants to know: a lower one may let an interrupt
        // through. So nothing relies on what VMRUN makes of such a write while a virtual interrupt waits.
        vectors[CR] = WRITE_CR4
            | WRITE_CR8
            | on(self.cr0_differs, CR0)
            | on(self.cr4_differs, READ_CR4)
            | on(self.shadow, READ_CR3)
            | on(self.shadow, WRITE_CR3);
        // The registers are the client's or the host's as long as the guest has no breakpoint.
        vectors[DR] = u32::MAX;
        // #DB and #AC: a guest can raise them without end while one is delivered, and must not hold the processor by that.
        // #UD: the other vendor's hypercall instruction. #MC is the host's.
        vectors[EXCEPTIONS] = DB | UD | AC | MC | on(self.shadow, PF) | on(self.breakpoints, BP);
        vectors[EVENTS] = event::INTR
            | event::NMI
            | event::SMI
            | event::INIT
            | event::CR0_SELECTIVE
            | event::RDPMC
            | event::CPUID
            | event::RSM
            | event::INVD
            | event::HLT
            | event::INVLPGA
            | event::IO
            | event::MSR
            | event::SHUTDOWN
            | on(self.shadow, event::TASK_SWITCH)
            | on(self.shadow, event::INVLPG)
            | on(self.interrupt_window, event::VINTR)
            | on(self.iret, event::IRET)
            | on(self.tsc, event::RDTSC)
            | on(self.pause, event::PAUSE);
        vectors[MORE] = more::VMRUN
            | more::VMMCALL
            | more::VMLOAD
            | more::VMSAVE
            | more::STGI
            | more::CLGI
            | more::SKINIT
            | more::WBINVD
            | more::MONITOR
            | more::MWAIT
            | more::MWAIT_ARMED
            | more::XSETBV
            | more::RDPRU
            | on(self.tsc, more::RDTSCP);
        vectors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmrun_is_always_intercepted() {
        // The processor refuses a control block without it.
        assert_eq!(Wanted::default().vectors()[4] & 1, 1);
    }

    #[test]
    fn nested_paging_leaves_the_guest_its_tables() {
        let nested = Wanted::default().vectors();
        let shadow = Wanted { shadow: true, ..Wanted::default() }.vectors();
        assert_eq!(nested[CR] & (READ_CR3 | WRITE_CR3 | CR0), 0);
        assert_eq!(nested[EXCEPTIONS] & PF, 0);
        assert_eq!(shadow[CR] & (READ_CR3 | WRITE_CR3), READ_CR3 | WRITE_CR3);
        assert_eq!((shadow[EXCEPTIONS] & PF, shadow[EVENTS] >> 29 & 1, shadow[EVENTS] >> 25 & 1), (PF, 1, 1));
        assert_eq!((nested[EVENTS] >> 29 & 1, nested[EVENTS] >> 25 & 1), (0, 0));
    }

    /// The bits by their numbers in the manual, so that a slip in a constant is found.
    #[test]
    fn each_wish_adds_its_bits() {
        let base = Wanted::default().vectors();
        for (wanted, vector, bits) in [
            (Wanted { cr0_differs: true, ..Wanted::default() }, CR, 0x1_0001),
            (Wanted { cr4_differs: true, ..Wanted::default() }, CR, 0x10),
            (Wanted { interrupt_window: true, ..Wanted::default() }, EVENTS, 0x10),
            (Wanted { iret: true, ..Wanted::default() }, EVENTS, 0x10_0000),
            (Wanted { breakpoints: true, ..Wanted::default() }, EXCEPTIONS, 0x8),
            (Wanted { pause: true, ..Wanted::default() }, EVENTS, 0x80_0000),
        ] {
            let vectors = wanted.vectors();
            for n in 0..6 {
                let more = if n == vector { bits } else { 0 };
                assert_eq!(vectors[n], base[n] | more, "{wanted:?}, vector {n}");
                assert_eq!(base[n] & more, 0, "{wanted:?}");
            }
        }
        let tsc = Wanted { tsc: true, ..Wanted::default() }.vectors();
        assert_eq!((tsc[EVENTS] ^ base[EVENTS], tsc[MORE] ^ base[MORE]), (0x4000, 0x80));
    }
}
