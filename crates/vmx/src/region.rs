//! Where a control structure is active: at most on one processor, in whose cache a part of it lies. Before it can be used on
//! another one, or its page given back, that processor has to clear it (VMCLEAR). Each processor therefore keeps a list of the
//! structures that are active on it, which it alone touches, with interrupts off.
use alloc::boxed::Box;
use core::{
    cell::Cell,
    marker::PhantomPinned,
    pin::Pin,
    ptr::{self, NonNull},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use platform::{MaySleep, OutOfMemory, fallible::try_box, hardware::Frames};

/// No processor.
pub const NOWHERE: usize = usize::MAX;

/// Writes the revision that the processor wants into a new region. Also for VMXON's.
pub fn prepare<F: Frames>(frames: &F, revision: u32) {
    // SAFETY: a page that nobody knows of yet.
    unsafe { frames.as_ptr().cast::<u32>().write(revision) };
}

/// A control structure's place among those that are active on its processor.
#[derive(Debug)]
pub struct Node {
    hpa: u64,
    cpu: AtomicUsize,
    launched: AtomicBool,
    next: Cell<*const Node>,
    previous: Cell<*const Node>,
    _pinned: PhantomPinned,
}

// SAFETY: the two links are only touched by the processor that `cpu` names, with interrupts off.
unsafe impl Send for Node {}
// SAFETY: as above.
unsafe impl Sync for Node {}

impl Node {
    fn new(hpa: u64) -> Self {
        Self {
            hpa,
            cpu: AtomicUsize::new(NOWHERE),
            launched: AtomicBool::new(false),
            next: Cell::new(ptr::null()),
            previous: Cell::new(ptr::null()),
            _pinned: PhantomPinned,
        }
    }

    /// Host-physical address of the control structure.
    pub fn hpa(&self) -> u64 {
        self.hpa
    }

    /// The processor that it is active on, or [`NOWHERE`].
    pub fn cpu(&self) -> usize {
        self.cpu.load(SeqCst)
    }

    /// It was entered since it was last cleared.
    pub fn launched(&self) -> bool {
        self.launched.load(SeqCst)
    }

    /// It was entered.
    pub fn set_launched(&self) {
        self.launched.store(true, SeqCst);
    }
}

/// A control structure.
pub struct Region<F> {
    node: Pin<Box<Node>>,
    _frames: F,
}

impl<F: Frames> Region<F> {
    /// All zero but the revision; active nowhere.
    pub fn new(revision: u32, below_4g: bool, cx: &MaySleep) -> Result<Self, OutOfMemory> {
        let frames = F::new(1, below_4g, cx)?;
        prepare(&frames, revision);
        Ok(Self { node: Box::into_pin(try_box(Node::new(frames.hpa()))?), _frames: frames })
    }

    /// Its place.
    pub fn node(&self) -> Pin<&Node> {
        self.node.as_ref()
    }
}

/// The control structures that are active on one processor.
#[derive(Debug)]
pub struct ActiveList {
    first: *const Node,
}

// SAFETY: nodes are `Sync`, and the links are only touched by the processor whose list this is.
unsafe impl Send for ActiveList {}

impl Default for ActiveList {
    fn default() -> Self {
        Self { first: ptr::null() }
    }
}

impl ActiveList {
    /// Notes that the structure of `node` is active on `cpu`, whose list this is.
    ///
    /// # Safety
    /// This runs on that processor with interrupts off, `node` is active nowhere, and it stays where it is until it has been
    /// taken out again.
    pub unsafe fn insert(&mut self, node: Pin<&Node>, cpu: usize) {
        let at = ptr::from_ref(node.get_ref());
        node.next.set(self.first);
        node.previous.set(ptr::null());
        if let Some(first) = NonNull::new(self.first.cast_mut()) {
            // SAFETY: what is in the list is there, see above.
            unsafe { first.as_ref() }.previous.set(at);
        }
        self.first = at;
        node.launched.store(false, SeqCst);
        node.cpu.store(cpu, SeqCst);
    }

    /// Takes `node` out: it has been cleared.
    ///
    /// # Safety
    /// This runs on the processor whose list this is, with interrupts off, and `node` is in it.
    pub unsafe fn remove(&mut self, node: &Node) {
        let (next, previous) = (node.next.get(), node.previous.get());
        // SAFETY: neighbours are in the list, so they are there.
        unsafe {
            match previous.as_ref() {
                Some(previous) => previous.next.set(next),
                None => self.first = next,
            }
            if let Some(next) = next.as_ref() {
                next.previous.set(previous);
            }
        }
        node.next.set(ptr::null());
        node.previous.set(ptr::null());
        node.launched.store(false, SeqCst);
        // Last: now another processor may take it, or its owner give it back.
        node.cpu.store(NOWHERE, SeqCst);
    }

    /// One of them.
    ///
    /// # Safety
    /// As [`Self::remove`]; the answer is not used after it was taken out.
    pub unsafe fn any<'a>(&self) -> Option<&'a Node> {
        // SAFETY: what is in the list is there.
        unsafe { self.first.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestFrames;
    use std::vec::Vec;

    fn region() -> Region<TestFrames> {
        Region::new(0x1234, false, &MaySleep::at_entry()).unwrap()
    }

    fn all(list: &ActiveList) -> Vec<u64> {
        let mut found = Vec::new();
        let mut at = list.first;
        // SAFETY: the test's regions live.
        while let Some(node) = unsafe { at.as_ref() } {
            found.push(node.hpa());
            at = node.next.get();
        }
        found
    }

    #[test]
    fn a_region_begins_with_its_revision() {
        let region = region();
        // SAFETY: a page of the test's.
        assert_eq!(unsafe { (region.node().hpa() as *const u32).read() }, 0x1234);
        assert_eq!((region.node().cpu(), region.node().launched()), (NOWHERE, false));
    }

    #[test]
    fn structures_come_and_go_in_any_order() {
        let regions = [region(), region(), region()];
        let [a, b, c] = [0, 1, 2].map(|n: usize| regions[n].node().hpa());
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            let mut list = ActiveList::default();
            for region in &regions {
                // SAFETY: nothing else uses this list, and the regions live longer.
                unsafe { list.insert(region.node(), 3) };
                region.node().set_launched();
            }
            assert_eq!(all(&list), [c, b, a]);
            for n in order {
                let node = regions[n].node();
                assert_eq!((node.cpu(), node.launched()), (3, true));
                // SAFETY: as above.
                unsafe { list.remove(&node) };
                assert_eq!((node.cpu(), node.launched()), (NOWHERE, false));
                assert!(!all(&list).contains(&node.hpa()));
            }
            assert!(all(&list).is_empty());
        }
    }
}
