//! A virtual machine as cases think of it: memory slots, vCPUs, exits. Nothing here decides what is right; calls that
//! every case needs panic with the call's name when they fail, and each has a way to see the error number instead.
mod exit;
mod lists;
mod long;
mod real;
mod run_page;
mod running;
mod vcpu;

pub use exit::Exit;
pub use lists::{cpuid2, list_with, read_list};
pub use real::{CODE, RealMode, assemble, at};
pub use run_page::RunPage;
pub use running::{Running, in_shadow, scaled, set_slowness, until, while_running};
pub use vcpu::Vcpu;

use abi::*;

use crate::device::{Errno, Fd, Memory};

/// A VM's descriptor.
pub struct Vm {
    /// For raw calls.
    pub fd: Fd,
    run_bytes: usize,
}

impl Vm {
    pub(crate) fn new(fd: Fd, run_bytes: usize) -> Self {
        Self { fd, run_bytes }
    }

    /// New memory of `bytes` at `gpa`, in slot `slot`.
    pub fn memory(&self, slot: u32, gpa: u64, bytes: usize) -> Memory {
        let memory = Memory::new(bytes);
        self.set_slot(slot, 0, gpa, memory).expect("KVM_SET_USER_MEMORY_REGION");
        memory
    }

    /// KVM_SET_USER_MEMORY_REGION of all of `memory`.
    pub fn set_slot(&self, slot: u32, flags: u32, gpa: u64, memory: Memory) -> Result<i32, Errno> {
        self.fd.put(
            KVM_SET_USER_MEMORY_REGION,
            &KvmUserspaceMemoryRegion {
                slot,
                flags,
                guest_phys_addr: gpa,
                memory_size: memory.len() as u64,
                userspace_addr: memory.address(),
            },
        )
    }

    /// KVM_SET_USER_MEMORY_REGION with size 0.
    pub fn delete_slot(&self, slot: u32) -> Result<i32, Errno> {
        self.fd.put(KVM_SET_USER_MEMORY_REGION, &KvmUserspaceMemoryRegion { slot, ..Default::default() })
    }

    /// KVM_CREATE_VCPU with its mapping.
    pub fn vcpu(&self, id: u32) -> Vcpu {
        self.try_vcpu(id).expect("KVM_CREATE_VCPU")
    }

    /// KVM_CREATE_VCPU with its mapping.
    pub fn try_vcpu(&self, id: u32) -> Result<Vcpu, Errno> {
        let fd = self.fd.make(KVM_CREATE_VCPU, u64::from(id))?;
        let page = RunPage(fd.map(self.run_bytes, 0)?);
        Ok(Vcpu { fd, page })
    }

    /// KVM_CREATE_IRQCHIP.
    pub fn irqchip(&self) {
        self.fd.number(KVM_CREATE_IRQCHIP, 0).expect("KVM_CREATE_IRQCHIP");
    }

    /// KVM_CREATE_PIT2 without flags.
    pub fn pit(&self) {
        self.fd.put(KVM_CREATE_PIT2, &KvmPitConfig::default()).expect("KVM_CREATE_PIT2");
    }

    /// KVM_IRQ_LINE.
    pub fn irq_line(&self, gsi: u32, level: bool) {
        self.fd.put(KVM_IRQ_LINE, &KvmIrqLevel { irq: gsi, level: level.into() }).expect("KVM_IRQ_LINE");
    }

    /// KVM_ENABLE_CAP with up to four arguments.
    pub fn enable(&self, cap: u32, args: [u64; 4]) -> Result<i32, Errno> {
        self.fd.put(KVM_ENABLE_CAP, &KvmEnableCap { cap, args, ..Default::default() })
    }

    /// KVM_GET_DIRTY_LOG of a slot of `pages` pages: the numbers of the pages that were written.
    pub fn dirty(&self, slot: u32, pages: usize) -> Vec<usize> {
        self.try_dirty(slot, pages).expect("KVM_GET_DIRTY_LOG")
    }

    /// KVM_GET_DIRTY_LOG of a slot of `pages` pages.
    pub fn try_dirty(&self, slot: u32, pages: usize) -> Result<Vec<usize>, Errno> {
        let bytes = pages.div_ceil(64) * 8;
        let (address, bitmap) = crate::device::fenced(&vec![0xa5; bytes]);
        let log = KvmDirtyLog { slot, padding1: 0, dirty_bitmap: address.get() };
        self.fd.put(KVM_GET_DIRTY_LOG, &log)?;
        Ok((0..bytes * 8).filter(|page| bitmap.u8(page / 8) >> (page % 8) & 1 != 0).collect())
    }
}
