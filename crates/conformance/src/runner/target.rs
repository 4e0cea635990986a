//! What runs behind a device: which hypervisor, on which processor, below which emulator.
use std::{fmt, fs};

/// A set of places; a place is a set of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target(u32);

macro_rules! places {
    ($($(#[$meta:meta])* $name:ident = $bit:expr, $text:expr;)*) => {
        impl Target {
            $($(#[$meta])* pub const $name: Self = Self(1 << $bit);)*
            const PLACES: &[(Self, &str)] = &[$((Self::$name, $text)),*];
        }
    };
}

places! {
    /// The software CPU.
    SOFT_SLOTS = 0, "soft";
    /// The software CPU with a TLB that keeps every stale entry.
    SOFT_ADVERSARIAL = 1, "soft-adversarial";
    /// The software CPU on shadow tables.
    SOFT_SHADOW = 2, "soft-shadow";
    /// Both.
    SOFT_SHADOW_ADVERSARIAL = 3, "soft-shadow-adversarial";
    /// Linux's kvm-amd with nested paging, in QEMU.
    LINUX_AMD_NPT = 4, "linux-amd-npt";
    /// Linux's kvm-amd with shadow paging, in QEMU.
    LINUX_AMD_SHADOW = 5, "linux-amd-shadow";
    /// Linux's kvm-intel with EPT, in Bochs.
    LINUX_INTEL_EPT = 6, "linux-intel-ept";
    /// Linux's kvm-intel with shadow paging, in Bochs.
    LINUX_INTEL_SHADOW = 7, "linux-intel-shadow";
    /// rekvm's module on AMD-V with nested paging, in QEMU.
    MODULE_AMD_NPT = 8, "amd-npt";
    /// rekvm's module on AMD-V with shadow paging, in QEMU.
    MODULE_AMD_SHADOW = 9, "amd-shadow";
    /// rekvm's module on VT-x with EPT, in Bochs.
    MODULE_INTEL_EPT = 10, "intel-ept";
    /// rekvm's module on VT-x with shadow paging, in Bochs.
    MODULE_INTEL_SHADOW = 11, "intel-shadow";
    /// Linux's kvm-intel on a processor without EPT and unrestricted guest, in Bochs.
    LINUX_INTEL_PENRYN = 12, "linux-intel-penryn";
    /// rekvm's module on such a processor, in Bochs.
    MODULE_INTEL_PENRYN = 13, "intel-penryn";
    /// The software CPU on nested tables.
    SOFT_NESTED = 14, "soft-nested";
    /// The software CPU on nested tables, with a TLB that keeps every stale entry.
    SOFT_NESTED_ADVERSARIAL = 15, "soft-nested-adversarial";
}

impl Target {
    /// Linux's own KVM, wherever.
    pub const LINUX: Self = Self::LINUX_AMD.or(Self::LINUX_INTEL);
    /// Linux's kvm-amd.
    pub const LINUX_AMD: Self = Self::LINUX_AMD_NPT.or(Self::LINUX_AMD_SHADOW);
    /// Linux's kvm-intel.
    pub const LINUX_INTEL: Self = Self::LINUX_INTEL_EPT.or(Self::LINUX_INTEL_SHADOW).or(Self::LINUX_INTEL_PENRYN);
    /// Linux's kvm-intel without unrestricted guests: it runs real mode as virtual-8086 mode.
    pub const LINUX_RESTRICTED: Self = Self::LINUX_INTEL_SHADOW.or(Self::LINUX_INTEL_PENRYN);
    /// The software CPU in every mode.
    pub const SOFT: Self = Self::SOFT_SLOTS
        .or(Self::SOFT_ADVERSARIAL)
        .or(Self::SOFT_SHADOW)
        .or(Self::SOFT_SHADOW_ADVERSARIAL)
        .or(Self::SOFT_NESTED)
        .or(Self::SOFT_NESTED_ADVERSARIAL);
    /// rekvm's module with shadow paging.
    pub const MODULE_SHADOW: Self = Self::MODULE_AMD_SHADOW.or(Self::MODULE_INTEL_SHADOW).or(Self::MODULE_INTEL_PENRYN);
    /// Whatever runs on QEMU's AMD-V.
    pub const IN_QEMU: Self = Self::LINUX_AMD.or(Self::MODULE_AMD_NPT).or(Self::MODULE_AMD_SHADOW);
    /// Whatever runs on Bochs's VT-x.
    pub const IN_BOCHS: Self =
        Self::LINUX_INTEL.or(Self::MODULE_INTEL_EPT).or(Self::MODULE_INTEL_SHADOW).or(Self::MODULE_INTEL_PENRYN);

    /// Either of two sets.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The place with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::PLACES.iter().find(|place| place.1 == name).map(|place| place.0)
    }

    /// The names of all places.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::PLACES.iter().map(|place| place.1)
    }

    /// What `--on` means when `--as` does not say: for a device path, whichever module is loaded.
    pub fn behind(on: &str) -> Option<Self> {
        if !on.starts_with("device:") {
            return Self::named(on);
        }
        let option = |path: &str| fs::read_to_string(path).is_ok_and(|text| matches!(text.trim(), "1" | "Y"));
        let loaded = |module: &str| fs::exists(format!("/sys/module/{module}")).unwrap_or(false);
        let name = match () {
            () if loaded("rekvm") && option("/sys/module/rekvm/parameters/npt") => "amd-npt",
            () if loaded("rekvm") => "amd-shadow",
            () if loaded("kvm_amd") && option("/sys/module/kvm_amd/parameters/npt") => "linux-amd-npt",
            () if loaded("kvm_amd") => "linux-amd-shadow",
            () if loaded("kvm_intel") && option("/sys/module/kvm_intel/parameters/ept") => "linux-intel-ept",
            () if loaded("kvm_intel") => "linux-intel-shadow",
            () => return None,
        };
        Self::named(name)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = Self::PLACES.iter().filter(|place| self.contains(place.0)).map(|place| place.1);
        f.write_str(names.next().unwrap_or("nowhere"))?;
        names.try_for_each(|name| write!(f, ", {name}"))
    }
}
