//! The soft TLB: translations from linear pages to host memory, together with the right to use them.
//!
//! A hit is one compare: the tag of an entry is its linear page with a *key* in the low 12 bits, and the key says whose
//! translation it is: the privilege class (user or supervisor) and the address-space number. Keys are looked up
//! by the top bit of the address, because the two halves of the address space live differently: kernels keep global
//! translations in the upper half, which survive a load of CR3, so it has an address-space number of its own that
//! changes only when something that is *not* global was put there. The lower half has a number for each recent PCID.
//! Forgetting an address space is taking a new number; the entries are wiped only when the numbers run out.
//!
//! Read and write rights of data are two tags of one entry; an absent write tag means "look closer" and is how
//! the first write to a page (dirty bit, dirty log) and writes to pages with decoded code are noticed. Instruction
//! fetches have entries of their own. Large pages are entered in pieces of 4 KiB, each of which knows the size of the
//! whole: INVLPG of any address in a large page drops all of it (SDM vol. 3, 4.10.4.1).
use platform::{OutOfMemory, fallible::try_vec};

/// Data entries.
pub const DATA_ENTRIES: usize = 1024;
/// Fetch entries.
pub const EXEC_ENTRIES: usize = 512;

/// A tag that no look-up matches.
pub const INVALID: u64 = u64::MAX;
/// A key that matches no tag: with it every access takes the slow path.
pub const NEVER: u64 = 0x800;
/// The key bit of user translations.
pub const USER: u64 = 1;
/// Numbers are 10 bits above the class.
const NUMBER_SHIFT: u32 = 1;
const NUMBERS: u64 = 1 << 10;

/// In [`DataEntry::gpa`]: the page may be written, but each write has to tell the code map.
pub const SLOW_WRITE: u64 = 1;

/// In [`DataEntry::gpa`]: from this bit, log2 of the size of the large page that the entry is a piece of; 0 for small pages.
pub const FRAGMENT_SHIFT: u32 = 1;
const FRAGMENT_MASK: u64 = 63;

const PAGE: u64 = !0xfff;

/// A data translation.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(32))]
pub struct DataEntry {
    /// Tag for reads.
    pub read: u64,
    /// Tag for writes.
    pub write: u64,
    /// What to add to a linear address to get the host's.
    pub addend: u64,
    /// The guest-physical page, with [`SLOW_WRITE`] and the size of the whole page ([`FRAGMENT_SHIFT`]) in its low bits.
    pub gpa: u64,
}

/// A translation for instruction fetches.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExecEntry {
    /// Tag.
    pub tag: u64,
    /// Host address of the page.
    pub hva: u64,
    /// Guest-physical page.
    pub gpa: u64,
    /// When it was made: blocks that were compared with memory before that are compared again.
    pub stamp: u64,
    /// log2 of the size of the large page that this is a piece of; 0 for small pages.
    pub shift: u64,
}

/// The tag of `linear` under `key`.
#[inline(always)]
pub fn tag(linear: u64, key: u64) -> u64 {
    linear & PAGE | key
}

/// Where in an array of `n` entries (a power of two) the page of `linear` is.
#[inline(always)]
pub fn index(linear: u64, n: usize) -> usize {
    ((linear >> 12) ^ (linear >> 22)) as usize & (n - 1)
}

/// The keys for the halves of the address space.
pub type Keys = [u64; 2];

/// The key for `linear`.
#[inline(always)]
pub fn key(keys: &Keys, linear: u64) -> u64 {
    keys[(linear >> 63) as usize]
}

/// The entries.
#[derive(Debug)]
pub struct Tlb {
    /// For data.
    pub data: Box<[DataEntry; DATA_ENTRIES]>,
    /// For instructions.
    pub exec: Box<[ExecEntry; EXEC_ENTRIES]>,
    /// How often everything was wiped: numbers given out before mean nothing any more.
    pub wipes: u64,
}

/// An array on the heap.
pub(crate) fn boxed<T: Clone + Default, const N: usize>() -> Result<Box<[T; N]>, OutOfMemory> {
    try_vec(T::default(), N)?.into_boxed_slice().try_into().map_err(|_| OutOfMemory)
}

impl Tlb {
    /// An empty one.
    pub fn new() -> Result<Self, OutOfMemory> {
        Ok(Self { data: boxed()?, exec: boxed()?, wipes: 0 })
    }

