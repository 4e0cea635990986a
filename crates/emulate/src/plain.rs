//! Instructions that are known by their first bytes, without decoding: those that most exits are for.

/// What the bytes of an instruction say at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    /// Its length, whatever the mode.
    pub len: u8,
    /// VMCALL or VMMCALL.
    pub hypercall: bool,
}

impl Plain {
    /// The instruction that begins with `bytes`; None if it is none of these, or has prefixes.
    pub const fn of(bytes: [u8; 4]) -> Option<Self> {
        let (len, hypercall) = match bytes {
            // HLT.
            [0xf4, ..] => (1, false),
            // INVD, WBINVD, WRMSR, RDMSR, RDPMC, CPUID.
            [0x0f, 0x08 | 0x09 | 0x30 | 0x32 | 0x33 | 0xa2, ..] => (2, false),
            // VMCALL, VMMCALL.
            [0x0f, 0x01, 0xc1 | 0xd9, _] => (3, true),
            // MONITOR, MWAIT.
            [0x0f, 0x01, 0xc8 | 0xc9, _] => (3, false),
            _ => return None,
        };
        Some(Self { len, hypercall })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode, testing::TestCpu};
    use x86::{Features, Mode};

    /// Whatever follows, the decoder says the same.
    #[test]
    fn a_glance_sees_what_the_decoder_sees() {
        let mut known = 0;
        for first in [0x0f, 0xf4, 0x66, 0xf3, 0x2e, 0x90] {
            for second in 0..=u8::MAX {
                for third in 0..=u8::MAX {
                    let Some(plain) = Plain::of([first, second, third, 0x90]) else { continue };
                    known += 1;
                    let mut bytes = [0x90; 15];
                    (bytes[0], bytes[1], bytes[2]) = (first, second, third);
                    for mode in [Mode::Real, Mode::Protected32, Mode::Long64] {
                        let op = decode::<TestCpu>(&bytes, mode, Features::all()).expect("an instruction");
                        assert_eq!((op.len, op.is_hypercall()), (plain.len, plain.hypercall), "{bytes:x?}");
                    }
                }
            }
        }
        assert_eq!(known, 256 * 256 + 6 * 256 + 4);
    }
}
