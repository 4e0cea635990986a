//! Memory slots, aliases and the dirty log, each ioctl against its rules and random ones against a naive model.
use abi::{
    KVM_MEM_LOG_DIRTY_PAGES as LOG, KVM_MEM_READONLY as RO, KvmClearDirtyLog, KvmDirtyLog, KvmMemoryAlias,
    KvmMemoryRegion, KvmUserspaceMemoryRegion,
};
use mmu::{
    AddressSpace, Change, ChangeKind, MemoryError, NR_MEMSLOTS, PhysMem, Region, SlotError, dirty::ManualProtect,
};
use platform::{
    Hva, MaySleep, OutOfMemory,
    testing::{Test, TestMemory, map, unmap},
};
use proptest::prelude::*;

const CX: MaySleep = MaySleep::at_entry();

fn space() -> AddressSpace<Test> {
    AddressSpace::new(2, &CX).unwrap()
}

fn set(s: &AddressSpace<Test>, slot: u32, flags: u32, gpa: u64, size: u64, hva: u64) -> Result<Change, SlotError> {
    let arg = KvmUserspaceMemoryRegion { slot, flags, guest_phys_addr: gpa, memory_size: size, userspace_addr: hva };
    s.set_user_region(&Region::user(&arg)?, &CX)
}

fn kind(change: Result<Change, SlotError>) -> Result<(ChangeKind, bool), SlotError> {
    change.map(|change| (change.kind, change.flush))
}

#[test]
fn arguments_are_checked() {
    let s = space();
    let invalid = Err(SlotError::Invalid);
    let try_set = |slot, flags, gpa, size, hva| kind(set(&s, slot, flags, gpa, size, hva));
    assert_eq!(try_set(0, 4, 0, 0x1000, 0x10000), invalid); // unknown flag
    assert_eq!(try_set(0, 0, 0x800, 0x1000, 0x10000), invalid);
    assert_eq!(try_set(0, 0, 0, 0x1800, 0x10000), invalid);
    assert_eq!(try_set(0, 0, 0, 0x1000, 0x10800), invalid);
    assert_eq!(try_set(NR_MEMSLOTS, 0, 0, 0x1000, 0x10000), invalid);
    assert_eq!(try_set(1 << 16, 0, 0, 0x1000, 0x10000), invalid); // a second address space
    assert_eq!(try_set(0, 0, 0xffff_ffff_ffff_f000, 0x1000, 0x10000), invalid); // wraps
    assert_eq!(try_set(0, 0, 1 << 52, 0x1000, 0x10000), invalid);
    assert_eq!(try_set(0, 0, (1 << 52) - 0x1000, 0x2000, 0x10000), invalid);
    assert_eq!(try_set(0, 0, 0, 0x1000, 0xffff_8000_0000_0000), invalid);
    assert_eq!(try_set(0, 0, 0, 0x2000, 0x7fff_ffff_ffff_f000), invalid);
    assert_eq!(try_set(0, 0, 0, 0x1000, 0xffff_ffff_ffff_f000), invalid);
    assert_eq!(try_set(0, 0, 0, 1 << 43, 0x10000), invalid); // more than 2^31 - 1 pages
    assert_eq!(try_set(0, 0, 0, 0, 0), invalid); // deleting what is not there
    assert_eq!(s.generation(), 0);
    assert_eq!(try_set(NR_MEMSLOTS - 1, 0, 0, 0x1000, 0x10000), Ok((ChangeKind::Create, false)));
    assert_eq!(try_set(0, 0, (1 << 52) - 0x1000, 0x1000, 0x10000), Ok((ChangeKind::Create, false)));
    assert_eq!(s.generation(), 2);
}

