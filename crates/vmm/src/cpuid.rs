//! What a virtual CPU says about itself: the hypervisor's supported leaves with
//! this processor's place among its siblings filled in. All processors are
//! cores of one package, one thread each; local APIC ids count from zero.

use crate::kvm::Kvm;
use kvm_bindings::{KVM_CAP_TSC_DEADLINE_TIMER, kvm_cpuid_entry2};

/// Leaf 1, ECX: the local APIC timer can take a TSC deadline.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the package has several logical processors.
const HTT: u32 = 1 << 28;

/// Level types of leaf 0xb.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The leaves that all processors of a VM start from.
#[derive(Debug, Clone)]
pub struct Template(Vec<kvm_cpuid_entry2>);

impl Template {
    /// Asks the hypervisor.
    ///
    /// # Errors
    /// What `KVM_GET_SUPPORTED_CPUID` answers.
    pub fn new(kvm: &Kvm) -> Result<Self, crate::kvm::KvmError> {
        let mut entries = kvm.supported_cpuid()?;
        if kvm.check_extension(KVM_CAP_TSC_DEADLINE_TIMER) > 0 {
            // Emulated by the in-hypervisor APIC, so not part of the supported leaves.
            for leaf in entries.iter_mut().filter(|e| e.function == 1) {
                leaf.ecx |= TSC_DEADLINE;
            }
        }
        Ok(Self(entries))
    }

    /// The leaves of processor `id` of `count`.
    pub fn processor(&self, id: u32, count: u32) -> Vec<kvm_cpuid_entry2> {
        // Bits of an APIC id that tell the cores of the package apart.
        let core_bits = count.next_power_of_two().trailing_zeros();
        let mut entries = self.0.clone();
        for e in &mut entries {
            match (e.function, e.index) {
                (1, _) => {
                    let cores = count.min(255);
                    e.ebx = (id & 0xff) << 24 | cores << 16 | (e.ebx & 0xffff);
                    e.ecx |= HYPERVISOR;
                    e.edx = if count > 1 { e.edx | HTT } else { e.edx & !HTT };
                }
                // Intel's and AMD's cache leaves: level 3 is shared by all, the others by none.
                (4 | 0x8000_001d, _) if e.eax & 0x1f != 0 => {
                    let level = e.eax >> 5 & 7;
                    let sharing = if level >= 3 { (1 << core_bits) - 1 } else { 0u32 };
                    e.eax = (e.eax & 0x3fff) | (sharing & 0xfff) << 14;
                    if e.function == 4 {
                        e.eax |= ((1u32 << core_bits) - 1).min(0x3f) << 26;
                    }
                }
                (0xb | 0x1f, 0) => {
                    (e.eax, e.ebx, e.ecx, e.edx) = (0, 1, LEVEL_SMT << 8, id);
                }
                (0xb | 0x1f, 1) => {
                    (e.eax, e.ebx, e.ecx, e.edx) = (core_bits, count, LEVEL_CORE << 8 | 1, id);
                }
                (0xb | 0x1f, index) => {
                    (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, index & 0xff, id);
                }
                (0x8000_0008, _) => {
                    e.ecx = (e.ecx & !0xf0ff) | core_bits << 12 | (count - 1).min(0xff);
                }
                (0x8000_001e, _) => {
                    // Extended APIC id; core id, one thread a core; node 0 of 1.
                    (e.eax, e.ebx, e.ecx) = (id, id & 0xff, 0);
                }
                _ => {}
            }
        }
        // The topology leaf has subleaves that the hypervisor may not list.
        for function in [0xb, 0x1f] {
            if entries.iter().any(|e| e.function == function)
                && !entries.iter().any(|e| e.function == function && e.index == 1)
            {
                entries.push(kvm_cpuid_entry2 {
                    function,
                    index: 1,
                    flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                    eax: core_bits,
                    ebx: count,
                    ecx: LEVEL_CORE << 8 | 1,
                    edx: id,
                    ..Default::default()
                });
            }
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(leaves: &[(u32, u32, u32)]) -> Template {
        Template(
            leaves
                .iter()
                .map(|&(function, index, eax)| kvm_cpuid_entry2 {
                    function,
                    index,
                    eax,
                    ebx: 0xaabb_ccdd,
                    ..Default::default()
                })
                .collect(),
        )
    }

    fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn leaf_1_tells_the_apic_id_and_the_hypervisor() {
        let entries = template(&[(1, 0, 0x1234)]).processor(3, 4);
        let one = leaf(&entries, 1, 0);
        assert_eq!((one.eax, one.ebx), (0x1234, 0x0304_ccdd));
        assert_eq!(one.ecx & HYPERVISOR, HYPERVISOR);
        assert_eq!(one.edx & HTT, HTT);
        assert_eq!(leaf(&template(&[(1, 0, 0)]).processor(0, 1), 1, 0).edx & HTT, 0);
    }

    #[test]
    fn topology_leaf_is_completed() {
        let entries = template(&[(0xb, 0, 0)]).processor(2, 3);
        let smt = leaf(&entries, 0xb, 0);
        assert_eq!((smt.eax, smt.ebx, smt.ecx, smt.edx), (0, 1, 0x100, 2));
        let core = leaf(&entries, 0xb, 1);
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 3, 0x201, 2));
    }

    #[test]
    fn caches_below_the_third_level_are_private() {
        let entries = template(&[(4, 1, 0x3c00_0021 | 0xfff << 14), (4, 3, 0x63)]).processor(0, 4);
        assert_eq!(leaf(&entries, 4, 1).eax, 3 << 26 | 0x21);
        assert_eq!(leaf(&entries, 4, 3).eax, 3 << 26 | 3 << 14 | 0x63);
    }

    #[test]
    fn a_single_processor_has_no_core_bits() {
        let entries = template(&[(0xb, 1, 9), (0x8000_0008, 0, 0x3030)]).processor(0, 1);
        assert_eq!(leaf(&entries, 0xb, 1).eax, 0);
        assert_eq!(leaf(&entries, 0x8000_0008, 0).ecx, 0);
    }
}
