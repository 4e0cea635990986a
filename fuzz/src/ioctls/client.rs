//! The client: its memory, its descriptors, its threads.
use std::{
    os::fd::RawFd,
    os::unix::thread::JoinHandleExt,
    ptr,
    sync::{
        Once,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use abi::*;
use user::device;

use super::arguments;
use crate::{
    deadline::Deadline,
    input::Input,
    memory::{PAGE, Pages},
};

/// Guest memory.
const MEMORY: u64 = 64 * PAGE;
/// Addresses behind it, for slots of which most cannot be accessed.
const EMPTY: u64 = 1 << 30;
/// Arguments, and bitmaps that the device writes.
const ARGUMENTS: u64 = 32 * PAGE;
/// Room for what a request writes behind its structure.
const TAIL: usize = 24 << 10;
/// Longest stay in a guest.
const STAY: Duration = Duration::from_millis(2);
/// Most objects and threads of one input.
const OBJECTS: usize = 24;
const VMS: usize = 4;
const VCPUS: usize = 6;
const THREADS: usize = 3;

/// What a descriptor was when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Device,
    Vm,
    Vcpu,
    Statistics,
    Eventfd,
}

#[derive(Clone, Copy)]
struct Object {
    fd: RawFd,
    kind: Kind,
}

/// A mapping of a vCPU's pages.
struct Mapping {
    at: *mut u8,
    len: usize,
}

/// A thread inside KVM_RUN. Its deadline is dropped when it has been joined.
struct Runner {
    thread: Option<JoinHandle<()>>,
    deadline: Option<Deadline>,
}

pub(super) struct Client {
    memory: Pages,
    arguments: Pages,
    /// A page that can only be read, and one that cannot even be.
    odd: Pages,
    objects: Vec<Object>,
    /// Descriptors that have been closed: their numbers may be others' by now.
    closed: Vec<RawFd>,
    mappings: Vec<Mapping>,
    runners: Vec<Runner>,
}

extern "C" fn nothing(_: libc::c_int) {}

/// The signal that ends KVM_RUN in any thread.
const SIGNAL: libc::c_int = libc::SIGUSR2;

fn handle_signal() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a handler that does nothing, for a signal that nobody else uses.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(SIGNAL, &action, ptr::null_mut());
        }
        user::signals::wrap(SIGNAL).expect("the signal can be wrapped");
    });
}

/// Signals the thread, which is not joined before the deadline is dropped, from `STAY` on.
fn deadline(thread: libc::pthread_t) -> Deadline {
    Deadline::new(STAY, move || {
        // SAFETY: as above.
        unsafe { libc::pthread_kill(thread, SIGNAL) };
    })
}

fn ioctl(fd: RawFd, nr: u32, arg: u64) -> Option<i32> {
    // SAFETY: whoever chose the argument made sure that what it refers to is the fuzzer's own or not there at all.
    unsafe { device::ioctl(fd, nr, arg) }.ok()
}

impl Client {
    pub(super) fn new() -> Self {
        handle_signal();
        let odd = Pages::new(2 * PAGE, 0);
        odd.protect(0, libc::PROT_READ);
        odd.protect(PAGE, libc::PROT_NONE);
        let mut client = Self {
            memory: Pages::new(MEMORY, EMPTY),
            arguments: Pages::new(ARGUMENTS, 16 * PAGE),
            odd,
            objects: Vec::new(),
            closed: Vec::new(),
            mappings: Vec::new(),
            runners: Vec::new(),
        };
        let fd = device::open().expect("the device opens");
        client.add(fd, Kind::Device);
        client
    }

    /// Opens another device, of which the software CPU walks other tables or has another TLB.
    pub(super) fn open(&mut self, input: &mut Input<'_>) {
        let options = device::Options::ALL[usize::from(input.u8()) % device::Options::ALL.len()];
        if self.objects.len() < OBJECTS
            && let Ok(fd) = device::open_with(options)
        {
            self.add(fd, Kind::Device);
        }
    }

    fn add(&mut self, fd: RawFd, kind: Kind) {
        self.objects.push(Object { fd, kind });
    }

    fn count(&self, kind: Kind) -> usize {
        self.objects.iter().filter(|o| o.kind == kind).count()
    }

    /// Guest memory: its address and size.
    pub(super) fn memory(&self) -> (u64, u64) {
        (self.memory.at(), MEMORY)
    }

    pub(super) fn last(&self, kind: Kind) -> Option<RawFd> {
        self.objects.iter().rfind(|o| o.kind == kind).map(|o| o.fd)
    }

