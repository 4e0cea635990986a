//! Pages that are mapped before anybody asks for them: those behind one that a fault maps in a large page of the guest's, under shadow
//! paging. They are likely to be next, and each would take a fault of its own. (Those behind it in a page table of the guest's are not
//! worth it: most tables are given up before.)
//!
//! Nothing is brought in for them: only those are mapped whose host page is there and can be written.
use platform::{MaySleep, Platform, table::TABLE_ENTRIES};
use x86::paging::{PAGE_SHIFT, PAGE_SIZE};

use super::{
    expect::{Kind, leaf},
    fault::Mapping,
    map::Stop,
    page::PageId,
    stats::Counter,
    tables::Tables,
};
use crate::View;

/// So many at most.
const MOST: usize = 7;

/// Their host pages.
pub(super) struct Ahead {
    hpas: [u64; MOST],
    count: usize,
}

impl Ahead {
    /// Those behind the page of a mapping. `view` is as it was for that, or newer.
    pub(super) fn of<P: Platform>(view: &View<'_, P>, mapping: &Mapping<'_>, cx: &MaySleep) -> Option<Self> {
        let (access, frame) = (&mapping.access, &mapping.frame);
        if access.rest == 0 || frame.read_only || frame.log_dirty {
            return None;
        }
        let behind = view.behind(access.gpa >> PAGE_SHIFT, access.rest.min(MOST as u64));
        let mut hpas = [0; MOST];
        let wanted = hpas.get_mut(..behind as usize).filter(|hpas| !hpas.is_empty())?;
        let count = P::host_frames_now(frame.hva.add(PAGE_SIZE), wanted, cx);
        Some(Self { hpas, count })
    }
}

impl<P: Platform> Tables<P> {
    /// Maps them behind entry `index` of a page, up to the first that is there already.
    pub(super) fn map_ahead(&mut self, id: PageId, index: usize, ahead: &Ahead) -> Result<(), Stop> {
        for (index, hpa) in (index + 1..TABLE_ENTRIES).zip(ahead.hpas.iter().take(ahead.count)) {
            let page = self.arena.get(id)?;
            if !page.role.direct() || self.spte(id, index)? != 0 {
                break;
            }
            // No alias is among them.
            let (role, gfn) = (page.role, page.direct_gfn(index));
            let writable = !self.is_protected(gfn)?;
            self.add_leaf(id, index, gfn, leaf(&role, role.access, Kind::Plain, *hpa, writable))?;
            self.open.counters.count(Counter::Ahead);
        }
        Ok(())
    }
}
