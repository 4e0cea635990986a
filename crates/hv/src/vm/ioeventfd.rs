//! KVM_IOEVENTFD: guest writes that signal an eventfd instead of going to a device.
use abi::{KVM_IOEVENTFD_FLAG_DATAMATCH, KVM_IOEVENTFD_FLAG_DEASSIGN, KVM_IOEVENTFD_FLAG_PIO, KvmIoeventfd};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use platform::{
    EventFd, MaySleep, Mutex, Platform, Published, Shared,
    fallible::{try_box, try_push},
    lock::rank,
};

use super::{MAX_VCPUS, Space, Vm};
use crate::{Errno, Outcome, backend::Backend, uaccess};

/// One binding.
struct Binding<P: Platform> {
    space: Space,
    at: u64,
    /// Bytes of the write; 0 is any number.
    len: u64,
    /// The only value that counts.
    data: Option<u64>,
    event: Shared<P::EventFd>,
}

// By hand: P itself need not be Clone.
impl<P: Platform> Clone for Binding<P> {
    fn clone(&self) -> Self {
        Self { event: self.event.clone(), ..*self }
    }
}

impl<P: Platform> Binding<P> {
    fn place(&self) -> (Space, u64) {
        (self.space, self.at)
    }

    /// Some write would signal both.
    fn collides(&self, other: &Self) -> bool {
        let any_length = self.len == 0 || other.len == 0;
        let same_data = self.data.is_none() || other.data.is_none() || self.data == other.data;
        self.place() == other.place() && (any_length || self.len == other.len && same_data)
    }

    fn is(&self, other: &Self) -> bool {
        self.place() == other.place()
            && (self.len, self.data) == (other.len, other.data)
            && self.event.same(&other.event)
    }

    fn takes(&self, len: u64, data: u64) -> bool {
        self.len == 0 || self.len == len && self.data.is_none_or(|only| only == data)
    }
}

/// The bindings of a VM. vCPUs read them without a lock.
pub(crate) struct Ioeventfds<P: Platform> {
    /// Sorted by place.
    table: Published<Vec<Binding<P>>>,
    /// Whether there are none, which is told before the table is read: most writes are not for an eventfd.
    none: AtomicBool,
    writer: Mutex<P, Vec<Binding<P>>>,
}

impl<P: Platform> Ioeventfds<P> {
    pub(super) fn new() -> Result<Self, Errno> {
        let table = Published::new(Vec::new(), MAX_VCPUS)?;
        Ok(Self { table, none: AtomicBool::new(true), writer: Mutex::<P, _>::new(rank::BUS, Vec::new())? })
    }

    /// vCPU `reader` writes `len` bytes, `data`, to a place: the eventfd that is to be signalled instead.
    #[inline]
    pub(crate) fn find(&self, reader: usize, space: Space, at: u64, len: u64, data: u64) -> Option<Shared<P::EventFd>> {
        if self.none.load(SeqCst) { None } else { self.find_one(reader, space, at, len, data) }
    }

    fn find_one(&self, reader: usize, space: Space, at: u64, len: u64, data: u64) -> Option<Shared<P::EventFd>> {
        let table = self.table.read(reader)?;
        let start = table.partition_point(|one| one.place() < (space, at));
        let mut here = table.get(start..)?.iter().take_while(|one| one.place() == (space, at));
        here.find(|one| one.takes(len, data)).map(|one| one.event.clone())
    }

    /// Whether some write to a place would signal an eventfd.
    pub(crate) fn any_at(&self, reader: usize, space: Space, at: u64) -> bool {
        let Some(table) = self.table.read(reader) else { return false };
        let start = table.partition_point(|one| one.place() < (space, at));
        table.get(start).is_some_and(|one| one.place() == (space, at))
    }

    fn add(&self, binding: Binding<P>, cx: &MaySleep) -> Result<(), Errno> {
        let mut all = self.writer.lock();
        if all.iter().any(|other| other.collides(&binding)) {
            return Err(Errno::EEXIST);
        }
        all.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        let at = all.partition_point(|one| one.place() < binding.place());
        all.insert(at, binding);
        let published = self.publish(&all, cx);
        if published.is_err() {
            all.remove(at);
        }
        published
    }

    fn remove(&self, binding: &Binding<P>, cx: &MaySleep) -> Result<(), Errno> {
        let mut all = self.writer.lock();
        let at = all.iter().position(|other| other.is(binding)).ok_or(Errno::ENOENT)?;
        let removed = all.remove(at);
        let published = self.publish(&all, cx);
        if published.is_err() {
            // The room is there: it has just become free.
            all.insert(at, removed);
        }
        published
    }

    fn publish(&self, all: &[Binding<P>], cx: &MaySleep) -> Result<(), Errno> {
        let mut copy = Vec::new();
        for one in all {
            try_push(&mut copy, one.clone())?;
        }
        drop(self.table.replace::<P>(try_box(copy)?, cx));
        self.none.store(all.is_empty(), SeqCst);
        Ok(())
    }
}

impl<B: Backend> Vm<B> {
    pub(super) fn ioeventfd(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let io: KvmIoeventfd = uaccess::get::<<B::Platform as Platform>::Memory, _>(arg)?;
        let has = |flag| io.flags & flag != 0;
        let known = KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DEASSIGN;
        let len = u64::from(io.len);
        if !matches!(len, 0 | 1 | 2 | 4 | 8)
            || io.flags & !known != 0
            || io.addr.checked_add(len).is_none()
            || len == 0 && has(KVM_IOEVENTFD_FLAG_DATAMATCH)
        {
            return Err(Errno::EINVAL);
        }
        let event = <B::Platform as Platform>::EventFd::get(io.fd, cx)?;
        let binding = Binding {
            space: if has(KVM_IOEVENTFD_FLAG_PIO) { Space::Pio } else { Space::Mmio },
            at: io.addr,
            len,
            data: has(KVM_IOEVENTFD_FLAG_DATAMATCH).then_some(io.datamatch),
            event: Shared::try_new(event)?,
        };
        let all = &self.shared().ioeventfds;
        if has(KVM_IOEVENTFD_FLAG_DEASSIGN) {
            all.remove(&binding, cx)?
        } else {
            all.add(binding, cx)?
        }
        Ok(Outcome::OK)
    }
}