    /// A descriptor: one that was made, an eventfd, one that is closed, none.
    pub(super) fn descriptor(&self, choice: u8) -> RawFd {
        let choice = usize::from(choice);
        match choice % 8 {
            0..4 => self.last(Kind::Eventfd).unwrap_or(-1),
            4 | 5 => self.objects.get(choice / 8 % self.objects.len().max(1)).map_or(-1, |o| o.fd),
            6 => -1,
            _ => i32::MAX,
        }
    }

    /// Signals that an input may not block.
    pub(super) fn signals(&self) -> u64 {
        // Those that the fuzzer itself uses, too.
        [SIGNAL, libc::SIGALRM, libc::SIGINT, libc::SIGTERM].iter().map(|s| 1 << (s - 1)).sum()
    }

    /// An address for something that is read or written: mostly a good one.
    pub(super) fn address(&self, choice: u8) -> u64 {
        let of = u64::from(choice) * 8;
        match choice % 16 {
            0..8 => self.arguments.at() + of,
            8 => self.arguments.at() + ARGUMENTS - of,
            9 => self.memory.at() + of,
            10 => self.odd.at() + of,
            11 => self.odd.at() + PAGE - of % PAGE,
            12 => 0,
            13 => 0x0000_8000_0000_0000 + of,
            14 => 0u64.wrapping_sub(of),
            _ => 1 + of,
        }
    }

    /// An address for a slot, and the most bytes that it may have there.
    pub(super) fn slot_memory(&self, choice: u64) -> (u64, u64) {
        match choice % 8 {
            0..4 => {
                let offset = (choice >> 3) % (MEMORY / PAGE) * PAGE;
                (self.memory.at() + offset, self.memory.end() - self.memory.at() - offset)
            }
            4 => (self.memory.at() + MEMORY, EMPTY),
            // Not aligned.
            5 => (self.memory.at() + (choice >> 3) % PAGE, MEMORY - PAGE),
            6 => (0, 8 * PAGE),
            _ => (0x8000_0000_0000 | choice << 8, u64::MAX),
        }
    }

    fn object(&self, input: &mut Input<'_>) -> RawFd {
        let choice = usize::from(input.u8());
        match choice >> 4 {
            0 => self.closed.get(choice & 15).copied().unwrap_or(-1),
            n => {
                // Mostly the newest of a kind.
                let kind = [Kind::Vcpu, Kind::Vm, Kind::Vcpu, Kind::Vm, Kind::Device][n % 5];
                let of: Vec<_> = self.objects.iter().rev().filter(|o| o.kind == kind).collect();
                let any = || self.objects.get(choice & 15).map_or(-1, |o| o.fd);
                of.get(choice & 3).map_or_else(any, |o| o.fd)
            }
        }
    }

    /// Issues a request and keeps the descriptor that it makes.
    pub(super) fn number(&mut self, fd: RawFd, nr: u32, arg: u64) -> RawFd {
        let kind = match nr {
            KVM_CREATE_VM if self.count(Kind::Vm) >= VMS => return -1,
            KVM_CREATE_VM => Some(Kind::Vm),
            KVM_CREATE_VCPU if self.count(Kind::Vcpu) >= VCPUS => return self.last(Kind::Vcpu).unwrap_or(-1),
            KVM_CREATE_VCPU => Some(Kind::Vcpu),
            KVM_GET_STATS_FD if self.objects.len() >= OBJECTS => return -1,
            KVM_GET_STATS_FD => Some(Kind::Statistics),
            _ => None,
        };
        let answer = if nr == KVM_RUN { self.run_here(fd) } else { ioctl(fd, nr, arg) };
        match (answer, kind) {
            (Some(new), Some(kind)) => {
                self.add(new, kind);
                new
            }
            (Some(value), None) => value,
            (None, Some(kind)) => self.last(kind).unwrap_or(-1),
            (None, None) => -1,
        }
    }

    /// Issues a request with a structure, and returns what became of it.
    pub(super) fn structure<T: Pod>(&mut self, fd: RawFd, nr: u32, mut value: T) -> T {
        let at = self.arguments.at();
        self.arguments.write(0, value.bytes());
        self.number(fd, nr, at);
        self.arguments.read(0, value.bytes_mut());
        value
    }

