//! KVM_GET_SUPPORTED_CPUID: a processor that has what the back end can do, and nothing else.
//!
//! The table is made up, not the host's: the same on every host with the same features, so that a guest can be
//! moved, and so that no leaf promises what nobody implements.
use abi::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KvmCpuidEntry2};
use alloc::vec::Vec;
use platform::{OutOfMemory, fallible::try_push};
use x86::{Features, control::xcr0};

use super::{Reg, features};

/// EBX, EDX, ECX of leaf 0.
pub(super) const AMD: [u32; 3] = text(b"AuthenticAMD");
pub(super) const HYGON: [u32; 3] = text(b"HygonGenuine");
const INTEL: [u32; 3] = text(b"GenuineIntel");
const KVM: [u32; 3] = text(b"KVMKVMKVM\0\0\0");

/// Leaf of KVM's paravirtual features.
pub(super) const PV_LEAF: u32 = 0x4000_0001;
/// kvmclock by the old MSR numbers.
pub(crate) const PV_CLOCK: u32 = 1 << 0;
/// Port 0x80 is no delay worth waiting for.
const PV_NOP_IO_DELAY: u32 = 1 << 1;
/// kvmclock by the new MSR numbers.
pub(crate) const PV_CLOCK_NEW: u32 = 1 << 3;
/// Asynchronous page faults, told by an interrupt.
pub(crate) const PV_ASYNC_PF: u32 = 1 << 4 | 1 << 14;
/// KVM_HC_KICK_CPU wakes a halted vCPU.
const PV_UNHALT: u32 = 1 << 7;
/// kvmclock is the same on every vCPU.
const PV_CLOCK_STABLE: u32 = 1 << 24;

/// Leaf 7 EDX: SPEC_CTRL and PRED_CMD.
const SPEC_CTRL: u32 = 1 << 26;
/// Leaf 7 EDX: IA32_ARCH_CAPABILITIES.
pub(super) const ARCH_CAPABILITIES: u32 = 1 << 29;

/// Bits of a guest-physical address: what the software CPU and today's processors can walk.
const PHYSICAL_BITS: u32 = 46;

const fn text(t: &[u8; 12]) -> [u32; 3] {
    [
        u32::from_le_bytes([t[0], t[1], t[2], t[3]]),
        u32::from_le_bytes([t[4], t[5], t[6], t[7]]),
        u32::from_le_bytes([t[8], t[9], t[10], t[11]]),
    ]
}

/// The table under construction.
struct Table {
    features: Features,
    entries: Vec<KvmCpuidEntry2>,
}

impl Table {
    /// Adds a leaf: what the features say, and `more`.
    fn leaf(&mut self, leaf: u32, more: [u32; 4]) -> Result<(), OutOfMemory> {
        self.entry(leaf, 0, 0, more)
    }

    fn sub(&mut self, leaf: u32, sub: u32, more: [u32; 4]) -> Result<(), OutOfMemory> {
        self.entry(leaf, sub, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, more)
    }

    fn entry(&mut self, function: u32, index: u32, flags: u32, more: [u32; 4]) -> Result<(), OutOfMemory> {
        let bits = |reg| features::register(self.features, function, index, reg);
        let entry = KvmCpuidEntry2 {
            function,
            index,
            flags,
            eax: more[0] | bits(Reg::Eax),
            ebx: more[1] | bits(Reg::Ebx),
            ecx: more[2] | bits(Reg::Ecx),
            edx: more[3] | bits(Reg::Edx),
            padding: [0; 3],
        };
        try_push(&mut self.entries, entry)
    }
}

/// What the table is made from.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Offer {
    pub(crate) features: Features,
    pub(crate) xcr0: u64,
    /// 0 if the host has no usable TSC.
    pub(crate) tsc_khz: u32,
    /// IA32_ARCH_CAPABILITIES; 0 does not offer it.
    pub(crate) arch_capabilities: u64,
    /// REP MOVSB and STOSB are fast.
    pub(crate) fast_strings: bool,
}