    /// Forgets everything.
    pub fn wipe(&mut self) {
        self.wipes += 1;
        self.data.fill(DataEntry::default());
        self.exec.fill(ExecEntry::default());
    }

    /// Forgets all rights to write.
    pub fn drop_writes(&mut self) {
        for entry in self.data.iter_mut() {
            entry.write = INVALID;
        }
    }

    /// Forgets the rights to write the guest-physical page `gpa`.
    pub fn drop_writes_of(&mut self, gpa: u64) {
        for entry in self.data.iter_mut() {
            if entry.gpa & PAGE == gpa & PAGE {
                entry.write = INVALID;
            }
        }
    }

    /// Whether there is an entry for the page of `linear` in the address space of `number`.
    pub fn holds(&self, linear: u64, number: u64) -> bool {
        let wanted = tag(linear, number << NUMBER_SHIFT);
        let data = &self.data[index(linear, DATA_ENTRIES)];
        let exec = &self.exec[index(linear, EXEC_ENTRIES)];
        [data.read, data.write, exec.tag].iter().any(|found| found & !USER == wanted)
    }

    /// Forgets the page of `linear` in the address space of `number`.
    pub fn drop_page(&mut self, linear: u64, number: u64) {
        let number = number << NUMBER_SHIFT;
        let ours = |found: u64| found & !USER == tag(linear, number);
        let data = &mut self.data[index(linear, DATA_ENTRIES)];
        if ours(data.read) || ours(data.write) {
            *data = DataEntry::default();
        }
        let exec = &mut self.exec[index(linear, EXEC_ENTRIES)];
        if ours(exec.tag) {
            *exec = ExecEntry::default();
        }
    }
}

/// Whether `found` is a tag of the address space `number`, of a piece of the page of `1 << shift` bytes that `linear` is in.
fn is_piece(found: u64, shift: u64, linear: u64, number: u64) -> bool {
    shift != 0 && (found ^ linear) >> shift == 0 && found & !PAGE & !USER == number << NUMBER_SHIFT
}

impl Tlb {
    /// Forgets all pieces of the large data page of `linear` in the address space of `number`.
    fn drop_large(&mut self, linear: u64, number: u64) {
        for entry in self.data.iter_mut() {
            let shift = entry.gpa >> FRAGMENT_SHIFT & FRAGMENT_MASK;
            if is_piece(entry.read, shift, linear, number) || is_piece(entry.write, shift, linear, number) {
                *entry = DataEntry::default();
            }
        }
    }

    /// The same for instruction fetches.
    fn drop_large_code(&mut self, linear: u64, number: u64) {
        for entry in self.exec.iter_mut() {
            if is_piece(entry.tag, entry.shift, linear, number) {
                *entry = ExecEntry::default();
            }
        }
    }
}

const PCIDS: usize = 8;

/// The address-space numbers in use.
#[derive(Debug)]
pub struct Spaces {
    next: u64,
    /// Number of the lower half now.
    low: u64,
    /// Number of the upper half now.
    high: u64,
    pcid: u16,
    /// Numbers of the lower halves of recent PCIDs, 0 for none.
    recent: [(u16, u64); PCIDS],
    victim: usize,
    /// A translation that is not global was entered in the upper half under `high`.
    high_local: bool,
    /// A global translation was entered in the lower half, under whatever number.
    low_global: bool,
    /// Pieces of large data pages were entered in this half since everything was forgotten.
    large: [bool; 2],
    /// The same for instruction fetches.
    large_code: [bool; 2],
}

impl Default for Spaces {
    fn default() -> Self {
        Self {
            next: 3,
            low: 1,
            high: 2,
            pcid: 0,
            recent: [(0, 0); PCIDS],
            victim: 0,
            high_local: false,
            low_global: false,
            large: [false; 2],
            large_code: [false; 2],
        }
    }
}

impl Spaces {
    /// The keys of privilege class `class` (0 or [`USER`]).
    pub fn keys(&self, class: u64) -> Keys {
        [self.low << NUMBER_SHIFT | class, self.high << NUMBER_SHIFT | class]
    }

    /// The number of the half that `linear` is in.
    pub fn number(&self, linear: u64) -> u64 {
        if linear >> 63 != 0 { self.high } else { self.low }
    }

