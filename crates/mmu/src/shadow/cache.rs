//! Memory that a fault may need under the MMU lock, taken before (row B07): a vCPU owns a cache, and fills it while it may
//! sleep and while a failure harms nobody.
use alloc::{boxed::Box, vec::Vec};
use core::sync::atomic::Ordering::SeqCst;

use platform::{MaySleep, OutOfMemory, Platform};

use super::{
    arena::Room,
    open::Open,
    page::{PageId, ShadowPage},
    tables::Tables,
};

/// Pages that one fault can take: one for each level.
const NEEDED: usize = 4;
/// Pages that filling aims at.
const FULL: usize = 8;
/// Pages that are kept at most, when some come back: guests end processes as often as they begin them.
const MOST: usize = 16;
/// Places that should be free.
pub(super) const SPARE_PLACES: usize = 64;
const FIRST_PLACES: usize = 256;

/// What one vCPU keeps ready.
pub struct Cache<P: Platform> {
    pages: Vec<Box<ShadowPage<P>>>,
    /// More places for all pages of the VM.
    room: Option<Room<P>>,
}

impl<P: Platform> Default for Cache<P> {
    fn default() -> Self {
        Self { pages: Vec::new(), room: None }
    }
}

impl<P: Platform> core::fmt::Debug for Cache<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Cache").field("pages", &self.pages.len()).finish_non_exhaustive()
    }
}

impl<P: Platform> Cache<P> {
    /// Fills it so that a fault lacks nothing, unless others were faster.
    pub(super) fn fill(&mut self, open: &Open, cx: &MaySleep) -> Result<(), OutOfMemory> {
        if self.pages.len() < NEEDED {
            self.pages.try_reserve(MOST - self.pages.len()).map_err(|_| OutOfMemory)?;
            while self.pages.len() < FULL {
                self.pages.push(ShadowPage::new(open.nested, cx)?);
            }
        }
        let wanted = open.places_wanted.load(SeqCst);
        // Others may have made more room than there is here: then this one is of no use.
        if self.room.as_ref().map_or(0, Room::places) < wanted {
            self.room = None;
            self.room = Some(Room::new(wanted.max(FIRST_PLACES))?);
        }
        Ok(())
    }

    /// Takes a page that no processor and no other page knows any more, or drops it.
    pub(super) fn keep(&mut self, mut page: Box<ShadowPage<P>>) {
        if self.pages.len() < MOST.min(self.pages.capacity()) {
            page.renew();
            // There is room, as was just seen.
            self.pages.push(page);
        }
    }

    /// Moves the VM's pages into the room that is here, if they need it. Called with the lock held.
    pub(super) fn give_room(&mut self, tables: &mut Tables<P>) {
        if !tables.arena.has_room(SPARE_PLACES) {
            if let Some(room) = self.room.take() {
                // What comes back is freed when the cache is filled or dropped.
                self.room = Some(tables.arena.grow(room));
            }
            let capacity = tables.arena.capacity();
            let enough = tables.arena.has_room(SPARE_PLACES);
            tables.open.places_wanted.store(if enough { 0 } else { capacity * 2 + SPARE_PLACES }, SeqCst);
        }
    }

    /// Throws away room that is of no use any more. Called without the lock.
    pub(super) fn tidy(&mut self, open: &Open) {
        if open.places_wanted.load(SeqCst) == 0 {
            self.room = None;
        }
    }

    /// Puts a page of the cache in a place. None: there is no page or no place.
    pub(super) fn place(&mut self, tables: &mut Tables<P>) -> Option<PageId> {
        let page = self.pages.pop()?;
        match tables.arena.insert(page) {
            Ok(id) => Some(id),
            Err(page) => {
                // There is room: it was just taken from there.
                self.pages.push(page);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shadow::{Shadow, arena::Corrupt, role::Role};
    use platform::testing::Test;

    const CX: MaySleep = MaySleep::at_entry();

    #[test]
    fn a_page_that_has_ended_serves_again() {
        let shadow = Shadow::<Test>::new(1, &CX).unwrap();
        let mut cache = Cache::default();
        cache.fill(&shadow.open, &CX).unwrap();
        // What it was for is forgotten, and it goes where the next one is taken from.
        for _ in 0..3 {
            let (used, due) = shadow.locked(|tables| {
                cache.give_room(tables);
                let id = cache.place(tables).ok_or(Corrupt)?;
                let page = tables.arena.get_mut(id)?;
                let hpa = platform::TablePage::hpa(&page.table);
                assert_eq!((page.gfn, page.role, page.writes, page.readable_after), (0, Role::NONE, 0, 0));
                (page.gfn, page.role, page.writes, page.readable_after) = (7, Role::nested(), 2, 1);
                tables.zap(id)?;
                Ok::<_, Corrupt>(hpa)
            });
            let (mut flushed, before) = (0, cache.pages.len());
            shadow.fulfil_into(&mut cache, due, || flushed += 1);
            assert_eq!((flushed, cache.pages.len()), (1, before + 1));
            let next = cache.pages.last().map(|page| platform::TablePage::hpa(&page.table));
            assert_eq!(used.ok(), next);
        }
    }

    #[test]
    fn no_more_pages_are_kept_than_there_is_room_for() {
        let shadow = Shadow::<Test>::new(1, &CX).unwrap();
        let mut cache = Cache::<Test>::default();
        cache.keep(ShadowPage::new(false, &CX).unwrap());
        assert!(cache.pages.is_empty(), "nothing is allocated for it");
        cache.fill(&shadow.open, &CX).unwrap();
        for _ in 0..2 * MOST {
            cache.keep(ShadowPage::new(false, &CX).unwrap());
        }
        assert_eq!(cache.pages.len(), MOST);
    }
}