/// The table for a back end.
pub(crate) fn supported(offer: &Offer) -> Result<Vec<KvmCpuidEntry2>, OutOfMemory> {
    let Offer { features, xcr0, tsc_khz, arch_capabilities, fast_strings } = *offer;
    let amd = features.contains(Features::AMD);
    let mut t = Table { features, entries: Vec::new() };
    let [b, d, c] = if amd { AMD } else { INTEL };
    let highest = if tsc_khz != 0 { 0x15 } else { 0xd };
    t.leaf(0, [highest, b, c, d])?;
    // Signatures that name no erratum and no model-specific register, as emulators have long used: AMD family 0xf model
    // 0x6b, Intel family 0xf model 6.
    let signature = if amd { 0x0006_0fb1 } else { 0x0f61 };
    // CLFLUSH of 64 bytes. APIC, MTRR, MCA, PAT exist on every vCPU; x2APIC, TSC deadline; a hypervisor is present.
    let ecx = 1 << 21 | 1 << 24 | 1 << 31;
    let edx = 1 << 9 | 1 << 12 | 1 << 14 | 1 << 16;
    t.leaf(1, [signature, 8 << 8, ecx, edx])?;
    if !amd {
        // No descriptors: leaf 4 tells (SDM vol. 2, 0xff).
        t.leaf(2, [0x00ff_ff01, 0, 0, 0])?;
        for (sub, cache) in CACHES.into_iter().enumerate() {
            t.sub(4, sub as u32, cache)?;
        }
        t.sub(4, CACHES.len() as u32, [0; 4])?;
    }
    t.leaf(5, [0; 4])?;
    // ARAT: the APIC timer never stops.
    t.leaf(6, [1 << 2, 0, 0, 0])?;
    // TSC_ADJUST, and fast strings.
    let speculation = if arch_capabilities != 0 && !amd { SPEC_CTRL | ARCH_CAPABILITIES } else { 0 };
    t.sub(7, 0, [0, 1 << 1 | u32::from(fast_strings) << 9, 0, speculation])?;
    t.leaf(0xa, [0; 4])?;
    t.sub(0xb, 0, [0; 4])?;
    let size = super::xsave_size(xcr0);
    if features.contains(Features::XSAVE) {
        t.sub(0xd, 0, [xcr0 as u32, size, size, (xcr0 >> 32) as u32])?;
        t.sub(0xd, 1, [0, size, 0, 0])?;
        if xcr0 & xcr0::AVX != 0 {
            t.sub(0xd, 2, [256, 576, 0, 0])?;
        }
    }
    if tsc_khz != 0 {
        // TSC = crystal * EBX / EAX. The crystal is also what the APIC timer counts: 1 GHz.
        t.leaf(0x15, [1_000_000, tsc_khz, 1_000_000_000, 0])?;
    }
    let [b, c, d] = KVM;
    let pv = if tsc_khz != 0 { PV_CLOCK | PV_CLOCK_NEW | PV_CLOCK_STABLE } else { 0 };
    t.leaf(0x4000_0000, [if tsc_khz != 0 { 0x4000_0010 } else { PV_LEAF }, b, c, d])?;
    t.leaf(PV_LEAF, [pv | PV_NOP_IO_DELAY | PV_ASYNC_PF | PV_UNHALT, 0, 0, 0])?;
    if tsc_khz != 0 {
        // TSC and bus frequency in kHz, as hypervisors have agreed to tell them.
        t.leaf(0x4000_0010, [tsc_khz, 1_000_000, 0, 0])?;
    }
    extended(&mut t, amd)?;
    Ok(t.entries)
}

/// Leaves from 0x8000_0000.
fn extended(t: &mut Table, amd: bool) -> Result<(), OutOfMemory> {
    let [b, d, c] = if amd { AMD } else { [0; 3] };
    t.leaf(0x8000_0000, [0x8000_0008, b, c, d])?;
    let common = if amd {
        (features::register(t.features, 1, 0, Reg::Edx) | 1 << 9 | 1 << 12 | 1 << 14 | 1 << 16)
            & features::AMD_COMMON_EDX
    } else {
        0
    };
    t.leaf(0x8000_0001, [if amd { 0x0006_0fb1 } else { 0 }, 0, 0, common])?;
    let brand: &[u8; 48] = b"rekvm virtual processor                        \0";
    for (i, part) in brand.as_chunks::<16>().0.iter().enumerate() {
        let word = |n: usize| u32::from_le_bytes([part[n], part[n + 1], part[n + 2], part[n + 3]]);
        t.leaf(0x8000_0002 + i as u32, [word(0), word(4), word(8), word(12)])?;
    }
    // AMD: L1 of 64 KiB each, 64-byte lines, 2-way; L2 of 512 KiB, 16-way. Intel: L1 is leaf 4's, L2 is that of [`CACHES`].
    let [l1, l2] = if amd {
        [[0x01ff_01ff, 0x01ff_01ff, 0x4002_0140, 0x4002_0140], [0, 0x4200_4200, 0x0200_8140, 0]]
    } else {
        [[0; 4], [0, 0, 0x0400_8040, 0]]
    };
    t.leaf(0x8000_0005, l1)?;
    t.leaf(0x8000_0006, l2)?;
    // Invariant TSC.
    t.leaf(0x8000_0007, [0, 0, 0, 1 << 8])?;
    t.leaf(0x8000_0008, [PHYSICAL_BITS | 48 << 8, 0, 0, 0])
}

/// Leaf 4: L1 data, L1 instruction and L2 cache of 32 KiB, 32 KiB and 1 MiB, for one processor each.
const CACHES: [[u32; 4]; 3] = [cache(1, 1, 8, 64), cache(2, 1, 8, 64), cache(3, 2, 16, 1024)];

const fn cache(kind: u32, level: u32, ways: u32, sets: u32) -> [u32; 4] {
    [kind | level << 5 | 1 << 8, (ways - 1) << 22 | 63, sets - 1, 0]
}
