//! The arithmetic that stands between a guest or a client and memory that is not theirs: what a slot may be, which
//! bytes of it an access reaches, which pages a log names. Against models that count in more bits, or byte by byte.
use std::collections::BTreeSet;

use abi::{KVM_MEM_LOG_DIRTY_PAGES as LOG, KvmClearDirtyLog, KvmDirtyLog, KvmMemoryAlias, KvmUserspaceMemoryRegion};
use mmu::{AddressSpace, MemoryError, PhysMem, Region, SlotError};
use platform::{
    Hva, MaySleep, Memory,
    testing::{Test, TestMemory, map},
};
use proptest::prelude::*;

const CX: MaySleep = MaySleep::at_entry();
const PAGE: u64 = 4096;

fn config() -> ProptestConfig {
    ProptestConfig { cases: if cfg!(miri) { 4 } else { 200 }, failure_persistence: None, ..Default::default() }
}

fn region(slot: u32, flags: u32, gpa: u64, size: u64, hva: u64) -> KvmUserspaceMemoryRegion {
    KvmUserspaceMemoryRegion { slot, flags, guest_phys_addr: gpa, memory_size: size, userspace_addr: hva }
}

/// Numbers at which something changes, and their neighbours by a byte and by a page. Fewer in Miri.
fn edges() -> BTreeSet<u64> {
    let edges = [
        0,
        PAGE,
        1 << 31,
        ((1 << 31) - 1) * PAGE,
        1 << 43,
        (1 << 47) - PAGE,
        1 << 47,
        1 << 52,
        1 << 63,
        0u64.wrapping_sub(PAGE),
    ];
    let near = |edge: &u64| [0, 1, PAGE, PAGE.wrapping_neg(), 1u64.wrapping_neg()].map(|d| edge.wrapping_add(d));
    edges.iter().flat_map(near).step_by(if cfg!(miri) { 5 } else { 1 }).collect()
}

/// Every combination of edges: what is accepted lies where it may, counted without wrapping.
#[test]
fn a_slot_that_is_accepted_lies_within_both_address_spaces() {
    let edges = edges();
    let mut accepted = 0;
    for &gpa in &edges {
        for &size in &edges {
            for &hva in &edges {
                let (gpa_end, hva_end) = (u128::from(gpa) + u128::from(size), u128::from(hva) + u128::from(size));
                let aligned = (gpa | size | hva).is_multiple_of(PAGE);
                let fits = gpa_end <= 1 << 52 && hva_end <= u128::from(Hva::CLIENT_END.0) && size / PAGE < 1 << 31;
                let ok = Region::user(&region(0, 0, gpa, size, hva)).is_ok();
                assert_eq!(ok, aligned && fits, "{gpa:#x} {size:#x} {hva:#x}");
                accepted += u32::from(ok);
            }
        }
    }
    assert!(accepted > 10, "nothing is accepted");
}

/// Aliases of every combination of edges: no frame outside of the window, and the right one inside.
#[test]
fn an_alias_covers_its_window_only() {
    let s = AddressSpace::<Test>::new(1, &CX).unwrap();
    let size = 16 * PAGE;
    let _ = s.set_user_region(&Region::user(&region(0, 0, 0, size, 0x10_0000)).unwrap(), &CX).unwrap();
    for &base in &edges() {
        for &bytes in &edges() {
            for target in [0, PAGE, 15 * PAGE, 1 << 52, 0u64.wrapping_sub(PAGE)] {
                let arg = KvmMemoryAlias {
                    slot: 1,
                    flags: 0,
                    guest_phys_addr: base,
                    memory_size: bytes,
                    target_phys_addr: target,
                };
                let end = u128::from(base) + u128::from(bytes);
                let last = u128::from(target) + u128::from(bytes);
                let fits = end < 1 << 64 && last < 1 << 64 && (base | bytes | target).is_multiple_of(PAGE);
                let set = s.set_alias(&arg, &CX).map(drop);
                assert_eq!(set.is_ok(), fits, "{arg:x?}");
                if !fits {
                    continue;
                }
                for gfn in [base / PAGE, (base / PAGE).wrapping_sub(1), (end / u128::from(PAGE)) as u64, 3] {
                    let inside = u128::from(gfn) >= u128::from(base / PAGE) && u128::from(gfn) * u128::from(PAGE) < end;
                    let real = if inside { gfn - base / PAGE + target / PAGE } else { gfn };
                    let want = (real < 16).then(|| Hva(0x10_0000 + real * PAGE));
                    assert_eq!(s.resolve(0, gfn).map(|frame| frame.hva), want, "{gfn:#x} {arg:x?}");
                }
            }
        }
    }
}

/// Three slots that are not neighbours in the client though two are in the guest, with a hole and a read-only one.
fn three_slots() -> AddressSpace<Test> {
    let s = AddressSpace::<Test>::new(1, &CX).unwrap();
    for (id, flags, gpa, pages, hva) in
        [(0, LOG, 0, 2, 0x10_0000), (1, LOG, 2 * PAGE, 2, 0x30_0000), (2, 2, 5 * PAGE, 1, 0x50_0000)]
    {
        map(hva, pages);
        let _ = s.set_user_region(&Region::user(&region(id, flags, gpa, pages * PAGE, hva)).unwrap(), &CX).unwrap();
    }
    s
}

