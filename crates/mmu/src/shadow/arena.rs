//! Where the shadow pages of a VM are: places with numbers, so that pages can refer to each other without pointers. A
//! reference that outlives its page is noticed.
use alloc::{boxed::Box, vec::Vec};

use platform::{OutOfMemory, Platform};

use super::{
    life::Unlinked,
    page::{MAX_SLOTS, Node, PageId, ShadowPage},
    unsync::Sync,
};

/// A reference to a page that is gone, or a page that cannot be where it was found. The VM is not to be trusted any
/// more; the host is not harmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Corrupt;

pub(super) struct Place<P: Platform> {
    generation: u32,
    page: Option<Box<ShadowPage<P>>>,
}

/// The pages.
pub(super) struct Arena<P: Platform> {
    places: Vec<Place<P>>,
    /// Places without a page.
    free: Vec<u32>,
}

impl<P: Platform> Arena<P> {
    pub(super) const fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    /// Whether `count` pages more can be put in without allocation.
    pub(super) fn has_room(&self, count: usize) -> bool {
        self.free.len() + (self.places.capacity() - self.places.len()) >= count
            && self.free.capacity() >= self.places.capacity()
    }

    /// How many places there are.
    pub(super) fn capacity(&self) -> usize {
        self.places.capacity()
    }

    /// Moves into more room, if it is more. What is given back is to be dropped outside of the lock.
    pub(super) fn grow(&mut self, room: Room<P>) -> Room<P> {
        let Room { mut places, mut free } = room;
        if places.capacity() <= self.places.capacity() {
            return Room { places, free };
        }
        // There is room: more than there was.
        places.append(&mut self.places);
        // There is room, as above.
        free.append(&mut self.free);
        Room { places: core::mem::replace(&mut self.places, places), free: core::mem::replace(&mut self.free, free) }
    }

    /// Puts a page in. The caller has seen that there is room.
    pub(super) fn insert(&mut self, page: Box<ShadowPage<P>>) -> Result<PageId, Box<ShadowPage<P>>> {
        if let Some(slot) = self.free.pop() {
            let Some(place) = self.places.get_mut(slot as usize) else { return Err(page) };
            place.page = Some(page);
            return Ok(PageId { slot, generation: place.generation });
        }
        let slot = self.places.len() as u32;
        if self.places.len() == self.places.capacity() || slot >= MAX_SLOTS {
            return Err(page);
        }
        // There is room, as was just seen.
        self.places.push(Place { generation: 0, page: Some(page) });
        Ok(PageId { slot, generation: 0 })
    }

    /// Takes a page out. It must not be referred to from anywhere.
    pub(super) fn remove(&mut self, id: PageId) -> Result<Unlinked<P>, Corrupt> {
        let page = self.get(id)?;
        if page.parents != Node::NONE
            || !page.present.is_empty()
            || page.roots != 0
            || page.hashed
            || page.sync != Sync::InStep
        {
            return Err(Corrupt);
        }
        let place = self.places.get_mut(id.slot as usize).ok_or(Corrupt)?;
        let page = place.page.take().ok_or(Corrupt)?;
        place.generation = place.generation.wrapping_add(1);
        // There is room: `free` holds as many as there are places.
        self.free.push(id.slot);
        Ok(Unlinked::new(page))
    }

    pub(super) fn get(&self, id: PageId) -> Result<&ShadowPage<P>, Corrupt> {
        let place = self.places.get(id.slot as usize).filter(|place| place.generation == id.generation);
        place.and_then(|place| place.page.as_deref()).ok_or(Corrupt)
    }

    pub(super) fn get_mut(&mut self, id: PageId) -> Result<&mut ShadowPage<P>, Corrupt> {
        let place = self.places.get_mut(id.slot as usize).filter(|place| place.generation == id.generation);
        place.and_then(|place| place.page.as_deref_mut()).ok_or(Corrupt)
    }

    /// The page at a place.
    pub(super) fn at(&self, slot: u32) -> Result<&ShadowPage<P>, Corrupt> {
        self.places.get(slot as usize).and_then(|place| place.page.as_deref()).ok_or(Corrupt)
    }

    pub(super) fn at_mut(&mut self, slot: u32) -> Result<&mut ShadowPage<P>, Corrupt> {
        self.places.get_mut(slot as usize).and_then(|place| place.page.as_deref_mut()).ok_or(Corrupt)
    }

    /// The handle of the page at a place.
    pub(super) fn id(&self, slot: u32) -> Result<PageId, Corrupt> {
        let place = self.places.get(slot as usize).filter(|place| place.page.is_some()).ok_or(Corrupt)?;
        Ok(PageId { slot, generation: place.generation })
    }

    /// Numbers of places, with pages or without.
    pub(super) fn slots(&self) -> core::ops::Range<u32> {
        0..self.places.len() as u32
    }

    /// All pages.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PageId, &ShadowPage<P>)> {
        self.places.iter().enumerate().filter_map(|(slot, place)| {
            let id = PageId { slot: slot as u32, generation: place.generation };
            place.page.as_deref().map(|page| (id, page))
        })
    }
}

/// Memory for places, made outside of the lock.
pub(super) struct Room<P: Platform> {
    places: Vec<Place<P>>,
    free: Vec<u32>,
}

impl<P: Platform> Room<P> {
    /// Room for `count` pages in all.
    pub(super) fn new(count: usize) -> Result<Self, OutOfMemory> {
        let (mut places, mut free) = (Vec::new(), Vec::new());
        places.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
        free.try_reserve_exact(places.capacity()).map_err(|_| OutOfMemory)?;
        Ok(Self { places, free })
    }

    /// For how many pages.
    pub(super) fn places(&self) -> usize {
        self.places.capacity()
    }
}
