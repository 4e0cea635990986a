//! The walker against a reference that follows the manual bit by bit, on random tables in every mode.
#![allow(clippy::nonminimal_bool)] // the conditions stand as the manual states them
use std::cell::{Cell, RefCell};

use mmu::{MemoryError, Paging, Request, TableMemory, WalkError, translate, walk, walk::load_pdptes};
use platform::Word;
use proptest::prelude::*;
use x86::{CpuState, Features};

/// Guest memory of a few pages; everything above has no memory.
#[derive(Clone)]
struct Mem {
    bytes: RefCell<Vec<u8>>,
    /// Flips a bit of every entry between its reading and its update, that many times.
    races: Cell<u32>,
    read_only: bool,
}

const PAGES: u64 = 8;

impl Mem {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: RefCell::new(bytes), races: Cell::new(0), read_only: false }
    }
    fn put(&self, at: u64, entry: u64) {
        self.bytes.borrow_mut()[at as usize..][..8].copy_from_slice(&entry.to_le_bytes());
    }
    fn get(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes.borrow()[at as usize..][..8].try_into().unwrap())
    }
}

impl TableMemory for Mem {
    fn load_entry<W: Word>(&self, gpa: u64) -> Result<W, MemoryError> {
        let bytes = self.bytes.borrow();
        let at = usize::try_from(gpa).ok().filter(|at| *at + 8 <= bytes.len()).ok_or(MemoryError::NoMemory(gpa))?;
        assert_eq!(gpa % W::BYTES, 0);
        let mut word = [0; 8];
        word[..W::BYTES as usize].copy_from_slice(&bytes[at..][..W::BYTES as usize]);
        Ok(W::from_low(u64::from_le_bytes(word)))
    }
    fn exchange_entry<W: Word>(&self, gpa: u64, old: W, new: W) -> Result<W, MemoryError> {
        if self.read_only {
            return Err(MemoryError::ReadOnly(gpa));
        }
        if self.races.get() > 0 {
            self.races.set(self.races.get() - 1);
            self.bytes.borrow_mut()[gpa as usize + 1] ^= 0x08; // an ignored bit
        }
        let was = self.load_entry::<W>(gpa)?;
        if was == old {
            let n = W::BYTES as usize;
            self.bytes.borrow_mut()[gpa as usize..][..n].copy_from_slice(&new.low().to_le_bytes()[..n]);
        }
        Ok(was)
    }
}

#[derive(Clone, Copy, Debug)]
struct Access {
    write: bool,
    fetch: bool,
    user: bool,
    ac: bool,
}

impl Access {
    fn request(self) -> Request {
        let mut r = match (self.write, self.fetch) {
            (true, _) => Request::WRITE,
            (_, true) => Request::FETCH,
            _ => Request::READ,
        };
        if self.user {
            r = r.user();
        }
        if self.ac {
            r = r.lift_smap();
        }
        r
    }
}

#[derive(Debug, PartialEq)]
struct Found {
    gpa: u64,
    shift: u32,
    write: bool,
    user: bool,
    exec: bool,
    global: bool,
    dirty: bool,
}

fn bit(value: u64, n: u32) -> bool {
    value >> n & 1 != 0
}

