//! CPUID: the table that the client sets for a vCPU, and what can be offered.
mod features;
mod supported;

use abi::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KvmCpuidEntry, KvmCpuidEntry2};
use alloc::vec::Vec;
use platform::OutOfMemory;
use x86::{CpuState, Cr4, Features, control::xcr0};

pub use features::features_from_cpuid;
use features::{BITS, Reg};
pub(crate) use supported::{Offer, PV_ASYNC_PF, PV_CLOCK, PV_CLOCK_NEW, supported};

/// Most entries of a table, as Linux has it.
pub(crate) const MAX_ENTRIES: usize = 256;

/// Where leaves begin: the processor's, its hypervisor's, and the extended ones.
const CLASSES: [u32; 3] = [0, 0x4000_0000, 0x8000_0000];
/// So many leaves of each class are found at once.
const NEAR: usize = 32;
/// Leaves of which [`Cpuid::execute`] makes something else.
const VARYING: [u32; 6] = [1, 7, 0xd, 0xb, 0x1f, 0x8000_0001];
/// There is no entry of this leaf.
const NONE: u16 = u16::MAX;

/// The table of one vCPU.
#[derive(Debug)]
pub(crate) struct Cpuid {
    entries: Vec<KvmCpuidEntry2>,
    /// For each near leaf the place of its first entry.
    firsts: Near,
    /// The same for those whose answer depends on nothing else.
    fixed: Near,
}

type Near = [[u16; NEAR]; CLASSES.len()];

impl Default for Cpuid {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

/// EAX, EBX, ECX and EDX.
pub(crate) type Answer = [u32; 4];

impl Cpuid {
    pub(crate) fn new(entries: Vec<KvmCpuidEntry2>) -> Self {
        let none = [[NONE; NEAR]; CLASSES.len()];
        let mut new = Self { entries, firsts: none, fixed: none };
        for (place, entry) in new.entries.iter().enumerate().rev() {
            let fixed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 && !VARYING.contains(&entry.function);
            for (table, place) in
                [(&mut new.firsts, place as u16), (&mut new.fixed, if fixed { place as u16 } else { NONE })]
            {
                if let Some(first) = near(entry.function).and_then(|(class, n)| table.get_mut(class)?.get_mut(n)) {
                    *first = place;
                }
            }
        }
        new
    }

    /// 2007's table, whose leaves have no sub-leaves.
    pub(crate) fn from_2007(entries: &[KvmCpuidEntry]) -> Result<Self, OutOfMemory> {
        let mut new = platform::fallible::try_vec(KvmCpuidEntry2::default(), entries.len())?;
        for (to, e) in new.iter_mut().zip(entries) {
            let KvmCpuidEntry { function, eax, ebx, ecx, edx, .. } = *e;
            *to = KvmCpuidEntry2 { function, eax, ebx, ecx, edx, ..KvmCpuidEntry2::default() };
        }
        Ok(Self::new(new))
    }

    pub(crate) fn entries(&self) -> &[KvmCpuidEntry2] {
        &self.entries
    }

    fn find(&self, leaf: u32, sub: u32) -> Option<&KvmCpuidEntry2> {
        let first = match near(leaf) {
            Some((class, n)) => usize::from(*self.firsts.get(class)?.get(n)?),
            None => 0,
        };
        self.entries
            .get(first..)?
            .iter()
            .find(|e| e.function == leaf && (e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || e.index == sub))
    }

    fn register(&self, leaf: u32, sub: u32, reg: Reg) -> u32 {
        let Some(e) = self.find(leaf, sub) else { return 0 };
        match reg {
            Reg::Eax => e.eax,
            Reg::Ebx => e.ebx,
            Reg::Ecx => e.ecx,
            Reg::Edx => e.edx,
        }
    }

    fn vendor(&self) -> [u32; 3] {
        self.find(0, 0).map_or([0; 3], |e| [e.ebx, e.edx, e.ecx])
    }

    fn is_amd(&self) -> bool {
        self.vendor() == supported::AMD || self.vendor() == supported::HYGON
    }

