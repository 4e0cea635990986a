//! What the processor can do (SDM vol. 3, appendix A), and whether that is enough.
use hardware::features::Offer;
use platform::hardware::Refusal;
use x86::{Features, msr};

use crate::{
    controls::{Allowed, entry, exit, pin, primary, secondary},
    instructions::Instructions,
};

/// Capability MSRs.
#[allow(missing_docs)]
pub mod capability {
    pub const BASIC: u32 = 0x480;
    pub const PIN: u32 = 0x481;
    pub const PRIMARY: u32 = 0x482;
    pub const EXIT: u32 = 0x483;
    pub const ENTRY: u32 = 0x484;
    pub const MISC: u32 = 0x485;
    pub const CR0_FIXED_0: u32 = 0x486;
    pub const CR0_FIXED_1: u32 = 0x487;
    pub const CR4_FIXED_0: u32 = 0x488;
    pub const CR4_FIXED_1: u32 = 0x489;
    pub const SECONDARY: u32 = 0x48b;
    pub const EPT_VPID: u32 = 0x48c;
    pub const TRUE_PIN: u32 = 0x48d;
    pub const TRUE_PRIMARY: u32 = 0x48e;
    pub const TRUE_EXIT: u32 = 0x48f;
    pub const TRUE_ENTRY: u32 = 0x490;
}

/// IA32_FEATURE_CONTROL: the register is locked; VMXON is allowed.
pub const LOCKED: u64 = 1 << 0;
/// See [`LOCKED`].
pub const VMXON_ALLOWED: u64 = 1 << 2;

/// IA32_VMX_BASIC: structures lie below 4 GiB; the capability MSRs of the "true" kind exist.
const BELOW_4G: u64 = 1 << 48;
const TRUE_CONTROLS: u64 = 1 << 55;

/// IA32_VMX_MISC: software events of length 0 may be injected.
const ZERO_LENGTH: u64 = 1 << 30;

/// IA32_VMX_EPT_VPID_CAP.
mod ept_vpid {
    pub const FOUR_LEVELS: u64 = 1 << 6;
    pub const WRITE_BACK: u64 = 1 << 14;
    pub const LARGE: u64 = 1 << 16;
    pub const INVEPT: u64 = 1 << 20;
    pub const ACCESSED: u64 = 1 << 21;
    pub const INVEPT_ONE: u64 = 1 << 25;
    pub const INVEPT_ALL: u64 = 1 << 26;
    pub const INVVPID: u64 = 1 << 32;
    pub const INVVPID_ONE: u64 = 1 << 41;
    pub const INVVPID_ALL: u64 = 1 << 42;
}

/// The processor's abilities, and control fields as every guest has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// Which layout of control structures it wants.
    pub revision: u32,
    /// They have to lie below 4 GiB.
    pub below_4g: bool,
    /// Pin-based controls, but for virtual NMIs.
    pub pin: u32,
    /// Primary controls.
    pub primary: u32,
    /// VM-exit controls.
    pub exit: u32,
    /// VM-entry controls.
    pub entry: u32,
    /// What the secondary controls may be.
    pub secondaries: Allowed,
    /// EPT and what goes with it: guests may get nested paging.
    pub nested_paging: bool,
    /// EPT entries have accessed and dirty bits.
    pub accessed_bits: bool,
    /// INVEPT of one root.
    pub flush_one_root: bool,
    /// Translations are tagged.
    pub tagged: bool,
    /// INVVPID of one tag.
    pub flush_one_tag: bool,
    /// EFER is exchanged by the processor.
    pub switches_efer: bool,
    /// CR8 is read without an exit.
    pub tpr_shadow: bool,
    /// It knows whether a guest's NMIs are blocked, and says when they no longer are.
    pub virtual_nmis: bool,
    /// The guest's time-stamp counter may run at another rate.
    pub tsc_scaling: bool,
    /// It notices loops of PAUSE.
    pub pause_loops: bool,
    /// Software events of length 0 may be injected.
    pub zero_length: bool,
    /// It has no UMIP, but exits for the instructions that UMIP is about, all but SMSW.
    pub umip_by_exits: bool,
    /// Bits that must be set in CR0.
    pub cr0_set: u64,
    /// Bits that must be set in CR4.
    pub cr4_set: u64,
    /// IA32_ARCH_CAPABILITIES.
    pub arch_capabilities: u64,
    /// What it has beside virtualization.
    pub offer: Offer,
}

