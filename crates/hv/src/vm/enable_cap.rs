//! KVM_ENABLE_CAP on a VM.
use core::sync::atomic::Ordering::SeqCst;

use abi::*;
use mmu::dirty::ManualProtect;
use platform::{MaySleep, Platform};

use super::{Irqchip, Vm};
use crate::{Errno, Outcome, backend::Backend, uaccess};

/// The quirks that can be switched off.
pub(crate) const QUIRKS: u64 = KVM_X86_QUIRK_LINT0_REENABLED
    | KVM_X86_QUIRK_CD_NW_CLEARED
    | KVM_X86_QUIRK_LAPIC_MMIO_HOLE
    | KVM_X86_QUIRK_OUT_7E_INC_RIP
    | KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT
    | KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS;

/// The exits that a client can do without. What the processor does meanwhile is the same to the guest: a halted vCPU sleeps in the
/// hypervisor, and a pause is no occasion for others to run.
pub(crate) const DISABLE_EXITS: u64 = KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE;

type Mem<B> = <<B as Backend>::Platform as Platform>::Memory;

impl<B: Backend> Vm<B> {
    pub(super) fn enable_cap(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let cap: KvmEnableCap = uaccess::get::<Mem<B>, _>(arg)?;
        if cap.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let [value, ..] = cap.args;
        let only = |bits: u64| if value & !bits == 0 { Ok(()) } else { Err(Errno::EINVAL) };
        let shared = self.shared();
        match cap.cap {
            KVM_CAP_DISABLE_QUIRKS | KVM_CAP_DISABLE_QUIRKS2 => {
                if cap.cap == KVM_CAP_DISABLE_QUIRKS2 {
                    only(QUIRKS)?;
                }
                shared.settings.disabled_quirks.store(value, SeqCst);
            }
            KVM_CAP_SPLIT_IRQCHIP => {
                let _config = self.0.config.lock();
                let pins = u32::try_from(value).ok().filter(|pins| *pins <= IOAPIC_PINS_MAX).ok_or(Errno::EINVAL)?;
                if shared.chips.mode() != Irqchip::None || self.vcpus().iter().next().is_some() {
                    return Err(Errno::EEXIST);
                }
                shared.chips.create_split(pins)?;
            }
            KVM_CAP_X2APIC_API => {
                only(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK)?;
                shared.chips.set_x2apic_api(
                    value & KVM_X2APIC_API_USE_32BIT_IDS != 0,
                    value & KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK != 0,
                );
            }
            KVM_CAP_X86_USER_SPACE_MSR => {
                only(KVM_MSR_EXIT_REASON_VALID_MASK.into())?;
                shared.settings.user_space_msr.store(value as u32, SeqCst);
            }
            KVM_CAP_EXIT_HYPERCALL => {
                only(KVM_EXIT_HYPERCALL_MAP_GPA_RANGE)?;
                shared.settings.exit_hypercalls.store(value, SeqCst);
            }
            KVM_CAP_X86_TRIPLE_FAULT_EVENT => {
                only(1)?;
                shared.settings.triple_fault_event.store(value != 0, SeqCst);
            }
            KVM_CAP_X86_DISABLE_EXITS => {
                only(DISABLE_EXITS)?;
                let _config = self.0.config.lock();
                if self.vcpus().iter().next().is_some() {
                    return Err(Errno::EINVAL);
                }
                shared.settings.disabled_exits.fetch_or(value, SeqCst);
            }
            KVM_CAP_EXCEPTION_PAYLOAD => shared.settings.exception_payload.store(value != 0, SeqCst),
            KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 => {
                only(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET)?;
                let enabled = value & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE != 0;
                let initially_set = value & KVM_DIRTY_LOG_INITIALLY_SET != 0;
                if initially_set && !enabled {
                    return Err(Errno::EINVAL);
                }
                for space in [&shared.memory, &shared.smram] {
                    space.set_manual_protect(ManualProtect { enabled, initially_set }, cx);
                }
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(Outcome::OK)
    }
}

/// Routes that a client may reserve for its own IOAPIC.
const IOAPIC_PINS_MAX: u32 = 4096;
