//! The guest's x87, SSE and AVX registers between the core's form and the host's, which is an XSAVE area (SDM vol. 1, 13.4).
use platform::hardware::{FpuArea, GuestFpu};
use x86::{Fpu, control::xcr0};

/// XSTATE_BV in [`Fpu::header`].
const XSTATE_BV: usize = 0;
/// What the core knows.
const KNOWN: u64 = xcr0::X87 | xcr0::SSE | xcr0::AVX;

/// Copies the registers out.
pub fn save(from: &mut impl GuestFpu, to: &mut Fpu) {
    from.save(area_mut(to));
    let present = core::mem::take(&mut to.header)[XSTATE_BV];
    let initial = Fpu::default();
    let mxcsr = to.legacy.mxcsr;
    if present & xcr0::X87 == 0 {
        let xmm = to.legacy.xmm;
        to.legacy = initial.legacy;
        to.legacy.xmm = xmm;
    }
    // MXCSR belongs to SSE and AVX together.
    to.legacy.mxcsr = if present & (xcr0::SSE | xcr0::AVX) != 0 { mxcsr } else { initial.legacy.mxcsr };
    if present & xcr0::SSE == 0 {
        to.legacy.xmm = initial.legacy.xmm;
    }
    if present & xcr0::AVX == 0 {
        to.ymm_hi = initial.ymm_hi;
    }
    to.legacy.mxcsr_mask = initial.legacy.mxcsr_mask;
}

/// Copies them in, on a host with this XCR0. False: the host refuses them.
pub fn restore(to: &mut impl GuestFpu, from: &Fpu, host_xcr0: u64) -> bool {
    let mut area = *from;
    area.header[XSTATE_BV] = if host_xcr0 == 0 { xcr0::X87 | xcr0::SSE } else { host_xcr0 & KNOWN };
    to.restore(area_mut(&mut area))
}

fn area_mut(fpu: &mut Fpu) -> &mut FpuArea {
    const { assert!(size_of::<Fpu>() == size_of::<FpuArea>()) };
    // SAFETY: `Fpu` is of this size, has no padding, and any bytes are one; an array of bytes has no alignment.
    unsafe { &mut *core::ptr::from_mut(fpu).cast() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestFpu;
    use platform::MaySleep;

    fn sample() -> Fpu {
        let mut fpu = Fpu::default();
        fpu.legacy.fcw = 0x27f;
        fpu.legacy.st[2] = [3; 16];
        fpu.legacy.xmm[7] = [5; 16];
        fpu.legacy.mxcsr = 0x1fa0;
        fpu.ymm_hi[9] = [6; 16];
        fpu
    }

    #[test]
    fn registers_come_back_as_they_went() {
        let mut host = TestFpu::new(&MaySleep::at_entry()).unwrap();
        assert!(restore(&mut host, &sample(), 7));
        let mut back = Fpu::default();
        save(&mut host, &mut back);
        assert_eq!(back, sample());
    }

    #[test]
    fn what_is_not_there_is_initial() {
        let mut host = TestFpu::new(&MaySleep::at_entry()).unwrap();
        for (present, check) in [
            (xcr0::SSE | xcr0::AVX, (0x37f, [5; 16], 0x1fa0, [6; 16])),
            (xcr0::X87 | xcr0::AVX, (0x27f, [0; 16], 0x1fa0, [6; 16])),
            (xcr0::X87 | xcr0::SSE, (0x27f, [5; 16], 0x1fa0, [0; 16])),
            (xcr0::X87, (0x27f, [0; 16], 0x1f80, [0; 16])),
            (0, (0x37f, [0; 16], 0x1f80, [0; 16])),
        ] {
            restore(&mut host, &sample(), 7);
            host.area[512..520].copy_from_slice(&present.to_le_bytes());
            let mut back = sample();
            save(&mut host, &mut back);
            let legacy = &back.legacy;
            assert_eq!((legacy.fcw, legacy.xmm[7], legacy.mxcsr, back.ymm_hi[9]), check, "{present}");
            assert_eq!(back.header, [0; 8]);
        }
    }

    #[test]
    fn a_host_without_xsave_has_x87_and_sse() {
        let mut host = TestFpu::new(&MaySleep::at_entry()).unwrap();
        assert!(restore(&mut host, &sample(), 0));
        assert_eq!(host.area[512], 3);
    }
}