/// The kinds of IA32_ARCH_CAPABILITIES' bits that say "does not have this flaw", and need nothing of the hypervisor: RDCL_NO,
/// SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, PBRSB_NO, GDS_NO, RFDS_NO.
const FLAWLESS: u64 =
    1 << 0 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 24 | 1 << 26 | 1 << 27;

impl Processor {
    /// Looks at the processor that runs this.
    ///
    /// # Errors
    /// It has no VT-x, or not enough of it, or the firmware has forbidden it.
    pub fn detect<I: Instructions>() -> Result<Self, Refusal> {
        if I::cpuid(1, 0)[2] & 1 << 5 == 0 {
            return Err(Refusal::NotThere);
        }
        // SAFETY: a processor with VMX has these registers; those that are optional are asked for below.
        let read = |index| unsafe { I::read_msr(index) };
        let control = read(msr::FEATURE_CONTROL);
        if control & (LOCKED | VMXON_ALLOWED) == LOCKED {
            return Err(Refusal::DisabledByFirmware);
        }
        let basic = read(capability::BASIC);
        let allowed = |plain, exact| Allowed::of(read(if basic & TRUE_CONTROLS != 0 { exact } else { plain }));
        let pins = allowed(capability::PIN, capability::TRUE_PIN);
        let firsts = allowed(capability::PRIMARY, capability::TRUE_PRIMARY);
        let exits = allowed(capability::EXIT, capability::TRUE_EXIT);
        let entries = allowed(capability::ENTRY, capability::TRUE_ENTRY);
        let seconds =
            if firsts.has(primary::SECONDARY) { Allowed::of(read(capability::SECONDARY)) } else { Allowed::default() };
        let ept_vpid = if seconds.some(secondary::EPT | secondary::VPID) != 0 { read(capability::EPT_VPID) } else { 0 };
        let has = |bits| ept_vpid & bits == bits;
        let tpr_shadow = firsts.has(primary::TPR_SHADOW);
        let switches_efer = exits.has(exit::LOAD_EFER) && entries.has(entry::LOAD_EFER);
        let invept = has(ept_vpid::INVEPT) && (has(ept_vpid::INVEPT_ONE) || has(ept_vpid::INVEPT_ALL));
        let mut offer = Offer::detect::<I>();
        if !seconds.has(secondary::RDTSCP) {
            offer.features = offer.features.difference(Features::RDTSCP.union(Features::RDPID));
            offer.tsc_aux = false;
        }
        if !seconds.has(secondary::INVPCID) {
            offer.features = offer.features.difference(Features::INVPCID);
        }
        let umip_by_exits = !offer.features.contains(Features::UMIP) && seconds.has(secondary::DESCRIPTOR_TABLES);
        if umip_by_exits {
            offer.features |= Features::UMIP;
        }
        let arch = I::cpuid(0, 0)[0] >= 7 && I::cpuid(7, 0)[3] & 1 << 29 != 0;
        Ok(Self {
            revision: basic as u32 & 0x7fff_ffff,
            below_4g: basic & BELOW_4G != 0,
            pin: pins.choose(pin::INTERRUPTS | pin::NMIS, 0, 0, "exits for interrupts and NMIs")?,
            primary: firsts.choose(
                primary::TSC_OFFSET
                    | primary::HLT
                    | primary::MWAIT
                    | primary::RDPMC
                    | primary::CR8_LOAD
                    | primary::MOV_DR
                    | primary::ALL_IO
                    | primary::MONITOR
                    | if tpr_shadow { primary::TPR_SHADOW } else { primary::CR8_STORE },
                primary::INTERRUPT_WINDOW | primary::CR3_LOAD | primary::CR3_STORE | primary::INVLPG | primary::RDTSC,
                primary::MSR_BITMAP | primary::SECONDARY,
                "exits for the instructions that a guest must not have to itself",
            )?,
            exit: exits.choose(exit::HOST_64, 0, if switches_efer { exit::LOAD_EFER } else { 0 }, "a 64-bit host")?,
            entry: entries.choose(
                entry::LOAD_DEBUG,
                entry::LONG_MODE,
                if switches_efer { entry::LOAD_EFER } else { 0 },
                "guests in long mode with debug registers of their own",
            )?,
            secondaries: seconds,
            nested_paging: seconds.has(secondary::EPT | secondary::UNRESTRICTED)
                && has(ept_vpid::FOUR_LEVELS | ept_vpid::WRITE_BACK | ept_vpid::LARGE)
                && invept
                && switches_efer,
            accessed_bits: has(ept_vpid::ACCESSED),
            flush_one_root: has(ept_vpid::INVEPT_ONE),
            tagged: seconds.has(secondary::VPID) && has(ept_vpid::INVVPID | ept_vpid::INVVPID_ALL),
            flush_one_tag: has(ept_vpid::INVVPID_ONE),
            switches_efer,
            tpr_shadow,
            virtual_nmis: pins.has(pin::VIRTUAL_NMIS) && firsts.has(primary::NMI_WINDOW),
            tsc_scaling: seconds.has(secondary::TSC_SCALING),
            pause_loops: seconds.has(secondary::PAUSE_LOOP),
            zero_length: read(capability::MISC) & ZERO_LENGTH != 0,
            umip_by_exits,
            cr0_set: read(capability::CR0_FIXED_0),
            cr4_set: read(capability::CR4_FIXED_0),
            arch_capabilities: if arch { read(msr::ARCH_CAPABILITIES) & FLAWLESS } else { 0 },
            offer,
        })
    }

