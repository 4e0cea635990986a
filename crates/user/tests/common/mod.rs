//! Calls of the in-process device.
#![allow(dead_code)] // each test uses a part
use std::{os::fd::RawFd, ptr};

use abi::*;
use hv::Errno;
use user::device;

pub const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// An ioctl with a structure.
pub fn ioctl<T>(fd: RawFd, nr: u32, arg: &mut T) -> Result<i32, Errno> {
    // SAFETY: the tests pass what each request asks for.
    unsafe { device::ioctl(fd, nr, ptr::from_mut(arg) as u64) }
}

/// An ioctl with a number.
pub fn number(fd: RawFd, nr: u32, arg: u64) -> Result<i32, Errno> {
    // SAFETY: these requests take numbers.
    unsafe { device::ioctl(fd, nr, arg) }
}

/// A VM; the device's descriptor is closed again.
pub fn vm() -> RawFd {
    let kvm = device::open().unwrap();
    let vm = number(kvm, KVM_CREATE_VM, 0).unwrap();
    device::close(kvm).unwrap();
    vm
}

/// The client's mapping of a descriptor, unmapped when dropped.
pub struct Map(pub *mut u8, usize);

impl Map {
    pub fn new(fd: RawFd, offset: u64, len: usize) -> Self {
        Self(device::mmap(fd, len, RW, libc::MAP_SHARED, offset).unwrap(), len)
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.1);
        for (n, byte) in bytes.iter().enumerate() {
            // SAFETY: within the mapping.
            unsafe { self.0.add(at + n).write_volatile(*byte) };
        }
    }

    pub fn read(&self, at: usize) -> u8 {
        assert!(at < self.1);
        // SAFETY: within the mapping.
        unsafe { self.0.add(at).read_volatile() }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { device::munmap(self.0, self.1).unwrap() };
    }
}

/// A vCPU in real mode at `rip`, with its kvm_run.
pub fn vcpu(vm: RawFd, rip: u64) -> (RawFd, Map) {
    let vcpu = number(vm, KVM_CREATE_VCPU, 0).unwrap();
    let run = Map::new(vcpu, 0, 3 * 4096);
    let mut sregs = KvmSregs::default();
    ioctl(vcpu, KVM_GET_SREGS, &mut sregs).unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    ioctl(vcpu, KVM_SET_SREGS, &mut sregs).unwrap();
    ioctl(vcpu, KVM_SET_REGS, &mut KvmRegs { rip, rflags: 2, ..KvmRegs::default() }).unwrap();
    (vcpu, run)
}