#[test]
fn life_of_a_slot() {
    let s = space();
    kind(set(&s, 0, 0, 0x1000, 0x3000, 0x10000)).unwrap();
    kind(set(&s, 1, 0, 0x8000, 0x1000, 0x50000)).unwrap();
    // Same again, other size, other memory, read-only switched: only the first can be.
    assert_eq!(kind(set(&s, 0, 0, 0x1000, 0x3000, 0x10000)), Ok((ChangeKind::Nothing, false)));
    assert_eq!(kind(set(&s, 0, 0, 0x1000, 0x2000, 0x10000)), Err(SlotError::Invalid));
    assert_eq!(kind(set(&s, 0, 0, 0x1000, 0x3000, 0x20000)), Err(SlotError::Invalid));
    assert_eq!(kind(set(&s, 0, RO, 0x1000, 0x3000, 0x10000)), Err(SlotError::Invalid));
    // Overlap, at creation and on a move, by one page at either end.
    assert_eq!(kind(set(&s, 2, 0, 0, 0x2000, 0x70000)), Err(SlotError::Exists));
    assert_eq!(kind(set(&s, 2, 0, 0x3000, 0x2000, 0x70000)), Err(SlotError::Exists));
    assert_eq!(kind(set(&s, 0, 0, 0x6000, 0x3000, 0x10000)), Err(SlotError::Exists));
    // A move onto itself is fine.
    assert_eq!(kind(set(&s, 0, 0, 0x2000, 0x3000, 0x10000)), Ok((ChangeKind::Move, true)));
    assert_eq!(s.resolve(0, 1), None);
    assert_eq!(s.resolve(0, 4).unwrap().hva, Hva(0x12000));
    assert_eq!(s.resolve(0, 5), None);
    assert_eq!(kind(set(&s, 0, LOG, 0x2000, 0x3000, 0x10000)), Ok((ChangeKind::LogBegins, true)));
    assert!(s.resolve(1, 2).unwrap().log_dirty);
    assert_eq!(kind(set(&s, 0, 0, 0, 0, 0)), Ok((ChangeKind::Delete, true)));
    assert_eq!(s.resolve(1, 2), None);
    assert_eq!(s.resolve(1, 8).unwrap().hva, Hva(0x50000));
    // Readers that do not exist see nothing.
    assert_eq!(s.resolve(2, 8), None);
    assert_eq!(s.locked(&CX).resolve(8).unwrap().hva, Hva(0x50000));
}

#[test]
fn owned_memory_is_made_last_and_given_back() {
    let s = space();
    let arg = |slot, gpa, size| {
        Region::owned(&KvmMemoryRegion { slot, flags: 0, guest_phys_addr: gpa, memory_size: size }).unwrap()
    };
    let change = s
        .set_owned_region(
            &arg(3, 0, 0x4000),
            |bytes| {
                assert_eq!(bytes, 0x4000);
                Ok(Hva(0x9000))
            },
            &CX,
        )
        .unwrap();
    assert_eq!((change.kind, change.released), (ChangeKind::Create, None));
    assert_eq!(s.resolve(0, 3).unwrap().hva, Hva(0xc000));
    let never = |_| -> Result<Hva, OutOfMemory> { panic!("no memory is needed") };
    assert_eq!(kind(s.set_owned_region(&arg(4, 0x3000, 0x1000), never, &CX)), Err(SlotError::Exists));
    assert_eq!(kind(s.set_owned_region(&arg(3, 0, 0x1000), never, &CX)), Err(SlotError::Invalid));
    assert_eq!(kind(s.set_owned_region(&arg(3, 0x1000, 0x4000), never, &CX)), Ok((ChangeKind::Move, true)));
    let failing = |_| Err(OutOfMemory);
    assert_eq!(kind(s.set_owned_region(&arg(4, 0x8000, 0x1000), failing, &CX)), Err(SlotError::OutOfMemory));
    assert_eq!(s.resolve(0, 8), None);
    // Either ioctl deletes it.
    let released = set(&s, 3, 0, 0, 0, 0).unwrap().released.unwrap();
    assert_eq!((released.gpa, released.hva, released.bytes), (0x1000, Hva(0x9000), 0x4000));
}

