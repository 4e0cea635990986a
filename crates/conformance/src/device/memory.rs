//! Memory that the client shares with a guest or with the device, and addresses to pass where they do not belong.
use std::{ptr, sync::atomic::*};

use abi::Pod;

use super::Errno;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// A mapping that stays until the process ends, which is when its case ends: a guest, or a vCPU in another thread, may
/// use it at any time. All accesses are atomic or volatile.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    at: usize,
    len: usize,
}

fn anonymous(len: usize, flags: i32) -> usize {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let at = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags | libc::MAP_ANONYMOUS, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED, "mmap of {len} bytes: {}", Errno::last());
    at as usize
}

/// Leaves holes of a page above what is mapped next. The kernel puts a mapping into the highest hole that fits: whoever else in this
/// process maps a page meanwhile, as the in-process device does, finds one of these, and not the one that a case is about.
pub fn leave_holes() {
    const HOLES: usize = 32;
    let at = anonymous(2 * HOLES * PAGE, libc::MAP_PRIVATE);
    for hole in 0..HOLES {
        // SAFETY: the mapping is ours, and nobody uses it.
        let got = unsafe { libc::munmap((at + (2 * hole + 1) * PAGE) as *mut _, PAGE) };
        assert_eq!(got, 0, "munmap: {}", Errno::last());
    }
}

macro_rules! words {
    ($($get:ident $set:ident $int:ty, $atomic:ty;)*) => {$(
        /// The value at `offset`.
        pub fn $get(&self, offset: usize) -> $int {
            let at = self.place(offset, size_of::<$int>());
            if at % size_of::<$int>() != 0 {
                return self.pod(offset);
            }
            // SAFETY: in range, aligned, and only accessed atomically or volatilely.
            unsafe { <$atomic>::from_ptr(at as *mut $int) }.load(Ordering::SeqCst)
        }

        /// Writes the value at `offset`.
        pub fn $set(&self, offset: usize, value: $int) {
            let at = self.place(offset, size_of::<$int>());
            if at % size_of::<$int>() != 0 {
                return self.write(offset, &value.to_le_bytes());
            }
            // SAFETY: as above.
            unsafe { <$atomic>::from_ptr(at as *mut $int) }.store(value, Ordering::SeqCst);
        }
    )*};
}

impl Memory {
    /// Zeroed memory of `len` bytes, at a page boundary.
    pub fn new(len: usize) -> Self {
        Self { at: anonymous(len, libc::MAP_PRIVATE), len }
    }

