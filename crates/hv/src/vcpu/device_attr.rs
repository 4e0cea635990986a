//! Attributes of a vCPU: there is one, the offset of its time-stamp counter from the host's (at the guest's rate).
use abi::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KvmDeviceAttr};
use platform::Platform;

use super::Inner;
use crate::{Errno, Outcome, backend::Backend, uaccess, vm::VmShared};

type Mem<B> = <<B as Backend>::Platform as Platform>::Memory;

fn check(attr: &KvmDeviceAttr) -> Result<(), Errno> {
    match (attr.group, attr.attr) {
        _ if attr.flags != 0 => Err(Errno::EINVAL),
        (KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET) => Ok(()),
        _ => Err(Errno::ENXIO),
    }
}

impl<B: Backend> Inner<B> {
    pub(super) fn has_device_attr(&self, attr: &KvmDeviceAttr) -> Result<Outcome<B>, Errno> {
        check(attr)?;
        Ok(Outcome::OK)
    }

    pub(super) fn get_device_attr(&self, attr: &KvmDeviceAttr) -> Result<Outcome<B>, Errno> {
        check(attr)?;
        uaccess::put::<Mem<B>, u64>(attr.addr, &self.tsc.offset())?;
        Ok(Outcome::OK)
    }

    pub(super) fn set_device_attr(
        &mut self,
        attr: &KvmDeviceAttr,
        vm: &VmShared<B::Platform>,
        reader: usize,
    ) -> Result<Outcome<B>, Errno> {
        check(attr)?;
        self.tsc.set_offset(uaccess::get::<Mem<B>, u64>(attr.addr)?);
        self.tsc_changed(vm, reader);
        Ok(Outcome::OK)
    }
}