    /// A translation of `linear` is entered.
    pub fn entered(&mut self, linear: u64, global: bool) {
        if linear >> 63 != 0 {
            self.high_local |= !global;
        } else {
            self.low_global |= global;
        }
    }

    /// A piece of a page of `1 << page_shift` bytes at `linear` is entered, for instruction fetches if `code`. What its entry
    /// is to say of the whole page's size.
    pub fn fragment(&mut self, linear: u64, page_shift: u32, code: bool) -> u64 {
        // Without paging there is one page of 4 GiB, and INVLPG means nothing.
        if !(13..32).contains(&page_shift) {
            return 0;
        }
        let large = if code { &mut self.large_code } else { &mut self.large };
        large[(linear >> 63) as usize] = true;
        page_shift as u64
    }

    fn fresh(&mut self, tlb: &mut Tlb) -> u64 {
        if self.next == NUMBERS {
            tlb.wipe();
            self.recent = [(0, 0); PCIDS];
            (self.low, self.high, self.next) = (1, 2, 3);
            self.high_local = false;
            self.low_global = false;
        }
        self.next += 1;
        self.next - 1
    }

    fn fresh_low(&mut self, tlb: &mut Tlb) {
        self.low = self.fresh(tlb);
        let (pcid, low) = (self.pcid, self.low);
        if let Some(found) = self.recent.iter_mut().find(|r| r.1 != 0 && r.0 == pcid) {
            found.1 = low;
        } else {
            self.recent[self.victim] = (pcid, low);
            self.victim = (self.victim + 1) % PCIDS;
        }
    }

    /// Forgets everything, and goes to the address space `pcid`.
    pub fn flush_all(&mut self, pcid: u16, tlb: &mut Tlb) {
        self.pcid = pcid;
        self.recent = [(0, 0); PCIDS];
        self.high = self.fresh(tlb);
        self.fresh_low(tlb);
        self.high_local = false;
        self.low_global = false;
        self.large = [false; 2];
        self.large_code = [false; 2];
    }

    /// Forgets what is not global in the current address space.
    pub fn flush_current(&mut self, tlb: &mut Tlb) {
        self.fresh_low(tlb);
        if self.high_local {
            self.high = self.fresh(tlb);
            self.high_local = false;
        }
    }

    /// Goes to the address space `pcid`; what is known of it may be used if `keep`.
    pub fn switch(&mut self, pcid: u16, keep: bool, tlb: &mut Tlb) {
        self.pcid = pcid;
        match self.recent.iter().find(|r| r.1 != 0 && r.0 == pcid) {
            Some(found) if keep => self.low = found.1,
            _ => self.fresh_low(tlb),
        }
        if self.high_local {
            self.high = self.fresh(tlb);
            self.high_local = false;
        }
    }

    /// Forgets the page of `linear` in the current address space, and global ones in all. True: it may have been a large
    /// page of code, so that more addresses than those of its 4 KiB are concerned.
    pub fn flush_page(&mut self, linear: u64, tlb: &mut Tlb) -> bool {
        let (half, number) = ((linear >> 63) as usize, self.number(linear));
        tlb.drop_page(linear, number);
        if self.large[half] {
            tlb.drop_large(linear, number);
        }
        if self.large_code[half] {
            tlb.drop_large_code(linear, number);
        }
        if self.low_global {
            let (pcid, low) = (self.pcid, self.low);
            self.recent.iter_mut().for_each(|r| *r = (0, 0));
            self.recent[0] = (pcid, low);
        }
        self.large_code[half]
    }

    /// Forgets the address space `pcid`, except global translations.
    pub fn flush_pcid(&mut self, pcid: u16, tlb: &mut Tlb) {
        if pcid == self.pcid {
            self.flush_current(tlb);
        } else {
            self.recent.iter_mut().filter(|r| r.0 == pcid).for_each(|r| *r = (0, 0));
        }
    }

    /// Forgets what is not global in all address spaces.
    pub fn flush_local(&mut self, tlb: &mut Tlb) {
        self.recent = [(0, 0); PCIDS];
        self.flush_current(tlb);
    }

