//! Nested state of guests that are not offered virtualization.
use abi::*;

use crate::{
    Errno,
    testing::{Machine, cx},
};

#[test]
fn there_is_a_header_that_goes_out_and_in() {
    for amd in [true, false] {
        let m = Machine::new();
        m.vcpu.with_inner(|inner| inner.features.set(x86::Features::AMD, amd));
        let mut state = KvmNestedState { size: 128, ..KvmNestedState::default() };
        m.ioctl(KVM_GET_NESTED_STATE, &mut state).unwrap();
        let (format, flags) = if amd { (1, 0x100) } else { (0, 0) };
        assert_eq!((state.size, state.format, state.flags), (128, format, flags));
        assert_eq!(state.hdr[0], if amd { 0 } else { 0xff });
        m.ioctl(KVM_SET_NESTED_STATE, &mut state).unwrap();
        for bad in [
            KvmNestedState { flags: state.flags | KVM_STATE_NESTED_GUEST_MODE, ..state },
            KvmNestedState { flags: state.flags ^ KVM_STATE_NESTED_GIF_SET, ..state },
            KvmNestedState { format: format ^ 1, ..state },
            KvmNestedState { size: 127, ..state },
        ] {
            assert_eq!(m.ioctl(KVM_SET_NESTED_STATE, &mut { bad }).map(drop), Err(Errno::EINVAL), "{bad:?}");
        }
        let mut small = KvmNestedState { size: 8, ..KvmNestedState::default() };
        assert_eq!(m.ioctl(KVM_GET_NESTED_STATE, &mut small).map(drop), Err(Errno::E2BIG));
        assert_eq!((small.size, small.hdr), (128, [0; 120]), "nothing but the size is written");
        assert_eq!(m.vcpu.ioctl(KVM_GET_NESTED_STATE, 8, &cx()).map(drop), Err(Errno::EFAULT));
    }
}