#[test]
fn aliases() {
    let s = space();
    map(0x10000, 16);
    kind(set(&s, 0, LOG, 0, 0x10000, 0x10000)).unwrap();
    let alias = |slot, gpa, size, target| {
        let arg = KvmMemoryAlias { slot, flags: 0, guest_phys_addr: gpa, memory_size: size, target_phys_addr: target };
        kind(s.set_alias(&arg, &CX))
    };
    assert_eq!(alias(4, 0xa0000, 0x1000, 0), Err(SlotError::Invalid));
    assert_eq!(alias(0, 0xa0800, 0x1000, 0), Err(SlotError::Invalid));
    assert_eq!(alias(0, 0xa0000, 0x800, 0), Err(SlotError::Invalid));
    assert_eq!(alias(0, 0xa0800, 0x1800, 0), Err(SlotError::Invalid));
    assert_eq!(alias(0, 0xa0800, 0x1000, 0x800), Err(SlotError::Invalid));
    assert_eq!(alias(0, u64::MAX - 0xfff, 0x1000, 0), Err(SlotError::Invalid));
    assert_eq!(alias(0, 0, 0x1000, u64::MAX - 0xfff), Err(SlotError::Invalid));
    assert_eq!(alias(0, 0xa0000, 0x2000, 0x4000), Ok((ChangeKind::Alias, true)));
    assert_eq!(s.resolve(0, 0xa1).unwrap().hva, Hva(0x15000));
    assert_eq!(s.resolve(0, 0xa2), None);
    s.mark_dirty(0, 0xa1);
    assert_eq!(dirty(&s, 0, 16).0, vec![1 << 5]);
    // Over a slot, and not chained.
    assert_eq!(alias(1, 0x1000, 0x1000, 0xa0000), Ok((ChangeKind::Alias, true)));
    assert_eq!(s.resolve(0, 1), None);
    assert_eq!(alias(1, 0x1000, 0, 0), Ok((ChangeKind::Alias, true)));
    assert_eq!(s.resolve(0, 1).unwrap().hva, Hva(0x11000));
    // Slots survive; so do aliases when a slot changes.
    kind(set(&s, 1, 0, 0x20000, 0x1000, 0)).unwrap();
    assert_eq!(s.resolve(0, 0xa0).unwrap().hva, Hva(0x14000));
}

const BITMAP: u64 = 0x7000_0000;

/// The log, and whether a flush is asked for.
fn dirty(s: &AddressSpace<Test>, slot: u32, pages: u64) -> (Vec<u64>, bool) {
    map(BITMAP, 8);
    let flush = s.get_dirty_log(&KvmDirtyLog { slot, padding1: 0, dirty_bitmap: BITMAP }, &CX, |_, _| {}).unwrap();
    let words = (0..pages.div_ceil(64)).map(|n| <TestMemory as platform::Memory>::load(Hva(BITMAP + n * 8)).unwrap());
    (words.collect(), flush)
}

#[test]
fn dirty_log_at_odd_sizes() {
    for pages in [1u64, 63, 64, 65, 127, 2500] {
        let s = space();
        map(0x10_0000, pages);
        kind(set(&s, 5, LOG, 0x40_0000, pages << 12, 0x10_0000)).unwrap();
        for page in [0, pages / 2, pages - 1] {
            s.mark_dirty(0, 0x400 + page);
        }
        s.mark_dirty(0, 0x400 + pages);
        let (words, flush) = dirty(&s, 5, pages);
        let bits: u64 = words.iter().map(|w| u64::from(w.count_ones())).sum();
        assert_eq!((bits, flush), (if pages > 2 { 3 } else { pages }, true), "{pages}");
        assert_eq!(words[((pages - 1) / 64) as usize] >> ((pages - 1) % 64), 1);
        let (words, flush) = dirty(&s, 5, pages);
        assert!(words.iter().all(|w| *w == 0) && !flush);
    }
}

#[test]
fn a_bad_bitmap_loses_nothing() {
    let s = space();
    kind(set(&s, 0, LOG, 0, 4096 << 12, 0x10_0000)).unwrap();
    s.mark_dirty(0, 5);
    s.mark_dirty(0, 4095);
    map(BITMAP, 1);
    unmap(BITMAP, 1);
    let arg = KvmDirtyLog { slot: 0, padding1: 0, dirty_bitmap: BITMAP };
    assert_eq!(s.get_dirty_log(&arg, &CX, |_, _| {}), Err(SlotError::BadAddress));
    let (words, _) = dirty(&s, 0, 4096);
    assert_eq!((words[0], words[63]), (1 << 5, 1 << 63));
    assert_eq!(s.get_dirty_log(&KvmDirtyLog { slot: 1, ..arg }, &CX, |_, _| {}), Err(SlotError::NotFound));
    assert_eq!(s.get_dirty_log(&KvmDirtyLog { slot: NR_MEMSLOTS, ..arg }, &CX, |_, _| {}), Err(SlotError::Invalid));
    kind(set(&s, 0, 0, 0, 4096 << 12, 0x10_0000)).unwrap();
    assert_eq!(s.get_dirty_log(&arg, &CX, |_, _| {}), Err(SlotError::NotFound));
}