    /// What the table offers.
    pub(crate) fn features(&self) -> Features {
        let mut features = Features::empty();
        for (leaf, sub, reg, bit, feature) in BITS {
            if self.register(*leaf, *sub, *reg) & 1 << bit != 0 {
                features |= *feature;
            }
        }
        features.set(Features::AMD, self.is_amd());
        features
    }

    /// XCR0 bits that the table offers (leaf 0xd).
    pub(crate) fn xcr0(&self) -> u64 {
        let e = self.find(0xd, 0).map_or(0, |e| u64::from(e.eax) | u64::from(e.edx) << 32);
        e | xcr0::X87
    }

    /// Bits of a guest-physical address (leaf 0x80000008; 36 without it, as the manuals have it).
    pub(crate) fn physical_bits(&self) -> u32 {
        match self.register(0x8000_0008, 0, Reg::Eax) & 0xff {
            0 => 36,
            bits => bits.clamp(32, 52),
        }
    }

    /// Family, model and stepping, as RDX shows them after reset; a P6's while there is no table, as on Linux.
    pub(crate) fn signature(&self) -> u32 {
        const P6: u32 = 0x600;
        self.find(1, 0).map_or(P6, |leaf| leaf.eax)
    }

    /// KVM's paravirtual features that the table offers.
    pub(crate) fn pv_features(&self) -> u32 {
        self.register(supported::PV_LEAF, 0, Reg::Eax)
    }

    /// Whether leaf 1 offers x2APIC (ECX bit 21) and the TSC deadline timer (bit 24).
    pub(crate) fn has_x2apic(&self) -> bool {
        self.register(1, 0, Reg::Ecx) & 1 << 21 != 0
    }

    pub(crate) fn has_tsc_deadline(&self) -> bool {
        self.register(1, 0, Reg::Ecx) & 1 << 24 != 0
    }

    pub(crate) fn has_tsc_adjust(&self) -> bool {
        self.register(7, 0, Reg::Ebx) & 1 << 1 != 0
    }

    /// Whether SPEC_CTRL (and PRED_CMD) are offered, in Intel's or AMD's way.
    pub(crate) fn has_spec_ctrl(&self) -> bool {
        self.register(7, 0, Reg::Edx) & (1 << 26 | 1 << 27 | 1 << 31) != 0
            || self.register(0x8000_0008, 0, Reg::Ebx) & (1 << 12 | 1 << 14 | 1 << 15 | 1 << 24) != 0
    }

    /// The L1 data cache can be flushed (leaf 7 EDX, bit 28).
    pub(crate) fn has_flush_cmd(&self) -> bool {
        self.register(7, 0, Reg::Edx) & 1 << 28 != 0
    }

    pub(crate) fn has_arch_capabilities(&self) -> bool {
        self.register(7, 0, Reg::Edx) & supported::ARCH_CAPABILITIES != 0
    }

    /// The answer for a near leaf that depends on nothing but the leaf.
    #[inline]
    pub(crate) fn fixed(&self, leaf: u32) -> Option<Answer> {
        let (class, n) = near(leaf)?;
        let place = *self.fixed.get(class)?.get(n)?;
        let e = self.entries.get(usize::from(place))?;
        Some([e.eax, e.ebx, e.ecx, e.edx])
    }

    /// CPUID as the guest executes it: `eax` and `ecx` are its inputs. `apic_enabled` is IA32_APIC_BASE.EN.
    pub(crate) fn execute(&self, eax: u32, ecx: u32, state: &CpuState, apic_enabled: bool) -> Answer {
        let Some(e) = self.find(eax, ecx).or_else(|| self.out_of_range(eax, ecx)) else { return [0; 4] };
        let mut answer = [e.eax, e.ebx, e.ecx, e.edx];
        let set = |value: &mut u32, bit: u32, on: bool| *value = *value & !(1 << bit) | u32::from(on) << bit;
        match e.function {
            1 => {
                if answer[2] & 1 << 26 != 0 {
                    set(&mut answer[2], 27, state.cr4 & Cr4::OSXSAVE.bits() != 0);
                }
                if !apic_enabled {
                    set(&mut answer[3], 9, false);
                }
            }
            7 if e.index == 0 && answer[2] & 1 << 3 != 0 => {
                set(&mut answer[2], 4, state.cr4 & Cr4::PKE.bits() != 0);
            }
            // Sizes of the area for what is enabled, in standard form and in compacted form.
            0xd if e.index <= 1 => answer[1] = xsave_size(state.xcr0),
            // An extended topology leaf echoes ECX in its low byte.
            0xb | 0x1f => answer[2] = answer[2] & !0xff | ecx & 0xff,
            0x8000_0001 if self.is_amd() && !apic_enabled => set(&mut answer[3], 9, false),
            _ => {}
        }
        answer
    }

