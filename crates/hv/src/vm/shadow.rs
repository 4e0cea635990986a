//! The VM's part of shadow paging: flushing on behalf of the tables, and writes to guest memory that they have to hear of.
use core::ops::Range;
use mmu::{
    MemoryError, PhysMem, View,
    shadow::{AuditError, FlushDue, Report, Shadow, ShadowError, Written},
};
use platform::{Hva, MaySleep, Platform};
use x86::paging::{PAGE_SHIFT, PAGE_SIZE};

use super::{Vm, VmShared};
use crate::{Errno, backend::Backend};

/// Most bytes of a write whose old value is told, too.
const PART: usize = 64;

impl From<ShadowError> for Errno {
    fn from(error: ShadowError) -> Self {
        match error {
            ShadowError::OutOfMemory => Self::ENOMEM,
            ShadowError::Dead => Self::EIO,
        }
    }
}

impl<P: Platform> VmShared<P> {
    /// Fulfils what a change of the shadow tables has left. The caller may be a vCPU, outside of the guest.
    pub(crate) fn fulfil(&self, shadow: &Shadow<P>, due: FlushDue<P>) {
        shadow.fulfil(due, || self.vcpus.flush_tlbs());
    }

    /// The result of a change of the shadow tables, after what it left has been fulfilled.
    pub(crate) fn settle<T>(
        &self,
        shadow: &Shadow<P>,
        change: (Result<T, ShadowError>, FlushDue<P>),
    ) -> Result<T, Errno> {
        let (result, due) = change;
        self.fulfil(shadow, due);
        Ok(result?)
    }

    /// Writes `new` at `gpa` by `write`, as reader `reader` in system management mode (`smm`) or not, and tells the shadow
    /// tables. None: the reader cannot be used.
    pub(crate) fn write_by<R>(
        &self,
        reader: usize,
        smm: bool,
        gpa: u64,
        new: &[u8],
        write: impl FnOnce(&View<'_, P>) -> Result<R, MemoryError>,
    ) -> Option<Result<R, MemoryError>> {
        let space = self.space(smm);
        let Some(shadow) = &self.shadow else { return Some(write(&space.view(reader)?)) };
        let mut old = [0; PART];
        let view = space.view(reader)?;
        let known = !smm && old.get_mut(..new.len()).is_some_and(|old| view.read(gpa, old).is_ok());
        let old = if known { old.get(..new.len()).unwrap_or_default() } else { &[] };
        let result = write(&view);
        let view = if smm {
            // The tables may be made of the same memory or of other: it is looked at as it is there.
            drop(view);
            self.memory.view(reader)?
        } else {
            view
        };
        let mut due: Option<FlushDue<P>> = None;
        // Each page for itself.
        let first = new.len().min((PAGE_SIZE - gpa % PAGE_SIZE) as usize);
        for (gpa, range) in [(gpa, 0..first), (gpa.wrapping_add(first as u64), first..new.len())] {
            if range.is_empty() || shadow.is_plain(view.unalias(gpa >> PAGE_SHIFT)) {
                continue;
            }
            let (old, new) = (old.get(range.clone()).unwrap_or_default(), new.get(range)?);
            // Disorder shows at the vCPU's next entry.
            let (_, more) = shadow.written(&view, &Written { gpa, old, new });
            due = Some(match due.take() {
                Some(due) => due.and(more),
                None => more,
            });
        }
        drop(view);
        if let Some(due) = due {
            self.fulfil(shadow, due);
        }
        Some(result)
    }

    /// Writes `bytes` at `gpa`, as reader `reader`, for the hypervisor's own purposes.
    pub(crate) fn write_guest(&self, reader: usize, gpa: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.write_parts(reader, false, gpa, bytes)
    }

    /// The same in the memory of system management mode.
    pub(crate) fn write_smram(&self, reader: usize, gpa: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.write_parts(reader, true, gpa, bytes)
    }

    fn write_parts(&self, reader: usize, smm: bool, gpa: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        for (n, part) in bytes.chunks(PART).enumerate() {
            let at = gpa.wrapping_add((n * PART) as u64);
            let written = self.write_by(reader, smm, at, part, |view| view.write(at, part));
            written.unwrap_or(Err(MemoryError::NoMemory(at)))?;
        }
        Ok(())
    }
}

/// How often an audit looks again because a vCPU may be between a write and telling of it.
const LOOKS: u32 = 100;

/// What packaging tells a VM of the host's memory. None of these sleeps or allocates; a VM without shadow tables has nothing
/// to do. If the tables are found in disorder meanwhile, the next KVM_RUN says so.
impl<B: Backend> Vm<B> {
    /// The host's pages behind `range` of the client are about to change (MMU notifier): when this returns, no vCPU uses
    /// them, and none will before [`Self::invalidate_end`].
    pub fn invalidate_begin(&self, range: Range<Hva>) {
        let shared = self.shared();
        if let Some(shadow) = &shared.shadow {
            let _ = shared.settle(shadow, shadow.invalidate_begin(range, &shared.memory));
        }
    }

    /// They have changed; the counterpart of each [`Self::invalidate_begin`].
    pub fn invalidate_end(&self) {
        if let Some(shadow) = &self.shared().shadow {
            shadow.invalidate_end();
        }
    }

    /// Whether a page behind `range` was used since this was last asked with `take`.
    pub fn pages_are_young(&self, range: Range<Hva>, take: bool) -> bool {
        let shared = self.shared();
        shared.shadow.as_ref().is_some_and(|shadow| shadow.young(range, &shared.memory, take).unwrap_or(false))
    }

    /// How many shadow pages there are.
    pub fn shadow_pages(&self) -> usize {
        self.shared().shadow.as_ref().map_or(0, |shadow| shadow.usage().1)
    }

    /// The host is short of memory (shrinker): gives up to `pages` shadow pages back; how many.
    pub fn shrink_shadow(&self, pages: usize) -> usize {
        let shared = self.shared();
        shared.shadow.as_ref().map_or(0, |shadow| shared.settle(shadow, shadow.shrink(pages)).unwrap_or(0))
    }
}

impl<B: Backend> Vm<B> {
    /// Looks whether every invariant of the shadow tables holds, also while vCPUs run. None: the VM has none. Not part of
    /// the ABI: for tests and for people who look for errors.
    pub fn audit_shadow(&self, cx: &MaySleep) -> Option<Result<Report, AuditError>> {
        let shared = self.shared();
        let shadow = shared.shadow.as_ref()?;
        let mut looks = 0;
        loop {
            let report = shadow.audit(&shared.memory, |_| None);
            looks += 1;
            match &report {
                Ok(found) if looks < LOOKS && found.findings.iter().any(|f| f.is_of_guest_memory()) => {
                    B::Platform::relax(cx);
                }
                _ => return Some(report),
            }
        }
    }
}