    pub(super) fn use_supported_cpuid(&mut self, kvm: RawFd, vcpu: RawFd) {
        self.arguments.write(0, &128u64.to_le_bytes());
        let at = self.arguments.at();
        self.number(kvm, KVM_GET_SUPPORTED_CPUID, at);
        self.number(vcpu, KVM_SET_CPUID2, at);
    }

    /// Writes guest memory, if it can be.
    pub(super) fn write(&mut self, gpa: u64, bytes: &[u8]) {
        let first = gpa / PAGE * PAGE;
        let end = (gpa + bytes.len() as u64).min(MEMORY);
        if first >= end {
            return;
        }
        for page in (first..end).step_by(PAGE as usize) {
            self.memory.protect(page, libc::PROT_READ | libc::PROT_WRITE);
        }
        self.memory.write(gpa, &bytes[..(end - gpa) as usize]);
    }

    /// A request of the ABI.
    pub(super) fn ioctl(&mut self, input: &mut Input<'_>) {
        let fd = self.object(input);
        let nr = KVM_IOCTL_NAMES[usize::from(input.u8()) % KVM_IOCTL_NAMES.len()].0;
        self.issue(fd, nr, input);
    }

    /// Any request number.
    pub(super) fn any_ioctl(&mut self, input: &mut Input<'_>) {
        let fd = self.object(input);
        let nr = input.u32();
        self.issue(fd, nr, input);
    }

    fn issue(&mut self, fd: RawFd, nr: u32, input: &mut Input<'_>) {
        if ioc_size(nr) == 0 && nr != KVM_REINJECT_CONTROL {
            let arg = input.value();
            self.number(fd, nr, arg);
            return;
        }
        let choice = input.u8();
        let bytes = arguments::bytes(self, nr, input);
        if choice & 15 == 15 {
            let at = self.address(choice >> 4 | 8);
            self.number(fd, nr, at);
            return;
        }
        // Close to the end of what can be accessed, or with room behind.
        let room = if choice & 15 == 14 { bytes.len() as u64 } else { (bytes.len() + TAIL) as u64 };
        let offset = (ARGUMENTS - room) & !7;
        self.arguments.write(offset, &bytes);
        let at = self.arguments.at() + offset;
        self.number(fd, nr, at);
    }

    fn run_here(&mut self, fd: RawFd) -> Option<i32> {
        // SAFETY: asks for this thread's own name.
        let _deadline = deadline(unsafe { libc::pthread_self() });
        ioctl(fd, KVM_RUN, 0)
    }

    /// KVM_RUN in this thread.
    pub(super) fn run(&mut self, input: &mut Input<'_>) {
        let choice = input.u8();
        let fd = self.object(input);
        if choice & 3 == 0
            && let Some(mapping) = self.mappings.last()
            && mapping.len > KVM_RUN_IMMEDIATE_EXIT_OFFSET
        {
            // SAFETY: in a mapping of ours that may be written by everybody.
            unsafe { AtomicU8::from_ptr(mapping.at.add(KVM_RUN_IMMEDIATE_EXIT_OFFSET)) }.store(choice >> 2, SeqCst);
        }
        for _ in 0..1 + (choice >> 6) {
            if self.run_here(fd).is_none() {
                break;
            }
        }
    }

    /// KVM_RUN in another thread, while this one goes on.
    pub(super) fn run_elsewhere(&mut self, input: &mut Input<'_>) {
        let fd = self.object(input);
        if self.runners.len() >= THREADS {
            self.wait();
        }
        let thread = thread::spawn(move || {
            for _ in 0..4 {
                if ioctl(fd, KVM_RUN, 0).is_none() {
                    break;
                }
            }
        });
        let deadline = deadline(thread.as_pthread_t());
        self.runners.push(Runner { thread: Some(thread), deadline: Some(deadline) });
    }

    /// Waits for the other threads.
    pub(super) fn wait(&mut self) {
        self.runners.clear();
    }

    /// Closes something.
    pub(super) fn close(&mut self, input: &mut Input<'_>) {
        let choice = usize::from(input.u8());
        if self.objects.is_empty() {
            return;
        }
        let object = self.objects.remove(choice % self.objects.len());
        self.close_object(object);
        if self.closed.len() < 16 {
            self.closed.push(object.fd);
        }
    }

    fn close_object(&mut self, object: Object) {
        if object.kind == Kind::Eventfd {
            // SAFETY: a descriptor of ours that is closed once.
            unsafe { libc::close(object.fd) };
        } else {
            device::close(object.fd).expect("a descriptor of ours");
        }
    }

