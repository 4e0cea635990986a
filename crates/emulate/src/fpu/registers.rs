//! Views of the vector registers in [`x86::Fpu`]: as numbers, by the number that instructions encode.
use x86::{CpuState, Fpu};

/// Stack top, bits 13:11 of the x87 status word.
pub const TOP: u16 = 7 << 11;

/// XMM register `n`.
#[inline(always)]
pub fn xmm(state: &CpuState, n: u8) -> u128 {
    u128::from_le_bytes(state.fpu.legacy.xmm[(n & 15) as usize])
}

/// Writes XMM register `n`; bits 255:128 of its YMM register stay.
#[inline(always)]
pub fn set_xmm(state: &mut CpuState, n: u8, value: u128) {
    state.fpu.legacy.xmm[(n & 15) as usize] = value.to_le_bytes();
}

/// Bits 255:128 of YMM register `n`.
#[inline(always)]
pub fn ymm_hi(state: &CpuState, n: u8) -> u128 {
    u128::from_le_bytes(state.fpu.ymm_hi[(n & 15) as usize])
}

/// Writes bits 255:128 of YMM register `n`.
#[inline(always)]
pub fn set_ymm_hi(state: &mut CpuState, n: u8, value: u128) {
    state.fpu.ymm_hi[(n & 15) as usize] = value.to_le_bytes();
}

/// MMX register `n`, which is the physical x87 register of that number.
#[inline(always)]
pub fn mm(state: &CpuState, n: u8) -> u64 {
    let at = (n as u32).wrapping_sub(top(&state.fpu)) & 7;
    let [a, b, c, d, e, f, g, h, ..] = state.fpu.legacy.st[at as usize];
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Writes MMX register `n` after [`enter_mmx`]: exponent and sign of the x87 register become ones (SDM vol. 1, 9.5.1).
#[inline(always)]
pub fn set_mm(state: &mut CpuState, n: u8, value: u64) {
    let slot = &mut state.fpu.legacy.st[(n & 7) as usize];
    slot[..8].copy_from_slice(&value.to_le_bytes());
    slot[8..10].fill(0xff);
}

/// The stack top of the x87.
#[inline(always)]
pub fn top(fpu: &Fpu) -> u32 {
    (fpu.legacy.fsw >> 11 & 7) as u32
}

/// Moves the stack top; the physical registers keep what they hold, so that ST(i) is renumbered.
pub fn set_top(fpu: &mut Fpu, to: u32) {
    let to = to & 7;
    // The common distances as constants: they are then plain moves.
    match to.wrapping_sub(top(fpu)) & 7 {
        0 => {}
        1 => fpu.legacy.st.rotate_left(1),
        7 => fpu.legacy.st.rotate_right(1),
        by => fpu.legacy.st.rotate_left(by as usize),
    }
    fpu.legacy.fsw = fpu.legacy.fsw & !TOP | (to as u16) << 11;
}

/// What every MMX instruction but EMMS does to the x87: stack top 0, all registers in use.
#[inline(always)]
pub fn enter_mmx(state: &mut CpuState) {
    if state.fpu.legacy.fsw & TOP != 0 {
        set_top(&mut state.fpu, 0);
    }
    state.fpu.legacy.ftw = 0xff;
}

/// Sets the x87 control word; bits that do not exist read as zero, bit 6 as one.
pub fn set_control(fpu: &mut Fpu, value: u16) {
    fpu.legacy.fcw = value & 0x1f3f | 0x40;
    summarize(fpu);
}

/// Recomputes the summary bits ES and B of the status word from exceptions and masks.
pub fn summarize(fpu: &mut Fpu) {
    let unmasked = fpu.legacy.fsw & !fpu.legacy.fcw & 0x3f != 0;
    fpu.legacy.fsw = fpu.legacy.fsw & !0x8080 | if unmasked { 0x8080 } else { 0 };
}

/// FNINIT: the physical registers keep what they hold.
pub fn initialize(fpu: &mut Fpu) {
    set_top(fpu, 0);
    let legacy = &mut fpu.legacy;
    legacy.fcw = x86::fpu::FCW_INIT;
    legacy.fsw = 0;
    legacy.ftw = 0;
    legacy.fop = 0;
    legacy.fip = 0;
    legacy.fdp = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_the_top_keeps_physical_registers() {
        let mut fpu = Fpu::default();
        for i in 0..8 {
            fpu.legacy.st[i][0] = i as u8;
        }
        set_top(&mut fpu, 3);
        assert_eq!((top(&fpu), fpu.legacy.st[0][0], fpu.legacy.st[7][0]), (3, 3, 2));
        set_top(&mut fpu, 2);
        assert_eq!((top(&fpu), fpu.legacy.st[0][0]), (2, 2));
        initialize(&mut fpu);
        assert_eq!((top(&fpu), fpu.legacy.st[5][0]), (0, 5));
    }

    #[test]
    fn summary_follows_masks() {
        let mut fpu = Fpu::default();
        fpu.legacy.fsw = 4;
        set_control(&mut fpu, 0x37b);
        assert_eq!(fpu.legacy.fsw, 0x8084);
        set_control(&mut fpu, 0xffff);
        assert_eq!((fpu.legacy.fsw, fpu.legacy.fcw), (4, 0x1f7f));
    }
}
