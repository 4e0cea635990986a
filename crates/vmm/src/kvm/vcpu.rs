//! A virtual CPU: its registers and `KVM_RUN`.

use super::*;
use kvm_bindings::{kvm_msr_entry, kvm_run};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

/// A virtual CPU's descriptor with its mapped `kvm_run` page.
///
/// One thread at a time uses it (`&mut` for running); only `immediate_exit` is
/// written from elsewhere, see [`ImmediateExit`].
pub struct Vcpu {
    handle: Handle,
    run: NonNull<u8>,
    run_size: usize,
}

// SAFETY: the mapping belongs to this object alone and is not tied to a thread.
unsafe impl Send for Vcpu {}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu").field("handle", &self.handle).finish_non_exhaustive()
    }
}

/// The `immediate_exit` byte of a virtual CPU, for its thread's signal handler.
#[derive(Debug, Clone, Copy)]
pub struct ImmediateExit(NonNull<AtomicU8>);

impl ImmediateExit {
    /// Makes the current or next `KVM_RUN` return at once.
    ///
    /// # Safety
    /// The [`Vcpu`] this came from must still exist.
    pub unsafe fn set(self) {
        // SAFETY: the byte is mapped while the vCPU exists, and all access to it is atomic.
        unsafe { self.0.as_ref() }.store(1, Ordering::SeqCst);
    }
}

impl Vcpu {
    pub(super) fn new(handle: Handle, run_size: usize) -> Result<Self, KvmError> {
        let failed = |errno| KvmError { call: "mmap of the vCPU", errno };
        if run_size < size_of::<kvm_run>() {
            return Err(failed(Errno(libc::EINVAL)));
        }
        let addr = handle.sys().mmap(handle.fd(), run_size, 0).map_err(failed)?;
        let run = NonNull::new(addr).ok_or(failed(Errno(libc::EFAULT)))?;
        Ok(Self { handle, run, run_size })
    }

    /// What a signal handler on this vCPU's thread has to call, see `accel::Sys::signal_note`.
    pub fn signal_note(&self) -> fn() {
        self.handle.sys().signal_note()
    }

    /// The byte that ends a `KVM_RUN` early.
    pub fn immediate_exit(&self) -> ImmediateExit {
        let offset = std::mem::offset_of!(kvm_run, immediate_exit);
        // SAFETY: `run_size` was checked to hold a whole `kvm_run`.
        ImmediateExit(unsafe { self.run.add(offset) }.cast())
    }

    /// Takes back a request to exit at once. Look for reasons to stop after
    /// this and before [`Vcpu::run`], then none is missed.
    pub fn clear_immediate_exit(&self) {
        // SAFETY: the byte is mapped while `self` exists, and all access to it is atomic.
        unsafe { self.immediate_exit().0.as_ref() }.store(0, Ordering::SeqCst);
    }

    /// `KVM_RUN`: runs the guest until something needs the monitor. A signal
    /// (or an application processor that was woken) is [`Exit::Interrupted`].
    pub fn run(&mut self) -> Result<Exit<'_>, KvmError> {
        match by_value(&self.handle, KVM_RUN, 0) {
            Ok(_) => {}
            Err(KvmError { errno: Errno(libc::EINTR | libc::EAGAIN), .. }) => {
                return Ok(Exit::Interrupted);
            }
            Err(error) => return Err(error),
        }
        // SAFETY: the mapping is `run_size` bytes, at least a whole `kvm_run`, and the
        // hypervisor leaves it alone until the next KVM_RUN, which needs `&mut self`.
        Ok(unsafe { Exit::decode(self.run, self.run_size) })
    }

    /// `KVM_GET_REGS`.
    pub fn regs(&self) -> Result<kvm_regs, KvmError> {
        filled(&self.handle, KVM_GET_REGS)
    }

    /// `KVM_SET_REGS`.
    pub fn set_regs(&self, regs: &kvm_regs) -> Result<(), KvmError> {
        by_ref(&self.handle, KVM_SET_REGS, regs).map(drop)
    }

    /// `KVM_GET_SREGS`.
    pub fn sregs(&self) -> Result<kvm_sregs, KvmError> {
        filled(&self.handle, KVM_GET_SREGS)
    }

    /// `KVM_SET_SREGS`.
    pub fn set_sregs(&self, sregs: &kvm_sregs) -> Result<(), KvmError> {
        by_ref(&self.handle, KVM_SET_SREGS, sregs).map(drop)
    }

    /// `KVM_TRANSLATE`: the guest-physical address behind a linear one, by the guest's own page
    /// tables; `None` if it has none.
    pub fn translate(&self, gva: u64) -> Result<Option<u64>, KvmError> {
        let mut translation = kvm_translation { linear_address: gva, ..Default::default() };
        by_mut(&self.handle, KVM_TRANSLATE, &mut translation)?;
        Ok((translation.valid != 0).then_some(translation.physical_address))
    }

    /// `KVM_SET_FPU`.
    pub fn set_fpu(&self, fpu: &kvm_fpu) -> Result<(), KvmError> {
        by_ref(&self.handle, KVM_SET_FPU, fpu).map(drop)
    }

    /// `KVM_GET_MP_STATE`: running, halted, waiting for SIPI, ...
    pub fn mp_state(&self) -> Result<u32, KvmError> {
        filled::<kvm_mp_state>(&self.handle, KVM_GET_MP_STATE).map(|s| s.mp_state)
    }

    /// `KVM_SET_CPUID2`.
    pub fn set_cpuid(&self, entries: &[kvm_cpuid_entry2]) -> Result<(), KvmError> {
        let failed = |errno| KvmError { call: KVM_SET_CPUID2.name, errno };
        let cpuid = CpuId::from_entries(entries).map_err(|_| failed(Errno(libc::E2BIG)))?;
        // SAFETY: the header is followed by as many entries as its `nent` says.
        unsafe { self.handle.ioctl(KVM_SET_CPUID2.nr, cpuid.as_fam_struct_ptr() as usize) }.map(drop).map_err(failed)
    }

    /// `KVM_SET_MSRS`; answers how many of the entries were taken, in order.
    pub fn set_msrs(&self, entries: &[kvm_msr_entry]) -> Result<usize, KvmError> {
        let failed = |errno| KvmError { call: KVM_SET_MSRS.name, errno };
        let msrs = Msrs::from_entries(entries).map_err(|_| failed(Errno(libc::E2BIG)))?;
        // SAFETY: the header is followed by as many entries as its `nmsrs` says.
        unsafe { self.handle.ioctl(KVM_SET_MSRS.nr, msrs.as_fam_struct_ptr() as usize) }
            .map(|n| usize::try_from(n).unwrap_or(0))
            .map_err(failed)
    }

    /// `KVM_GET_STATS_FD` of this vCPU.
    pub fn stats_fd(&self) -> Result<StatsFd, KvmError> {
        super::vm::stats_fd(&self.handle)
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // SAFETY: the range came from `mmap` and no reference to it outlives `self`.
        let _ = unsafe { self.handle.sys().munmap(self.run.as_ptr(), self.run_size) };
    }
}