/// The manual, read slowly. Errors are page-fault codes; a table outside memory is None.
fn reference(mem: &Mem, s: &CpuState, f: Features, maxphy: u32, gva: u64, a: Access) -> Result<Found, Option<u32>> {
    let (pg, wp) = (bit(s.cr0, 31), bit(s.cr0, 16));
    let (pse, pae, pge, la57, smep, smap) =
        (bit(s.cr4, 4), bit(s.cr4, 5), bit(s.cr4, 7), bit(s.cr4, 12), bit(s.cr4, 20), bit(s.cr4, 21));
    let (lma, nxe) = (bit(s.efer, 10), bit(s.efer, 11));
    if !pg {
        let gpa = gva % (1 << 32);
        return Ok(Found { gpa, shift: 32, write: true, user: true, exec: true, global: true, dirty: true });
    }
    let wide = pae || lma;
    let nx_works = wide && nxe;
    let code = |present: bool, reserved: bool| {
        let mut code = 0;
        code |= if present { 1 } else { 0 };
        code |= if a.write { 2 } else { 0 };
        code |= if a.user { 4 } else { 0 };
        code |= if reserved { 8 } else { 0 };
        code |= if a.fetch && (nx_works || smep) { 16 } else { 0 };
        Some(code)
    };
    let (mut level, mut table) = if lma {
        (if la57 { 5 } else { 4 }, s.cr3 & !0xfff & ((1u64 << maxphy) - 1))
    } else if pae {
        let pdpte = s.pdptr[(gva >> 30) as usize % 4];
        if !bit(pdpte, 0) {
            return Err(code(false, false));
        }
        (2, pdpte & 0x000f_ffff_ffff_f000)
    } else {
        (2, s.cr3 & 0xffff_f000)
    };
    let (mut write, mut user, mut exec) = (true, true, true);
    let mut touched = Vec::new();
    loop {
        let size = if wide { 8 } else { 4 };
        let per_table = if wide { 9 } else { 10 };
        let shift = 12 + per_table * (level - 1);
        let at = table + (gva >> shift) % (1 << per_table) * size;
        if at + 8 > PAGES * 4096 {
            return Err(None);
        }
        let mut entry = mem.get(at);
        if !wide {
            entry %= 1 << 32;
        }
        if !bit(entry, 0) {
            return Err(code(false, false));
        }
        let leaf =
            level == 1 || bit(entry, 7) && (level == 2 && (wide || pse) || level == 3 && f.contains(Features::GBPAGES));
        for n in 0..64 {
            let reserved = if wide {
                n >= maxphy && n <= if lma { 51 } else { 62 }
                    || n == 63 && !nxe
                    || n == 7 && level >= 3 && !leaf
                    || n == 8 && level >= 3 && !leaf && f.contains(Features::AMD)
                    || leaf && level > 1 && n > 12 && n < shift
            } else {
                let address_bit = n + 19; // bits 20:13 are address bits 39:32
                leaf && level == 2
                    && (n == 21 || (13..=20).contains(&n) && (address_bit >= maxphy || !f.contains(Features::PSE36)))
            };
            if reserved && bit(entry, n) {
                return Err(code(true, true));
            }
        }
        write &= bit(entry, 1);
        user &= bit(entry, 2);
        exec &= !bit(entry, 63);
        touched.push((at, leaf));
        if !leaf {
            table = entry & 0x000f_ffff_ffff_f000;
            level -= 1;
            continue;
        }
        let ok = if a.user {
            user && (!a.write || write) && (!a.fetch || exec)
        } else if a.fetch {
            exec && !(smep && user)
        } else {
            (!a.write || write || !wp) && !(smap && user && !a.ac)
        };
        if !ok {
            return Err(code(true, false));
        }
        let mut dirty = bit(entry, 6);
        for (at, leaf) in touched {
            // Only the byte with the accessed and dirty bits: entries may be four bytes.
            let mut now = mem.get(at) | 0x20;
            if leaf && a.write {
                now |= 0x40;
                dirty = true;
            }
            mem.bytes.borrow_mut()[at as usize] = now as u8;
        }
        let mut base = entry & 0x000f_ffff_ffff_f000;
        if !wide && level == 2 {
            base = entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32;
        }
        base &= !((1u64 << shift) - 1);
        let gpa = base + gva % (1 << shift);
        return Ok(Found { gpa, shift, write, user, exec, global: pge && bit(entry, 8), dirty });
    }
}

/// Random tables: mostly present entries that point to each other.
fn tables(seed: u64, wide: bool, noise: u32) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    };
    let mut bytes = Vec::new();
    while bytes.len() < (PAGES * 4096) as usize {
        let r = next();
        let mut e = (r % (PAGES + 1)) << 12 | 7;
        // Each of these with one chance in some.
        for (n, chance) in [(0, 12), (1, 4), (2, 3), (7, 3), (63, 5)] {
            if next() % chance == 0 {
                e ^= 1 << n;
            }
        }
        e |= next() & 0x160; // A, D, G
        if next() % 64 < u64::from(noise) {
            e ^= 1 << (next() % 64);
        }
        if wide {
            bytes.extend(e.to_le_bytes());
        } else {
            bytes.extend((e as u32).to_le_bytes());
        }
    }
    bytes
}

