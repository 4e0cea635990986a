//! The local APIC (SDM vol. 3, chapter 11), xAPIC and x2APIC.
//!
//! [`Lapic`] is the part that only the vCPU's own thread touches; requests from elsewhere arrive in its
//! [`LapicShared`]. One entry to the guest looks like this: [`Lapic::timer_expired`] if a deadline passed, then
//! [`Lapic::pending_vector`], and when the vector is really injected, [`Lapic::accept`].

mod base;
mod lvt;
mod regs;
mod state;
mod timer;

use core::ops::Deref;

pub use base::{APIC_BASE_BSP, APIC_BASE_DEFAULT, APIC_BASE_ENABLE, APIC_BASE_EXTD, ApicMode};
pub use lvt::Lvt;
pub use regs::{MSR_X2APIC_FIRST, MSR_X2APIC_LAST, Reg};
pub use state::StateError;
pub use timer::Deadline;

use crate::{
    message::{DeliveryMode, DestMode, Message, Shorthand, Trigger},
    shared::{Identity, LapicShared, WORDS, split},
};
use timer::Timer;

/// Bytes of the xAPIC's register page.
pub const LAPIC_MMIO_SIZE: u64 = 0x1000;

/// Error status register: a message with an illegal vector was sent.
pub const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// Error status register: a message with an illegal vector came in.
pub const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// Error status register: a reserved register was touched.
pub const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

const SVR_ENABLE: u32 = 1 << 8;
const SVR_SUPPRESS_EOI_BROADCAST: u32 = 1 << 12;

/// The access or the value is refused: #GP(0) for a guest, `EINVAL` for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// The moment of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds of a monotonic clock.
    pub ns: u64,
    /// The guest's time-stamp counter at that moment; only TSC-deadline mode looks at it.
    pub tsc: u64,
}

/// What a vCPU's local APIC is like: fixed by the VM and its CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The bootstrap processor.
    pub bsp: bool,
    /// `CPUID.1:ECX[21]`: x2APIC mode can be entered.
    pub x2apic: bool,
    /// `CPUID.1:ECX[24]`: the timer has TSC-deadline mode.
    pub tsc_deadline: bool,
    /// Version register bit 24: software may suppress the broadcast of its ends of interrupt.
    pub directed_eoi: bool,
    /// `IA32_MCG_CAP[10]`: there is a CMCI entry in the local vector table.
    pub cmci: bool,
    /// LINT0 passes the 8259A to the bootstrap processor after reset (`KVM_X86_QUIRK_LINT0_REENABLED`).
    pub lint0_reenabled: bool,
    /// Nanoseconds of one timer clock (`KVM_CAP_X86_APIC_BUS_CYCLES_NS`); 0 counts as 1.
    pub bus_cycle_ns: u32,
    /// Shortest period of the periodic timer in nanoseconds: a guest cannot ask for a storm of wake-ups.
    pub min_period_ns: u64,
    /// Width of physical addresses in bits, for the check of IA32_APIC_BASE.
    pub maxphyaddr: u8,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bsp: false,
            x2apic: true,
            tsc_deadline: true,
            directed_eoi: false,
            cmci: false,
            lint0_reenabled: true,
            bus_cycle_ns: 1,
            min_period_ns: 200_000,
            maxphyaddr: 46,
        }
    }
}

/// An end of interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eoi {
    /// The vector whose service ended.
    pub vector: u8,
    /// How it was requested. `Level` is broadcast to the IOAPIC; `Edge` matters only to who counts ends
    /// ([`crate::Ioapic::eoi_vectors`]).
    pub trigger: Trigger,
    /// The guest ends level interrupts at the IOAPIC itself: do not broadcast.
    pub suppressed: bool,
}

/// What the core has to do after a register was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Effects {
    /// Hand this to the local APICs, with [`crate::Origin::Ipi`].
    pub ipi: Option<Message>,
    /// Tell the IOAPIC, or the client with split controllers.
    pub eoi: Option<Eoi>,
    /// Ask [`Lapic::next_deadline`] again.
    pub timer: bool,
}

/// A vCPU's local APIC. `S` is a handle of its shared part: a reference or a counted pointer.
#[derive(Debug)]
pub struct Lapic<S> {
    shared: S,
    config: Config,
    /// The vCPU's number: the x2APIC id.
    id: u32,
    base: u64,
    xapic_id: u8,
    tpr: u8,
    ldr: u8,
    dfr: u8,
    svr: u32,
    esr: u32,
    icr: u64,
    isr: [u32; WORDS],
    lvt: [u32; lvt::COUNT],
    timer: Timer,
}