    /// Intel processors answer a leaf above the highest as the highest basic leaf, AMD's with zeros.
    fn out_of_range(&self, eax: u32, ecx: u32) -> Option<&KvmCpuidEntry2> {
        if self.is_amd() {
            return None;
        }
        let class = self.find(eax & 0xffff_0000, 0).or_else(|| self.find(eax & 0x8000_0000, 0))?;
        let highest = self.find(0, 0)?;
        if eax <= class.eax { None } else { self.find(highest.eax, ecx) }
    }
}

/// The class of a near leaf, and which of it this is.
#[inline]
fn near(leaf: u32) -> Option<(usize, usize)> {
    let n = (leaf & 0xffff) as usize;
    let class = CLASSES.iter().position(|class| *class == leaf & 0xffff_0000)?;
    (n < NEAR).then_some((class, n))
}

/// Bytes of an XSAVE area that holds `components`.
pub(crate) fn xsave_size(components: u64) -> u32 {
    if components & xcr0::AVX != 0 { 832 } else { 576 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(features: Features, tsc_khz: u32) -> Cpuid {
        let offer = Offer { features, xcr0: 7, tsc_khz, arch_capabilities: 1, fast_strings: true };
        Cpuid::new(supported(&offer).unwrap())
    }

    fn table() -> Cpuid {
        offered(Features::all(), 2_000_000)
    }

    #[test]
    fn what_is_offered_is_what_the_table_says() {
        let features = Features::all() - Features::RDPID - Features::XSAVEC;
        for features in [features, features - Features::AMD - Features::SSE4A, Features::all(), Features::FPU] {
            assert_eq!(offered(features, 0).features(), features);
        }
    }

    #[test]
    fn a_fixed_answer_is_the_same_however_it_is_found() {
        let table = table();
        let mut state = CpuState::reset(0);
        (state.cr4, state.xcr0) = (u64::MAX, 7);
        let mut fixed = 0;
        for leaf in CLASSES.into_iter().flat_map(|class| (class..).take(NEAR + 1)) {
            let Some(answer) = table.fixed(leaf) else { continue };
            fixed += 1;
            for (ecx, enabled) in [(0, true), (1, false), (u32::MAX, true)] {
                for state in [&CpuState::reset(0), &state] {
                    assert_eq!(table.execute(leaf, ecx, state, enabled), answer, "{leaf:#x}");
                }
            }
        }
        assert!(fixed >= 5, "{fixed}");
        assert!(VARYING.iter().all(|leaf| table.fixed(*leaf).is_none()));
        assert_eq!((table.fixed(4), table.fixed(NEAR as u32)), (None, None), "leaf 4 has sub-leaves");
    }

    #[test]
    fn a_processor_without_a_table_has_a_signature() {
        assert_eq!(Cpuid::default().signature(), 0x600);
        assert_eq!(table().signature(), table().execute(1, 0, &CpuState::reset(0), true)[0]);
    }

    #[test]
    fn fast_strings_are_offered_where_they_are() {
        for fast_strings in [false, true] {
            let offer = Offer { features: Features::all(), fast_strings, ..Offer::default() };
            let cpuid = Cpuid::new(supported(&offer).unwrap());
            assert_eq!(cpuid.register(7, 0, Reg::Ebx) >> 9 & 1, fast_strings.into());
        }
    }

    #[test]
    fn of_entries_for_the_same_leaf_the_first_counts() {
        let entry = |function, flags, index, eax| KvmCpuidEntry2 { function, index, flags, eax, ..Default::default() };
        let leaves = [0x8000_0001, 0x8000_001f, 0x8000_0020, 4, 0, 0x1f, 0x20, 0x4000_0001, 0x4000_0100, u32::MAX];
        let (first, second) = (entry(9, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, 1, 1), entry(9, 0, 0, 2));
        let mut entries = Vec::from([first, second, entry(9, 0, 0, 3)]);
        entries.extend(leaves.map(|leaf| entry(leaf, 0, 0, leaf)));
        entries.extend(leaves.map(|leaf| entry(leaf, 0, 0, 7)));
        let cpuid = Cpuid::new(entries);
        let eax = |leaf, sub| cpuid.find(leaf, sub).map(|e| e.eax);
        assert_eq!([eax(9, 0), eax(9, 1), eax(9, 2)], [Some(2), Some(1), Some(2)]);
        assert_eq!(leaves.map(|leaf| eax(leaf, 5)), leaves.map(Some));
        assert_eq!([1, 8, 0x21, 0x4000_0000, 0x8000_0000, 0x8001_0001].map(|leaf| eax(leaf, 0)), [None; 6]);
    }

    #[test]
    fn dynamic_bits_follow_the_registers() {
        let (cpuid, mut state) = (table(), CpuState::reset(0));
        assert_eq!(cpuid.execute(1, 0, &state, true)[2] >> 27 & 1, 0);
        state.cr4 |= Cr4::OSXSAVE.bits();
        assert_eq!(cpuid.execute(1, 0, &state, true)[2] >> 27 & 1, 1);
        assert_eq!(cpuid.execute(1, 0, &state, true)[3] >> 9 & 1, 1);
        assert_eq!(cpuid.execute(1, 0, &state, false)[3] >> 9 & 1, 0);
        assert_eq!(cpuid.execute(0xd, 0, &state, true)[1], 576);
        state.xcr0 = 7;
        assert_eq!(cpuid.execute(0xd, 0, &state, true)[1], 832);
        assert_eq!(cpuid.execute(0xd, 2, &state, true), [256, 576, 0, 0]);
    }

    #[test]
    fn leaves_out_of_range_follow_the_vendor() {
        let state = CpuState::reset(0);
        assert_eq!(table().execute(0x7777, 0, &state, true), [0; 4]);
        let intel = offered(Features::all() - Features::AMD, 2_000_000);
        let highest = intel.execute(0, 0, &state, true)[0];
        assert_eq!(intel.execute(0x7777, 0, &state, true), intel.execute(highest, 0, &state, true));
        assert_eq!(intel.execute(5, 0, &state, true), [0; 4]);
        assert_eq!(Cpuid::default().execute(0, 0, &state, true), [0; 4]);
    }

    #[test]
    fn caches_and_addresses_are_told_as_each_vendor_does() {
        let state = CpuState::reset(0);
        for (features, amd) in [(Features::all(), true), (Features::all() - Features::AMD, false)] {
            let cpuid = offered(features, 2_000_000);
            assert_eq!(cpuid.execute(2, 0, &state, true) == [0; 4], amd);
            assert_eq!(cpuid.execute(4, 0, &state, true)[0] & 0x1f, u32::from(!amd), "L1 data");
            assert_eq!(cpuid.execute(0x8000_0005, 0, &state, true) != [0; 4], amd);
            // Clients complete the table leaf by leaf, and count on each.
            let table = supported(&Offer { features, ..Offer::default() }).unwrap();
            assert!((0x8000_0000..=0x8000_0008).all(|leaf| table.iter().any(|entry| entry.function == leaf)));
            assert_eq!(cpuid.execute(0x8000_0006, 0, &state, true)[2] >> 16, if amd { 512 } else { 1024 }, "L2 in KiB");
            let [bits, ..] = cpuid.execute(0x8000_0008, 0, &state, true);
            assert_eq!((bits & 0xff, bits >> 8), (cpuid.physical_bits(), 48));
            assert!((36..=52).contains(&cpuid.physical_bits()));
        }
    }

    #[test]
    fn the_hypervisor_names_itself() {
        let [_, b, c, d] = table().execute(0x4000_0000, 0, &CpuState::reset(0), true);
        assert_eq!([b, c, d].map(u32::to_le_bytes).concat(), b"KVMKVMKVM\0\0\0");
    }
}
