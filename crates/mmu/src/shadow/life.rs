//! The end of a shadow page, as types: a page is [`Unlinked`] when nothing leads to it any more, [`Flushed`] when no
//! processor can remember it, and only then its memory goes back.
//!
//! `Unlinked` is made in one place (`Arena::remove`), which looks that the page has no parent, no entry (hence nothing
//! in the reverse map) and is nobody's root. `Flushed` is made of `Unlinked` by whoever has carried out a flush that was
//! asked for later. There is no other way to the allocator: a page that is dropped on the way is leaked instead.
use alloc::boxed::Box;
use core::{
    mem::ManuallyDrop,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use platform::Platform;

use super::{cache::Cache, page::ShadowPage};

/// Flushes of a VM, counted: those that have become necessary and those that are done.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    needed: AtomicU64,
    done: AtomicU64,
}

impl Flushes {
    /// One more is necessary: something that processors may remember has just been taken away. Called with the MMU
    /// lock held, after the change.
    pub(super) fn need(&self) -> u64 {
        self.needed.fetch_add(1, SeqCst) + 1
    }

    /// The number of the last one that became necessary.
    pub(super) fn needed(&self) -> u64 {
        self.needed.load(SeqCst)
    }

    /// All up to this one are done.
    pub(super) fn done(&self) -> u64 {
        self.done.load(SeqCst)
    }

    /// Whether flush `number` is done.
    pub(super) fn is_done(&self, number: u64) -> bool {
        self.done() >= number
    }
}

/// A page that nothing leads to, but that a processor may remember.
pub(super) struct Unlinked<P: Platform>(ManuallyDrop<Box<ShadowPage<P>>>);

impl<P: Platform> Unlinked<P> {
    /// For `Arena::remove` alone, which has looked.
    pub(super) fn new(page: Box<ShadowPage<P>>) -> Self {
        Self(ManuallyDrop::new(page))
    }
}

/// A page that no processor remembers.
struct Flushed<P: Platform>(Box<ShadowPage<P>>);

impl<P: Platform> Flushed<P> {
    /// Gives the memory back: to a cache that has room, else to the host.
    fn free(self, cache: Option<&mut Cache<P>>) {
        if let Some(cache) = cache {
            cache.keep(self.0);
        }
    }
}

/// Unlinked pages, in no order.
pub(super) struct UnlinkedPages<P: Platform> {
    first: Option<Unlinked<P>>,
}

impl<P: Platform> UnlinkedPages<P> {
    pub(super) const fn new() -> Self {
        Self { first: None }
    }

    pub(super) fn push(&mut self, mut page: Unlinked<P>) {
        page.0.unlinked = self.first.take();
        self.first = Some(page);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn pop(&mut self) -> Option<Unlinked<P>> {
        let mut page = self.first.take()?;
        self.first = page.0.unlinked.take();
        Some(page)
    }
}

/// What a change of shadow tables leaves to be done after the MMU lock has been given back, and before anybody relies on
/// the change: processors may remember what was taken away, and pages wait for them to forget.
#[must_use = "processors may still use what was taken away"]
pub struct FlushDue<P: Platform> {
    number: u64,
    pages: UnlinkedPages<P>,
}

impl<P: Platform> core::fmt::Debug for FlushDue<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("FlushDue").field("number", &self.number).finish_non_exhaustive()
    }
}

impl<P: Platform> FlushDue<P> {
    /// For changes up to flush `number`.
    pub(super) fn new(number: u64, pages: UnlinkedPages<P>) -> Self {
        Self { number, pages }
    }

    /// For a section under the lock that took nothing away: what others have left is theirs to fulfil.
    pub(super) fn abandon(self) {
        debug_assert!(self.pages.is_empty());
    }

    /// Both.
    #[must_use = "processors may still use what was taken away"]
    pub fn and(mut self, mut other: Self) -> Self {
        while let Some(page) = other.pages.pop() {
            self.pages.push(page);
        }
        self.number = self.number.max(other.number);
        self
    }

    #[cfg(test)]
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether no flush and no page waits.
    pub(super) fn is_nothing(&self, flushes: &Flushes) -> bool {
        self.pages.is_empty() && flushes.is_done(self.number)
    }

    /// Has `flush` called, unless somebody else's flush has come late enough, and frees what waited for it. `flush` makes
    /// every vCPU of the VM forget its translations, and returns when each has done so or is outside the guest and
    /// will before it enters. `cache` is whose vCPU does it.
    pub(super) fn fulfil(mut self, flushes: &Flushes, mut cache: Option<&mut Cache<P>>, flush: impl FnOnce()) {
        if !flushes.is_done(self.number) {
            // Changes up to here are made already, so that this flush covers them too.
            let covered = flushes.needed();
            flush();
            flushes.done.fetch_max(covered, SeqCst);
        }
        while let Some(page) = self.pages.pop() {
            Flushed(ManuallyDrop::into_inner(page.0)).free(cache.as_deref_mut());
        }
    }
}