fn state(mode: u32, cr0: bool, bits: u32, root: u64, pdptr: [u64; 4]) -> CpuState {
    let mut s = CpuState::reset(0);
    s.cr0 = u64::from(mode != 0) << 31 | u64::from(cr0) << 16 | 1;
    s.cr4 = match mode {
        2 => 1 << 5,
        3 => 1 << 5,
        4 => 1 << 5 | 1 << 12,
        _ => 0,
    } | u64::from(bits & 1) << 4
        | u64::from(bits >> 1 & 1) << 7
        | u64::from(bits >> 2 & 1) << 20
        | u64::from(bits >> 3 & 1) << 21;
    s.efer = u64::from(bits >> 4 & 1) << 11 | if mode >= 3 { 1 << 10 } else { 0 };
    s.cr3 = root;
    s.pdptr = pdptr;
    s
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 3 } else { 2000 }, failure_persistence: None, ..Default::default() })]

    #[test]
    fn as_the_reference(
        seed: u64, mode in 0u32..5, wp: bool, control in 0u32..32, features in 0u32..8, maxphy in 32u32..53,
        noise in prop_oneof![Just(0u32), Just(8u32)], gvas in proptest::collection::vec((any::<u64>(), 0u32..16), 1..12),
    ) {
        let mut f = Features::empty();
        f.set(Features::GBPAGES, features & 1 != 0);
        f.set(Features::AMD, features & 2 != 0);
        f.set(Features::PSE36, features & 4 != 0);
        let page = |n: u64| (n % PAGES) << 12;
        let pdptr = [page(seed) | 1, page(seed >> 8) | 1, 0x2001, seed >> 16 & 1 | 0x3000];
        let s = state(mode, wp, control, page(seed), pdptr);
        let wide = mode >= 2;
        let bytes = tables(seed, wide, noise);
        let (ours, theirs) = (Mem::new(bytes.clone()), Mem::new(bytes));
        let paging = Paging::new(&s, f, maxphy);
        for (gva, access) in gvas {
            let gva = if mode < 3 { gva & 0xffff_ffff } else { gva };
            let access = Access {
                write: access & 1 != 0,
                fetch: access & 3 == 2,
                user: access & 4 != 0,
                ac: access & 8 != 0,
            };
            let before = ours.bytes.borrow().clone();
            let looked = translate(&ours, &paging, gva);
            prop_assert!(*ours.bytes.borrow() == before, "translate changed the tables");
            let got = walk(&ours, &paging, gva, access.request());
            let want = reference(&theirs, &s, f, maxphy, gva, access);
            let got = match got {
                Ok(t) => {
                    prop_assert_eq!(looked.map(|l| l.gpa), Some(t.gpa));
                    let r = t.rights;
                    prop_assert!(r.allow(access.request(), &paging));
                    Ok(Found {
                        gpa: t.gpa, shift: t.page_shift, write: r.writable(), user: r.user(),
                        exec: r.executable(), global: r.global(), dirty: r.dirty(),
                    })
                }
                Err(WalkError::Fault(code)) => Err(Some(code)),
                Err(WalkError::Memory(MemoryError::NoMemory(_))) => Err(None),
                Err(other) => panic!("{other:?}"),
            };
            prop_assert_eq!(got, want);
            prop_assert!(*ours.bytes.borrow() == *theirs.bytes.borrow(), "accessed or dirty bits differ");
        }
    }
}

/// Four levels at pages 1 to 4 that map 0x5000 at address 0.
fn long() -> (Mem, Paging) {
    let mem = Mem::new(vec![0; (PAGES * 4096) as usize]);
    for page in 1..5 {
        mem.put(page << 12, (page + 1) << 12 | 7);
    }
    let paging = Paging::new(&state(3, true, 31, 0x1000, [0; 4]), Features::empty(), 40);
    (mem, paging)
}

#[test]
fn accessed_on_all_levels_dirty_on_the_last() {
    let (mem, paging) = long();
    let denied = walk(&mem, &paging, 0, Request::FETCH); // SMEP
    assert_eq!(denied, Err(WalkError::Fault(0x11)));
    assert_eq!(walk(&mem, &paging, 0, Request::WRITE), Err(WalkError::Fault(3))); // SMAP
    assert!((1..5).all(|page| mem.get(page << 12) & 0x60 == 0));
    assert!(!walk(&mem, &paging, 0x123, Request::READ.user()).unwrap().rights.dirty());
    assert!((1..5).all(|page| mem.get(page << 12) & 0x60 == 0x20));
    let t = walk(&mem, &paging, 0x123, Request::WRITE.user()).unwrap();
    assert_eq!((t.gpa, t.page_shift, t.rights.dirty()), (0x5123, 12, true));
    assert_eq!((mem.get(0x3000) & 0x60, mem.get(0x4000) & 0x60), (0x20, 0x60));
}

#[test]
fn a_changed_entry_starts_the_walk_over() {
    let (mem, paging) = long();
    mem.races.set(5);
    assert_eq!(walk(&mem, &paging, 0, Request::WRITE.user()).unwrap().gpa, 0x5000);
    assert_eq!((mem.races.get(), mem.get(0x4000) & 0x60), (0, 0x60));
    // But not for ever.
    let (mem, paging) = long();
    mem.races.set(u32::MAX);
    assert_eq!(walk(&mem, &paging, 0, Request::READ.user()), Err(WalkError::Contended));
}

#[test]
fn tables_in_rom_keep_their_bits() {
    let (mut mem, paging) = long();
    mem.read_only = true;
    assert_eq!(walk(&mem, &paging, 0, Request::WRITE.user()).unwrap().gpa, 0x5000);
    assert_eq!(mem.get(0x4000) & 0x60, 0);
}

#[test]
fn pdptes() {
    let mem = Mem::new(vec![0; (PAGES * 4096) as usize]);
    mem.put(0x1020, 0x2001);
    mem.put(0x1038, 0xffff_ffff_ffff_fffe); // not present: anything goes
    assert_eq!(load_pdptes(&mem, 0xff_0000_1020, 40), Ok(Some([0x2001, 0, 0, 0xffff_ffff_ffff_fffe])));
    for reserved in [1, 2, 5, 8, 40, 62, 63] {
        mem.put(0x1028, 1 | 1 << reserved);
        assert_eq!(load_pdptes(&mem, 0x1020, 40), Ok(None), "bit {reserved}");
    }
    mem.put(0x1028, 1 | 1 << 39 | 0xe18);
    assert!(load_pdptes(&mem, 0x1020, 40).unwrap().is_some());
    assert_eq!(load_pdptes(&mem, 0x80_0000, 40), Err(MemoryError::NoMemory(0x80_0000)));
}
