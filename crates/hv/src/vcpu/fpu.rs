//! x87, SSE and AVX state between the client's structures and the canonical state.
//!
//! [`Fpu`] has the layout of an XSAVE area in standard form, so most of this is copying of its parts, and checking
//! that the client asks for nothing that would fault when it is loaded into a processor.
use abi::{KVM_MAX_XCRS, KvmFpu, KvmXcr, KvmXcrs};
use x86::{
    Fpu,
    control::xcr0,
    fpu::{MXCSR_MASK, MXCSR_RESET},
};

use crate::Errno;

/// Offset of XSTATE_BV in an XSAVE area.
const XSTATE_BV: usize = 512;
/// Offset of the upper halves of the YMM registers.
const YMM: usize = 576;

/// KVM_GET_FPU. It has a field for MXCSR, but on Linux neither call has ever used it.
pub(crate) fn to_abi(fpu: &Fpu) -> KvmFpu {
    let l = &fpu.legacy;
    KvmFpu {
        fpr: l.st,
        fcw: l.fcw,
        fsw: l.fsw,
        ftwx: l.ftw,
        pad1: 0,
        last_opcode: l.fop,
        last_ip: l.fip,
        last_dp: l.fdp,
        xmm: l.xmm,
        mxcsr: 0,
        pad2: 0,
    }
}

/// KVM_SET_FPU, which leaves MXCSR alone.
pub(crate) fn from_abi(fpu: &mut Fpu, f: &KvmFpu) {
    let l = &mut fpu.legacy;
    (l.st, l.fcw, l.fsw, l.ftw) = (f.fpr, f.fcw, f.fsw, f.ftwx);
    (l.fop, l.fip, l.fdp, l.xmm) = (f.last_opcode, f.last_ip, f.last_dp, f.xmm);
}

/// KVM_GET_XSAVE into `bytes`, which are zero: standard form, every component of `supported` present.
pub(crate) fn to_xsave(fpu: &Fpu, supported: u64, bytes: &mut [u8]) {
    let f = to_abi(fpu);
    put(bytes, 0, &f.fcw.to_le_bytes());
    put(bytes, 2, &f.fsw.to_le_bytes());
    put(bytes, 4, &[f.ftwx]);
    put(bytes, 6, &f.last_opcode.to_le_bytes());
    put(bytes, 8, &f.last_ip.to_le_bytes());
    put(bytes, 16, &f.last_dp.to_le_bytes());
    put(bytes, 24, &fpu.legacy.mxcsr.to_le_bytes());
    put(bytes, 28, &MXCSR_MASK.to_le_bytes());
    for (i, register) in f.fpr.iter().enumerate() {
        put(bytes, 32 + 16 * i, register);
    }
    for (i, register) in f.xmm.iter().enumerate() {
        put(bytes, 160 + 16 * i, register);
    }
    let components = xcr0::X87 | xcr0::SSE | supported & xcr0::AVX;
    put(bytes, XSTATE_BV, &components.to_le_bytes());
    if supported & xcr0::AVX != 0 {
        for (i, register) in fpu.ymm_hi.iter().enumerate() {
            put(bytes, YMM + 16 * i, register);
        }
    }
}

/// KVM_SET_XSAVE of the `bytes` of an area: a component whose XSTATE_BV bit is clear takes its initial value.
pub(crate) fn from_xsave(fpu: &mut Fpu, bytes: &[u8], supported: u64) -> Result<(), Errno> {
    let components = u64::from_le_bytes(get(bytes, XSTATE_BV));
    let compacted = u64::from_le_bytes(get(bytes, XSTATE_BV + 8));
    let mxcsr = u32::from_le_bytes(get(bytes, 24));
    if components & !(supported | xcr0::X87 | xcr0::SSE) != 0 || compacted != 0 || mxcsr & !MXCSR_MASK != 0 {
        return Err(Errno::EINVAL);
    }
    let mut new = Fpu::default();
    if components & xcr0::X87 != 0 {
        let l = &mut new.legacy;
        l.fcw = u16::from_le_bytes(get(bytes, 0));
        l.fsw = u16::from_le_bytes(get(bytes, 2));
        [l.ftw] = get(bytes, 4);
        l.fop = u16::from_le_bytes(get(bytes, 6));
        l.fip = u64::from_le_bytes(get(bytes, 8));
        l.fdp = u64::from_le_bytes(get(bytes, 16));
        for (i, register) in l.st.iter_mut().enumerate() {
            *register = get(bytes, 32 + 16 * i);
        }
    }
    if components & xcr0::SSE != 0 {
        for (i, register) in new.legacy.xmm.iter_mut().enumerate() {
            *register = get(bytes, 160 + 16 * i);
        }
    }
    // MXCSR belongs to SSE and AVX (SDM vol. 1, 13.5.2).
    new.legacy.mxcsr = if components & (xcr0::SSE | xcr0::AVX) != 0 { mxcsr } else { MXCSR_RESET };
    if components & xcr0::AVX != 0 {
        for (i, register) in new.ymm_hi.iter_mut().enumerate() {
            *register = get(bytes, YMM + 16 * i);
        }
    }
    *fpu = new;
    Ok(())
}

