//! Guest RAM: size on the command line, place in the guest, mapping in the host.

use crate::kvm::{KvmError, Vm};
use crate::layout::{HOLE_END, HOLE_START};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Guest RAM as the monitor sees it.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// The least RAM that makes sense, in bytes.
pub const MIN_SIZE: u64 = 2 << 20;

/// Guest RAM could not be provided.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// '{0}' is not a memory size; write MiB, or a number with K, M or G
    #[error("'{0}' is not a memory size; write MiB, or a number with K, M or G")]
    Syntax(String),
    /// {0} bytes of memory are too little for any guest; give at least 2M
    #[error("{0} bytes of memory are too little for any guest; give at least 2M")]
    TooSmall(u64),
    /// {0} bytes of memory are not a whole number of 4 KiB pages
    #[error("{0} bytes of memory are not a whole number of 4 KiB pages")]
    Unaligned(u64),
    /// guest memory of {0} MiB is more than this host has ({1} MiB)
    #[error("guest memory of {0} MiB is more than this host has ({1} MiB)")]
    TooLarge(u64, u64),
    /// cannot map guest memory: {0}
    #[error("cannot map guest memory: {0}")]
    Map(#[from] vm_memory::mmap::FromRangesError),
}

/// Reads a size: MiB, or a number followed by `K`, `M` or `G` (powers of 1024).
///
/// # Errors
/// [`MemoryError::Syntax`] for what is no number or does not fit 64 bits,
/// [`MemoryError::TooSmall`] and [`MemoryError::Unaligned`] for what no guest can use.
pub fn parse_size(text: &str) -> Result<u64, MemoryError> {
    let syntax = || MemoryError::Syntax(text.to_owned());
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 20),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(syntax());
    }
    let number: u64 = digits.parse().map_err(|_| syntax())?;
    let size = number.checked_mul(1 << shift).ok_or_else(syntax)?;
    if size < MIN_SIZE {
        return Err(MemoryError::TooSmall(size));
    }
    if size % 4096 != 0 {
        return Err(MemoryError::Unaligned(size));
    }
    Ok(size)
}

/// The ranges of guest-physical memory that `size` bytes of RAM occupy: below
/// the hole for devices, and the rest above 4 GiB.
pub fn ranges(size: u64) -> Vec<(u64, u64)> {
    if size <= HOLE_START { vec![(0, size)] } else { vec![(0, HOLE_START), (HOLE_END, size - HOLE_START)] }
}

/// Bytes of RAM and swap in this host, as far as it tells.
fn host_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = info.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(field("MemTotal:")?.saturating_add(field("SwapTotal:").unwrap_or(0)))
}

/// Maps guest RAM. Pages cost nothing until the guest touches them.
///
/// # Errors
/// [`MemoryError::TooLarge`] when the host could never back it, or the host's refusal.
pub fn allocate(size: u64) -> Result<GuestRam, MemoryError> {
    if let Some(host) = host_memory()
        && size > host
    {
        return Err(MemoryError::TooLarge(size >> 20, host >> 20));
    }
    let ranges: Vec<_> = ranges(size).into_iter().map(|(gpa, len)| (GuestAddress(gpa), len as usize)).collect();
    let ram = GuestRam::from_ranges(&ranges)?;
    for region in ram.iter() {
        // Large pages make both the host's and the guest's page tables cheaper. A child that
        // tries a device must not share the guest's pages: should it hang, they would all be
        // copied when the guest writes them. Both are advice, and may fail.
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTFORK] {
            // SAFETY: the range is this mapping's, and neither advice changes its contents here.
            unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, advice) };
        }
    }
    Ok(ram)
}

/// Gives all of `ram` to the VM, a memory slot for each region.
///
/// # Errors
/// What `KVM_SET_USER_MEMORY_REGION` answers.
///
/// # Safety
/// `ram` must stay mapped until every descriptor of the VM is closed.
pub unsafe fn register(vm: &Vm, ram: &GuestRam) -> Result<(), KvmError> {
    for (slot, region) in (0..).zip(ram.iter()) {
        // SAFETY: vm-memory reaches guest RAM by volatile and atomic accesses only, and
        // the caller keeps it mapped.
        unsafe {
            vm.set_memory_region(slot, region.start_addr().0, region.len(), region.as_ptr())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512").unwrap(), 512 << 20);
        assert_eq!(parse_size("512M").unwrap(), 512 << 20);
        assert_eq!(parse_size("3g").unwrap(), 3 << 30);
        assert_eq!(parse_size("4096K").unwrap(), 4 << 20);
    }

    #[test]
    fn sizes_that_are_none() {
        for text in ["", "M", "-1", "+5", "1.5G", "5T", "x", "é", "5é", "99999999999999999999", "18446744073709551615G"]
        {
            assert!(matches!(parse_size(text), Err(MemoryError::Syntax(_))), "{text}");
        }
        assert!(matches!(parse_size("0"), Err(MemoryError::TooSmall(0))));
        assert!(matches!(parse_size("1M"), Err(MemoryError::TooSmall(_))));
        assert!(matches!(parse_size("2049K"), Err(MemoryError::Unaligned(_))));
    }

    #[test]
    fn ram_leaves_the_hole_free() {
        assert_eq!(ranges(HOLE_START), [(0, HOLE_START)]);
        assert_eq!(ranges(4 << 30), [(0, HOLE_START), (1 << 32, (4 << 30) - HOLE_START)]);
    }

    #[test]
    fn more_than_the_host_has_is_refused() {
        assert!(matches!(allocate(1 << 62), Err(MemoryError::TooLarge(..))));
    }
}
