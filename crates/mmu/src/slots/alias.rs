//! 2007's memory aliases: windows of guest-physical addresses onto other ones, such as the VGA window at 0xa0000.
use abi::KvmMemoryAlias;
use x86::paging::{PAGE_SHIFT, PAGE_SIZE};

use crate::SlotError;

/// Aliases a VM can have; their numbers are a name space of their own.
pub const NR_ALIASES: usize = 4;

/// One alias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alias {
    base: u64,
    pages: u64,
    target: u64,
}

impl Alias {
    pub(super) const NONE: Self = Self { base: 0, pages: 0, target: 0 };

    /// Checks an ioctl's argument. `flags` has no meaning and is ignored, as in 2007; size 0 removes.
    pub(super) fn parse(arg: &KvmMemoryAlias) -> Result<(usize, Self), SlotError> {
        let index = usize::try_from(arg.slot).ok().filter(|i| *i < NR_ALIASES).ok_or(SlotError::Invalid)?;
        if !(arg.memory_size | arg.guest_phys_addr | arg.target_phys_addr).is_multiple_of(PAGE_SIZE) {
            return Err(SlotError::Invalid);
        }
        if arg.guest_phys_addr.checked_add(arg.memory_size).is_none()
            || arg.target_phys_addr.checked_add(arg.memory_size).is_none()
        {
            return Err(SlotError::Invalid);
        }
        let alias = Self {
            base: arg.guest_phys_addr >> PAGE_SHIFT,
            pages: arg.memory_size >> PAGE_SHIFT,
            target: arg.target_phys_addr >> PAGE_SHIFT,
        };
        Ok((index, if alias.pages == 0 { Self::NONE } else { alias }))
    }

    /// Whether the window has a part in `count` frames from `first` on.
    pub(super) fn touches(&self, first: u64, count: u64) -> bool {
        self.pages != 0 && self.base < first + count && first < self.base + self.pages
    }

    /// The frame that `gfn` stands for, if it lies in the window.
    #[inline]
    pub(super) fn target(&self, gfn: u64) -> Option<u64> {
        let offset = gfn.wrapping_sub(self.base);
        (offset < self.pages).then(|| self.target + offset)
    }
}
