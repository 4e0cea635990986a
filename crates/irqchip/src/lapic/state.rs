//! State as `KVM_GET_LAPIC` and `KVM_SET_LAPIC` carry it: the xAPIC's register page.
//!
//! In x2APIC mode three registers differ: the id stands in bits 31:24 unless the client asked for 32-bit ids, the
//! logical id is given but never taken (it follows from the id), and the command register is still split in two.

use core::ops::Deref;

use abi::KvmLapicState;

use super::{ApicMode, Lapic, Lvt, Now, Reg, SVR_ENABLE, regs::ICR_WRITABLE};
use crate::shared::{LapicShared, WORDS};

/// The state was refused: with 32-bit ids an x2APIC's id must be the vCPU's number (`EINVAL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateError;

impl core::fmt::Display for StateError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the local APIC's id in x2APIC mode is not the vCPU's number")
    }
}

impl core::error::Error for StateError {}

/// Registers that stand in the page, in its order.
fn page_registers() -> impl Iterator<Item = (usize, Reg)> {
    (0..0x40).filter_map(|n| Reg::from_index(n).map(|reg| (n as usize * 16, reg)))
}

fn get(state: &KvmLapicState, index: usize) -> u32 {
    let mut bytes = [0; 4];
    if let Some(from) = state.regs.get(index * 16..index * 16 + 4) {
        bytes.copy_from_slice(from);
    }
    u32::from_le_bytes(bytes)
}

impl<S: Deref<Target = LapicShared>> Lapic<S> {
    /// The register page at `now`. Call [`Lapic::timer_expired`] before, so that an expiry is not between two states.
    pub fn state(&self, ids_32bit: bool, now: Now) -> KvmLapicState {
        let mut state = KvmLapicState::default();
        let x2apic = self.mode() == ApicMode::X2apic;
        for (offset, reg) in page_registers() {
            let value = match reg {
                Reg::Id if x2apic && !ids_32bit => self.id << 24,
                Reg::Lvt(Lvt::Cmci) if !self.config.cmci => 0,
                _ => self.read_register(reg, now),
            };
            if let Some(to) = state.regs.get_mut(offset..offset + 4) {
                to.copy_from_slice(&value.to_le_bytes());
            }
        }
        state
    }

    /// Replaces the registers. IA32_APIC_BASE is not among them and decides how the page is read: set it before.
    /// Reserved bits are dropped. Ask [`Lapic::next_deadline`] again afterwards.
    ///
    /// # Errors
    /// See [`StateError`]; nothing has changed then.
    pub fn set_state(&mut self, state: &KvmLapicState, ids_32bit: bool, now: Now) -> Result<(), StateError> {
        let x2apic = self.mode() == ApicMode::X2apic;
        let id = get(state, 0x02);
        if x2apic && ids_32bit && id != self.id {
            return Err(StateError);
        }
        if !x2apic {
            self.xapic_id = (id >> 24) as u8;
            self.ldr = (get(state, 0x0d) >> 24) as u8;
            self.dfr = (get(state, 0x0e) >> 28) as u8;
        }
        self.tpr = get(state, 0x08) as u8;
        self.svr = get(state, 0x0f) & (0xff | SVR_ENABLE | 1 << 9 | 1 << 12);
        self.shared.take_errors();
        self.esr = get(state, 0x28) & 0xff;
        let high = if x2apic { u32::MAX } else { 0xff00_0000 };
        self.icr = u64::from(get(state, 0x31) & high) << 32 | u64::from(get(state, 0x30) & ICR_WRITABLE);
        for entry in Lvt::ALL {
            let index = if entry == Lvt::Cmci { 0x2f } else { 0x31 + entry as usize };
            // Whether CPUID has TSC-deadline mode may be told only afterwards.
            // Nor is anything masked here because the APIC is software-disabled: LINT0 of a bootstrap processor is
            // open in that state.
            self.lvt[entry as usize] = get(state, index) & entry.writable(true);
        }
        let (mut irr, mut tmr) = ([0; WORDS], [0; WORDS]);
        for word in 0..WORDS {
            // The first 16 vectors cannot be requested.
            let valid = if word == 0 { 0xffff_0000 } else { u32::MAX };
            self.isr[word] = get(state, 0x10 + word) & valid;
            tmr[word] = get(state, 0x18 + word) & valid;
            irr[word] = get(state, 0x20 + word) & valid;
        }
        self.shared.restore(&irr, &tmr);
        let timer_entry = self.lvt[Lvt::Timer as usize];
        self.timer.restore(timer_entry, get(state, 0x38), get(state, 0x39), get(state, 0x3e), &self.config, now);
        self.publish();
        Ok(())
    }
}
