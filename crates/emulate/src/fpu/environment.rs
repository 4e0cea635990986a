//! FNSTENV, FLDENV, FNSAVE and FRSTOR in their four layouts: 16 and 32 bits, real-address and protected mode
//! (SDM vol. 1, figures 8-9 to 8-12).
use iced_x86::{Code, Instruction};
use x86::Fpu;

use super::check;
use super::registers::{initialize, set_control, set_top, top};
use crate::{Access, Cpu, Handler, Op, Res, address};

/// Bytes of the eight data registers.
const DATA: usize = 80;
/// The longest image.
const MAX: usize = 28 + DATA;

/// The tag word as the x87 defines it, two bits a register, from the abridged one and the registers' contents.
fn full_tags(fpu: &Fpu) -> u16 {
    let mut tags = 0;
    for physical in 0..8 {
        let tag = if fpu.legacy.ftw >> physical & 1 == 0 {
            3
        } else {
            classify(&fpu.legacy.st[(physical as u32).wrapping_sub(top(fpu)) as usize & 7])
        };
        tags |= tag << (2 * physical);
    }
    tags
}

/// Valid, zero or special.
fn classify(st: &[u8; 16]) -> u16 {
    let exponent = u16::from_le_bytes([st[8], st[9]]) & 0x7fff;
    let integer_bit = st[7] & 0x80 != 0;
    match exponent {
        0 if st[..8].iter().all(|&b| b == 0) => 1,
        0 | 0x7fff => 2,
        _ if integer_bit => 0,
        _ => 2,
    }
}

fn abridge(tags: u16) -> u8 {
    (0..8).filter(|i| tags >> (2 * i) & 3 != 3).fold(0, |all, i| all | 1 << i)
}

