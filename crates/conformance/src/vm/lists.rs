//! Structures that are a header and elements.
use abi::*;

use super::Vcpu;
use crate::device::{Device, Fd};

impl Vcpu {
    /// Gives the guest the whole CPUID that the device supports.
    pub fn support_all(&self, device: &Device) {
        self.set_cpuid(&cpuid2(&device.fd, KVM_GET_SUPPORTED_CPUID)).expect("KVM_SET_CPUID2");
    }
}

/// The bytes of a header and its elements.
pub fn list_with<H: Pod, E: Pod>(header: &H, elements: &[E]) -> Vec<u8> {
    let mut bytes = header.bytes().to_vec();
    elements.iter().for_each(|element| bytes.extend_from_slice(element.bytes()));
    bytes
}

/// The first `count` elements behind a header.
pub fn read_list<H: Pod, E: Pod>(bytes: &[u8], count: usize) -> Vec<E> {
    let elements = &bytes[size_of::<H>()..];
    (0..count).map(|i| E::from_prefix(&elements[i * size_of::<E>()..]).expect("an element")).collect()
}

/// KVM_GET_SUPPORTED_CPUID, KVM_GET_EMULATED_CPUID or KVM_GET_CPUID2: all entries.
pub fn cpuid2(fd: &Fd, nr: u32) -> Vec<KvmCpuidEntry2> {
    const ROOM: usize = 256;
    let header = KvmCpuid2 { nent: ROOM as u32, padding: 0 };
    let mut bytes = list_with(&header, &[KvmCpuidEntry2::zeroed(); ROOM]);
    fd.buffer(nr, &mut bytes).expect("a CPUID table");
    let nent = KvmCpuid2::from_prefix(&bytes).expect("a header").nent as usize;
    assert!(nent <= ROOM);
    read_list::<KvmCpuid2, _>(&bytes, nent)
}