    /// Has something below it. A page that goes from its beginning would otherwise be one with all the room there, and whatever is
    /// mapped next would end in it.
    pub fn fence_below(&self) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a new mapping where nothing is; if something is, that will do.
        unsafe { libc::mmap((self.at - PAGE) as *mut _, PAGE, libc::PROT_NONE, flags, -1, 0) };
    }

    pub(crate) fn of_mapping(at: *mut u8, len: usize) -> Self {
        Self { at: at as usize, len }
    }

    fn place(&self, offset: usize, len: usize) -> usize {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "{offset:#x}+{len} of {:#x}", self.len);
        self.at + offset
    }

    /// The address of the first byte, for the structures that carry one.
    pub fn address(&self) -> u64 {
        self.at as u64
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it.
    pub fn part(&self, offset: usize, len: usize) -> Self {
        Self { at: self.place(offset, len), len }
    }

    words! {
        u8 set_u8 u8, AtomicU8;
        u16 set_u16 u16, AtomicU16;
        u32 set_u32 u32, AtomicU32;
        u64 set_u64 u64, AtomicU64;
    }

    /// Copies bytes in.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let at = self.place(offset, bytes.len()) as *mut u8;
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: in range.
            unsafe { at.add(i).write_volatile(*byte) };
        }
    }

    /// Copies bytes out.
    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let at = self.place(offset, len) as *const u8;
        // SAFETY: in range.
        (0..len).map(|i| unsafe { at.add(i).read_volatile() }).collect()
    }

    /// Copies a structure out.
    pub fn pod<T: Pod>(&self, offset: usize) -> T {
        T::from_prefix(&self.read(offset, size_of::<T>())).unwrap_or_else(T::zeroed)
    }

    /// Copies a structure in.
    pub fn set_pod<T: Pod>(&self, offset: usize, value: &T) {
        self.write(offset, value.bytes());
    }

    /// `mprotect` of a range of whole pages.
    pub fn protect(&self, offset: usize, len: usize, prot: i32) {
        let at = self.place(offset, len);
        // SAFETY: the mapping is ours; accesses that are no longer allowed are the case's business.
        assert_eq!(unsafe { libc::mprotect(at as *mut _, len, prot) }, 0, "mprotect: {}", Errno::last());
    }

    /// Gives the pages of a range back: they read as zeroes again.
    pub fn discard(&self, offset: usize, len: usize) {
        let at = self.place(offset, len);
        // SAFETY: the mapping is ours and private.
        assert_eq!(unsafe { libc::madvise(at as *mut _, len, libc::MADV_DONTNEED) }, 0, "madvise: {}", Errno::last());
    }

    /// `madvise` of a range of whole pages with advice that leaves their contents alone. False: this kernel does not know it.
    pub fn advise(&self, offset: usize, len: usize, advice: i32) -> bool {
        let harmless =
            [libc::MADV_COLD, libc::MADV_PAGEOUT, libc::MADV_MERGEABLE, libc::MADV_UNMERGEABLE, libc::MADV_NOHUGEPAGE];
        assert!(harmless.contains(&advice), "advice {advice} may change what is read");
        let at = self.place(offset, len);
        // SAFETY: the mapping is ours, and its contents stay as they are.
        unsafe { libc::madvise(at as *mut _, len, advice) == 0 }
    }

    /// `munmap` of a range of whole pages, which nobody here touches until [`Self::map_again`].
    pub fn unmap(&self, offset: usize, len: usize) {
        let at = self.place(offset, len);
        // SAFETY: the mapping is ours; what remains of it is only addresses.
        assert_eq!(unsafe { libc::munmap(at as *mut _, len) }, 0, "munmap: {}", Errno::last());
    }

    /// New memory where [`Self::unmap`] or [`Self::move_away`] has left a hole.
    pub fn map_again(&self, offset: usize, len: usize) {
        let at = self.place(offset, len);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: it replaces nothing.
        let got = unsafe { libc::mmap(at as *mut _, len, prot, flags, -1, 0) };
        assert_eq!(got as usize, at, "mmap: {}", Errno::last());
    }

    /// New memory in those pages of a range that [`Self::unmap`] has left a hole in.
    pub fn map_if_gone(&self, offset: usize, len: usize) {
        for page in (offset..offset + len).step_by(PAGE) {
            let at = self.place(page, PAGE);
            let mut there = 0;
            // SAFETY: asks whether the page is mapped.
            if unsafe { libc::mincore(at as *mut _, PAGE, &raw mut there) } != 0 {
                self.map_again(page, PAGE);
            }
        }
    }

    /// `mremap` to a place of the kernel's choice; a hole is left.
    pub fn move_away(&self, offset: usize, len: usize) -> Self {
        let at = self.place(offset, len);
        let place = anonymous(len, libc::MAP_PRIVATE);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both mappings are ours, and nothing is in the new one.
        let got = unsafe { libc::mremap(at as *mut _, len, len, flags, place) };
        assert_eq!(got as usize, place, "mremap: {}", Errno::last());
        Self { at: place, len }
    }
}

/// An address to hand to an ioctl: of a [`fenced`] buffer, or of nothing that belongs to this program.
#[derive(Clone, Copy, Debug)]
pub struct Address(pub(super) u64);

impl Address {
    /// No memory is mapped there: 0, the first page, kernel space, not canonical.
    pub const BAD: [Self; 5] = [Self(0), Self(8), Self(0xffff_8000_0000_0000), Self(u64::MAX - 7), Self(1 << 62)];

    /// The address of memory that stays until the process ends.
    pub fn of(memory: &Memory) -> Self {
        Self(memory.address())
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// A copy of `bytes` whose end is followed by memory that cannot be accessed: whoever touches more faults.
pub fn fenced(bytes: &[u8]) -> (Address, Memory) {
    let room = bytes.len().next_multiple_of(PAGE);
    // Far more than any structure's header can claim.
    let at = anonymous(room + (1 << 20), libc::MAP_PRIVATE | libc::MAP_NORESERVE);
    let all = Memory { at, len: room + (1 << 20) };
    all.protect(room, 1 << 20, libc::PROT_NONE);
    let memory = all.part(room - bytes.len(), bytes.len());
    memory.write(0, bytes);
    (Address(memory.address()), memory)
}