    pub(super) fn dup(&mut self, input: &mut Input<'_>) {
        let fd = self.object(input);
        let kind = self.objects.iter().find(|o| o.fd == fd).map(|o| o.kind);
        if self.objects.len() < OBJECTS
            && let Some(kind) = kind
            && let Ok(new) = device::dup(fd)
        {
            self.add(new, kind);
        }
    }

    /// Maps a vCPU's pages, or tries to map what cannot be mapped.
    pub(super) fn map(&mut self, input: &mut Input<'_>) {
        let fd = self.object(input);
        let choice = input.u8();
        let prot = if choice & 1 != 0 { libc::PROT_READ } else { libc::PROT_READ | libc::PROT_WRITE };
        let (len, offset) = match choice >> 5 {
            0..5 => (3 * PAGE, 0),
            5 => (PAGE, u64::from(choice >> 1 & 7) * PAGE),
            6 => (input.u64() >> 20, input.u64()),
            _ => (0, 0),
        };
        if self.mappings.len() >= 8 {
            self.mappings.remove(0);
        }
        if let Ok(at) = device::mmap(fd, len as usize, prot, libc::MAP_SHARED, offset) {
            let mapping = Mapping { at, len: len as usize };
            let vcpu = self.objects.iter().any(|o| o.fd == fd && o.kind == Kind::Vcpu);
            // A VM's has places where nothing is.
            if vcpu && prot & libc::PROT_WRITE != 0 {
                self.mappings.push(mapping);
            }
        }
    }

    /// Writes into the newest mapping.
    pub(super) fn scribble(&mut self, input: &mut Input<'_>) {
        let (offset, len) = (usize::from(input.u16()), usize::from(input.u8()));
        let bytes = input.bytes(len);
        let Some(mapping) = self.mappings.last() else { return };
        for (i, &byte) in bytes.iter().enumerate() {
            let at = offset % mapping.len.max(1) + i;
            if at < mapping.len {
                // SAFETY: in the mapping; the device expects that others write it.
                unsafe { AtomicU8::from_ptr(mapping.at.add(at)) }.store(byte, SeqCst);
            }
        }
    }

    pub(super) fn write_memory(&mut self, input: &mut Input<'_>) {
        let (gpa, len) = (u64::from(input.u16()) * 4, usize::from(input.u8()));
        let bytes = input.bytes(len);
        self.write(gpa, bytes);
    }

    /// Takes a page of guest memory away, makes it read-only, or gives a new one.
    pub(super) fn change_memory(&mut self, input: &mut Input<'_>) {
        let choice = input.u8();
        let page = u64::from(choice & 63) * PAGE % MEMORY;
        match choice >> 6 {
            0 => self.memory.protect(page, libc::PROT_NONE),
            1 => self.memory.protect(page, libc::PROT_READ),
            _ => self.memory.fresh(page, PAGE),
        }
    }

    pub(super) fn read_statistics(&mut self, input: &mut Input<'_>) {
        let fd = self.last(Kind::Statistics).unwrap_or(-1);
        let mut buf = vec![0; usize::from(input.u16()) % 9000];
        let offset = input.value();
        let _ = device::pread(fd, &mut buf, offset);
    }

    pub(super) fn kick(&mut self, input: &mut Input<'_>) {
        let _ = device::kick(self.object(input));
    }

    /// A signal for this thread, outside of KVM_RUN.
    pub(super) fn signal(&mut self) {
        // SAFETY: has a handler.
        unsafe { libc::raise(SIGNAL) };
    }

    /// Makes an eventfd, or signals one.
    pub(super) fn eventfd(&mut self, input: &mut Input<'_>) {
        let choice = input.u8();
        match self.last(Kind::Eventfd) {
            Some(fd) if choice & 1 == 0 => {
                let value = 1u64;
                // SAFETY: eight bytes of our own; the descriptor does not block.
                unsafe { libc::write(fd, (&raw const value).cast(), 8) };
            }
            _ if self.objects.len() < OBJECTS => {
                // SAFETY: a new descriptor.
                let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
                self.add(fd, Kind::Eventfd);
            }
            _ => {}
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody else knows.
        let _ = unsafe { device::munmap(self.at, self.len) };
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // The deadline signals the thread until it has ended; a thread that has but is not joined can be signalled.
            while !thread.is_finished() {
                thread::yield_now();
            }
            self.deadline = None;
            thread.join().expect("a thread has panicked");
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.runners.clear();
        for object in std::mem::take(&mut self.objects) {
            self.close_object(object);
        }
        self.mappings.clear();
    }
}
