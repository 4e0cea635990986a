//! KVM_X86_SET_MSR_FILTER: which registers the guest may read and write. What the filter denies is #GP, or the client's
//! to answer (KVM_CAP_X86_USER_SPACE_MSR). The client's own access by KVM_GET_MSRS and KVM_SET_MSRS is not filtered.
use abi::{
    KVM_MSR_FILTER_DEFAULT_DENY, KVM_MSR_FILTER_MAX_BITMAP_SIZE, KVM_MSR_FILTER_RANGE_VALID_MASK, KVM_MSR_FILTER_READ,
    KVM_MSR_FILTER_VALID_MASK, KVM_MSR_FILTER_WRITE, KvmMsrFilter, KvmMsrFilterRange,
};
use alloc::vec::Vec;
use platform::{
    Hva, MaySleep, Memory, Mutex, Platform, Published,
    fallible::{try_box, try_push, try_vec},
    lock::rank,
};
use x86::msr;

use super::{MAX_VCPUS, Vm};
use crate::{Errno, Outcome, backend::Backend, uaccess};

/// Registers in a row, one bit each: 1 allows.
struct Range {
    flags: u32,
    base: u32,
    count: u32,
    bitmap: Vec<u8>,
}

impl Range {
    fn get<M: Memory>(range: &KvmMsrFilterRange) -> Result<Self, Errno> {
        let words = usize::try_from(range.nmsrs.div_ceil(64)).map_err(|_| Errno::EINVAL)?;
        let bytes = words * 8;
        let flags = range.flags;
        if flags == 0 || flags & !KVM_MSR_FILTER_RANGE_VALID_MASK != 0 || bytes > KVM_MSR_FILTER_MAX_BITMAP_SIZE {
            return Err(Errno::EINVAL);
        }
        let mut bitmap = try_vec(0, bytes)?;
        M::copy_from(Hva::of_client(range.bitmap)?, &mut bitmap)?;
        Ok(Self { flags, base: range.base, count: range.nmsrs, bitmap })
    }

    /// What the range says about an access; None if nothing.
    fn allows(&self, index: u32, access: u32) -> Option<bool> {
        let n = index.wrapping_sub(self.base);
        if n >= self.count || self.flags & access == 0 {
            return None;
        }
        Some(self.bitmap.get((n / 8) as usize).is_some_and(|byte| byte >> (n % 8) & 1 != 0))
    }
}

/// The filter of a VM as it is.
struct Rules {
    allow: bool,
    ranges: Vec<Range>,
}

/// The filter of a VM. vCPUs read it without a lock.
pub(crate) struct MsrFilter<P: Platform> {
    rules: Published<Rules>,
    writer: Mutex<P, ()>,
}

impl<P: Platform> MsrFilter<P> {
    /// Everything is allowed.
    pub(super) fn new() -> Result<Self, Errno> {
        let rules = Published::new(Rules { allow: true, ranges: Vec::new() }, MAX_VCPUS)?;
        Ok(Self { rules, writer: Mutex::<P, _>::new(rank::BUS, ())? })
    }

    /// Whether the guest on vCPU `reader` may access a register. x2APIC registers are never filtered.
    pub(crate) fn allows(&self, reader: usize, index: u32, write: bool) -> bool {
        if (msr::X2APIC_FIRST..=msr::X2APIC_LAST).contains(&index) {
            return true;
        }
        let Some(rules) = self.rules.read(reader) else { return true };
        let access = if write { KVM_MSR_FILTER_WRITE } else { KVM_MSR_FILTER_READ };
        rules.ranges.iter().find_map(|range| range.allows(index, access)).unwrap_or(rules.allow)
    }
}

impl<B: Backend> Vm<B> {
    pub(super) fn set_msr_filter(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        type Mem<B> = <<B as Backend>::Platform as Platform>::Memory;
        let filter: KvmMsrFilter = uaccess::get::<Mem<B>, _>(arg)?;
        if filter.flags & !KVM_MSR_FILTER_VALID_MASK != 0 {
            return Err(Errno::EINVAL);
        }
        let mut rules = Rules { allow: filter.flags & KVM_MSR_FILTER_DEFAULT_DENY == 0, ranges: Vec::new() };
        for range in filter.ranges.iter().filter(|range| range.nmsrs != 0) {
            try_push(&mut rules.ranges, Range::get::<Mem<B>>(range)?)?;
        }
        // Nothing at all allowed is a mistake.
        if rules.ranges.is_empty() && !rules.allow {
            return Err(Errno::EINVAL);
        }
        let rules = try_box(rules)?;
        let _writer = self.shared().msr_filter.writer.lock();
        drop(self.shared().msr_filter.rules.replace::<B::Platform>(rules, cx));
        Ok(Outcome::OK)
    }
}
