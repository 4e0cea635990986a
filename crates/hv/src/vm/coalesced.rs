//! Coalesced MMIO and PIO: guest writes to a zone go into a ring in shared memory, and the client carries them out when
//! it has a reason to look there, instead of being asked for each.
//!
//! There is one ring for the whole VM, which every vCPU's mapping shows as its third page.
use abi::{KVM_COALESCED_MMIO_MAX, KvmCoalescedMmio, KvmCoalescedMmioRing, KvmCoalescedMmioZone, Pod};
use alloc::vec::Vec;
use core::sync::atomic::{Ordering::Release, fence};
use platform::{
    Hva, MaySleep, Memory, Mutex, Pages, Platform, Published, SpinLock,
    fallible::{try_box, try_push},
    lock::rank,
};

use super::{MAX_VCPUS, Space, Vm};
use crate::{Errno, Outcome, backend::Backend, uaccess};

/// Most zones of a VM.
const MAX_ZONES: usize = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Zone {
    space: Space,
    first: u64,
    len: u64,
}

impl Zone {
    fn from_abi(zone: &KvmCoalescedMmioZone) -> Result<Self, Errno> {
        let space = match zone.pio {
            0 => Space::Mmio,
            1 => Space::Pio,
            _ => return Err(Errno::EINVAL),
        };
        Ok(Self { space, first: zone.addr, len: zone.size.into() })
    }

    fn holds(&self, other: &Self) -> bool {
        let offset = other.first.wrapping_sub(self.first);
        self.space == other.space && offset <= self.len && other.len <= self.len - offset
    }
}

/// Zones and ring of one VM.
pub(crate) struct Coalesced<P: Platform> {
    zones: Published<Vec<Zone>>,
    writer: Mutex<P, Vec<Zone>>,
    ring: SpinLock<P, P::Pages>,
}

impl<P: Platform> Coalesced<P> {
    pub(super) fn new(cx: &MaySleep) -> Result<Self, Errno> {
        Ok(Self {
            zones: Published::new(Vec::new(), MAX_VCPUS)?,
            writer: Mutex::<P, _>::new(rank::BUS, Vec::new())?,
            ring: SpinLock::<P, _>::new(rank::RING, P::Pages::new(4096, cx)?)?,
        })
    }

    /// Whether a write of `len` bytes that vCPU `reader` makes belongs into the ring.
    pub(crate) fn wants(&self, reader: usize, space: Space, at: u64, len: u64) -> bool {
        let write = Zone { space, first: at, len };
        self.zones.read(reader).is_some_and(|zones| zones.iter().any(|zone| zone.holds(&write)))
    }

    /// Puts a write into the ring. False: the ring is full, and the client has to be asked.
    pub(crate) fn push(&self, space: Space, at: u64, data: &[u8]) -> bool {
        self.try_push(space, at, data).is_some()
    }

    /// Writes the element, then shows it. Both indices belong to the client as well, who may write anything there.
    fn try_push(&self, space: Space, at: u64, data: &[u8]) -> Option<()> {
        let ring = self.ring.lock();
        let mut header = KvmCoalescedMmioRing::default();
        P::Memory::copy_from(ring.at(), header.bytes_mut()).ok()?;
        let last = header.last as usize;
        let next = (last + 1) % KVM_COALESCED_MMIO_MAX;
        if last >= KVM_COALESCED_MMIO_MAX || next == header.first as usize {
            return None;
        }
        let mut element =
            KvmCoalescedMmio { phys_addr: at, len: data.len() as u32, pio: (space == Space::Pio).into(), data: [0; 8] };
        element.data.get_mut(..data.len())?.copy_from_slice(data);
        let at = size_of::<KvmCoalescedMmioRing>() + last * size_of::<KvmCoalescedMmio>();
        P::Memory::copy_to(ring.at().add(at as u64), element.bytes()).ok()?;
        fence(Release);
        // `last`.
        P::Memory::store(ring.at().add(4), next as u32).ok()
    }

    fn change(&self, cx: &MaySleep, change: impl FnOnce(&mut Vec<Zone>) -> Result<(), Errno>) -> Result<(), Errno> {
        let mut zones = self.writer.lock();
        let mut next = Vec::new();
        next.try_reserve_exact(zones.len() + 1).map_err(|_| Errno::ENOMEM)?;
        next.extend_from_slice(&zones);
        change(&mut next)?;
        let mut copy = Vec::new();
        copy.try_reserve_exact(next.len()).map_err(|_| Errno::ENOMEM)?;
        copy.extend_from_slice(&next);
        drop(self.zones.replace::<P>(try_box(copy)?, cx));
        *zones = next;
        Ok(())
    }
}

impl<B: Backend> Vm<B> {
    /// The page that packaging shows as page `KVM_COALESCED_MMIO_PAGE_OFFSET` of every vCPU's mapping. It stays there
    /// while the VM lives.
    pub fn coalesced_ring(&self) -> Hva {
        self.shared().coalesced.ring.lock().at()
    }

    pub(super) fn register_coalesced(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let zone = Zone::from_abi(&uaccess::get::<<B::Platform as Platform>::Memory, _>(arg)?)?;
        self.shared().coalesced.change(cx, |zones| {
            if zones.len() >= MAX_ZONES {
                return Err(Errno::ENOSPC);
            }
            Ok(try_push(zones, zone)?)
        })?;
        Ok(Outcome::OK)
    }

    /// Takes back the zones that hold all of the one given; that there is none is no error.
    pub(super) fn unregister_coalesced(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let gone = Zone::from_abi(&uaccess::get::<<B::Platform as Platform>::Memory, _>(arg)?)?;
        self.shared().coalesced.change(cx, |zones| {
            zones.retain(|zone| !zone.holds(&gone));
            Ok(())
        })?;
        Ok(Outcome::OK)
    }
}
