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

/// Whether the instruction that begins with `bytes`, and is known to write memory, is a REP MOVS or REP STOS as compilers and kernels
/// write it.
pub const fn is_repeated_write(bytes: [u8; 4]) -> bool {
    matches!(bytes, [0xf3, 0xa4 | 0xa5 | 0xaa | 0xab, ..] | [0xf3, 0x40..=0x4f, 0xa4 | 0xa5 | 0xaa | 0xab, _])
}

/// INVLPG of an address that is a general register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invlpg {
    /// The register.
    pub register: u8,
    /// Length of the instruction.
    pub len: u8,
}

impl Invlpg {
    /// The one that begins with `bytes`, in 64-bit code.
    pub const fn of(bytes: [u8; 4]) -> Option<Self> {
        let (modrm, high, len) = match bytes {
            [0x0f, 0x01, modrm, _] => (modrm, 0, 3),
            // REX.B.
            [0x41, 0x0f, 0x01, modrm] => (modrm, 8, 4),
            _ => return None,
        };
        // Without displacement, SIB byte and RIP. RSP and RBP, which have a segment of their own, are not among them.
        if modrm >> 3 == 7 && !matches!(modrm & 7, 4 | 5) {
            Some(Self { register: modrm & 7 | high, len })
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_instructions_repeat_with_and_without_rex() {
        for bytes in [[0xf3, 0xab, 0, 0], [0xf3, 0x48, 0xa5, 0], [0xf3, 0xa4, 0, 0], [0xf3, 0x48, 0xaa, 0]] {
            assert!(is_repeated_write(bytes), "{bytes:x?}");
        }
        for bytes in
            [[0xab, 0, 0, 0], [0x48, 0xab, 0, 0], [0xf3, 0xa6, 0, 0], [0xf3, 0x0f, 0xab, 0], [0xf3, 0xac, 0, 0]]
        {
            assert!(!is_repeated_write(bytes), "{bytes:x?}");
        }
    }
    #[test]
    fn invlpg_of_a_register_is_seen_and_no_other() {
        let is = |register, len| Some(Invlpg { register, len });
        assert_eq!(Invlpg::of([0x0f, 0x01, 0x3f, 0x90]), is(7, 3));
        assert_eq!(Invlpg::of([0x41, 0x0f, 0x01, 0x38]), is(8, 4));
        for first in [0x0f, 0x41, 0x40, 0x48, 0x66] {
            for modrm in 0..=u8::MAX {
                let bytes = if first == 0x0f { [0x0f, 0x01, modrm, 0x90] } else { [first, 0x0f, 0x01, modrm] };
                let Some(known) = Invlpg::of(bytes) else { continue };
                let mut all = [0x90; 15];
                all[..4].copy_from_slice(&bytes);
                let op = decode::<TestCpu>(&all, Mode::Long64, Features::all()).expect("an instruction");
                let mut cpu = TestCpu::in_mode(Mode::Long64, 0, 0x1000);
                let base = core::array::from_fn(|n| 0x1000 * (n as u64 + 1));
                crate::Cpu::state_mut(&mut cpu).gpr = base;
                assert_eq!(
                    (op.len, op.offset(crate::Cpu::state(&cpu))),
                    (known.len, base[usize::from(known.register)])
                );
            }
        }
        // Displacement, SIB, RIP, another instruction.
        for modrm in [0x7f, 0x3c, 0x3d, 0x37, 0xf8] {
            assert_eq!(Invlpg::of([0x0f, 0x01, modrm, 0x90]), None, "{modrm:#x}");
        }
    }
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
