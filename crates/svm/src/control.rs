//! Control registers as the processor gets them: mostly the guest's, but for what shadow paging and the host need.
use mmu::shadow::Root;
use x86::{CpuState, Cr0, Cr4, Efer};

/// CR0 bits that the guest changes without an exit.
pub const CR0_FREE: u64 = Cr0::TS.bits() | Cr0::MP.bits();

/// What the control block gets.
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
    /// The processor walks the guest's tables, and nested ones.
    Nested,
    /// The processor walks these tables of the core's.
    Shadow(Root),
}

impl Registers {
    /// For a guest with `state`.
    pub fn of(state: &CpuState, paging: Paging) -> Self {
        // The guest does not decide how the host's memory is cached, and a machine check must not shut the host down.
        let cr0 = state.cr0 & !(Cr0::CD | Cr0::NW).bits() | Cr0::ET.bits();
        let cr4 = state.cr4 | Cr4::MCE.bits();
        let efer = state.efer | Efer::SVME.bits();
        match paging {
            Paging::Nested => Self { cr0, cr3: state.cr3, cr4, efer },
            Paging::Shadow(root) => {
                let mut cr4 = cr4 | Cr4::PAE.bits();
                let mut efer = efer | Efer::NXE.bits();
                if state.cr0 & Cr0::PG.bits() == 0 {
                    // Addresses are physical: nothing of the guest's protects them, and setting LME alone does not yet
                    // mean long mode.
                    cr4 &= !(Cr4::SMEP | Cr4::SMAP).bits();
                    efer &= !(Efer::LME | Efer::LMA).bits();
                }
                Self { cr0: cr0 | (Cr0::PG | Cr0::WP).bits(), cr3: root.hpa, cr4, efer }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Root = Root { hpa: 0x1234_5000, levels: 4 };

    fn state(cr0: Cr0, cr4: Cr4, efer: Efer) -> CpuState {
        let mut state = CpuState::reset(0);
        (state.cr0, state.cr4, state.efer, state.cr3) = (cr0.bits(), cr4.bits(), efer.bits(), 0x9000);
        state
    }

    #[test]
    fn with_nested_paging_the_registers_are_the_guests() {
        let s = state(Cr0::PE | Cr0::PG | Cr0::ET, Cr4::PAE | Cr4::MCE | Cr4::SMEP, Efer::LME | Efer::LMA);
        let r = Registers::of(&s, Paging::Nested);
        assert_eq!((r.cr0, r.cr3, r.cr4, r.efer), (s.cr0, s.cr3, s.cr4, s.efer | Efer::SVME.bits()));
    }

    #[test]
    fn the_guest_does_not_turn_the_cache_off() {
        let r = Registers::of(&CpuState::reset(0), Paging::Nested);
        assert_eq!((r.cr0, r.cr4), (Cr0::ET.bits(), Cr4::MCE.bits()));
    }

    #[test]
    fn shadow_tables_are_walked_whatever_the_guest_has() {
        let s = state(Cr0::ET, Cr4::SMEP | Cr4::SMAP | Cr4::PSE, Efer::LME);
        let r = Registers::of(&s, Paging::Shadow(ROOT));
        assert_eq!(r.cr3, ROOT.hpa);
        assert_eq!(r.cr0, (Cr0::ET | Cr0::PG | Cr0::WP).bits());
        assert_eq!(r.cr4, (Cr4::PSE | Cr4::PAE | Cr4::MCE).bits());
        assert_eq!(r.efer, (Efer::NXE | Efer::SVME).bits());
        let s = state(Cr0::ET | Cr0::PE | Cr0::PG, Cr4::SMEP | Cr4::PAE, Efer::LME | Efer::LMA);
        let r = Registers::of(&s, Paging::Shadow(ROOT));
        assert_eq!(r.efer, (Efer::NXE | Efer::SVME | Efer::LME | Efer::LMA).bits());
        assert_eq!(r.cr4 & Cr4::SMEP.bits(), Cr4::SMEP.bits());
    }

    #[test]
    fn pae_is_told_from_long_mode() {
        let paging = Cr0::PE | Cr0::PG;
        assert!(state(paging, Cr4::PAE, Efer::empty()).pae());
        assert!(!state(paging, Cr4::PAE, Efer::LME | Efer::LMA).pae());
        assert!(!state(paging, Cr4::PSE, Efer::empty()).pae());
        assert!(!state(Cr0::PE, Cr4::PAE, Efer::empty()).pae());
    }
}
