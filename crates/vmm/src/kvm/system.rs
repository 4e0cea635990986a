//! The device itself: versions, capabilities, new virtual machines.

use super::*;
use std::ffi::CStr;

/// An open `/dev/kvm`.
#[derive(Debug)]
pub struct Kvm {
    handle: Handle,
}

impl Kvm {
    /// The one stable version of the ABI.
    pub const API_VERSION: i32 = 12;

    /// Opens the device node at `path`.
    ///
    /// # Errors
    /// What `open(2)` answers.
    pub fn open(sys: Arc<dyn Sys>, path: &CStr) -> Result<Self, Errno> {
        let fd = sys.open(path)?;
        Ok(Self { handle: Handle::new(sys, fd) })
    }

    /// `KVM_GET_API_VERSION`.
    pub fn api_version(&self) -> Result<i32, KvmError> {
        by_value(&self.handle, KVM_GET_API_VERSION, 0)
    }

    /// `KVM_CHECK_EXTENSION`: 0 means absent.
    pub fn check_extension(&self, cap: u32) -> i32 {
        by_value(&self.handle, KVM_CHECK_EXTENSION, cap as usize).unwrap_or(0)
    }

    /// `KVM_CREATE_VM`.
    pub fn create_vm(&self) -> Result<Vm, KvmError> {
        let mmap_size = by_value(&self.handle, KVM_GET_VCPU_MMAP_SIZE, 0)?;
        let fd = by_value(&self.handle, KVM_CREATE_VM, 0)?;
        Ok(Vm::new(Handle::new(self.handle.sys().clone(), fd), usize::try_from(mmap_size).unwrap_or(0)))
    }

    /// `KVM_GET_SUPPORTED_CPUID`: what a guest may be told about its processor.
    pub fn supported_cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>, KvmError> {
        let failed = |errno| KvmError { call: KVM_GET_SUPPORTED_CPUID.name, errno };
        let mut room = 64;
        loop {
            let mut cpuid = CpuId::new(room).map_err(|_| failed(Errno(libc::ENOMEM)))?;
            // SAFETY: the header is followed by `room` entries, as its `nent` says.
            let answer =
                unsafe { self.handle.ioctl(KVM_GET_SUPPORTED_CPUID.nr, cpuid.as_mut_fam_struct_ptr() as usize) };
            match answer {
                Ok(_) => return Ok(cpuid.as_slice().to_vec()),
                Err(Errno(libc::E2BIG)) if room < kvm_bindings::KVM_MAX_CPUID_ENTRIES => room *= 2,
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
}
