//! The arguments of `KVM_SET_USER_MEMORY_REGION` and `KVM_SET_MEMORY_REGION`, and the checks they must pass.
use abi::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KvmMemoryRegion, KvmUserspaceMemoryRegion};
use core::ops::Range;
use platform::{Hva, Platform};
use x86::paging::{PAGE_SHIFT, PAGE_SIZE};

use super::{ChangeKind, GFN_END, Snapshot};
use crate::SlotError;

/// Slots a VM can have: what `KVM_CAP_NR_MEMSLOTS` answers.
pub const NR_MEMSLOTS: u32 = 32764;
/// Pages a slot can have: a page number within a slot fits in 31 bits.
pub const MAX_PAGES: u64 = (1 << 31) - 1;

/// Memory that the VM owns and that its packaging mapped for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnedMemory {
    /// Guest-physical address that it served.
    pub gpa: u64,
    /// Where it is mapped.
    pub hva: Hva,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A region of guest-physical memory as an ioctl describes it, checked in itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub(super) id: u32,
    pub(super) flags: u32,
    pub(super) base: u64,
    pub(super) pages: u64,
    /// None: the VM's own memory.
    pub(super) hva: Option<Hva>,
}

impl Region {
    /// Checks the argument of `KVM_SET_USER_MEMORY_REGION`.
    pub fn user(arg: &KvmUserspaceMemoryRegion) -> Result<Self, SlotError> {
        let hva = arg.userspace_addr;
        let end = hva.checked_add(arg.memory_size).ok_or(SlotError::Invalid)?;
        if !hva.is_multiple_of(PAGE_SIZE) || end > Hva::CLIENT_END.0 {
            return Err(SlotError::Invalid);
        }
        let allowed = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY;
        Self::check(arg.slot, arg.flags, allowed, arg.guest_phys_addr, arg.memory_size, Some(Hva(hva)))
    }

    /// Checks the argument of 2007's `KVM_SET_MEMORY_REGION`.
    pub fn owned(arg: &KvmMemoryRegion) -> Result<Self, SlotError> {
        Self::check(arg.slot, arg.flags, KVM_MEM_LOG_DIRTY_PAGES, arg.guest_phys_addr, arg.memory_size, None)
    }

    /// The frames that it serves, or served.
    pub fn frames(&self) -> Range<u64> {
        self.base..self.base + self.pages
    }

    fn check(id: u32, flags: u32, allowed: u32, gpa: u64, bytes: u64, hva: Option<Hva>) -> Result<Self, SlotError> {
        let end = gpa.checked_add(bytes).ok_or(SlotError::Invalid)?;
        let pages = bytes >> PAGE_SHIFT;
        // The caller has taken the address space out of the number. A slot must be addressable by usize.
        if flags & !allowed != 0
            || !(gpa | bytes).is_multiple_of(PAGE_SIZE)
            || id >= NR_MEMSLOTS
            || pages > MAX_PAGES
            || end >> PAGE_SHIFT > GFN_END
            || usize::try_from(bytes).is_err()
        {
            return Err(SlotError::Invalid);
        }
        Ok(Self { id, flags, base: gpa >> PAGE_SHIFT, pages, hva })
    }

    /// Compares with the slots as they are: what kind of change it is, or why it is none that can be made.
    pub(super) fn kind<P: Platform>(&self, now: &Snapshot<P>) -> Result<ChangeKind, SlotError> {
        let old = now.slot(self.id);
        if self.pages == 0 {
            return if old.is_some() { Ok(ChangeKind::Delete) } else { Err(SlotError::Invalid) };
        }
        let kind = match old {
            None => ChangeKind::Create,
            Some(old) => {
                let moved_in_client = self.hva.is_some_and(|hva| hva != old.hva);
                let read_only = (self.flags ^ old.flags) & KVM_MEM_READONLY != 0;
                if self.pages != old.pages || moved_in_client || read_only {
                    return Err(SlotError::Invalid);
                } else if self.base != old.base {
                    ChangeKind::Move
                } else if self.flags == old.flags {
                    ChangeKind::Nothing
                } else if self.flags & KVM_MEM_LOG_DIRTY_PAGES != 0 {
                    ChangeKind::LogBegins
                } else {
                    ChangeKind::LogEnds
                }
            }
        };
        let overlaps = matches!(kind, ChangeKind::Create | ChangeKind::Move)
            && now.slots().iter().any(|slot| {
                slot.id != self.id && slot.base < self.base + self.pages && self.base < slot.base + slot.pages
            });
        if overlaps { Err(SlotError::Exists) } else { Ok(kind) }
    }
}
