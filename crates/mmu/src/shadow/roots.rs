//! The root of each vCPU: which page its processor begins its walks at.
//!
//! In nested tables that is the one page at their top. For a guest in long mode it is the shadow page of its top table, shared by all vCPUs with the same one. For every other
//! guest it is a page of the vCPU's own, because the four PDPTEs are registers of the vCPU (row B05): its entries are
//! filled by faults.
use core::sync::atomic::Ordering::SeqCst;

use platform::{Platform, TablePage};
use x86::paging::{P, PAGE_SHIFT};

use super::{
    arena::Corrupt,
    cache::Cache,
    expect::Expected,
    map::Stop,
    page::PageId,
    role::{Format, Role},
    root::Root,
    tables::{Res, Tables},
};
use crate::walk::{Paging, PagingMode};

/// What a vCPU walks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct VcpuRoot {
    /// Where its walks begin, and for which linear addresses it was chosen; None: for guest-physical ones.
    pub(super) current: Option<(PageId, Option<Paging>)>,
    /// Its own page for guests outside of long mode, once it has needed one.
    pub(super) own: Option<PageId>,
}

/// What entry `index` of a vCPU's own root page has to be.
pub(super) fn expected_pdpte(paging: &Paging, index: usize) -> Expected {
    let role = Role::top(paging, index as u8 & 3);
    let gfn = match paging.mode {
        PagingMode::Off => (index as u64 & 3) << 18,
        PagingMode::Bits32 => paging.root >> PAGE_SHIFT,
        _ => {
            let pdpte = paging.pdptes.get(index).copied().unwrap_or(0);
            if pdpte & P == 0 {
                return Expected::Nothing;
            }
            (pdpte & paging.frame_mask) >> PAGE_SHIFT
        }
    };
    Expected::Child { gfn, role }
}

impl<P: Platform> Tables<P> {
    /// The vCPU's root, if it is one for linear addresses as `paging` says still; None: for guest-physical ones.
    pub(super) fn root(&self, vcpu: usize, paging: Option<&Paging>) -> Option<PageId> {
        let (id, made_for) = self.roots.get(vcpu)?.current.as_ref()?;
        let stale = self.open.stale_root(vcpu)?.load(SeqCst);
        (!stale && made_for.as_ref() == paging).then_some(*id)
    }

    /// Gives the vCPU a root, as [`Self::root`] has it. `unalias` finds the frame that an alias stands for.
    pub(super) fn load_root(
        &mut self,
        vcpu: usize,
        paging: Option<&Paging>,
        cache: &mut Cache<P>,
        unalias: impl Fn(u64) -> u64,
    ) -> Result<Root, Stop> {
        if self.root(vcpu, paging).is_none() {
            let next = match paging {
                None => self.shared_root(0, Role::nested(), cache)?,
                Some(paging) => {
                    let role = Role::top(paging, 0);
                    if matches!(role.format, Format::Long { .. }) {
                        self.shared_root(unalias(paging.root >> PAGE_SHIFT), role, cache)?
                    } else {
                        self.own_root(vcpu, paging, cache)?
                    }
                }
            };
            // Counted before the old one is given back: it may be the same.
            self.arena.get_mut(next)?.roots += 1;
            self.unload_root(vcpu)?;
            self.roots.get_mut(vcpu).ok_or(Corrupt)?.current = Some((next, paging.copied()));
            self.open.stale_root(vcpu).ok_or(Corrupt)?.store(false, SeqCst);
        }
        let (id, _) = self.roots.get(vcpu).and_then(|root| root.current).ok_or(Corrupt)?;
        let page = self.arena.get(id)?;
        Ok(Root { hpa: page.table.hpa(), levels: page.role.level })
    }

    /// A root that serves every vCPU with the same one.
    fn shared_root(&mut self, gfn: u64, role: Role, cache: &mut Cache<P>) -> Result<PageId, Stop> {
        match self.find(gfn, &role)? {
            Some(id) => Ok(id),
            None => self.create(cache, gfn, role),
        }
    }

    fn own_root(&mut self, vcpu: usize, paging: &Paging, cache: &mut Cache<P>) -> Result<PageId, Stop> {
        let own = self.roots.get(vcpu).ok_or(Corrupt)?.own;
        let id = match own {
            Some(id) => id,
            None => {
                let id = cache.place(self).ok_or(Stop::Short)?;
                self.arena.get_mut(id)?.own_root = true;
                self.roots.get_mut(vcpu).ok_or(Corrupt)?.own = Some(id);
                id
            }
        };
        self.arena.get_mut(id)?.role = Role::pae_root(paging);
        // Nobody else walks this page, and its vCPU flushes when it loads a root: no other flush is due.
        let must_flush = self.must_flush;
        self.clear(id)?;
        self.must_flush = must_flush;
        Ok(id)
    }

    /// The vCPU has no root any more.
    pub(super) fn unload_root(&mut self, vcpu: usize) -> Res {
        let Some((id, _)) = self.roots.get_mut(vcpu).ok_or(Corrupt)?.current.take() else { return Ok(()) };
        let page = self.arena.get_mut(id)?;
        page.roots = page.roots.checked_sub(1).ok_or(Corrupt)?;
        if page.roots == 0 && !page.hashed && !page.own_root {
            // It was zapped while it was a root.
            self.must_flush = true;
            let page = self.arena.remove(id)?;
            self.unlinked.push(page);
        }
        Ok(())
    }

    /// A page was zapped that is a root: its vCPUs have to load another one before they enter again. The flush that
    /// follows makes them leave.
    pub(super) fn forget_root(&mut self, id: PageId) -> Res {
        for (vcpu, root) in self.roots.iter().enumerate() {
            if root.current.is_some_and(|(root, _)| root == id) {
                self.open.stale_root(vcpu).ok_or(Corrupt)?.store(true, SeqCst);
            }
        }
        Ok(())
    }
}
