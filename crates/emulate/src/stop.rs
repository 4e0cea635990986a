//! Why an instruction did not complete.
use x86::{Exception, Vector};

/// What stopped an instruction. Nothing of the instruction has been committed to the registers.
///
/// It is one machine word, because every memory access of the interpreter returns it: the page-fault address
/// or debug bits of the exception are put aside in [`crate::Cpu::payload`].
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Stop(u64);

/// The result of a step of an instruction.
pub type Res<T = ()> = Result<T, Stop>;

const EXIT: u64 = 1 << 40;
const RESTART: u64 = 2 << 40;
const HAS_CODE: u64 = 1 << 39;

impl Stop {
    /// The instruction needs something that is outside: the [`crate::Cpu`] knows what it has asked for.
    pub const EXIT: Self = Self(EXIT);
    /// Nothing is wrong: execute the instruction again (a locked operation lost its race, or one iteration of a
    /// REP is done and the loop should look around before the next).
    pub const RESTART: Self = Self(RESTART);

    /// An exception without an error code.
    pub const fn fault(vector: Vector) -> Self {
        Self(vector.0 as u64 | 3 << 40)
    }

    /// An exception with an error code.
    pub const fn fault_code(vector: Vector, code: u32) -> Self {
        Self((code as u64) << 8 & 0xff_ffff_ff00 & !HAS_CODE | vector.0 as u64 | HAS_CODE | 3 << 40)
    }

    /// #GP(code).
    pub const fn gp(code: u32) -> Self {
        Self::fault_code(Vector::GP, code)
    }

    /// #UD.
    pub const UD: Self = Self::fault(Vector::UD);
    /// #GP(0).
    pub const GP0: Self = Self::gp(0);
    /// #SS(0).
    pub const SS0: Self = Self::fault_code(Vector::SS, 0);
    /// #NM.
    pub const NM: Self = Self::fault(Vector::NM);

    /// The exception, with `payload` as its CR2 or DR6 part; None for the other kinds.
    pub const fn exception(self, payload: u64) -> Option<Exception> {
        if self.0 >> 40 != 3 {
            return None;
        }
        let vector = Vector(self.0 as u8);
        let code = if self.0 & HAS_CODE != 0 { Some((self.0 >> 8 & 0x7fff_ffff) as u32) } else { None };
        let payload = match vector {
            Vector::PF | Vector::DB => payload,
            _ => 0,
        };
        Some(Exception { vector, code, payload })
    }
}

impl core::fmt::Debug for Stop {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::EXIT => f.write_str("Exit"),
            Self::RESTART => f.write_str("Restart"),
            _ => write!(f, "{:?}", self.exception(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_survives_the_packing() {
        assert_eq!(Stop::UD.exception(7), Some(Exception::plain(Vector::UD)));
        assert_eq!(Stop::gp(0xfffa).exception(7), Some(Exception::with_code(Vector::GP, 0xfffa)));
        assert_eq!(Stop::fault_code(Vector::PF, 0x17).exception(0x1234), Some(Exception::page_fault(0x1234, 0x17)));
        assert_eq!(Stop::EXIT.exception(0), None);
        assert_eq!(Stop::RESTART.exception(0), None);
    }
}
