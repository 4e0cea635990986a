//! What holds for the registers of a processor at every instruction boundary, whatever it executes.
use x86::{CpuState, Cr0, Cr4, Efer, Mode, debug, flags, fpu};

/// Sign-extended from the highest bit of a linear address.
fn canonical(address: u64, bits: u32) -> bool {
    let shift = 64 - bits;
    ((address << shift) as i64 >> shift) as u64 == address
}

/// Panics with the register that is impossible. `physical_bits` is the width of a physical address.
pub fn check(s: &CpuState, physical_bits: u32) {
    let mut fresh = s.clone();
    fresh.refresh();
    assert_eq!((fresh.mode, fresh.cpl), (s.mode, s.cpl), "mode or privilege is stale");
    let rflags = s.flags.get();
    assert_eq!(rflags & !flags::WRITABLE, flags::FIXED, "RFLAGS {rflags:#x}");
    if s.mode == Mode::Long64 {
        // The last instruction of the lower half is followed by one that cannot be fetched.
        assert!(
            canonical(s.rip, s.linear_bits()) || canonical(s.rip.wrapping_sub(15), s.linear_bits()),
            "RIP {:#x}",
            s.rip
        );
    } else {
        assert!(s.rip >> 32 == 0, "RIP {:#x} in {:?}", s.rip, s.mode);
    }
    let (pe, pg, long) = (s.cr0 & Cr0::PE.bits() != 0, s.paging(), s.long_mode());
    assert!(Cr0::from_bits(s.cr0).is_some() && s.cr0 & Cr0::ET.bits() != 0, "CR0 {:#x}", s.cr0);
    assert!(pe || !pg, "paging without protection");
    assert_eq!(long, pg && s.efer & Efer::LME.bits() != 0, "EFER {:#x} CR0 {:#x}", s.efer, s.cr0);
    assert!(!long || s.cr4 & Cr4::PAE.bits() != 0, "long mode without PAE");
    assert!(long || s.cr4 & Cr4::PCIDE.bits() == 0, "PCIDs without long mode");
    assert!(Cr4::from_bits(s.cr4).is_some() && Efer::from_bits(s.efer).is_some());
    if long {
        assert!(s.cr3 >> physical_bits == 0, "CR3 {:#x}", s.cr3);
        for base in [s.gdtr.base, s.idtr.base, s.ldtr.base, s.tr.base, s.seg[4].base, s.seg[5].base] {
            assert!(canonical(base, s.linear_bits()), "a base of {base:#x}");
        }
    }
    assert!(canonical(s.kernel_gs_base, s.linear_bits()), "KERNEL_GS_BASE {:#x}", s.kernel_gs_base);
    assert!(s.cr8 < 16, "CR8 {:#x}", s.cr8);
    assert_eq!(s.dr6 & !0xe00f, debug::DR6_FIXED & !0xe00f, "DR6 {:#x}", s.dr6);
    assert_eq!(s.dr7 & !debug::DR7_VOLATILE, debug::DR7_FIXED, "DR7 {:#x}", s.dr7);
    assert!([1, 3, 7].contains(&s.xcr0), "XCR0 {:#x}", s.xcr0);
    assert_eq!(s.fpu.legacy.mxcsr & !fpu::MXCSR_MASK, 0, "MXCSR {:#x}", s.fpu.legacy.mxcsr);
}
