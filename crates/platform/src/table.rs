//! Pages of paging structures that a processor walks: shadow tables, and nested ones.
//!
//! The core fills them through [`TablePage::entry`]; a processor finds the next one by the host-physical address in an
//! entry. In user space the processor is software and a host-physical address is the process's own virtual address.
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{BadAddress, Hva, MaySleep, OutOfMemory, fallible::try_box};

/// Entries of a table page.
pub const TABLE_ENTRIES: usize = 512;

/// What a freed page is filled with where that can be afforded: every reserved bit is set, so that a processor that
/// still walks it faults.
pub const TABLE_POISON: u64 = u64::MAX;

/// A 4 KiB page of 512 entries, aligned to its size. Processors read it, and set accessed and dirty bits in it, while
/// the core changes it, so that every access is atomic. Dropping it gives the memory back: whoever owns it has made
/// sure that no processor walks it any more.
pub trait TablePage: Sized + Send + Sync + 'static {
    /// A page of zeros. `below_4g`: its host-physical address fits in 32 bits, as CR3 of a processor that is not in
    /// long mode wants it; without meaning where the processor is software.
    fn new(below_4g: bool, cx: &MaySleep) -> Result<Self, OutOfMemory>;
    /// Its host-physical address.
    fn hpa(&self) -> u64;
    /// Entry `index`, taken modulo [`TABLE_ENTRIES`].
    fn entry(&self, index: usize) -> &AtomicU64;
    /// Entry `index`, modulo [`TABLE_ENTRIES`], of the page at `hpa`: what a processor in software walks with.
    ///
    /// # Safety
    /// `hpa` is the root that the core gave for this entry of the guest, or the frame of a present entry that this vCPU
    /// has read since it last flushed, and the reference is used inside of the guest only: the core frees a page after
    /// every vCPU that may know it has flushed, or is outside and will flush before it enters.
    unsafe fn entry_at<'a>(hpa: u64, index: usize) -> &'a AtomicU64;
}

/// The host's page behind a page of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFrame {
    /// Its host-physical address, a multiple of 4096.
    pub hpa: u64,
    /// The client may write it; always set if that was asked for.
    pub writable: bool,
    /// log2 of the bytes that the host maps here as one page: 12, or 21 where the client's address lies in a large
    /// page, in the middle of which `hpa` is as the address is in the middle of 2 MiB, and all of which is as writable as
    /// this. An invalidation of any part of it tells that this may no longer hold.
    pub shift: u32,
    /// It was there, and nothing had to be waited for.
    pub there: bool,
}

/// In user space the client's memory is the processor's: what is not there is noticed when it is touched. So any two pages
/// that follow each other in the client do so on the host.
pub fn identity_frame(hva: Hva) -> Result<HostFrame, BadAddress> {
    Ok(HostFrame { hpa: hva.0 & !0xfff, writable: true, shift: 21, there: true })
}

/// And all of them are there.
pub fn identity_frames(hva: Hva, hpas: &mut [u64]) -> usize {
    let first = hva.0 & !0xfff;
    hpas.iter_mut().zip(0..).map(|(hpa, n)| *hpa = first + (n << 12)).count()
}

#[repr(C, align(4096))]
struct Entries([AtomicU64; TABLE_ENTRIES]);

impl Entries {
    const fn zero() -> Self {
        Self([const { AtomicU64::new(0) }; TABLE_ENTRIES])
    }

    fn entry(&self, index: usize) -> &AtomicU64 {
        &self.0[index % TABLE_ENTRIES]
    }

    fn poison(&self) {
        for entry in &self.0 {
            entry.store(TABLE_POISON, Relaxed);
        }
    }
}

/// A table page on the heap: for processes, where a host-physical address is a virtual one.
pub struct HeapTablePage(Box<Entries>);

impl TablePage for HeapTablePage {
    fn new(_below_4g: bool, _cx: &MaySleep) -> Result<Self, OutOfMemory> {
        Ok(Self(try_box(Entries::zero())?))
    }

    fn hpa(&self) -> u64 {
        &raw const *self.0 as u64
    }

    #[inline]
    fn entry(&self, index: usize) -> &AtomicU64 {
        self.0.entry(index)
    }

    #[inline]
    unsafe fn entry_at<'a>(hpa: u64, index: usize) -> &'a AtomicU64 {
        // SAFETY: by the caller's promise a page lives there, and it is only ever accessed atomically.
        unsafe { &*(hpa as *const Entries) }.entry(index)
    }
}

