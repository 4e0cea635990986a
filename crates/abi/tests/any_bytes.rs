//! Whatever bytes a client passes: structures are read and written without loss, and request numbers come apart as they
//! were put together.
use abi::*;
use proptest::prelude::*;

fn config() -> ProptestConfig {
    ProptestConfig { cases: if cfg!(miri) { 8 } else { 256 }, failure_persistence: None, ..Default::default() }
}

/// Any bytes of the right number are a value that has these bytes; fewer are none, and more do not matter.
fn round_trip<T: Pod>(bytes: &[u8]) {
    let size = size_of::<T>();
    match T::from_prefix(bytes) {
        None => assert!(bytes.len() < size),
        Some(mut value) => {
            assert_eq!(value.bytes(), &bytes[..size]);
            value.bytes_mut().fill(0);
            assert_eq!(value.bytes(), T::zeroed().bytes());
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn structures_are_their_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        round_trip::<KvmUserspaceMemoryRegion>(&bytes);
        round_trip::<KvmUserspaceMemoryRegion2>(&bytes);
        round_trip::<KvmMemoryAlias>(&bytes);
        round_trip::<KvmDirtyLog>(&bytes);
        round_trip::<KvmRegs>(&bytes);
        round_trip::<KvmSregs>(&bytes);
        round_trip::<KvmSregs2>(&bytes);
        round_trip::<KvmFpu>(&bytes);
        round_trip::<KvmXsave>(&bytes);
        round_trip::<KvmVcpuEvents>(&bytes);
        round_trip::<KvmIrqchip>(&bytes);
        round_trip::<KvmLapicState>(&bytes);
        round_trip::<KvmPitState2>(&bytes);
        round_trip::<KvmCpuidEntry2>(&bytes);
        round_trip::<KvmRun>(&bytes);
    }

    #[test]
    fn requests_come_apart(dir in 0u32..4, nr in 0u32..256, size in 0usize..1 << 14) {
        let request = ioc(dir, nr, size);
        prop_assert_eq!((ioc_dir(request), ioc_nr(request), ioc_size(request)), (dir, nr, size));
        prop_assert_eq!(ioc_type(request), KVMIO);
    }

    #[test]
    fn any_number_is_looked_up(number in any::<u32>()) {
        let known = KVM_IOCTL_NAMES.iter().any(|(n, _)| *n == number);
        prop_assert_eq!(ioctl_name(number).is_some(), known);
    }
}

#[test]
fn every_request_is_found_by_its_number_alone() {
    for (number, name) in KVM_IOCTL_NAMES {
        assert_eq!(ioctl_name(*number), Some(*name));
        assert_eq!(ioc(ioc_dir(*number), ioc_nr(*number), ioc_size(*number)), *number, "{name}");
    }
}