#[test]
fn manual_protection() {
    let s = space();
    s.set_manual_protect(ManualProtect { enabled: true, initially_set: true }, &CX);
    kind(set(&s, 0, LOG, 0, 100 << 12, 0x10_0000)).unwrap();
    let all = vec![u64::MAX, (1 << 36) - 1];
    assert_eq!(dirty(&s, 0, 100), (all.clone(), false));
    assert_eq!(dirty(&s, 0, 100), (all, false));
    let clear = |first_page, num_pages, bits: &[u8]| {
        map(BITMAP, 1);
        <TestMemory as platform::Memory>::copy_to(Hva(BITMAP), bits).unwrap();
        s.clear_dirty_log(&KvmClearDirtyLog { slot: 0, num_pages, first_page, dirty_bitmap: BITMAP }, &CX, |_, _| {})
    };
    assert_eq!(clear(1, 64, &[0; 8]), Err(SlotError::Invalid));
    assert_eq!(clear(0, 63, &[0; 8]), Err(SlotError::Invalid));
    assert_eq!(clear(64, 37, &[0; 8]), Err(SlotError::Invalid));
    assert_eq!(clear(128, 0, &[]), Err(SlotError::Invalid));
    assert_eq!(clear(0, 64, &[0x0f]), Ok(true));
    assert_eq!(clear(0, 64, &[0x0f]), Ok(false));
    // Bits beyond the slot are ignored.
    assert_eq!(clear(64, 36, &[0, 0, 0, 0, 0xff]), Ok(true));
    assert_eq!(dirty(&s, 0, 100).0, vec![u64::MAX - 15, (1 << 32) - 1]);
    assert_eq!(clear(0, 100, &[0xff; 13]), Ok(true));
    assert_eq!(dirty(&s, 0, 100).0, vec![0, 0]);
}

#[test]
fn physical_memory() {
    let s = space();
    map(0x10000, 1);
    map(0x30000, 2);
    kind(set(&s, 0, LOG, 0, 0x1000, 0x10000)).unwrap();
    kind(set(&s, 1, 0, 0x1000, 0x3000, 0x30000)).unwrap();
    kind(set(&s, 2, RO, 0x8000, 0x1000, 0x10000)).unwrap();
    kind(set(&s, 3, 0, 0x6000, 0x1000, 0x30000)).unwrap();
    let v = s.view(0).unwrap();
    v.store(0xffc, 0x1122_3344_5566_7788u64).unwrap();
    assert_eq!(v.load::<u64>(0xffc), Ok(0x1122_3344_5566_7788));
    assert_eq!(v.load::<u32>(0x1000), Ok(0x1122_3344));
    assert_eq!(v.compare_exchange(0xffc, 0u64, 0), Err(MemoryError::Split(0xffc)));
    assert_eq!(v.compare_exchange(0x1ffc, 0u64, 5), Ok(0));
    assert_eq!(v.load::<u32>(0x1ffc), Ok(5));
    let mut back = [0; 0x4000];
    v.read(0x800, &mut back[..0x1800]).unwrap();
    assert_eq!(back[0x7fc..0x804], 0x1122_3344_5566_7788u64.to_le_bytes());
    assert_eq!(v.load::<u8>(0x4000), Err(MemoryError::NoMemory(0x4000)));
    assert_eq!(v.load::<u16>(0x3fff), Err(MemoryError::BadAddress(0x3fff)));
    assert_eq!(v.read(0x1000, &mut back[..0x3001]), Err(MemoryError::BadAddress(0x3000)));
    assert_eq!(v.write(0x2800, &[1; 0x801]), Err(MemoryError::BadAddress(0x3000)));
    assert_eq!(v.store(0x8010, 1u8), Err(MemoryError::ReadOnly(0x8010)));
    assert_eq!(v.load::<u8>(0x8ffc), Ok(0x88));
    // The second page has no memory: nothing of the word is written.
    assert_eq!(v.store(0x8fff, 0u16), Err(MemoryError::ReadOnly(0x8fff)));
    // Half of a word is not written.
    assert_eq!(v.store(0x6fff, 1u16), Err(MemoryError::NoMemory(0x7000)));
    assert_eq!(v.load::<u8>(0x6fff), Ok(0));
    // A word that ends with its page needs none behind it.
    assert_eq!((v.store(0x6ff8, 9u64), v.load::<u64>(0x6ff8)), (Ok(()), Ok(9)));
    assert_eq!(v.load::<u8>(u64::MAX), Err(MemoryError::NoMemory(u64::MAX)));
    assert!(v.load::<u64>(u64::MAX).is_err() && v.store(u64::MAX, 0u64).is_err());
    drop(v);
    assert_eq!(dirty(&s, 0, 1), (vec![1], true));
    let v = s.view(0).unwrap();
    v.write(0xfff, &[7, 8]).unwrap();
    drop(v);
    assert_eq!(dirty(&s, 0, 1).0, vec![1]);
    s.locked(&CX).compare_exchange(0, 9u8, 9).unwrap();
    assert_eq!(dirty(&s, 0, 1).0, vec![1]);
}

