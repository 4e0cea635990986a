//! A virtual machine: memory, interrupt controllers, new virtual CPUs.

use super::*;
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_irq_level__bindgen_ty_1};

/// A virtual machine's descriptor.
#[derive(Debug)]
pub struct Vm {
    handle: Handle,
    run_size: usize,
}

impl Vm {
    pub(super) fn new(handle: Handle, run_size: usize) -> Self {
        Self { handle, run_size }
    }

    /// See [`crate::accel::Sys::audit`].
    pub fn audit(&self) -> Option<Result<String, String>> {
        self.handle.sys().audit(self.handle.fd())
    }

    /// `KVM_SET_TSS_ADDR`: three pages in guest-physical space that Intel processors without
    /// unrestricted guests need.
    pub fn set_tss_addr(&self, gpa: u32) -> Result<(), KvmError> {
        by_value(&self.handle, KVM_SET_TSS_ADDR, gpa as usize).map(drop)
    }

    /// `KVM_SET_IDENTITY_MAP_ADDR`: one page for the same purpose.
    pub fn set_identity_map_addr(&self, gpa: u64) -> Result<(), KvmError> {
        by_ref(&self.handle, KVM_SET_IDENTITY_MAP_ADDR, &gpa).map(drop)
    }

    /// `KVM_CREATE_IRQCHIP`: PIC, IOAPIC and local APICs in the hypervisor.
    pub fn create_irqchip(&self) -> Result<(), KvmError> {
        by_value(&self.handle, KVM_CREATE_IRQCHIP, 0).map(drop)
    }

    /// `KVM_CREATE_PIT2`: the interval timer, with the speaker port beside it.
    pub fn create_pit2(&self) -> Result<(), KvmError> {
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        by_ref(&self.handle, KVM_CREATE_PIT2, &config).map(drop)
    }

    /// `KVM_SET_USER_MEMORY_REGION`.
    ///
    /// # Safety
    /// The host range must stay mapped until the VM's last descriptor is closed, and Rust
    /// code must reach it only through volatile or atomic accesses: the guest writes it.
    pub unsafe fn set_memory_region(&self, slot: u32, gpa: u64, size: u64, hva: *mut u8) -> Result<(), KvmError> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: hva as u64,
        };
        by_ref(&self.handle, KVM_SET_USER_MEMORY_REGION, &region).map(drop)
    }

    /// `KVM_IRQ_LINE`: drives an input of the interrupt controllers.
    pub fn irq_line(&self, gsi: u32, level: bool) -> Result<(), KvmError> {
        let line =
            kvm_irq_level { __bindgen_anon_1: kvm_irq_level__bindgen_ty_1 { irq: gsi }, level: u32::from(level) };
        by_ref(&self.handle, KVM_IRQ_LINE, &line).map(drop)
    }

    /// `KVM_CREATE_VCPU`; `id` is also the initial local APIC id.
    pub fn create_vcpu(&self, id: u32) -> Result<Vcpu, KvmError> {
        let fd = by_value(&self.handle, KVM_CREATE_VCPU, id as usize)?;
        Vcpu::new(Handle::new(self.handle.sys().clone(), fd), self.run_size)
    }

    /// `KVM_GET_STATS_FD` of the VM.
    pub fn stats_fd(&self) -> Result<StatsFd, KvmError> {
        stats_fd(&self.handle)
    }
}

/// A descriptor that holds statistics in the ABI's binary form.
#[derive(Debug)]
pub struct StatsFd(Handle);

pub(super) fn stats_fd(of: &Handle) -> Result<StatsFd, KvmError> {
    let fd = by_value(of, KVM_GET_STATS_FD, 0)?;
    Ok(StatsFd(Handle::new(of.sys().clone(), fd)))
}

impl stats::binary::ReadAt for StatsFd {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.0.sys().pread(self.0.fd(), buf, offset).map_err(|e| std::io::Error::from_raw_os_error(e.0))
    }
}