impl Drop for HeapTablePage {
    fn drop(&mut self) {
        if cfg!(debug_assertions) {
            self.0.poison();
        }
    }
}

#[cfg(any(test, feature = "testing"))]
mod checked {
    extern crate std;
    use alloc::{boxed::Box, collections::BTreeMap, collections::VecDeque};
    use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
    use std::sync::{Mutex, PoisonError};

    use super::{Entries, TablePage};
    use crate::{MaySleep, OutOfMemory, scarce};

    /// Freed pages that are kept aside before the oldest is used again.
    const QUARANTINE: usize = 4096;

    struct Place {
        entries: Entries,
        live: AtomicBool,
    }

    struct Pool {
        places: BTreeMap<u64, &'static Place>,
        free: VecDeque<&'static Place>,
    }

    static POOL: Mutex<Pool> = Mutex::new(Pool { places: BTreeMap::new(), free: VecDeque::new() });

    fn hpa(place: &Place) -> u64 {
        &raw const place.entries as u64
    }

    /// A table page for test hosts: a walk that reaches a freed page, or no page at all, panics. The memory of a
    /// freed page is poisoned, and used again late.
    pub struct CheckedTablePage(&'static Place);

    impl CheckedTablePage {
        /// The entry of a page that must be alive.
        pub fn live_entry(hpa: u64, index: usize) -> &'static AtomicU64 {
            let pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
            let place = pool.places.get(&hpa).copied();
            drop(pool);
            let Some(place) = place else { panic!("a processor walks {hpa:#x}, which is no table page") };
            assert!(place.live.load(SeqCst), "a processor walks the freed table page {hpa:#x}");
            place.entries.entry(index)
        }
    }

    impl TablePage for CheckedTablePage {
        fn new(_below_4g: bool, _cx: &MaySleep) -> Result<Self, OutOfMemory> {
            scarce::allocate()?;
            let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
            let place = if pool.free.len() > QUARANTINE { pool.free.pop_front() } else { None };
            let place = match place {
                Some(place) => {
                    for index in 0..super::TABLE_ENTRIES {
                        place.entries.entry(index).store(0, SeqCst);
                    }
                    place
                }
                None => scarce::for_good(|| {
                    let place: &'static Place =
                        Box::leak(Box::new(Place { entries: Entries::zero(), live: AtomicBool::new(false) }));
                    pool.places.insert(hpa(place), place);
                    place
                }),
            };
            place.live.store(true, SeqCst);
            Ok(Self(place))
        }

        fn hpa(&self) -> u64 {
            hpa(self.0)
        }

        fn entry(&self, index: usize) -> &AtomicU64 {
            self.0.entries.entry(index)
        }

        unsafe fn entry_at<'a>(hpa: u64, index: usize) -> &'a AtomicU64 {
            Self::live_entry(hpa, index)
        }
    }

    impl Drop for CheckedTablePage {
        fn drop(&mut self) {
            self.0.live.store(false, SeqCst);
            self.0.entries.poison();
            scarce::for_good(|| POOL.lock().unwrap_or_else(PoisonError::into_inner).free.push_back(self.0));
        }
    }
}
#[cfg(any(test, feature = "testing"))]
pub use checked::CheckedTablePage;

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering::SeqCst;

    fn cx() -> MaySleep {
        MaySleep::at_entry()
    }

    fn a_page_is_found_by_its_address<T: TablePage>() {
        let page = T::new(true, &cx()).unwrap();
        assert_eq!(page.hpa() % 4096, 0);
        page.entry(511).store(7, SeqCst);
        page.entry(512).store(8, SeqCst);
        // SAFETY: the page is alive.
        let (first, last) = unsafe { (T::entry_at(page.hpa(), 0), T::entry_at(page.hpa(), 511)) };
        assert_eq!((first.load(SeqCst), last.load(SeqCst)), (8, 7));
    }

    #[test]
    fn pages_are_found_by_their_addresses() {
        a_page_is_found_by_its_address::<HeapTablePage>();
        a_page_is_found_by_its_address::<CheckedTablePage>();
    }

    #[test]
    #[should_panic(expected = "freed table page")]
    fn a_walk_of_a_freed_page_is_found() {
        let hpa = CheckedTablePage::new(false, &cx()).unwrap().hpa();
        CheckedTablePage::live_entry(hpa, 0);
    }
}
