//! What each descriptor of the device stands for.
use std::{
    mem,
    ops::RangeInclusive,
    os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd},
    sync::{
        PoisonError, RwLock, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use hv::Errno;
use platform::fallible::Shared;

use super::{Cpu, Options, fd, fd::Pages, process::Process};

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
    Device(Options),
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

/// An object with the process that made it, and the file that stands for it.
pub(super) struct Entry(Object, Process, Identity);

/// What tells one file from all others.
pub(super) type Identity = (u64, u64);

impl Entry {
    /// The end of an object can take time and locks. What belongs to a parent cannot be ended here: its threads are not
    /// in this process.
    fn end(self) {
        if self.1 == Process::current() { drop(self) } else { mem::forget(self) }
    }
}

pub(super) type Entries = Vec<Option<Entry>>;

/// Objects by descriptor number.
pub(super) struct Table {
    entries: RwLock<Entries>,
    /// A bit for each number below [`MARKED`] that has an entry, for whoever must not wait.
    marks: [AtomicU64; MARKED / 64],
}

/// More descriptors than Linux gives a process by default, whatever its limits.
const MARKED: usize = 1 << 20;

/// The one of this process.
pub(super) static TABLE: Table =
    Table { entries: RwLock::new(Vec::new()), marks: [const { AtomicU64::new(0) }; MARKED / 64] };

impl Table {
    /// Nobody else reads or writes while the guard lives.
    pub(super) fn lock(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark(&self, index: usize, present: bool) {
        let Some(word) = self.marks.get(index / 64) else { return };
        let bit = 1 << (index % 64);
        if present {
            word.fetch_or(bit, Ordering::Release)
        } else {
            word.fetch_and(!bit, Ordering::Release)
        };
    }

    /// Whether `fd` is one of ours. Async-signal-safe for all numbers below [`MARKED`].
    pub(super) fn has(&self, fd: RawFd) -> bool {
        let Ok(index) = usize::try_from(fd) else { return false };
        match self.marks.get(index / 64) {
            Some(word) => word.load(Ordering::Acquire) >> (index % 64) & 1 != 0,
            None => self.get(fd).is_some(),
        }
    }

    /// The object of `fd`. It stays alive while the caller holds it, also if the descriptor is closed meanwhile.
    pub(super) fn get(&self, fd: RawFd) -> Option<Object> {
        let index = usize::try_from(fd).ok()?;
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(index)?.as_ref().map(|Entry(object, ..)| object.clone())
    }

    /// The object of `fd`, for a call that only its own process may make: EIO for others, as Linux has it.
    pub(super) fn own(&self, fd: RawFd) -> Result<Object, Errno> {
        let index = usize::try_from(fd).map_err(|_| Errno(libc::EBADF))?;
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let Entry(object, process, _) = entries.get(index).and_then(Option::as_ref).ok_or(Errno(libc::EBADF))?;
        if object.bound() && *process != Process::current() { Err(Errno::EIO) } else { Ok(object.clone()) }
    }

    /// Puts an object behind a new descriptor, whose number it returns.
    pub(super) fn insert(&self, fd: OwnedFd, object: Object) -> Result<RawFd, Errno> {
        self.place(fd.as_raw_fd(), Entry(object, Process::current(), fd::identity(fd.as_raw_fd())?))?;
        Ok(fd.into_raw_fd())
    }

    /// Records that `new` is another descriptor of what `old` stands for.
    pub(super) fn copy(&self, old: RawFd, new: RawFd) -> Result<(), Errno> {
        let entry = {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            let entry = usize::try_from(old).ok().and_then(|index| entries.get(index)?.as_ref());
            let Some(Entry(object, process, file)) = entry else { return Err(Errno(libc::EBADF)) };
            Entry(object.clone(), *process, *file)
        };
        self.place(new, entry)
    }

    /// Looks whether a descriptor that nobody told us of is of a file of ours, as one is that came over a socket.
    pub(super) fn adopt(&self, fd: RawFd) -> Result<bool, Errno> {
        let Ok(file) = fd::identity(fd) else { return Ok(false) };
        let entry = {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            let known = entries.iter().flatten().find(|entry| entry.2 == file);
            known.map(|Entry(object, process, file)| Entry(object.clone(), *process, *file))
        };
        let Some(entry) = entry else { return Ok(false) };
        self.place(fd, entry).map(|()| true)
    }

    /// Calls `look` with the first VM of this process. No descriptor goes meanwhile.
    pub(super) fn with_first_vm<T>(&self, look: impl FnOnce(&hv::Vm<Cpu>) -> T) -> Option<T> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let vm = |entry: &'_ Entry| matches!(entry.0, Object::Vm(_)) && entry.1 == Process::current();
        match entries.iter().flatten().find(|entry| vm(entry)) {
            Some(Entry(Object::Vm(vm), ..)) => Some(look(vm)),
            _ => None,
        }
    }

    /// An entry that is there belongs to a descriptor that was closed behind our back: its number has just been given
    /// out again.
    fn place(&self, fd: RawFd, entry: Entry) -> Result<(), Errno> {
        let index = usize::try_from(fd).map_err(|_| Errno::EINVAL)?;
        let mut entries = self.lock();
        if index >= entries.len() {
            let missing = index + 1 - entries.len();
            entries.try_reserve(missing).map_err(|_| Errno::ENOMEM)?;
            entries.resize_with(index + 1, || None);
        }
        let stale = entries.get_mut(index).and_then(|place| place.replace(entry));
        self.mark(index, true);
        drop(entries);
        stale.into_iter().for_each(Entry::end);
        Ok(())
    }

    fn take(&self, index: usize) -> Option<Entry> {
        let mut entries = self.lock();
        let entry = entries.get_mut(index)?.take()?;
        self.mark(index, false);
        Some(entry)
    }

    /// Forgets what the numbers stand for.
    pub(super) fn forget(&self, numbers: RangeInclusive<RawFd>) {
        let last = (*numbers.end()).min(i32::try_from(self.lock().len()).unwrap_or(i32::MAX));
        for fd in (*numbers.start()).max(0)..=last {
            if self.has(fd) {
                self.take(fd as usize).into_iter().for_each(Entry::end);
            }
        }
    }

    /// Closes `fd`. The number is free for others only after the entry is gone.
    pub(super) fn remove(&self, number: RawFd) -> Result<(), Errno> {
        let entry = usize::try_from(number).ok().and_then(|index| self.take(index)).ok_or(Errno(libc::EBADF))?;
        entry.end();
        fd::close(number)
    }
}
