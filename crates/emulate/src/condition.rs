//! The sixteen conditions of Jcc, SETcc and CMOVcc (SDM vol. 1, appendix B).
use iced_x86::Instruction;
use x86::Flags;

/// Whether condition `CC` (0 O, 1 NO, 2 B, 3 AE, 4 E, 5 NE, 6 BE, 7 A, 8 S, 9 NS, 10 P, 11 NP, 12 L, 13 GE, 14 LE, 15 G)
/// holds.
#[inline(always)]
pub fn holds<const CC: u8>(flags: &Flags) -> bool {
    let value = match CC >> 1 {
        0 => flags.of(),
        1 => flags.cf(),
        2 => flags.zf(),
        3 => flags.cf() | flags.zf(),
        4 => flags.sf(),
        5 => flags.pf(),
        6 => flags.less(),
        _ => flags.less() | flags.zf(),
    };
    value != (CC & 1 != 0)
}

/// The number of the condition in `insn`, as [`holds`] counts.
pub fn condition(insn: &Instruction) -> u8 {
    (insn.condition_code() as u8).wrapping_sub(1) & 15
}

/// Evaluates `$e` with `$CC` a constant of the value `$n`, 0 to 15.
macro_rules! by_condition {
    ($n:expr, $CC:ident => $e:expr) => {
        by_condition!(@ $n, $CC, $e, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    (@ $n:expr, $CC:ident, $e:expr, $($k:literal)*) => {
        match $n {
            $($k => {
                const $CC: u8 = $k;
                $e
            })*
            _ => {
                const $CC: u8 = 15;
                $e
            }
        }
    };
}
pub(crate) use by_condition;

#[cfg(test)]
mod tests {
    use super::*;
    use x86::flags::{CF, OF, SF, ZF};

    #[test]
    fn conditions() {
        let flags = |status| {
            let mut f = Flags::default();
            f.set_status(status);
            f
        };
        assert!(holds::<6>(&flags(ZF)) && holds::<6>(&flags(CF)) && !holds::<6>(&flags(SF)));
        assert!(holds::<12>(&flags(SF)) && holds::<12>(&flags(OF)) && !holds::<12>(&flags(SF | OF)));
        assert!(holds::<14>(&flags(ZF)) && holds::<15>(&flags(SF | OF)) && !holds::<15>(&flags(SF | OF | ZF)));
    }
}