    /// The current PCID.
    pub fn pcid(&self) -> u16 {
        self.pcid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIGH: u64 = 0xffff_8000_0000_0000;

    #[test]
    fn a_switch_comes_back_to_what_it_knew_if_it_may() {
        let mut tlb = Tlb::new().unwrap();
        let mut spaces = Spaces::default();
        spaces.switch(1, false, &mut tlb);
        let one = spaces.keys(USER);
        spaces.switch(2, true, &mut tlb);
        assert_ne!(spaces.keys(USER)[0], one[0]);
        assert_eq!(spaces.keys(USER)[1], one[1], "only global translations in the upper half");
        spaces.switch(1, true, &mut tlb);
        assert_eq!(spaces.keys(USER), one);
        spaces.switch(1, false, &mut tlb);
        assert_ne!(spaces.keys(USER)[0], one[0]);
        spaces.entered(HIGH, false);
        let before = spaces.keys(0);
        spaces.switch(2, true, &mut tlb);
        assert_ne!(spaces.keys(0)[1], before[1], "a local translation in the upper half");
    }

    #[test]
    fn flushed_address_spaces_do_not_come_back() {
        let mut tlb = Tlb::new().unwrap();
        let mut spaces = Spaces::default();
        spaces.switch(1, false, &mut tlb);
        let one = spaces.keys(0)[0];
        spaces.switch(2, false, &mut tlb);
        spaces.flush_pcid(1, &mut tlb);
        spaces.switch(1, true, &mut tlb);
        assert_ne!(spaces.keys(0)[0], one);
        let one = spaces.keys(0)[0];
        spaces.switch(2, true, &mut tlb);
        spaces.entered(0x1000, true);
        spaces.flush_page(0x1000, &mut tlb);
        spaces.switch(1, true, &mut tlb);
        assert_ne!(spaces.keys(0)[0], one, "INVLPG reaches global pages of every PCID");
    }

    #[test]
    fn numbers_that_run_out_wipe_the_entries() {
        let mut tlb = Tlb::new().unwrap();
        let mut spaces = Spaces::default();
        let first = spaces.keys(0)[0];
        tlb.data[0].read = tag(0, first);
        let mut came_back = false;
        for _ in 0..3000 {
            spaces.flush_current(&mut tlb);
            let keys = spaces.keys(0);
            assert!(keys[0] < NEVER && keys[1] < NEVER && keys[0] != keys[1]);
            came_back |= keys[0] == first && tlb.data[0].read == tag(0, first);
        }
        assert!(!came_back);
        assert_eq!(tlb.data[0].read, 0);
    }

    #[test]
    fn a_large_page_is_dropped_whole() {
        let mut tlb = Tlb::new().unwrap();
        let mut spaces = Spaces::default();
        let (inside, outside) = (0x40_3000, 0x60_4000);
        for linear in [inside, outside] {
            let shift = spaces.fragment(linear, 21, false);
            tlb.data[index(linear, DATA_ENTRIES)] = DataEntry {
                read: tag(linear, spaces.keys(USER)[0]),
                write: INVALID,
                addend: 0,
                gpa: shift << FRAGMENT_SHIFT,
            };
            tlb.exec[index(linear, EXEC_ENTRIES)] = ExecEntry {
                tag: tag(linear, spaces.keys(0)[0]),
                shift: spaces.fragment(linear, 21, true),
                ..ExecEntry::default()
            };
        }
        assert!(spaces.flush_page(0x5f_f000, &mut tlb), "jumps into the page have to go too");
        assert_eq!((tlb.data[index(inside, DATA_ENTRIES)].read, tlb.exec[index(inside, EXEC_ENTRIES)].tag), (0, 0));
        assert_ne!(tlb.data[index(outside, DATA_ENTRIES)].read, 0);
        assert_ne!(tlb.exec[index(outside, EXEC_ENTRIES)].tag, 0);
    }

    #[test]
    fn a_page_is_dropped_for_both_classes() {
        let mut tlb = Tlb::new().unwrap();
        let mut spaces = Spaces::default();
        for class in [0, USER] {
            let i = index(0x5000, DATA_ENTRIES);
            tlb.data[i].read = tag(0x5000, spaces.keys(class)[0]);
            tlb.data[i].write = INVALID;
            spaces.flush_page(0x4000, &mut tlb);
            assert_ne!(tlb.data[i].read, 0);
            spaces.flush_page(0x5fff, &mut tlb);
            assert_eq!(tlb.data[i].read, 0);
        }
    }
}
