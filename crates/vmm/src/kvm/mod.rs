//! A typed client of `/dev/kvm`: the ABI's structures in, results out.
//!
//! Each method is one ioctl. All `unsafe` that the ABI needs is here, so that
//! the rest of the monitor has none; both back ends are reached through it.

use std::fmt;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVMIO, Msrs, kvm_cpuid_entry2, kvm_fpu, kvm_irq_level, kvm_mp_state, kvm_pit_config, kvm_regs, kvm_sregs,
    kvm_translation, kvm_userspace_memory_region,
};

use crate::accel::{Errno, Handle, Sys};

mod exit;
mod system;
mod vcpu;
mod vm;

pub use exit::{Exit, IoData};
pub use system::Kvm;
pub use vcpu::{ImmediateExit, Vcpu};
pub use vm::{StatsFd, Vm};

/// An ioctl that failed.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("{call} failed: {errno}")]
pub struct KvmError {
    /// The ioctl's name in the ABI, or `mmap`.
    pub call: &'static str,
    /// What the hypervisor answered.
    pub errno: Errno,
}

const fn io(nr: u32) -> u32 {
    (KVMIO << 8) | nr
}

const fn ior<T>(nr: u32) -> u32 {
    (2 << 30) | ((size_of::<T>() as u32) << 16) | io(nr)
}

const fn iow<T>(nr: u32) -> u32 {
    (1 << 30) | ((size_of::<T>() as u32) << 16) | io(nr)
}

const fn iowr<T>(nr: u32) -> u32 {
    (3 << 30) | ((size_of::<T>() as u32) << 16) | io(nr)
}

/// An ioctl's number and its name, for messages.
#[derive(Clone, Copy)]
struct Call {
    nr: u32,
    name: &'static str,
}

macro_rules! calls {
    ($($name:ident = $nr:expr;)*) => {
        $(const $name: Call = Call { nr: $nr, name: stringify!($name) };)*
    };
}

calls! {
    KVM_GET_API_VERSION = io(0x00);
    KVM_CREATE_VM = io(0x01);
    KVM_CHECK_EXTENSION = io(0x03);
    KVM_GET_VCPU_MMAP_SIZE = io(0x04);
    KVM_GET_SUPPORTED_CPUID = iowr::<kvm_bindings::kvm_cpuid2>(0x05);
    KVM_CREATE_VCPU = io(0x41);
    KVM_SET_USER_MEMORY_REGION = iow::<kvm_userspace_memory_region>(0x46);
    KVM_SET_TSS_ADDR = io(0x47);
    KVM_SET_IDENTITY_MAP_ADDR = iow::<u64>(0x48);
    KVM_CREATE_IRQCHIP = io(0x60);
    KVM_IRQ_LINE = iow::<kvm_irq_level>(0x61);
    KVM_CREATE_PIT2 = iow::<kvm_pit_config>(0x77);
    KVM_RUN = io(0x80);
    KVM_GET_REGS = ior::<kvm_regs>(0x81);
    KVM_SET_REGS = iow::<kvm_regs>(0x82);
    KVM_GET_SREGS = ior::<kvm_sregs>(0x83);
    KVM_SET_SREGS = iow::<kvm_sregs>(0x84);
    KVM_TRANSLATE = iowr::<kvm_translation>(0x85);
    KVM_SET_MSRS = iow::<kvm_bindings::kvm_msrs>(0x89);
    KVM_SET_FPU = iow::<kvm_fpu>(0x8d);
    KVM_SET_CPUID2 = iow::<kvm_bindings::kvm_cpuid2>(0x90);
    KVM_GET_MP_STATE = ior::<kvm_mp_state>(0x98);
    KVM_GET_STATS_FD = io(0xce);
}

/// Runs an ioctl whose argument is a plain number.
fn by_value(handle: &Handle, call: Call, arg: usize) -> Result<i32, KvmError> {
    // SAFETY: only calls whose argument is a number (or unused) come here.
    unsafe { handle.ioctl(call.nr, arg) }.map_err(|errno| KvmError { call: call.name, errno })
}

/// Runs an ioctl that reads a structure.
fn by_ref<T>(handle: &Handle, call: Call, arg: &T) -> Result<i32, KvmError> {
    // SAFETY: the reference is valid for the call and of the type in the request's size field.
    unsafe { handle.ioctl(call.nr, std::ptr::from_ref(arg) as usize) }
        .map_err(|errno| KvmError { call: call.name, errno })
}

/// Runs an ioctl that reads a structure and writes its answer there.
fn by_mut<T>(handle: &Handle, call: Call, arg: &mut T) -> Result<i32, KvmError> {
    // SAFETY: the reference is valid for the call and of the type in the request's size field.
    unsafe { handle.ioctl(call.nr, std::ptr::from_mut(arg) as usize) }
        .map_err(|errno| KvmError { call: call.name, errno })
}

/// Runs an ioctl that fills a structure.
fn filled<T: Default>(handle: &Handle, call: Call) -> Result<T, KvmError> {
    let mut value = T::default();
    by_mut(handle, call, &mut value)?;
    Ok(value)
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_the_abis() {
        assert_eq!(KVM_CREATE_VM.nr, 0xae01);
        assert_eq!(KVM_GET_SUPPORTED_CPUID.nr, 0xc008_ae05);
        assert_eq!(KVM_SET_USER_MEMORY_REGION.nr, 0x4020_ae46);
        assert_eq!(KVM_IRQ_LINE.nr, 0x4008_ae61);
        assert_eq!(KVM_CREATE_PIT2.nr, 0x4040_ae77);
        assert_eq!(KVM_GET_REGS.nr, 0x8090_ae81);
        assert_eq!(KVM_SET_REGS.nr, 0x4090_ae82);
        assert_eq!(KVM_GET_SREGS.nr, 0x8138_ae83);
        assert_eq!(KVM_SET_SREGS.nr, 0x4138_ae84);
        assert_eq!(KVM_TRANSLATE.nr, 0xc018_ae85);
        assert_eq!(KVM_SET_MSRS.nr, 0x4008_ae89);
        assert_eq!(KVM_SET_FPU.nr, 0x41a0_ae8d);
        assert_eq!(KVM_SET_CPUID2.nr, 0x4008_ae90);
        assert_eq!(KVM_GET_MP_STATE.nr, 0x8004_ae98);
    }
}