fn put16(image: &mut [u8; MAX], at: usize, value: u16) {
    image[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put32(image: &mut [u8; MAX], at: usize, value: u32) {
    image[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn get16(image: &[u8; MAX], at: usize) -> u16 {
    u16::from_le_bytes([image[at], image[at + 1]])
}

fn get32(image: &[u8; MAX], at: usize) -> u32 {
    get16(image, at) as u32 | (get16(image, at + 2) as u32) << 16
}

/// A kept pointer as the linear address that the real-mode layouts show.
fn real_address(pointer: u64) -> u32 {
    (((pointer >> 32 & 0xffff) as u32) << 4).wrapping_add(pointer as u32)
}

/// Writes the environment; returns its length.
fn compose(fpu: &Fpu, protected: bool, wide: bool, image: &mut [u8; MAX]) -> usize {
    let l = &fpu.legacy;
    let step = if wide { 4 } else { 2 };
    for (i, word) in [l.fcw, l.fsw, full_tags(fpu)].into_iter().enumerate() {
        put16(image, i * step, word);
        if wide {
            put16(image, i * step + 2, 0xffff);
        }
    }
    let (cs, ds) = ((l.fip >> 32) as u16, (l.fdp >> 32) as u16);
    let fop = l.fop & 0x7ff;
    match (protected, wide) {
        (true, true) => {
            put32(image, 12, l.fip as u32);
            put32(image, 16, cs as u32 | (fop as u32) << 16);
            put32(image, 20, l.fdp as u32);
            put32(image, 24, ds as u32 | 0xffff_0000);
        }
        (true, false) => {
            for (i, word) in [l.fip as u16, cs, l.fdp as u16, ds].into_iter().enumerate() {
                put16(image, 6 + 2 * i, word);
            }
        }
        (false, true) => {
            let (ip, dp) = (real_address(l.fip), real_address(l.fdp));
            put32(image, 12, ip & 0xffff | 0xffff_0000);
            put32(image, 16, (ip >> 16) << 12 | fop as u32);
            put32(image, 20, dp & 0xffff | 0xffff_0000);
            put32(image, 24, (dp >> 16) << 12);
        }
        (false, false) => {
            let (ip, dp) = (real_address(l.fip), real_address(l.fdp));
            put16(image, 6, ip as u16);
            put16(image, 8, (ip >> 4) as u16 & 0xf000 | fop);
            put16(image, 10, dp as u16);
            put16(image, 12, (dp >> 4) as u16 & 0xf000);
        }
    }
    if wide { 28 } else { 14 }
}

/// Loads the environment from an image.
fn parse(fpu: &mut Fpu, protected: bool, wide: bool, image: &[u8; MAX]) {
    let step = if wide { 4 } else { 2 };
    let (fsw, tags) = (get16(image, step), get16(image, 2 * step));
    let (fip, fdp, fop) = match (protected, wide) {
        (true, true) => (
            get32(image, 12) as u64 | (get16(image, 16) as u64) << 32,
            get32(image, 20) as u64 | (get16(image, 24) as u64) << 32,
            get16(image, 18),
        ),
        (true, false) => (
            get16(image, 6) as u64 | (get16(image, 8) as u64) << 32,
            get16(image, 10) as u64 | (get16(image, 12) as u64) << 32,
            fpu.legacy.fop,
        ),
        (false, true) => (
            get16(image, 12) as u64 | (get32(image, 16) as u64 >> 12 & 0xffff) << 16,
            get16(image, 20) as u64 | (get32(image, 24) as u64 >> 12 & 0xffff) << 16,
            get16(image, 16),
        ),
        (false, false) => (
            get16(image, 6) as u64 | (get16(image, 8) as u64 & 0xf000) << 4,
            get16(image, 10) as u64 | (get16(image, 12) as u64 & 0xf000) << 4,
            get16(image, 8),
        ),
    };
    set_top(fpu, (fsw >> 11 & 7) as u32);
    let l = &mut fpu.legacy;
    (l.fsw, l.ftw, l.fip, l.fdp, l.fop) = (fsw, abridge(tags), fip, fdp, fop & 0x7ff);
    set_control(fpu, get16(image, 0));
}

fn store_image<C: Cpu>(cpu: &mut C, linear: u64, bytes: &[u8]) -> Res {
    cpu.probe_write(linear, bytes.len() as u64, Access::Program)?;
    let mut at = linear;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        if let Ok(word) = word.try_into() {
            cpu.store(at, u32::from_le_bytes(word), Access::Program)?;
        }
        at = at.wrapping_add(4);
    }
    if let Ok(word) = words.remainder().try_into() {
        cpu.store(at, u16::from_le_bytes(word), Access::Program)?;
    }
    Ok(())
}

fn load_image<C: Cpu>(cpu: &mut C, linear: u64, bytes: &mut [u8]) -> Res {
    let mut at = linear;
    for half in bytes.chunks_exact_mut(2) {
        let word: u16 = cpu.load(at, Access::Program)?;
        half.copy_from_slice(&word.to_le_bytes());
        at = at.wrapping_add(2);
    }
    Ok(())
}

fn begin<C: Cpu, const WAIT: bool>(cpu: &C) -> Res {
    if WAIT { check::x87_waiting(cpu) } else { check::x87(cpu) }
}

fn fnstenv<C: Cpu, const WIDE: bool, const WAIT: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    begin::<C, WAIT>(cpu)?;
    let linear = address::linear(cpu, op, if WIDE { 28 } else { 14 }, true)?;
    let mut image = [0; MAX];
    let len = compose(&cpu.state().fpu, cpu.state().protected(), WIDE, &mut image);
    store_image(cpu, linear, &image[..len])?;
    let fpu = &mut cpu.state_mut().fpu;
    set_control(fpu, fpu.legacy.fcw | 0x3f);
    Ok(())
}

fn fldenv<C: Cpu, const WIDE: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    check::x87_waiting(cpu)?;
    let len = if WIDE { 28 } else { 14 };
    let linear = address::linear(cpu, op, len as u64, false)?;
    let mut image = [0; MAX];
    load_image(cpu, linear, &mut image[..len])?;
    let protected = cpu.state().protected();
    parse(&mut cpu.state_mut().fpu, protected, WIDE, &image);
    Ok(())
}

fn fnsave<C: Cpu, const WIDE: bool, const WAIT: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    begin::<C, WAIT>(cpu)?;
    let environment = if WIDE { 28 } else { 14 };
    let linear = address::linear(cpu, op, (environment + DATA) as u64, true)?;
    let mut image = [0; MAX];
    let state = cpu.state();
    compose(&state.fpu, state.protected(), WIDE, &mut image);
    for (st, to) in state.fpu.legacy.st.iter().zip(image[environment..].chunks_exact_mut(10)) {
        to.copy_from_slice(&st[..10]);
    }
    store_image(cpu, linear, &image[..environment + DATA])?;
    initialize(&mut cpu.state_mut().fpu);
    Ok(())
}

fn frstor<C: Cpu, const WIDE: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    check::x87_waiting(cpu)?;
    let environment = if WIDE { 28 } else { 14 };
    let linear = address::linear(cpu, op, (environment + DATA) as u64, false)?;
    let mut image = [0; MAX];
    load_image(cpu, linear, &mut image[..environment + DATA])?;
    let protected = cpu.state().protected();
    let fpu = &mut cpu.state_mut().fpu;
    parse(fpu, protected, WIDE, &image);
    for (st, from) in fpu.legacy.st.iter_mut().zip(image[environment..].chunks_exact(10)) {
        st[..10].copy_from_slice(from);
        st[10..].fill(0);
    }
    Ok(())
}

pub(super) fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    use Code::*;
    Some(match insn.code() {
        Fnstenv_m14byte => fnstenv::<C, false, false>,
        Fstenv_m14byte => fnstenv::<C, false, true>,
        Fnstenv_m28byte => fnstenv::<C, true, false>,
        Fstenv_m28byte => fnstenv::<C, true, true>,
        Fldenv_m14byte => fldenv::<C, false>,
        Fldenv_m28byte => fldenv::<C, true>,
        Fnsave_m94byte => fnsave::<C, false, false>,
        Fsave_m94byte => fnsave::<C, false, true>,
        Fnsave_m108byte => fnsave::<C, true, false>,
        Fsave_m108byte => fnsave::<C, true, true>,
        Frstor_m94byte => frstor::<C, false>,
        Frstor_m108byte => frstor::<C, true>,
        _ => return None,
    })
}
