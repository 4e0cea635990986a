//! Pages of the hypervisor's own: memory of VMs that clients map, tables, and what processors are told of by its physical
//! address.
use core::sync::atomic::AtomicU64;

use platform::{
    Hva, MaySleep, OutOfMemory, Pages, TablePage,
    hardware::Frames,
    table::{TABLE_ENTRIES, TABLE_POISON},
};

use crate::{
    glue::{self, Opaque},
    heap,
};

/// Zeroed memory that clients map page by page.
pub struct MappedPages(*mut u8);

// SAFETY: only an address; nothing refers to what lies there.
unsafe impl Send for MappedPages {}
// SAFETY: as above.
unsafe impl Sync for MappedPages {}

impl Pages for MappedPages {
    fn new(bytes: u64, _cx: &MaySleep) -> Result<Self, OutOfMemory> {
        let bytes = usize::try_from(bytes).map_err(|_| OutOfMemory)?;
        let at = heap::counted(|| glue::rekvm_vmalloc(bytes));
        if at.is_null() { Err(OutOfMemory) } else { Ok(Self(at)) }
    }

    fn at(&self) -> Hva {
        Hva(self.0 as u64)
    }
}

impl Drop for MappedPages {
    fn drop(&mut self) {
        heap::uncount();
        // SAFETY: made by `new`. Pages that a client has mapped stay until it unmaps them.
        unsafe { glue::rekvm_vfree(self.0) };
    }
}

/// The page at `at`, with a reference for the client's mapping.
///
/// # Safety
/// `at` lies in a live [`MappedPages`].
pub unsafe fn page_for_client(at: Hva) -> *mut Opaque {
    // SAFETY: as the caller promises.
    unsafe { glue::rekvm_vmalloc_page(at.0) }
}

/// Contiguous pages.
pub struct KernelFrames {
    at: *mut u8,
    bytes: usize,
    hpa: u64,
}

// SAFETY: only an address; what lies there is shared by its user's rules.
unsafe impl Send for KernelFrames {}
// SAFETY: as above.
unsafe impl Sync for KernelFrames {}

impl Frames for KernelFrames {
    fn new(count: usize, below_4g: bool, _cx: &MaySleep) -> Result<Self, OutOfMemory> {
        let bytes = count.checked_mul(4096).filter(|bytes| *bytes > 0).ok_or(OutOfMemory)?;
        let at = heap::counted(|| glue::rekvm_pages(bytes, below_4g));
        if at.is_null() {
            return Err(OutOfMemory);
        }
        // SAFETY: allocated above, in the kernel's direct map.
        Ok(Self { at, bytes, hpa: unsafe { glue::rekvm_hpa(at) } })
    }

    fn hpa(&self) -> u64 {
        self.hpa
    }

    fn as_ptr(&self) -> *mut u8 {
        self.at
    }
}

impl Drop for KernelFrames {
    fn drop(&mut self) {
        heap::uncount();
        // SAFETY: made by `new` with this size.
        unsafe { glue::rekvm_free_pages(self.at, self.bytes) };
    }
}

/// A page of tables that a processor walks.
pub struct KernelTable(KernelFrames);

impl TablePage for KernelTable {
    fn new(below_4g: bool, cx: &MaySleep) -> Result<Self, OutOfMemory> {
        Ok(Self(KernelFrames::new(1, below_4g, cx)?))
    }

    fn hpa(&self) -> u64 {
        self.0.hpa
    }

    #[inline]
    fn entry(&self, index: usize) -> &AtomicU64 {
        // SAFETY: the page holds TABLE_ENTRIES entries, which are accessed atomically only.
        unsafe { &*self.0.at.cast::<AtomicU64>().add(index % TABLE_ENTRIES) }
    }

    #[inline]
    unsafe fn entry_at<'a>(hpa: u64, index: usize) -> &'a AtomicU64 {
        let page = glue::rekvm_at_hpa(hpa).cast::<AtomicU64>();
        // SAFETY: by the caller's promise a table page lives there.
        unsafe { &*page.add(index % TABLE_ENTRIES) }
    }
}

impl Drop for KernelTable {
    fn drop(&mut self) {
        if cfg!(debug_assertions) {
            for index in 0..TABLE_ENTRIES {
                self.entry(index).store(TABLE_POISON, core::sync::atomic::Ordering::Relaxed);
            }
        }
    }
}
