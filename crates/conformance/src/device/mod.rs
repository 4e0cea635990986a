//! The device under test, at the system-call boundary.
//!
//! [`Device::open`] takes what `--on` says: the in-process device or a path. Everything made from it ([`Fd`]) carries the
//! kind along, so that a case never knows which it talks to. This folder is the one with `unsafe`: it makes the calls and
//! holds the mappings; what it offers to cases cannot harm this program unless the device does what it must not.
mod errno;
mod event;
mod fd;
mod kernel;
mod memory;
mod node;
mod process;
#[cfg(feature = "soft")]
mod soft;
mod sys;
mod thread;

pub use errno::Errno;
pub use event::Event;
pub use fd::Fd;
pub use memory::{Address, Memory, PAGE, fenced, leave_holes};
pub use node::Node;
pub use process::{Child, in_child, set_own_group};
pub use sys::Sys;
pub use thread::{Hears, Thread, block, install, install_counting, processors, take_pending, unblock};

use std::ffi::CString;

use abi::{
    KVM_CHECK_EXTENSION, KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE, KVM_REINJECT_CONTROL, KvmReinjectControl, Pod, cap_name,
};

use crate::{runner::Target, vm::Vm};

/// An open device.
pub struct Device {
    /// Its descriptor, for raw calls.
    pub fd: Fd,
    sys: &'static dyn Sys,
    target: Target,
}

/// How a device is named on the command line.
fn named(on: &str) -> Result<Box<dyn Sys>, String> {
    if let Some(path) = on.strip_prefix("device:") {
        let path = CString::new(path).map_err(|_| "a path holds no zero byte".to_owned())?;
        return Ok(Box::new(kernel::Kernel(path)));
    }
    #[cfg(feature = "soft")]
    if let Some(options) = user::device::Options::named(on) {
        return Ok(Box::new(soft::InProcess(options)));
    }
    Err(format!("no device {on:?}: soft, soft-shadow or soft-nested (perhaps with -adversarial), or device:PATH"))
}

impl Device {
    /// Opens the device `on`, which the cases take for `target`.
    ///
    /// # Errors
    /// An unknown name, or what `open` answers, in words.
    pub fn open(on: &str, target: Target) -> Result<Self, String> {
        // One for the life of the process.
        let sys: &'static dyn Sys = Box::leak(named(on)?);
        let fd = sys.open().map_err(|errno| format!("{on} does not open: {errno}"))?;
        install(sys, libc::SIGUSR1);
        Ok(Self { fd: Fd::new(sys, fd), sys, target })
    }

    /// Opens the same device once more.
    pub fn again(&self) -> Fd {
        Fd::new(self.sys, self.sys.open().expect("the device opens again"))
    }

    /// The device as a name in the file system, if it has one.
    pub fn node(&self) -> Option<Node> {
        self.sys.path().map(|path| Node::new(self.sys, path))
    }

    /// Takes over a descriptor that a call on the device has made.
    pub fn adopt(&self, made: i32) -> Fd {
        Fd::new(self.sys, made)
    }

    /// What runs behind the device, for the few cases that must tell processors apart.
    pub fn target(&self) -> Target {
        self.target
    }

    /// KVM_CHECK_EXTENSION.
    pub fn cap(&self, cap: u32) -> i32 {
        self.fd.number(KVM_CHECK_EXTENSION, u64::from(cap)).expect("KVM_CHECK_EXTENSION answers")
    }

    /// Ends the case as skipped unless the device offers `cap`, whose value it returns.
    pub fn need(&self, cap: u32) -> i32 {
        let value = self.cap(cap);
        if value == 0 {
            crate::runner::lacks(cap_name(cap).unwrap_or("an unnamed capability"));
        }
        value
    }

    /// Bytes that a vCPU shares with its client.
    pub fn run_bytes(&self) -> usize {
        self.fd.number(KVM_GET_VCPU_MMAP_SIZE, 0).expect("KVM_GET_VCPU_MMAP_SIZE answers") as usize
    }

    /// KVM_CREATE_VM.
    pub fn vm(&self) -> Vm {
        let fd = self.fd.make(KVM_CREATE_VM, 0).expect("KVM_CREATE_VM makes a VM");
        Vm::new(fd, self.run_bytes())
    }
}

/// KVM_REINJECT_CONTROL, whose number hides that it takes a structure.
pub fn reinject_control(vm: &Fd, reinject: u8) -> Result<i32, Errno> {
    let mut control = KvmReinjectControl { pit_reinject: reinject, ..KvmReinjectControl::zeroed() };
    vm.buffer(KVM_REINJECT_CONTROL, control.bytes_mut())
}
