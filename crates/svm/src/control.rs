//! Control registers as AMD's processors get them: beside what both vendors' do, the host's own virtualization stays on.
use hardware::control::{Paging, Registers};
use x86::{CpuState, Efer};

/// For a guest with `state`.
pub fn registers(state: &CpuState, paging: Paging) -> Registers {
    let common = Registers::of(state, paging);
    Registers { efer: common.efer | Efer::SVME.bits(), ..common }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmu::shadow::Root;
    use x86::{Cr0, Cr4};

    const ROOT: Root = Root { hpa: 0x1234_5000, levels: 4 };

    fn state(cr0: Cr0, cr4: Cr4, efer: Efer) -> CpuState {
        let mut state = CpuState::reset(0);
        (state.cr0, state.cr4, state.efer, state.cr3) = (cr0.bits(), cr4.bits(), efer.bits(), 0x9000);
        state
    }

    #[test]
    fn with_nested_paging_the_registers_are_the_guests() {
        let s = state(Cr0::PE | Cr0::PG | Cr0::ET, Cr4::PAE | Cr4::MCE | Cr4::SMEP, Efer::LME | Efer::LMA);
        let r = registers(&s, Paging::Nested);
        assert_eq!((r.cr0, r.cr3, r.cr4, r.efer), (s.cr0, s.cr3, s.cr4, s.efer | Efer::SVME.bits()));
    }

    #[test]
    fn the_guest_does_not_turn_the_cache_off() {
        let r = registers(&CpuState::reset(0), Paging::Nested);
        assert_eq!((r.cr0, r.cr4), (Cr0::ET.bits(), Cr4::MCE.bits()));
    }

    #[test]
    fn shadow_tables_are_walked_whatever_the_guest_has() {
        let s = state(Cr0::ET, Cr4::SMEP | Cr4::SMAP | Cr4::PSE, Efer::LME);
        let r = registers(&s, Paging::Shadow(ROOT));
        assert_eq!(r.cr3, ROOT.hpa);
        assert_eq!(r.cr0, (Cr0::ET | Cr0::PG | Cr0::WP).bits());
        assert_eq!(r.cr4, (Cr4::PSE | Cr4::PAE | Cr4::MCE).bits());
        assert_eq!(r.efer, (Efer::NXE | Efer::SVME).bits());
        let s = state(Cr0::ET | Cr0::PE | Cr0::PG, Cr4::SMEP | Cr4::PAE, Efer::LME | Efer::LMA);
        let r = registers(&s, Paging::Shadow(ROOT));
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
