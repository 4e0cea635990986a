//! The ioctls of a descriptor of `/dev/kvm`.
use abi::*;
use alloc::vec::Vec;
use platform::{MaySleep, Platform, fallible::try_push};

use super::Kvm;
use crate::{
    Errno, Outcome, Vcpu,
    backend::Backend,
    cpuid::{self, Offer},
    msr, uaccess,
    vcpu::MAX_MSRS,
};

type Mem<B> = <<B as Backend>::Platform as Platform>::Memory;

impl<B: Backend> Kvm<B> {
    /// `ioctl` on a descriptor of `/dev/kvm`. `nr` is the full request number, `arg` its argument.
    pub fn ioctl(&self, nr: u32, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let none = || if arg == 0 { Ok(()) } else { Err(Errno::EINVAL) };
        match nr {
            KVM_GET_API_VERSION => {
                none()?;
                Ok(Outcome::Value(KVM_API_VERSION as i32))
            }
            KVM_CREATE_VM => {
                // The argument is the machine type; there is one.
                none()?;
                Ok(Outcome::NewVm(self.create_vm(cx)?))
            }
            KVM_CHECK_EXTENSION => Ok(Outcome::Value(self.check_extension(arg))),
            KVM_GET_VCPU_MMAP_SIZE => {
                none()?;
                Ok(Outcome::Value((Vcpu::<B>::RUN_PAGES * 4096) as i32))
            }
            KVM_GET_SUPPORTED_CPUID => self.get_supported_cpuid(arg),
            KVM_GET_EMULATED_CPUID => self.put_cpuid(arg, &[]),
            KVM_GET_MSR_INDEX_LIST => put_msr_list::<B>(arg, msr::list()),
            KVM_GET_MSR_FEATURE_INDEX_LIST => put_msr_list::<B>(arg, msr::FEATURE_LIST.iter().copied()),
            KVM_GET_MSRS => self.get_feature_msrs(arg),
            KVM_HAS_DEVICE_ATTR => self.device_attr(arg, false),
            KVM_GET_DEVICE_ATTR => self.device_attr(arg, true),
            KVM_X86_GET_MCE_CAP_SUPPORTED => {
                uaccess::put::<Mem<B>, u64>(arg, &(msr::MCE_CAPABILITIES | msr::MCE_BANKS as u64))?;
                Ok(Outcome::OK)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    /// There is one attribute: the XCR0 bits that a guest can be given. `get` copies it, else its existence is asked.
    fn device_attr(&self, arg: u64, get: bool) -> Result<Outcome<B>, Errno> {
        let attr: KvmDeviceAttr = uaccess::get::<Mem<B>, _>(arg)?;
        if attr.group != 0 || attr.attr != KVM_X86_XCOMP_GUEST_SUPP {
            return Err(Errno::ENXIO);
        }
        if get {
            uaccess::put::<Mem<B>, u64>(attr.addr, &self.backend().xcr0())?;
        }
        Ok(Outcome::OK)
    }

    fn get_supported_cpuid(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        let backend = self.backend();
        let entries = cpuid::supported(&Offer {
            features: backend.features(),
            xcr0: backend.xcr0(),
            tsc_khz: B::Platform::tsc_khz(),
            arch_capabilities: backend.arch_capabilities(),
            fast_strings: backend.fast_strings(),
        })?;
        self.put_cpuid(arg, &entries)
    }

    fn put_cpuid(&self, arg: u64, entries: &[KvmCpuidEntry2]) -> Result<Outcome<B>, Errno> {
        let header: KvmCpuid2 = uaccess::get::<Mem<B>, _>(arg)?;
        if (header.nent as usize) < entries.len() {
            return Err(Errno::E2BIG);
        }
        uaccess::put::<Mem<B>, _>(arg, &KvmCpuid2 { nent: entries.len() as u32, padding: 0 })?;
        uaccess::put_tail::<Mem<B>, KvmCpuid2, _>(arg, entries)?;
        Ok(Outcome::OK)
    }

    /// KVM_GET_MSRS on the device: feature MSRs.
    fn get_feature_msrs(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        let header: KvmMsrs = uaccess::get::<Mem<B>, _>(arg)?;
        let mut entries = uaccess::get_tail::<Mem<B>, KvmMsrs, KvmMsrEntry>(arg, header.nmsrs, MAX_MSRS)?;
        let mut done = 0;
        for entry in &mut entries {
            let Some(value) = msr::feature(entry.index, self.backend().arch_capabilities()) else { break };
            entry.data = value;
            done += 1;
        }
        uaccess::put_tail::<Mem<B>, KvmMsrs, _>(arg, &entries)?;
        Ok(Outcome::Value(done))
    }
}

/// Answers a request for a list of MSRs: the number always, the indices if there is room.
fn put_msr_list<B: Backend>(arg: u64, list: impl Iterator<Item = u32>) -> Result<Outcome<B>, Errno> {
    let header: KvmMsrList = uaccess::get::<Mem<B>, _>(arg)?;
    let mut indices = Vec::new();
    for index in list {
        try_push(&mut indices, index)?;
    }
    uaccess::put::<Mem<B>, _>(arg, &KvmMsrList { nmsrs: indices.len() as u32 })?;
    if (header.nmsrs as usize) < indices.len() {
        return Err(Errno::E2BIG);
    }
    uaccess::put_tail::<Mem<B>, KvmMsrList, _>(arg, &indices)?;
    Ok(Outcome::OK)
}