/// Readers hammer the slots while they change; each sees one of the states, never a mixture.
#[test]
fn readers_see_whole_snapshots() {
    let s = space();
    let rounds = if cfg!(miri) { 20 } else { 2000 };
    kind(set(&s, 0, 0, 0, 0x1000, 0x10000)).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (s, done) = (&s, &done);
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let v = s.view(reader).unwrap();
                    let (a, b) = (v.resolve(0), v.resolve(1));
                    assert!(a.is_some() != b.is_some());
                    assert_eq!(a.or(b).unwrap().hva, Hva(0x10000));
                }
            });
        }
        for round in 0..rounds {
            kind(set(&s, 0, 0, if round % 2 == 0 { 0x1000 } else { 0 }, 0x1000, 0x10000)).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(s.generation(), rounds + 1);
}

/// A slot of the naive model: page by page.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    id: u32,
    flags: u32,
    base: u64,
    pages: u64,
    hva: u64,
}

fn model_set(model: &mut Vec<Model>, new: Model) -> Result<(), SlotError> {
    let old = model.iter().position(|m| m.id == new.id);
    if new.pages == 0 {
        model.remove(old.ok_or(SlotError::Invalid)?);
        return Ok(());
    }
    if let Some(old) = old {
        let old = &model[old];
        if old.pages != new.pages || old.hva != new.hva || (old.flags ^ new.flags) & RO != 0 {
            return Err(SlotError::Invalid);
        }
    }
    for gfn in new.base..new.base + new.pages {
        if model.iter().any(|m| m.id != new.id && (m.base..m.base + m.pages).contains(&gfn)) {
            return Err(SlotError::Exists);
        }
    }
    model.retain(|m| m.id != new.id);
    model.push(new);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 300 }, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_sequence_is_as_the_model(
        ops in proptest::collection::vec((0u32..5, 0u32..4, 0u64..24, 0u64..6, 0u64..3), 1..40)
    ) {
        let s = space();
        let mut model = Vec::new();
        for (id, flags, base, pages, hva) in ops {
            let hva = (hva + 1) << 20;
            let ours = set(&s, id, flags, base << 12, pages << 12, hva).map(drop);
            prop_assert_eq!(ours, model_set(&mut model, Model { id, flags, base, pages, hva }));
            for gfn in 0..32 {
                let want = model.iter().find(|m| (m.base..m.base + m.pages).contains(&gfn)).map(|m| {
                    (Hva(m.hva + ((gfn - m.base) << 12)), m.flags & RO != 0, m.flags & LOG != 0)
                });
                let got = s.resolve(0, gfn).map(|f| (f.hva, f.read_only, f.log_dirty));
                prop_assert_eq!(got, want);
            }
            let view = s.locked(&CX);
            prop_assert!(view.slots().is_sorted_by_key(|slot| slot.base));
            prop_assert_eq!(view.slots().len(), model.len());
        }
    }
}