impl<S: Deref<Target = LapicShared>> Lapic<S> {
    /// The local APIC of a vCPU after power-on: enabled in xAPIC mode at [`APIC_BASE_DEFAULT`].
    pub fn new(shared: S, config: Config) -> Self {
        let id = shared.identity().x2apic_id;
        let mut lapic = Self {
            shared,
            config,
            id,
            base: 0,
            xapic_id: 0,
            tpr: 0,
            ldr: 0,
            dfr: 0xf,
            svr: 0xff,
            esr: 0,
            icr: 0,
            isr: [0; WORDS],
            lvt: [lvt::MASKED; lvt::COUNT],
            timer: Timer::default(),
        };
        lapic.reset();
        lapic
    }

    /// The shared part.
    pub fn shared(&self) -> &LapicShared {
        &self.shared
    }

    /// As built.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Replaces what follows from CPUID and capabilities. Registers keep their values.
    pub fn set_config(&mut self, config: Config) {
        self.config = config;
        self.publish();
    }

    /// Power-on or RESET: everything starts over, also IA32_APIC_BASE and the id. Pending INIT and SIPI stay: who
    /// handles them takes them.
    pub fn reset(&mut self) {
        let bsp = if self.config.bsp { APIC_BASE_BSP } else { 0 };
        self.base = APIC_BASE_DEFAULT | APIC_BASE_ENABLE | bsp;
        self.xapic_id = self.id as u8;
        self.shared.clear_events();
        self.init();
    }

    /// INIT: registers start over, except IA32_APIC_BASE and the id (SDM vol. 3, 11.4.7.3).
    pub fn init(&mut self) {
        self.tpr = 0;
        self.ldr = 0;
        self.dfr = 0xf;
        self.svr = 0xff;
        self.esr = 0;
        self.icr = 0;
        self.isr = [0; WORDS];
        self.lvt = [lvt::MASKED; lvt::COUNT];
        if self.config.bsp && self.config.lint0_reenabled {
            self.lvt[Lvt::Lint0 as usize] = lvt::EXTINT;
        }
        self.timer = Timer::default();
        self.shared.take_errors();
        self.shared.restore(&[0; WORDS], &[0; WORDS]);
        self.publish();
    }

    /// Writes what others match against, after anything of it may have changed.
    fn publish(&mut self) {
        let mode = self.mode();
        self.shared.set_identity(Identity {
            x2apic_id: self.id,
            xapic_id: self.xapic_id,
            ldr: self.ldr,
            dfr: self.dfr,
            hardware_enabled: mode != ApicMode::Disabled,
            x2apic: mode == ApicMode::X2apic,
            software_enabled: self.software_enabled(),
            accepts_pic: self.accepts_pic(),
        });
        self.shared.set_ppr(self.ppr());
    }

    /// Spurious-vector register, bit 8.
    pub fn software_enabled(&self) -> bool {
        self.svr & SVR_ENABLE != 0
    }

    /// Whether INTR of the 8259A reaches this processor: LINT0 is an unmasked ExtINT, or the APIC is off.
    pub fn accepts_pic(&self) -> bool {
        self.mode() == ApicMode::Disabled || self.lvt[Lvt::Lint0 as usize] & (lvt::MASKED | lvt::MODE) == lvt::EXTINT
    }

    /// The highest vector that is being served.
    pub fn highest_in_service(&self) -> Option<u8> {
        (0..WORDS).rev().find(|&w| self.isr[w] != 0).map(|w| (w as u32 * 32 + self.isr[w].ilog2()) as u8)
    }

    /// Processor priority register.
    pub fn ppr(&self) -> u8 {
        let serving = self.highest_in_service().map_or(0, |v| v & 0xf0);
        if self.tpr & 0xf0 >= serving { self.tpr } else { serving }
    }

    /// Task priority register.
    pub fn tpr(&self) -> u8 {
        self.tpr
    }

