//! What each descriptor of the device stands for.
use std::{
    os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd},
    sync::{PoisonError, RwLock},
};

use hv::Errno;
use platform::fallible::Shared;

use super::{Cpu, Kvm, fd::Pages, process::Process};

/// A vCPU's descriptor. Everyone who uses the vCPU through it holds the pages too.
#[derive(Clone)]
pub(super) struct VcpuFile {
    // Declared first, so that it goes before the pages.
    pub(super) vcpu: hv::Vcpu<Cpu>,
    pub(super) _pages: Shared<Pages>,
}

/// An open file. Clones share the object.
#[derive(Clone)]
pub(super) enum Object {
    Device(Kvm),
    Vm(hv::Vm<Cpu>),
    Vcpu(VcpuFile),
    Stats(Shared<hv::StatsFile<Cpu>>),
}

impl Object {
    /// Whether it serves only the process that made it.
    fn bound(&self) -> bool {
        matches!(self, Self::Vm(_) | Self::Vcpu(_))
    }
}

/// Objects by descriptor number, with the process that made each.
pub(super) struct Table(RwLock<Vec<Option<(Object, Process)>>>);

/// The one of this process.
pub(super) static TABLE: Table = Table(RwLock::new(Vec::new()));

impl Table {
    /// The object of `fd`. It stays alive while the caller holds it, also if the descriptor is closed meanwhile.
    pub(super) fn get(&self, fd: RawFd) -> Option<Object> {
        let index = usize::try_from(fd).ok()?;
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.get(index)?.as_ref().map(|(object, _)| object.clone())
    }

    /// The object of `fd`, for a call that only its own process may make: EIO for others, as Linux has it.
    pub(super) fn own(&self, fd: RawFd) -> Result<Object, Errno> {
        let index = usize::try_from(fd).map_err(|_| Errno(libc::EBADF))?;
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let (object, process) = table.get(index).and_then(Option::as_ref).ok_or(Errno(libc::EBADF))?;
        if object.bound() && *process != Process::current() { Err(Errno::EIO) } else { Ok(object.clone()) }
    }

    /// Puts an object behind a new descriptor, whose number it returns. An entry that is there belongs to a
    /// descriptor that was closed behind our back: its number has just been given out again.
    pub(super) fn insert(&self, fd: OwnedFd, object: Object) -> Result<RawFd, Errno> {
        let index = usize::try_from(fd.as_raw_fd()).map_err(|_| Errno::EINVAL)?;
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if index >= table.len() {
            let missing = index + 1 - table.len();
            table.try_reserve(missing).map_err(|_| Errno::ENOMEM)?;
            table.resize_with(index + 1, || None);
        }
        let stale = table.get_mut(index).and_then(|place| place.replace((object, Process::current())));
        drop(table);
        // The end of an object can take time and locks.
        drop(stale);
        Ok(fd.into_raw_fd())
    }

    /// Closes `fd`. The number is free for others only after the entry is gone.
    pub(super) fn remove(&self, fd: RawFd) -> Option<()> {
        let index = usize::try_from(fd).ok()?;
        let object = self.0.write().unwrap_or_else(PoisonError::into_inner).get_mut(index)?.take()?;
        drop(object);
        // SAFETY: the number was made by `insert` and taken out by this call alone.
        unsafe { libc::close(fd) };
        Some(())
    }
}