/// KVM_GET_XCRS.
pub(crate) fn to_xcrs(xcr0: u64) -> KvmXcrs {
    let mut xcrs = KvmXcrs { nr_xcrs: 1, ..KvmXcrs::default() };
    xcrs.xcrs[0] = KvmXcr { xcr: 0, reserved: 0, value: xcr0 };
    xcrs
}

/// KVM_SET_XCRS: the value of XCR0 to be set, if the client gives one.
pub(crate) fn from_xcrs(xcrs: &KvmXcrs, supported: u64) -> Result<Option<u64>, Errno> {
    let count = xcrs.nr_xcrs as usize;
    if count > KVM_MAX_XCRS || xcrs.flags != 0 {
        return Err(Errno::EINVAL);
    }
    let Some(entry) = xcrs.xcrs.iter().take(count).find(|x| x.xcr == 0) else { return Ok(None) };
    let value = entry.value;
    let valid = value & xcr0::X87 != 0
        && value & !(supported | xcr0::X87) == 0
        && (value & xcr0::AVX == 0 || value & xcr0::SSE != 0);
    if valid { Ok(Some(value)) } else { Err(Errno::EINVAL) }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + value.len()) {
        to.copy_from_slice(value);
    }
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|b| b.try_into().ok()).unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::fpu::Legacy;

    const ALL: u64 = xcr0::X87 | xcr0::SSE | xcr0::AVX;

    fn area(fpu: &Fpu, supported: u64) -> std::vec::Vec<u8> {
        let mut bytes = std::vec![0; 4096];
        to_xsave(fpu, supported, &mut bytes);
        bytes
    }

    fn sample() -> Fpu {
        let mut fpu = Fpu::default();
        fpu.legacy.st[3] = [7; 16];
        fpu.legacy.xmm[15] = [9; 16];
        fpu.ymm_hi[2] = [5; 16];
        fpu.legacy.fcw = 0x27f;
        fpu.legacy.mxcsr = 0x1fa0;
        fpu
    }

    #[test]
    fn fpu_and_xsave_round_trip() {
        let fpu = sample();
        let mut other = Fpu::default();
        from_abi(&mut other, &to_abi(&fpu));
        assert_eq!(other.legacy, Legacy { mxcsr: MXCSR_RESET, ..fpu.legacy });
        let mut other = Fpu::default();
        from_xsave(&mut other, &area(&fpu, ALL), ALL).unwrap();
        assert_eq!(other, fpu);
    }

    #[test]
    fn absent_components_take_their_initial_value() {
        let mut area = area(&sample(), ALL);
        put(&mut area, XSTATE_BV, &xcr0::X87.to_le_bytes());
        let mut fpu = sample();
        from_xsave(&mut fpu, &area, ALL).unwrap();
        assert_eq!((fpu.legacy.st[3], fpu.legacy.xmm[15], fpu.ymm_hi[2]), ([7; 16], [0; 16], [0; 16]));
        assert_eq!(fpu.legacy.mxcsr, MXCSR_RESET);
    }

    #[test]
    fn what_a_processor_would_refuse_is_refused() {
        let good = area(&sample(), ALL);
        for (at, value) in [(XSTATE_BV, 1 << 9), (XSTATE_BV + 8, 1 << 63), (24, 1 << 31)] {
            let mut bad = good.clone();
            put(&mut bad, at, &u64::to_le_bytes(value));
            assert_eq!(from_xsave(&mut Fpu::default(), &bad, ALL), Err(Errno::EINVAL), "offset {at}");
        }
        assert_eq!(from_xsave(&mut Fpu::default(), &good, xcr0::X87 | xcr0::SSE), Err(Errno::EINVAL));
    }

    #[test]
    fn xcrs_are_checked_as_xsetbv_does() {
        for (nr, value, expected) in [
            (1, ALL, Ok(Some(ALL))),
            (1, 1, Ok(Some(1))),
            (0, 0, Ok(None)),
            (1, 0, Err(Errno::EINVAL)),
            (1, 5, Err(Errno::EINVAL)),
            (1, ALL | 1 << 9, Err(Errno::EINVAL)),
            (17, 1, Err(Errno::EINVAL)),
        ] {
            let mut xcrs = to_xcrs(value);
            xcrs.nr_xcrs = nr;
            assert_eq!(from_xcrs(&xcrs, ALL), expected);
        }
    }
}
