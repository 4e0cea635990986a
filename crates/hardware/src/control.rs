//! Control registers as the processor gets them: mostly the guest's, but for what shadow paging and the host need. What only one
//! vendor's processors want besides is its back end's to add.
use mmu::shadow::Root;
use x86::{CpuState, Cr0, Cr4, Efer};

/// CR0 bits that the guest changes without an exit.
pub const CR0_FREE: u64 = Cr0::TS.bits() | Cr0::MP.bits();

/// What the processor gets.
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

impl Paging {
    /// By the core's tables, whose root is `root`.
    pub const fn of(nested: bool, root: Root) -> Self {
        if nested { Self::Nested } else { Self::Shadow(root) }
    }
}

impl Registers {
    /// For a guest with `state`.
    pub fn of(state: &CpuState, paging: Paging) -> Self {
        // The guest does not decide how the host's memory is cached, and a machine check must not shut the host down.
        let cr0 = state.cr0 & !(Cr0::CD | Cr0::NW).bits() | Cr0::ET.bits();
        let cr4 = state.cr4 | Cr4::MCE.bits();
        match paging {
            Paging::Nested => Self { cr0, cr3: state.cr3, cr4, efer: state.efer },
            Paging::Shadow(root) => {
                let mut cr4 = cr4 | Cr4::PAE.bits();
                let mut efer = state.efer | Efer::NXE.bits();
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

    /// Whether the guest runs in long mode.
    pub const fn long_mode(&self) -> bool {
        self.efer & Efer::LMA.bits() != 0
    }
}
