//! Every instruction of the features that guests can be offered has a function that executes it: all opcodes of all maps
//! are tried.
use std::collections::BTreeSet;

use emulate::{decode, testing::TestCpu};
use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions};
use x86::{Features, Mode};

/// Features that are part of every guest, or have a bit in [`Features`].
fn offered(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    matches!(
        feature,
        INTEL8086
            | INTEL186
            | INTEL286
            | INTEL386
            | INTEL486
            | X64
            | ADX
            | AES
            | AVX
            | AVX2
            | BMI1
            | BMI2
            | CLFLUSHOPT
            | CLFSH
            | CLWB
            | CMOV
            | CMPXCHG16B
            | CPUID
            | CX8
            | F16C
            | FMA
            | FPU
            | FPU287
            | FPU387
            | FSGSBASE
            | FXSR
            | INVPCID
            | LZCNT
            | MMX
            | MONITOR
            | MOVBE
            | MSR
            | MULTIBYTENOP
            | PAUSE
            | PCLMULQDQ
            | POPCNT
            | PREFETCHW
            | RDPID
            | RDPMC
            | RDRAND
            | RDSEED
            | RDTSCP
            | SEP
            | SHA
            | SMAP
            | SSE
            | SSE2
            | SSE3
            | SSE4A
            | SSE4_1
            | SSE4_2
            | SSSE3
            | SYSCALL
            | TSC
            | VAES
            | VPCLMULQDQ
            | XSAVE
            | XSAVEC
            | XSAVEOPT
    )
}

/// Instructions that are #UD by definition.
fn undefined(code: Code) -> bool {
    let name = format!("{code:?}");
    name.starts_with("Ud") || code == Code::INVALID
}

/// The instruction forms that were met, and those that nothing executes.
fn forms(mode: Mode) -> (BTreeSet<Code>, BTreeSet<Code>) {
    let (mut all, mut missing) = (BTreeSet::new(), BTreeSet::new());
    let mut try_bytes = |prefix: &[u8], opcode: &[u8]| {
        for modrm in (0..=255u8).filter(|m| m >> 6 == 3 || m >> 6 == 0 && m & 7 == 3) {
            let mut bytes = [prefix, opcode, &[modrm]].concat();
            bytes.resize(bytes.len().max(15), 0);
            let bytes = &bytes[..15];
            let insn = Decoder::new(mode.bitness(), bytes, DecoderOptions::FORCE_RESERVED_NOP).decode();
            let wanted =
                !insn.is_invalid() && !undefined(insn.code()) && insn.cpuid_features().iter().all(|&f| offered(f));
            if wanted {
                all.insert(insn.code());
            }
            if wanted && decode::<TestCpu>(bytes, mode, Features::all().difference(Features::AMD)).is_err() {
                missing.insert(insn.code());
            }
        }
    };
    let rex: &[u8] = if mode == Mode::Long64 { &[0x66, 0x48] } else { &[0x66] };
    for opcode in 0..=255u8 {
        for mandatory in [&[][..], &[0x66], &[0xf2], &[0xf3], &rex[rex.len() - 1..], rex] {
            for map in [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]] {
                try_bytes(mandatory, &[map, &[opcode]].concat());
            }
        }
        for map in 1..=3u8 {
            for wlpp in 0..16u8 {
                let (w, l, pp) = (wlpp & 8, wlpp & 4, wlpp & 3);
                // The second source is register 0, or none.
                for vvvv in [0x78, 0x70] {
                    try_bytes(&[0xc4, 0xe0 | map, w << 4 | vvvv | l | pp], &[opcode]);
                }
            }
        }
    }
    (all, missing)
}

#[test]
fn nothing_that_guests_are_offered_is_missing() {
    for mode in [Mode::Long64, Mode::Protected32, Mode::Protected16] {
        let (all, missing) = forms(mode);
        assert!(all.len() > 1400, "{mode:?}: only {} forms were met", all.len());
        assert!(missing.is_empty(), "{mode:?}: {missing:?}");
    }
}
