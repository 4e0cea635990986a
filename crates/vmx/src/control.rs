//! Control registers as the processor gets them: mostly the guest's, but for what VMX, shadow paging and the host need. What the
//! guest reads of CR0 and CR4 are the read shadows.
use mmu::shadow::Root;
use x86::{CpuState, Cr0, Cr4, Efer};

use crate::detect::Processor;

/// CR0 bits that the guest changes without an exit.
pub const CR0_FREE: u64 = Cr0::TS.bits() | Cr0::MP.bits();

/// What the control structure gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// CR0.
    pub cr0: u64,
    /// CR3, or the root of the shadow tables.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
}

/// Who translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// The processor walks the guest's tables, and nested ones. It runs guests with paging off, or in real mode.
    Nested,
    /// The processor walks these tables of the core's. It only runs guests in protected mode, of which virtual-8086 mode is a part.
    Shadow(Root),
}

impl Registers {
    /// For a guest with `state`.
    pub fn of(state: &CpuState, paging: Paging, processor: &Processor) -> Self {
        // The guest does not decide how the host's memory is cached, and a machine check must not shut the host down.
        let cr0 = state.cr0 & !(Cr0::CD | Cr0::NW).bits() | Cr0::ET.bits();
        let cr4 = state.cr4 | Cr4::MCE.bits() | processor.cr4_set;
        match paging {
            Paging::Nested => {
                // An unrestricted guest may do without these two.
                let set = processor.cr0_set & !(Cr0::PE | Cr0::PG).bits();
                Self { cr0: cr0 | set, cr3: state.cr3, cr4, efer: state.efer }
            }
            Paging::Shadow(root) => {
                let mut cr4 = cr4 | Cr4::PAE.bits();
                if state.cr0 & Cr0::PE.bits() == 0 {
                    // Real mode runs as virtual-8086 mode, whose extensions would let instructions through.
                    cr4 &= !(Cr4::VME | Cr4::PVI).bits();
                }
                let mut efer = state.efer | Efer::NXE.bits();
                if state.cr0 & Cr0::PG.bits() == 0 {
                    // Addresses are physical: nothing of the guest's protects them, and setting LME alone does not yet
                    // mean long mode.
                    cr4 &= !(Cr4::SMEP | Cr4::SMAP).bits();
                    efer &= !(Efer::LME | Efer::LMA).bits();
                }
                let cr0 = cr0 | (Cr0::PG | Cr0::WP).bits() | processor.cr0_set;
                Self { cr0, cr3: root.hpa, cr4, efer }
            }
        }
    }

    /// Whether the guest runs in long mode.
    pub const fn long_mode(&self) -> bool {
        self.efer & Efer::LMA.bits() != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Root = Root { hpa: 0x1234_5000, levels: 4 };

    fn processor() -> Processor {
        let cr0_set = (Cr0::PE | Cr0::NE | Cr0::PG).bits();
        Processor { cr0_set, cr4_set: Cr4::VMXE.bits(), ..Processor::default() }
    }

    fn state(cr0: Cr0, cr4: Cr4, efer: Efer) -> CpuState {
        let mut state = CpuState::reset(0);
        (state.cr0, state.cr4, state.efer, state.cr3) = (cr0.bits(), cr4.bits(), efer.bits(), 0x9000);
        state
    }

    #[test]
    fn with_nested_paging_the_registers_are_the_guests() {
        let s = state(Cr0::PE | Cr0::PG | Cr0::ET, Cr4::PAE | Cr4::SMEP, Efer::LME | Efer::LMA);
        let r = Registers::of(&s, Paging::Nested, &processor());
        assert_eq!((r.cr0, r.cr3), (s.cr0 | Cr0::NE.bits(), s.cr3));
        assert_eq!((r.cr4, r.efer), (s.cr4 | (Cr4::VMXE | Cr4::MCE).bits(), s.efer));
        let real = Registers::of(&CpuState::reset(0), Paging::Nested, &processor());
        assert_eq!(real.cr0, (Cr0::ET | Cr0::NE).bits());
    }

    #[test]
    fn shadow_tables_are_walked_whatever_the_guest_has() {
        let s = state(Cr0::ET | Cr0::PE, Cr4::SMEP | Cr4::SMAP | Cr4::PSE, Efer::LME);
        let r = Registers::of(&s, Paging::Shadow(ROOT), &processor());
        assert_eq!(r.cr3, ROOT.hpa);
        assert_eq!(r.cr0, (Cr0::ET | Cr0::PE | Cr0::NE | Cr0::PG | Cr0::WP).bits());
        assert_eq!(r.cr4, (Cr4::PSE | Cr4::PAE | Cr4::MCE | Cr4::VMXE).bits());
        assert_eq!((r.efer, r.long_mode()), (Efer::NXE.bits(), false));
        let s = state(Cr0::ET | Cr0::PE | Cr0::PG, Cr4::SMEP | Cr4::PAE, Efer::LME | Efer::LMA);
        let r = Registers::of(&s, Paging::Shadow(ROOT), &processor());
        assert_eq!((r.efer, r.long_mode()), ((Efer::NXE | Efer::LME | Efer::LMA).bits(), true));
        assert_eq!(r.cr4 & Cr4::SMEP.bits(), Cr4::SMEP.bits());
    }
}
