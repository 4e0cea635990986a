//! /dev/kvm itself: version, capabilities, new VMs.
use abi::*;

use crate::{
    device::{Device, Errno},
    runner::{Case, case},
};

pub(super) const CASES: &[Case] =
    &[case("api-version-is-12", "A01", api_version), case("no-argument-means-zero", "A03", no_argument)];

fn api_version(device: &Device) {
    assert_eq!(device.fd.number(KVM_GET_API_VERSION, 0), Ok(12));
}

fn no_argument(device: &Device) {
    for request in [KVM_GET_API_VERSION, KVM_GET_VCPU_MMAP_SIZE] {
        for argument in [1, 0x1000, u64::MAX] {
            assert_eq!(device.fd.number(request, argument), Err(Errno::EINVAL));
        }
    }
    let vm = device.vm();
    let vcpu = vm.vcpu(0);
    assert_eq!(vcpu.fd.number(KVM_RUN, 1), Err(Errno::EINVAL));
}
