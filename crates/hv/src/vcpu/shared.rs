//! What others touch of a vCPU: its request word, whether it is inside the guest, and where it sleeps. All of it is
//! atomic; the rest of a vCPU belongs to the thread inside its ioctl.
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst, fence};

use irqchip::LapicShared;
use platform::{
    MaySleep, OutOfMemory, Platform,
    wait::{WaitEnd, Waiter},
};

use super::request;
use crate::stats::VcpuStats;

/// Outside the guest: a request is seen before the next entry.
const OUTSIDE: u32 = 0;
/// Inside the guest, or about to enter: a request needs a kick.
const IN_GUEST: u32 = 1;
/// Sleeping on the request word: a request needs a wake.
const BLOCKED: u32 = 2;

/// The shared part of one vCPU, on cache lines of its own.
#[repr(align(128))]
pub(crate) struct VcpuShared<P: Platform> {
    pub(crate) requests: AtomicU32,
    mode: AtomicU32,
    /// The vCPU may hold translations or addresses that a slot change takes away.
    in_use: AtomicBool,
    /// Requests from devices and other vCPUs: vectors, NMI, INIT, SIPI. Also without a local APIC in the hypervisor.
    pub(crate) lapic: LapicShared,
    id: u32,
    pub(crate) waiter: P::Waiter,
    pub(crate) stats: VcpuStats,
    created: AtomicBool,
}

impl<P: Platform> VcpuShared<P> {
    /// `counters` is how many the back end has.
    pub(crate) fn new(id: u32, counters: usize) -> Result<Self, OutOfMemory> {
        Ok(Self {
            requests: AtomicU32::new(0),
            mode: AtomicU32::new(OUTSIDE),
            in_use: AtomicBool::new(false),
            lapic: LapicShared::new(id),
            id,
            created: AtomicBool::new(false),
            waiter: P::Waiter::new()?,
            stats: VcpuStats::new(counters)?,
        })
    }

    /// The vCPU's number, which is its place in the table of vCPUs and its APIC id too.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// From now on others reach this vCPU. False if it exists already.
    pub(crate) fn create(&self) -> bool {
        !self.created.swap(true, SeqCst)
    }

    pub(crate) fn is_created(&self) -> bool {
        self.created.load(SeqCst)
    }

    /// Sets request bits and makes the vCPU see them soon: it leaves the guest or wakes.
    pub(crate) fn request(&self, bits: u32) {
        let before = self.requests.fetch_or(bits, SeqCst);
        if before & bits == bits {
            // Somebody else has set them, and has kicked or will.
            return;
        }
        fence(SeqCst);
        match self.mode.load(SeqCst) {
            IN_GUEST => self.waiter.kick(),
            BLOCKED => self.waiter.wake(&self.requests),
            _ => {}
        }
    }

    /// The vCPU's thread begins to use guest memory. It takes the requests before it uses what it held earlier.
    pub(crate) fn begin(&self) -> InUse<'_, P> {
        self.in_use.store(true, SeqCst);
        fence(SeqCst);
        InUse { shared: self }
    }

    /// Takes all requests: called at an instruction boundary at which the vCPU holds no address of guest memory. What
    /// it keeps in its translation caches it forgets, as the bits say, before it uses it.
    pub(crate) fn take_requests(&self) -> u32 {
        if self.requests.load(SeqCst) == 0 { 0 } else { self.requests.swap(0, SeqCst) }
    }

    /// Waits until the vCPU is not in the guest with [`request::TLB_FLUSH_PHYSICAL`], which the caller has set, still to
    /// be taken. What it does outside meanwhile it does without its translations.
    pub(crate) fn wait_left(&self) {
        fence(SeqCst);
        while self.mode.load(SeqCst) == IN_GUEST && self.requests.load(SeqCst) & request::TLB_FLUSH_PHYSICAL != 0 {
            P::spin();
        }
    }

    /// Waits until the vCPU has taken [`request::TLB_FLUSH_PHYSICAL`], which the caller has set, or is outside.
    pub(crate) fn wait_flushed(&self, cx: &MaySleep) {
        fence(SeqCst);
        while self.in_use.load(SeqCst) && self.requests.load(SeqCst) & request::TLB_FLUSH_PHYSICAL != 0 {
            P::relax(cx);
        }
    }
}

/// While this lives, the vCPU may hold translations.
pub(crate) struct InUse<'a, P: Platform> {
    shared: &'a VcpuShared<P>,
}

impl<P: Platform> InUse<'_, P> {
    /// Publishes "in the guest" and looks at the requests once more: true if the guest may be entered. Every entry
    /// that was allowed is followed by [`Self::left_guest`].
    pub(crate) fn enter_guest(&self) -> bool {
        self.shared.mode.store(IN_GUEST, SeqCst);
        fence(SeqCst);
        if self.shared.requests.load(SeqCst) == 0 {
            return true;
        }
        self.shared.mode.store(OUTSIDE, SeqCst);
        false
    }

    pub(crate) fn left_guest(&self) {
        self.shared.mode.store(OUTSIDE, SeqCst);
    }

    /// Sleeps until a request is set. The vCPU counts as outside meanwhile.
    pub(crate) fn block(&self, cx: &MaySleep) -> WaitEnd {
        let shared = self.shared;
        shared.in_use.store(false, SeqCst);
        shared.mode.store(BLOCKED, SeqCst);
        fence(SeqCst);
        let end = if shared.requests.load(SeqCst) == 0 {
            shared.waiter.wait(&shared.requests, 0, cx)
        } else {
            WaitEnd::Woken
        };
        shared.mode.store(OUTSIDE, SeqCst);
        shared.in_use.store(true, SeqCst);
        fence(SeqCst);
        end
    }
}

impl<P: Platform> Drop for InUse<'_, P> {
    fn drop(&mut self) {
        self.shared.in_use.store(false, SeqCst);
    }
}