    /// Pin-based controls.
    pub fn pin_controls(&self) -> u32 {
        self.pin | if self.virtual_nmis { pin::VIRTUAL_NMIS } else { 0 }
    }

    /// Secondary controls of guests with or without nested paging.
    pub fn secondary(&self, nested: bool) -> u32 {
        let mut wanted = secondary::RDTSCP | secondary::WBINVD | secondary::PAUSE_LOOP | secondary::TSC_SCALING;
        if self.tagged {
            wanted |= secondary::VPID;
        }
        if nested {
            wanted |= secondary::EPT | secondary::UNRESTRICTED | secondary::INVPCID;
        }
        self.secondaries.some(wanted)
    }

    /// Whether there are secondary controls.
    pub fn has_secondary(&self) -> bool {
        self.primary & primary::SECONDARY != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Recorder, old_processor, script, set_msr};

    #[test]
    fn a_processor_without_vmx_is_refused() {
        script(|s| s.cpuid.get_mut(&1).unwrap()[2] &= !(1 << 5));
        assert_eq!(Processor::detect::<Recorder>(), Err(Refusal::NotThere));
    }

    #[test]
    fn a_firmware_that_forbids_it_is_named() {
        set_msr(msr::FEATURE_CONTROL, LOCKED);
        assert_eq!(Processor::detect::<Recorder>(), Err(Refusal::DisabledByFirmware));
        // Not locked: this module may allow it.
        set_msr(msr::FEATURE_CONTROL, 0);
        assert!(Processor::detect::<Recorder>().is_ok());
    }

    #[test]
    fn a_modern_processor_gets_everything() {
        let p = Processor::detect::<Recorder>().unwrap();
        assert!(p.nested_paging && p.accessed_bits && p.tagged && p.switches_efer && p.tpr_shadow && p.tsc_scaling);
        assert_eq!((p.virtual_nmis, p.pin_controls()), (true, 0x29 | 0x16));
        assert_eq!(p.exit & (exit::HOST_64 | exit::LOAD_EFER), exit::HOST_64 | exit::LOAD_EFER);
        assert_eq!(p.primary & (primary::CR3_LOAD | primary::CR8_STORE | primary::INTERRUPT_WINDOW), 0);
        let shadow = p.secondary(false);
        assert_eq!(shadow & (secondary::EPT | secondary::UNRESTRICTED | secondary::INVPCID), 0);
        assert_eq!(p.secondary(true) & !shadow, secondary::EPT | secondary::UNRESTRICTED | secondary::INVPCID);
    }

    #[test]
    fn an_old_processor_does_with_less() {
        old_processor();
        let p = Processor::detect::<Recorder>().unwrap();
        assert!(!p.nested_paging && !p.tagged && !p.switches_efer && !p.has_secondary());
        assert_eq!((p.secondary(false), p.secondary(true)), (0, 0));
        // What it cannot be without: loads and stores of CR3 exit.
        assert_eq!(p.primary & (primary::CR3_LOAD | primary::CR3_STORE), primary::CR3_LOAD | primary::CR3_STORE);
        // Of virtual NMIs it lacks one half.
        assert!(!p.virtual_nmis);
        assert!(!p.offer.tsc_aux && !p.offer.features.contains(Features::RDTSCP));
    }

    #[test]
    fn what_is_missing_is_said() {
        // No exits for NMIs.
        set_msr(capability::TRUE_PIN, 0x0000_0037_0000_0016);
        let Err(Refusal::Lacking(what)) = Processor::detect::<Recorder>() else { panic!() };
        assert!(what.contains("NMI"), "{what}");
    }
}
