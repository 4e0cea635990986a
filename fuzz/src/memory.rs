//! Memory of a client: pages that a guest or an ioctl may use, and addresses that nobody may.
use std::ptr;

/// Bytes in a page.
pub const PAGE: u64 = 4096;

/// A range of addresses of this process, of which only part may be accessible.
#[derive(Debug)]
pub struct Pages {
    at: u64,
    bytes: u64,
}

impl Pages {
    /// `bytes` bytes of zeroes, followed by as many addresses as `guard` says where nothing is.
    pub fn new(bytes: u64, guard: u64) -> Self {
        let all = bytes + guard;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe { libc::mmap(ptr::null_mut(), all as usize, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED, "no address space");
        let pages = Self { at: at as u64, bytes: all };
        pages.fresh(0, bytes);
        pages
    }

    /// The address of the first byte.
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// The address of the first byte behind it.
    pub const fn end(&self) -> u64 {
        self.at + self.bytes
    }

    /// Puts new pages of zeroes into a range.
    pub fn fresh(&self, offset: u64, bytes: u64) {
        assert!(offset.is_multiple_of(PAGE) && offset + bytes <= self.bytes);
        if bytes == 0 {
            return;
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let (at, prot) = ((self.at + offset) as *mut libc::c_void, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: replaces pages of our own mapping, to which nobody has references.
        let new = unsafe { libc::mmap(at, bytes as usize, prot, flags, -1, 0) };
        assert_eq!(new, at, "no memory");
    }

    /// Changes the rights of the page at `offset`, or takes it away (`libc::PROT_NONE`).
    pub fn protect(&self, offset: u64, prot: i32) {
        assert!(offset.is_multiple_of(PAGE) && offset < self.bytes);
        // SAFETY: a page of our own mapping, which everybody reaches through accessors that may fail.
        let failed = unsafe { libc::mprotect((self.at + offset) as *mut libc::c_void, PAGE as usize, prot) };
        assert_eq!(failed, 0);
    }

    /// Copies bytes in. The range must be accessible.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.bytes);
        // SAFETY: in the mapping; guests that run meanwhile use volatile or assembler accesses of their own.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), (self.at + offset) as *mut u8, bytes.len()) };
    }

    /// Writes a word.
    pub fn write64(&self, offset: u64, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }

    /// Copies bytes out. The range must be accessible.
    pub fn read(&self, offset: u64, to: &mut [u8]) {
        assert!(offset + to.len() as u64 <= self.bytes);
        // SAFETY: as in `write`.
        unsafe { ptr::copy_nonoverlapping((self.at + offset) as *const u8, to.as_mut_ptr(), to.len()) };
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unmapped once.
        unsafe { libc::munmap(self.at as *mut libc::c_void, self.bytes as usize) };
    }
}
