//! Control registers as Intel's processors get them: beside what both vendors' do, VMX wants some bits set. What the guest reads of
//! CR0 and CR4 are the read shadows.
use hardware::control::{Paging, Registers};
use x86::{CpuState, Cr0, Cr4};

use crate::detect::Processor;

/// For a guest with `state`.
pub fn registers(state: &CpuState, paging: Paging, processor: &Processor) -> Registers {
    let mut registers = Registers::of(state, paging);
    registers.cr4 |= processor.cr4_set;
    if processor.umip_by_exits {
        registers.cr4 &= !Cr4::UMIP.bits();
    }
    registers.cr0 |= match paging {
        // An unrestricted guest may do without these two.
        Paging::Nested => processor.cr0_set & !(Cr0::PE | Cr0::PG).bits(),
        // The processor only runs guests in protected mode, of which virtual-8086 mode is a part.
        Paging::Shadow(_) => processor.cr0_set,
    };
    if paging != Paging::Nested && state.cr0 & Cr0::PE.bits() == 0 {
        // Real mode runs as virtual-8086 mode, whose extensions would let instructions through.
        registers.cr4 &= !(Cr4::VME | Cr4::PVI).bits();
    }
    registers
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmu::shadow::Root;
    use x86::Efer;

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
        let r = registers(&s, Paging::Nested, &processor());
        assert_eq!((r.cr0, r.cr3), (s.cr0 | Cr0::NE.bits(), s.cr3));
        assert_eq!((r.cr4, r.efer), (s.cr4 | (Cr4::VMXE | Cr4::MCE).bits(), s.efer));
        let real = registers(&CpuState::reset(0), Paging::Nested, &processor());
        assert_eq!(real.cr0, (Cr0::ET | Cr0::NE).bits());
    }

    #[test]
    fn shadow_tables_are_walked_whatever_the_guest_has() {
        let s = state(Cr0::ET | Cr0::PE, Cr4::SMEP | Cr4::SMAP | Cr4::PSE, Efer::LME);
        let r = registers(&s, Paging::Shadow(ROOT), &processor());
        assert_eq!(r.cr3, ROOT.hpa);
        assert_eq!(r.cr0, (Cr0::ET | Cr0::PE | Cr0::NE | Cr0::PG | Cr0::WP).bits());
        assert_eq!(r.cr4, (Cr4::PSE | Cr4::PAE | Cr4::MCE | Cr4::VMXE).bits());
        assert_eq!((r.efer, r.long_mode()), (Efer::NXE.bits(), false));
        let s = state(Cr0::ET | Cr0::PE | Cr0::PG, Cr4::SMEP | Cr4::PAE, Efer::LME | Efer::LMA);
        let r = registers(&s, Paging::Shadow(ROOT), &processor());
        assert_eq!((r.efer, r.long_mode()), ((Efer::NXE | Efer::LME | Efer::LMA).bits(), true));
        assert_eq!(r.cr4 & Cr4::SMEP.bits(), Cr4::SMEP.bits());
    }
}
