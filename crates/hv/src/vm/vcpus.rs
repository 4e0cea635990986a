//! The vCPUs of a VM as everybody may see them.
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use irqchip::{DeliveredSet, Message, Origin, deliver};
use platform::{MaySleep, OutOfMemory, Platform};

use crate::{
    backend::{BackendVcpu, FlushTlb},
    vcpu::{VcpuShared, request},
};

/// Most vCPUs of a VM; their numbers are below it.
pub(crate) const MAX_VCPUS: usize = 256;

/// The shared parts of all vCPUs a VM can have, made with the VM: a number finds its vCPU without a lock, and one that
/// has not been created is skipped.
pub(crate) struct Vcpus<P: Platform> {
    all: Vec<VcpuShared<P>>,
    /// No vCPU with this number or a higher one has been created.
    end: AtomicUsize,
}

impl<P: Platform> Vcpus<P> {
    /// `counters` is how many the back end has for each.
    #[inline(never)]
    pub(crate) fn new(counters: usize) -> Result<Self, OutOfMemory> {
        let mut all = Vec::new();
        all.try_reserve_exact(MAX_VCPUS).map_err(|_| OutOfMemory)?;
        for id in 0..MAX_VCPUS {
            all.push(VcpuShared::new(id as u32, counters)?);
        }
        Ok(Self { all, end: AtomicUsize::new(0) })
    }

    /// The place of vCPU `id`, created or not.
    pub(crate) fn slot(&self, id: usize) -> Option<&VcpuShared<P>> {
        self.all.get(id)
    }

    /// The place of a vCPU that its creator has checked.
    pub(crate) fn place(&self, id: usize) -> &VcpuShared<P> {
        // There are MAX_VCPUS places, and no vCPU has a number beyond them.
        &self.all[id % MAX_VCPUS]
    }

    /// Vcpu `id`, if it has been created.
    pub(crate) fn get(&self, id: usize) -> Option<&VcpuShared<P>> {
        self.slot(id).filter(|v| v.is_created())
    }

    /// Makes vCPU `id` known; false if it exists.
    pub(crate) fn publish(&self, id: usize) -> bool {
        let Some(vcpu) = self.slot(id) else { return false };
        self.end.fetch_max(id + 1, SeqCst);
        vcpu.create()
    }

    /// The vCPUs that have been created.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &VcpuShared<P>> {
        self.all.iter().take(self.end.load(SeqCst)).filter(|v| v.is_created())
    }

    /// Hands an interrupt message to the local APICs that it names, and kicks them.
    pub(crate) fn send(&self, message: &Message, origin: Origin) -> DeliveredSet {
        let set = deliver(message, origin, self.iter().map(|v| (v.id() as usize, &v.lapic)));
        for id in set.kicks() {
            if let Some(vcpu) = self.slot(id) {
                vcpu.request(request::EVENT);
            }
        }
        set
    }

    /// Makes every vCPU set these bits soon.
    pub(crate) fn request_all(&self, bits: u32) {
        for vcpu in self.iter() {
            vcpu.request(bits);
        }
    }

    /// Makes every vCPU forget its translations, and returns when each is outside the guest and will do so before it
    /// enters, or has done so. Neither sleeps nor allocates; a vCPU that is not in the guest itself may call it.
    pub(crate) fn flush_tlbs(&self) {
        self.request_all(request::TLB_FLUSH_PHYSICAL);
        for vcpu in self.iter() {
            vcpu.wait_left();
        }
    }

    /// The same by vCPU `index`, which is `cpu` and outside of the guest: nobody has to ask that one.
    pub(crate) fn flush_tlbs_by(&self, index: usize, cpu: &mut impl BackendVcpu<P>) {
        cpu.flush(FlushTlb::Physical);
        let others = || self.iter().filter(|vcpu| vcpu.id() as usize != index);
        others().for_each(|vcpu| vcpu.request(request::TLB_FLUSH_PHYSICAL));
        others().for_each(VcpuShared::wait_left);
    }

    /// Makes every vCPU forget translations of guest-physical memory, and returns when each has, at an instruction
    /// boundary, or is outside the guest (and will before it enters).
    pub(crate) fn flush_physical(&self, cx: &MaySleep) {
        self.request_all(request::TLB_FLUSH_PHYSICAL);
        for vcpu in self.iter() {
            vcpu.wait_flushed(cx);
        }
    }
}
