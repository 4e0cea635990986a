//! The client's memory, which in user space is the process's own.
//!
//! An access costs the instruction itself: nothing is checked before. Whatever is not mapped, not writable, not
//! canonical, on the null page or in the kernel's half of the address space faults, and [`crate::fault`] turns
//! the fault into [`BadAddress`]. [`crate::fault::install`] must have been called before.
mod bulk;
mod word;

use platform::{BadAddress, Hva, Memory, Word};

/// The accessors.
#[derive(Debug)]
pub struct ClientMemory;

/// Text of the table entry that sends a fault at label 2 to label `$landing`.
macro_rules! fault_entry {
    ($landing:literal) => {
        concat!(
            ".pushsection rekvm_fault,\"aR\",@progbits\n",
            ".balign 4\n",
            ".long 2b - .\n",
            ".long ",
            $landing,
            " - .\n",
            ".popsection"
        )
    };
}
use fault_entry;

impl Memory for ClientMemory {
    #[inline(always)]
    fn load<T: Word>(at: Hva) -> Result<T, BadAddress> {
        let at = at.0;
        Ok(match T::BYTES {
            1 => T::from_low(word::load8(at)?),
            2 => T::from_low(word::load16(at)?),
            4 => T::from_low(word::load32(at)?),
            8 => T::from_low(word::load64(at)?),
            _ => T::from_halves(word::load64(at)?, word::load64(at.wrapping_add(8))?),
        })
    }

    #[inline(always)]
    fn store<T: Word>(at: Hva, value: T) -> Result<(), BadAddress> {
        let (at, low) = (at.0, value.low());
        match T::BYTES {
            1 => word::store8(at, low),
            2 => word::store16(at, low),
            4 => word::store32(at, low),
            8 => word::store64(at, low),
            _ => {
                word::store64(at, low)?;
                word::store64(at.wrapping_add(8), value.high())
            }
        }
    }

    #[inline(always)]
    fn compare_exchange<T: Word>(at: Hva, old: T, new: T) -> Result<T, BadAddress> {
        let (at, low, new_low) = (at.0, old.low(), new.low());
        Ok(match T::BYTES {
            1 => T::from_low(word::cmpxchg8(at, low, new_low)?),
            2 => T::from_low(word::cmpxchg16(at, low, new_low)?),
            4 => T::from_low(word::cmpxchg32(at, low, new_low)?),
            8 => T::from_low(word::cmpxchg64(at, low, new_low)?),
            _ => {
                let (low, high) = word::cmpxchg128(at, (low, old.high()), (new_low, new.high()))?;
                T::from_halves(low, high)
            }
        })
    }

    fn copy_from(at: Hva, to: &mut [u8]) -> Result<(), BadAddress> {
        bulk::copy_from(at, to)
    }

    fn copy_to(at: Hva, from: &[u8]) -> Result<(), BadAddress> {
        bulk::copy_to(at, from)
    }

    fn copy_within(from: Hva, to: Hva, bytes: u64) -> u64 {
        // SAFETY: both are client memory.
        bytes - unsafe { bulk::movsb(from.0, to.0, bytes) }
    }

    fn fill<T: Word>(at: Hva, value: T, count: u64) -> u64 {
        if T::BYTES <= 8 {
            return count - bulk::stos(at.0, value.low(), count, T::BYTES);
        }
        for done in 0..count {
            if Self::store(at.add(done * T::BYTES), value).is_err() {
                return done;
            }
        }
        count
    }
}
