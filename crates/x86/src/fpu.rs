//! x87, SSE and AVX state in the layout of XSAVE's standard format (SDM vol. 1, 13.4 and 10.5.1).

/// MXCSR after reset: all exceptions masked.
pub const MXCSR_RESET: u32 = 0x1f80;
/// MXCSR bits that exist on every processor with SSE2.
pub const MXCSR_MASK: u32 = 0xffff;
/// x87 control word after FNINIT.
pub const FCW_INIT: u16 = 0x37f;

/// The first 512 bytes: what FXSAVE64 stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
#[allow(missing_docs)]
pub struct Legacy {
    pub fcw: u16,
    pub fsw: u16,
    /// Abridged tag word: bit n set if physical register n is not empty.
    pub ftw: u8,
    pub reserved: u8,
    pub fop: u16,
    pub fip: u64,
    pub fdp: u64,
    pub mxcsr: u32,
    pub mxcsr_mask: u32,
    /// ST(0) to ST(7), 10 bytes each and 6 of padding.
    pub st: [[u8; 16]; 8],
    pub xmm: [[u8; 16]; 16],
    pub available: [u8; 96],
}

/// The extended state of one guest processor. XCR0 never offers more than x87, SSE and AVX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Fpu {
    /// x87 and SSE, offset 0.
    pub legacy: Legacy,
    /// XSTATE_BV at offset 512, XCOMP_BV, then reserved.
    pub header: [u64; 8],
    /// Upper halves of YMM0 to YMM15, offset 576.
    pub ymm_hi: [[u8; 16]; 16],
}

impl Default for Fpu {
    /// The state after FNINIT with MXCSR at its reset value.
    fn default() -> Self {
        Self {
            legacy: Legacy {
                fcw: FCW_INIT,
                fsw: 0,
                ftw: 0,
                reserved: 0,
                fop: 0,
                fip: 0,
                fdp: 0,
                mxcsr: MXCSR_RESET,
                mxcsr_mask: MXCSR_MASK,
                st: [[0; 16]; 8],
                xmm: [[0; 16]; 16],
                available: [0; 96],
            },
            header: [0; 8],
            ymm_hi: [[0; 16]; 16],
        }
    }
}

const _: () = {
    assert!(core::mem::size_of::<Legacy>() == 512);
    assert!(core::mem::offset_of!(Legacy, xmm) == 160);
    assert!(core::mem::size_of::<Fpu>() == 832);
    assert!(core::mem::offset_of!(Fpu, ymm_hi) == 576);
};
