//! Copies and fills. REP MOVSB and REP STOS stop at a fault with RCX saying exactly what is left.
use std::arch::asm;

use platform::{BadAddress, Hva};

use super::{fault_entry, word};

/// Up to here, moves of words beat the start-up time of REP MOVSB.
const SMALL: usize = 64;

/// Copies ascending, byte by byte as far as anyone can see; returns how many bytes are left.
///
/// # Safety
/// Each range is client memory, or memory of the program that is valid for this access.
pub(super) unsafe fn movsb(from: u64, to: u64, bytes: u64) -> u64 {
    let left;
    // SAFETY: as the caller promises; a fault ends the instruction and goes on behind it. The ABI keeps DF clear.
    unsafe {
        asm!(
            "2: rep movsb",
            "3:",
            fault_entry!("3b"),
            inout("rsi") from => _,
            inout("rdi") to => _,
            inout("rcx") bytes => left,
            options(nostack, preserves_flags),
        );
    }
    left
}

/// Writes `count` elements of `size` bytes (1, 2, 4 or 8); returns how many are left.
pub(super) fn stos(at: u64, value: u64, count: u64, size: u64) -> u64 {
    let left;
    macro_rules! stos {
        ($instruction:literal) => {
            // SAFETY: the range is client memory; a fault ends the instruction and goes on behind it.
            unsafe {
                asm!(
                    concat!("2: rep ", $instruction),
                    "3:",
                    fault_entry!("3b"),
                    inout("rdi") at => _,
                    inout("rcx") count => left,
                    in("rax") value,
                    options(nostack, preserves_flags),
                )
            }
        };
    }
    match size {
        1 => stos!("stosb"),
        2 => stos!("stosw"),
        4 => stos!("stosd"),
        _ => stos!("stosq"),
    }
    left
}

pub(super) fn copy_from(at: Hva, to: &mut [u8]) -> Result<(), BadAddress> {
    let at = at.0;
    if to.len() > SMALL {
        // SAFETY: `to` is valid for writes of its length, and the source is client memory.
        let left = unsafe { movsb(at, to.as_mut_ptr() as u64, to.len() as u64) };
        return if left == 0 { Ok(()) } else { Err(BadAddress) };
    }
    let mut offset = at;
    let (words, rest) = to.as_chunks_mut::<8>();
    for word in words {
        *word = word::load64(offset)?.to_le_bytes();
        offset = offset.wrapping_add(8);
    }
    // At most one.
    let (halves, rest) = rest.as_chunks_mut::<4>();
    for half in halves {
        *half = (word::load32(offset)? as u32).to_le_bytes();
        offset = offset.wrapping_add(4);
    }
    for byte in rest {
        *byte = word::load8(offset)? as u8;
        offset = offset.wrapping_add(1);
    }
    Ok(())
}

pub(super) fn copy_to(at: Hva, from: &[u8]) -> Result<(), BadAddress> {
    let at = at.0;
    if from.len() > SMALL {
        // SAFETY: `from` is valid for reads of its length, and the target is client memory.
        let left = unsafe { movsb(from.as_ptr() as u64, at, from.len() as u64) };
        return if left == 0 { Ok(()) } else { Err(BadAddress) };
    }
    let mut offset = at;
    let (words, rest) = from.as_chunks::<8>();
    for word in words {
        word::store64(offset, u64::from_le_bytes(*word))?;
        offset = offset.wrapping_add(8);
    }
    let (halves, rest) = rest.as_chunks::<4>();
    for half in halves {
        word::store32(offset, u32::from_le_bytes(*half).into())?;
        offset = offset.wrapping_add(4);
    }
    for byte in rest {
        word::store8(offset, (*byte).into())?;
        offset = offset.wrapping_add(1);
    }
    Ok(())
}
