//! Asynchronous page faults (KVM_FEATURE_ASYNC_PF, documentation of Linux's KVM, x86/msr.rst): a guest offers a place where it
//! can be told that one of its pages has gone to the host's disk, and by an interrupt that the page is back.
//!
//! Here a guest waits for its pages as a processor waits for memory, so nothing is ever told but the one thing that does not depend
//! on it: whoever switches the interface on may have waited for pages before (a guest that has migrated), and gets the interrupt
//! with the token that stands for all of them.
use irqchip::{Message, Origin, Shorthand};
use mmu::PhysMem;
use platform::Platform;
use x86::msr;

use crate::{cpuid::PV_ASYNC_PF, msr::Refused, vm::VmShared};

/// Bits of the enabling MSR: on; faults also in the kernel of the guest; by an interrupt. What lies between them and the
/// address is reserved (bit 2 is of nested virtualization).
const ON: u64 = 1 << 0;
const ALWAYS: u64 = 1 << 1;
const BY_INTERRUPT: u64 = 1 << 3;
const FLAGS: u64 = 0x3f;
/// Where the token is in the guest's structure.
const TOKEN: u64 = 4;
/// Every page.
const ALL: u32 = u32::MAX;

/// The interface's three registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AsyncPf {
    enable: u64,
    vector: u8,
    /// The interrupt for all pages is due.
    due: bool,
}

/// Whether a register is of this interface.
pub(crate) fn is_ours(index: u32) -> bool {
    matches!(index, msr::KVM_ASYNC_PF_EN | msr::KVM_ASYNC_PF_INT | msr::KVM_ASYNC_PF_ACK)
}

/// Whether the paravirtual features `offered` have it.
pub(crate) fn is_offered(offered: u32) -> bool {
    offered & PV_ASYNC_PF == PV_ASYNC_PF
}

impl AsyncPf {
    pub(crate) fn read(&self, index: u32) -> u64 {
        match index {
            msr::KVM_ASYNC_PF_EN => self.enable,
            msr::KVM_ASYNC_PF_INT => self.vector.into(),
            _ => 0,
        }
    }

    /// `has_apic`: there is a local APIC here, without which only 0 can be written.
    pub(crate) fn write(&mut self, index: u32, value: u64, has_apic: bool) -> Result<(), Refused> {
        if !has_apic && value != 0 {
            return Err(Refused::Invalid);
        }
        match index {
            msr::KVM_ASYNC_PF_EN => {
                if value & FLAGS & !(ON | ALWAYS | BY_INTERRUPT) != 0 {
                    return Err(Refused::Invalid);
                }
                self.enable = value;
                self.due = self.is_on();
            }
            msr::KVM_ASYNC_PF_INT => self.vector = u8::try_from(value).map_err(|_| Refused::Invalid)?,
            // What is acknowledged leaves room for the next, of which there is none.
            _ => {}
        }
        Ok(())
    }

    fn is_on(&self) -> bool {
        self.enable & (ON | BY_INTERRUPT) == ON | BY_INTERRUPT
    }

    /// Tells the guest of vCPU `index` what is due, once.
    #[cold]
    pub(crate) fn tell<P: Platform>(&mut self, vm: &VmShared<P>, index: usize) {
        self.due = false;
        let at = (self.enable & !FLAGS).wrapping_add(TOKEN);
        let mut token = [0; 4];
        let free = vm.memory.view(index).is_some_and(|view| view.read(at, &mut token).is_ok()) && token == [0; 4];
        // A guest without memory there, or that has not taken the last token, hears nothing.
        if free && vm.write_guest(index, at, &ALL.to_le_bytes()).is_ok() {
            let message = Message { shorthand: Shorthand::SelfOnly, ..Message::fixed(0, self.vector) };
            vm.vcpus.send(&message, Origin::Ipi { sender: index });
        }
    }

    /// Whether there is something to tell.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        self.due
    }
}