fn log(s: &AddressSpace<Test>, slot: u32) -> u64 {
    map(0x7000_0000, 1);
    s.get_dirty_log(&KvmDirtyLog { slot, padding1: 0, dirty_bitmap: 0x7000_0000 }, &CX, |_, _| {}).unwrap();
    TestMemory::load::<u64>(Hva(0x7000_0000)).unwrap()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn accesses_reach_the_bytes_that_they_name(
        writes in proptest::collection::vec((0..7 * PAGE, 0usize..5000, any::<u8>(), 0u8..3), 1..12)
    ) {
        let s = three_slots();
        // Guest memory as bytes; None where nothing can be written.
        let mut model: Vec<Option<u8>> = (0..7 * PAGE).map(|gpa| (gpa < 4 * PAGE).then_some(0)).collect();
        for (at, len, value, kind) in writes {
            let _ = (log(&s, 0), log(&s, 1));
            let len = match kind { 0 => len, 1 => 8, _ => 16 };
            let range = at as usize..at as usize + len;
            let whole = model.get(range.clone()).is_some_and(|bytes| bytes.iter().all(Option::is_some));
            let v = s.view(0).unwrap();
            let done = match kind {
                0 => v.write(at, &vec![value; len]),
                1 => v.store(at, u64::from_le_bytes([value; 8])),
                _ => v.store(at, u128::from_le_bytes([value; 16])),
            };
            drop(v);
            prop_assert_eq!(done.is_ok(), whole || len == 0, "{:#x} {}", at, len);
            // A word is written whole or not at all; of bytes those before the first bad page.
            let written = match done {
                Ok(()) => len,
                Err(MemoryError::ReadOnly(bad) | MemoryError::NoMemory(bad)) if kind == 0 => (bad - at) as usize,
                Err(_) => 0,
            };
            model[range.start..range.start + written].fill(Some(value));
            let mut dirty = [0u64; 2];
            for byte in at..at + written as u64 {
                dirty[byte as usize / 0x2000] |= 1 << (byte / PAGE % 2);
            }
            prop_assert_eq!([log(&s, 0), log(&s, 1)], dirty);
        }
        let v = s.view(0).unwrap();
        for gpa in (0..4 * PAGE - 16).step_by(61) {
            let want = |n: usize| model[gpa as usize..gpa as usize + n].iter().map(|b| b.unwrap()).collect::<Vec<_>>();
            prop_assert_eq!(v.load::<u64>(gpa).unwrap().to_le_bytes().to_vec(), want(8));
            prop_assert_eq!(v.load::<u128>(gpa).unwrap().to_le_bytes().to_vec(), want(16));
            let mut bytes = [0; 16];
            v.read(gpa, &mut bytes).unwrap();
            prop_assert_eq!(bytes.to_vec(), want(16));
        }
    }

    #[test]
    fn the_log_is_a_set_of_pages(
        pages in 1u64..300,
        steps in proptest::collection::vec((0u64..330, 0u64..6, 0u64..330, any::<u64>()), 1..30),
    ) {
        let s = AddressSpace::<Test>::new(1, &CX).unwrap();
        s.set_manual_protect(mmu::dirty::ManualProtect { enabled: true, initially_set: false }, &CX);
        let slot = region(3, LOG, 0x40_0000, pages * PAGE, 0x10_0000);
        let _ = s.set_user_region(&Region::user(&slot).unwrap(), &CX).unwrap();
        let mut model = BTreeSet::new();
        for (page, first, count, bits) in steps {
            s.mark_dirty(0, 0x400 + page);
            if page < pages {
                model.insert(page);
            }
            map(0x7000_0000, 1);
            for word in 0..6 {
                TestMemory::store(Hva(0x7000_0000 + 8 * word), bits.rotate_left(word as u32)).unwrap();
            }
            let (first_page, num_pages) = (first * 64, count as u32);
            let arg = KvmClearDirtyLog { slot: 3, num_pages, first_page, dirty_bitmap: 0x7000_0000 };
            let cleared = s.clear_dirty_log(&arg, &CX, |_, _| {});
            let end = first_page + count;
            if end > pages || count % 64 != 0 && end != pages {
                prop_assert_eq!(cleared, Err(SlotError::Invalid));
            } else {
                let named = |page: u64| bits.rotate_left(((page - first_page) / 64) as u32) >> (page % 64) & 1 != 0;
                let before = model.len();
                model.retain(|page| !(first_page..end).contains(page) || !named(*page));
                prop_assert_eq!(cleared, Ok(model.len() != before));
            }
            map(0x7000_0000, 1);
            s.get_dirty_log(&KvmDirtyLog { slot: 3, padding1: 0, dirty_bitmap: 0x7000_0000 }, &CX, |_, _| {}).unwrap();
            for page in 0..pages.next_multiple_of(64) {
                let word: u64 = TestMemory::load(Hva(0x7000_0000 + page / 64 * 8)).unwrap();
                prop_assert_eq!(word >> (page % 64) & 1 != 0, model.contains(&page), "{}", page);
            }
        }
    }
}
