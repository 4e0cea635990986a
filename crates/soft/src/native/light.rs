//! Which x87 instructions can do without saving and restoring the whole x87, and when.
//!
//! If the guest masks all exceptions and no register that the instruction reads is empty, and none that it fills is full,
//! then the instruction can run on a stack of the host that holds its operands only: they are loaded, the
//! instruction executes, status and results are stored. That takes a fifth of the time. Everything else (stack
//! faults, unmasked exceptions, instructions not listed here) takes the long way.
use iced_x86::{Code, Mnemonic};

/// What an instruction does to the stack, in guest register numbers before it executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Light {
    /// Bit i: ST(i) must not be empty.
    pub full: u8,
    /// Bit i: ST(i) must be empty.
    pub empty: u8,
    /// By how much the stack top moves: 1 and 2 pop, -1 pushes.
    pub pops: i8,
    /// The condition bits of the status word that the instruction sets.
    pub conditions: u16,
    /// The register that is loaded besides ST(0), if any; operand ST(i) of the instruction.
    pub other: Option<u8>,
    /// Registers that hold results, as they lie on the host's stack from its top after the instruction.
    pub results: [Option<u8>; 2],
    /// Entries on the host's stack behind the results that are dropped.
    pub drop: u8,
}

const C1: u16 = 1 << 9;
const ALL: u16 = 0x4700;

/// How to execute `code` that way, with ST(`i`) as its operand besides ST(0), or a memory operand; None if it cannot be.
///
/// FCOMI and FCMOVcc leave C1 alone, as AMD's processors do; the manuals clear it.
pub(super) fn plan(code: Code, i: u8, memory: bool) -> Option<Light> {
    use Mnemonic::*;
    let unary = Light { full: 1, empty: 0, pops: 0, conditions: C1, other: None, results: [Some(0), None], drop: 0 };
    let other = if i == 0 { None } else { Some(i) };
    let binary = Light { full: 1 | 1 << i, other, results: [Some(0), other], ..unary };
    // The result is in ST(i), and ST(0) is gone.
    let popping = Light { pops: 1, results: [Some(i), None], ..binary };
    let push = Light { full: 0, empty: 0x80, pops: -1, results: [Some(7), None], ..unary };
    let store = Light { results: [None, None], drop: 1, ..unary };
    let with1 = Light { full: 3, other: Some(1), ..unary };
    Some(match code.mnemonic() {
        Fadd | Fsub | Fsubr | Fmul | Fdiv | Fdivr if memory => unary,
        Fiadd | Fisub | Fisubr | Fimul | Fidiv | Fidivr => unary,
        Fadd | Fsub | Fsubr | Fmul | Fdiv | Fdivr => binary,
        Faddp | Fsubp | Fsubrp | Fmulp | Fdivp | Fdivrp if i != 0 => popping,
        Fcom | Ficom if memory => Light { conditions: ALL, results: [None, None], drop: 1, ..unary },
        Fcomp | Ficomp if memory => Light { conditions: ALL, results: [None, None], pops: 1, ..unary },
        Fcom | Fucom if i != 0 => Light { conditions: ALL, results: [None, None], drop: 2, ..binary },
        Fcomp | Fucomp if i != 0 => Light { conditions: ALL, results: [None, None], drop: 1, pops: 1, ..binary },
        Fcompp | Fucompp => Light { conditions: ALL, results: [None, None], pops: 2, ..with1 },
        Fcomi | Fucomi if i != 0 => Light { conditions: 0, results: [None, None], drop: 2, ..binary },
        Fcomip | Fucomip if i != 0 => Light { conditions: 0, results: [None, None], drop: 1, pops: 1, ..binary },
        Fsqrt | Frndint | F2xm1 => unary,
        Fscale => Light { drop: 1, ..with1 },
        Fyl2x | Fyl2xp1 | Fpatan => Light { pops: 1, results: [Some(1), None], ..with1 },
        Fcmovb | Fcmove | Fcmovbe | Fcmovu | Fcmovnb | Fcmovne | Fcmovnbe | Fcmovnu => {
            Light { conditions: 0, results: [Some(0), None], drop: (i != 0) as u8, ..binary }
        }
        Ftst | Fxam => Light { conditions: ALL, results: [None, None], drop: 1, ..unary },
        Fld if memory => push,
        Fild => push,
        Fst | Fist if memory => store,
        Fstp | Fistp | Fisttp if memory => Light { drop: 0, pops: 1, ..store },
        _ => return None,
    })
}

impl Light {
    /// What has to be known when it is executed.
    pub fn conditions(&self) -> Conditions {
        Conditions { full: self.full, empty: self.empty, pops: self.pops, status: self.conditions }
    }
}

/// The part of [`Light`] that is kept with a stub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Conditions {
    full: u8,
    empty: u8,
    /// By how much the stack top moves: 1 and 2 pop, -1 pushes.
    pub pops: i8,
    /// The condition bits of the status word that the instruction sets.
    pub status: u16,
}

impl Conditions {
    /// Whether the light way can be taken: `fcw`, `fsw` and `ftw` are the guest's.
    #[inline(always)]
    pub fn hold(&self, fcw: u16, fsw: u16, ftw: u8) -> bool {
        let tags = ftw.rotate_right((fsw >> 11 & 7) as u32);
        fcw & 0x3f == 0x3f && tags & self.full == self.full && tags & self.empty == 0
    }
}
