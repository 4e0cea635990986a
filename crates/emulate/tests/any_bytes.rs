//! Decoding of any bytes: lengths are right, and say all that matters about the bytes.
use emulate::{DecodeError, Op, decode, fetch::MAX_LEN, testing::TestCpu};
use proptest::prelude::*;
use x86::{Features, Mode};

const MODES: [Mode; 5] = [Mode::Real, Mode::Virtual8086, Mode::Protected16, Mode::Protected32, Mode::Long64];

fn all() -> Features {
    Features::all().difference(Features::AMD)
}

fn decoded(bytes: &[u8], mode: Mode, features: Features) -> Result<Op<TestCpu>, DecodeError> {
    decode::<TestCpu>(bytes, mode, features)
}

/// Everything of an instruction that can be compared.
fn shown(op: &Op<TestCpu>) -> impl PartialEq + std::fmt::Debug + use<> {
    let memory = (op.mem, op.base, op.index, op.scale, op.seg, op.mem_size, op.form);
    (op.code, op.len, op.regs, memory, op.imm, op.disp, (op.address_size, op.operand_size, op.prefix))
}

fn check(bytes: &[u8], mode: Mode, features: Features) {
    match decoded(bytes, mode, features) {
        Ok(op) => {
            let len = usize::from(op.len);
            assert!((1..=MAX_LEN.min(bytes.len())).contains(&len), "{bytes:02x?}: {len}");
            // Its own bytes are enough, and fewer are not.
            let alone = decoded(&bytes[..len], mode, features).expect("its own bytes");
            assert_eq!(shown(&alone), shown(&op), "{bytes:02x?}");
            for short in 0..len {
                let err = decoded(&bytes[..short], mode, features).err();
                assert_eq!(err, Some(DecodeError::More), "{bytes:02x?} cut to {short}");
            }
            if mode != Mode::Long64 {
                let upper = |r: &u8| (8..16).contains(r);
                assert!(!op.regs.iter().chain([&op.base, &op.index]).any(upper), "{bytes:02x?}");
            }
        }
        Err(DecodeError::More) => assert!(bytes.len() < MAX_LEN, "{bytes:02x?}: more than the longest instruction"),
        Err(DecodeError::TooLong) => assert_eq!(bytes.len(), MAX_LEN, "{bytes:02x?}"),
        Err(DecodeError::Invalid) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn lengths_of_any_bytes(
        bytes in proptest::collection::vec(any::<u8>(), 0..=MAX_LEN),
        prefixes in proptest::collection::vec(proptest::sample::select(&[0x66u8, 0x67, 0xf0, 0xf2, 0xf3, 0x48, 0x0f, 0x64][..]), 0..5),
        without in any::<u64>(),
    ) {
        let mut bytes = [prefixes, bytes].concat();
        bytes.truncate(MAX_LEN);
        for mode in MODES {
            check(&bytes, mode, all());
            check(&bytes, mode, all() & Features::from_bits_truncate(without));
        }
    }
}

/// Every opcode of one and two bytes with every ModRM byte, followed by zeroes.
#[test]
fn lengths_of_every_opcode() {
    for first in 0..=0xffu8 {
        for modrm in 0..=0xffu8 {
            for start in [&[first, modrm][..], &[0x0f, first, modrm]] {
                let mut bytes = [0; MAX_LEN];
                bytes[..start.len()].copy_from_slice(start);
                for mode in [Mode::Protected16, Mode::Protected32, Mode::Long64] {
                    check(&bytes, mode, all());
                }
            }
        }
    }
}