    /// Replaces the task priority register.
    pub fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
        self.shared.set_ppr(self.ppr());
    }

    /// CR8: bits 7:4 of the task priority register.
    pub fn cr8(&self) -> u64 {
        u64::from(self.tpr >> 4)
    }

    /// Writes CR8.
    ///
    /// # Errors
    /// Bits 63:4 must be zero.
    pub fn set_cr8(&mut self, cr8: u64) -> Result<(), GeneralProtection> {
        if cr8 > 15 {
            return Err(GeneralProtection);
        }
        self.set_tpr((cr8 as u8) << 4);
        Ok(())
    }

    /// The vector to inject next: requested, and above the processor priority. Costs one load when nothing is
    /// requested. A switched-off APIC has none.
    pub fn pending_vector(&self) -> Option<u8> {
        let vector = self.shared.highest_request()?;
        let deliverable = vector & 0xf0 > self.ppr() & 0xf0 && self.mode() != ApicMode::Disabled;
        deliverable.then_some(vector)
    }

    /// The highest requested vector whatever the priority: with it the core knows at which TPR to look again.
    pub fn requested_vector(&self) -> Option<u8> {
        self.shared.highest_request()
    }

    /// The processor takes `vector` (which [`Lapic::pending_vector`] told): from requested to in service.
    pub fn accept(&mut self, vector: u8) {
        self.shared.clear_vector(vector);
        let (word, bit) = split(vector);
        self.isr[word] |= bit;
        self.shared.set_ppr(self.ppr());
    }

    /// Whether `vector` is being served.
    pub fn in_service(&self, vector: u8) -> bool {
        let (word, bit) = split(vector);
        self.isr[word] & bit != 0
    }

    /// Ends the highest interrupt in service; `None` if there is none.
    pub fn eoi(&mut self) -> Option<Eoi> {
        let vector = self.highest_in_service()?;
        let (word, bit) = split(vector);
        self.isr[word] &= !bit;
        self.shared.set_ppr(self.ppr());
        let trigger = if self.shared.is_level(vector) { Trigger::Level } else { Trigger::Edge };
        let suppressed = self.config.directed_eoi && self.svr & SVR_SUPPRESS_EOI_BROADCAST != 0;
        Some(Eoi { vector, trigger, suppressed })
    }

    /// Writes the interrupt command register's low half: sends. Interrupts to oneself arrive at once.
    fn send_ipi(&mut self) -> Effects {
        let low = self.icr as u32;
        let high = (self.icr >> 32) as u32;
        let mode = DeliveryMode::from_bits(low >> 8);
        let vector = low as u8;
        if matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority) && vector < 16 {
            self.error(ESR_SEND_ILLEGAL_VECTOR);
            return Effects::default();
        }
        let message = Message {
            dest: if self.mode() == ApicMode::X2apic { high } else { high >> 24 },
            dest_mode: if low & 1 << 11 != 0 { DestMode::Logical } else { DestMode::Physical },
            shorthand: match low >> 18 & 3 {
                0 => Shorthand::None,
                1 => Shorthand::SelfOnly,
                2 => Shorthand::AllIncludingSelf,
                _ => Shorthand::AllExcludingSelf,
            },
            delivery_mode: mode,
            vector,
            trigger: if low & 1 << 15 != 0 { Trigger::Level } else { Trigger::Edge },
            assert: low & 1 << 14 != 0 || low & 1 << 15 == 0,
            redirect_hint: false,
        };
        if message.shorthand == Shorthand::SelfOnly && mode == DeliveryMode::Fixed {
            self.shared.accept(&message);
            return Effects::default();
        }
        Effects { ipi: Some(message), ..Effects::default() }
    }

    /// Notes an error and raises the error interrupt.
    fn error(&mut self, bits: u32) {
        self.shared.add_error(bits);
        self.raise(Lvt::Error);
    }

    /// The timer's next event; `None` while it is stopped.
    pub fn next_deadline(&self) -> Option<Deadline> {
        if self.mode() == ApicMode::Disabled {
            return None;
        }
        self.timer.next_deadline()
    }

    /// Handles a deadline that has passed. True if the timer fired (its interrupt is requested unless masked).
    /// Periods that were missed altogether are merged into one.
    pub fn timer_expired(&mut self, now: Now) -> bool {
        let fired = self.mode() != ApicMode::Disabled && self.timer.expire(now);
        if fired {
            self.raise(Lvt::Timer);
        }
        fired
    }

    /// IA32_TSC_DEADLINE: reads as 0 outside TSC-deadline mode and when it has fired.
    pub fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline()
    }

    /// Writes IA32_TSC_DEADLINE: 0 disarms; ignored outside TSC-deadline mode.
    pub fn set_tsc_deadline(&mut self, deadline: u64) -> Effects {
        Effects { timer: self.timer.set_tsc_deadline(deadline), ..Effects::default() }
    }
}

#[cfg(test)]
mod tests;
