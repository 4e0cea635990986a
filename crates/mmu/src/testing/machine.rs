//! A virtual machine of model processors on shadow tables, each of whose accesses is held against the walker; or on nested
//! tables, whose guest has no tables of its own.
use alloc::{collections::BTreeSet, format, rc::Rc, vec, vec::Vec};
use core::{cell::RefCell, ops::Range};

use abi::{KvmDirtyLog, KvmMemoryAlias, KvmUserspaceMemoryRegion};
use platform::{
    Hva, MaySleep, Memory, Word,
    lock::rank,
    testing::{self, Test, TestMemory},
};
use x86::{
    CpuState, Features,
    paging::{LARGE_PAGE_SHIFT, PAGE_SHIFT},
};

use super::processor::{Processor, Try};
use crate::{
    AddressSpace, MemoryError, Paging, PagingMode, PhysMem, Region, TableMemory, View,
    shadow::{Cache, EntryFormat, FlushDue, Resolved, Root, Shadow, Written},
    slots::{ChangeKind, LARGE_FRAMES},
    walk::{Request, Trace, WalkError, walk, walk_traced},
};

const CX: MaySleep = MaySleep::at_entry();
/// Where the client keeps the dirty bitmaps that it gets.
const BITMAP: u64 = 0x7000_0000_0000;
/// How often an access may fault before the machine says that it makes no progress.
const PATIENCE: u32 = 40;

/// An access to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Linear address.
    pub gva: u64,
    /// A write of `value`, of 8 bytes if they are in one page, else of one.
    pub write: Option<u64>,
    /// An instruction fetch.
    pub fetch: bool,
    /// In user mode.
    pub user: bool,
    /// EFLAGS.AC is set.
    pub ac: bool,
}

impl Access {
    /// A supervisor's read.
    pub const fn read(gva: u64) -> Self {
        Self { gva, write: None, fetch: false, user: false, ac: false }
    }

    /// A supervisor's write.
    pub const fn write(gva: u64, value: u64) -> Self {
        Self { write: Some(value), ..Self::read(gva) }
    }

    fn request(self) -> Request {
        let request = match (self.write.is_some(), self.fetch) {
            (true, _) => Request::WRITE,
            (false, true) => Request::FETCH,
            (false, false) => Request::READ,
        };
        match (self.user, self.ac) {
            (true, _) => request.user(),
            (false, true) => request.lift_smap(),
            (false, false) => request,
        }
    }

    /// On nested tables, which are walked as user mode, or on others.
    fn at(self, nested: bool) -> Try {
        let Self { gva, write, fetch, user, ac } = self;
        Try { gva, write: write.is_some(), fetch, user: user || nested, ac }
    }

    fn bytes(self) -> usize {
        if self.gva & 0xfff <= 0xff8 { 8 } else { 1 }
    }
}

/// How an access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was made at this guest-physical address.
    Done(u64),
    /// #PF with this code.
    Fault(u32),
    /// It is a device's.
    Device(u64),
    /// The client's memory is gone.
    BadAddress(u64),
}

struct Cpu {
    state: CpuState,
    paging: Paging,
    root: Root,
    cache: Cache<Test>,
    processor: Processor,
    /// The guest has made it forget its translations since it was last in the guest.
    flushed: bool,
    /// None: it translates as the guest's tables say. Else they were written, and only these pages were flushed since.
    fresh: Option<BTreeSet<u64>>,
}

/// What the host's side shares with hooks.
struct Vm {
    memory: AddressSpace<Test>,
    shadow: Shadow<Test>,
    cpus: RefCell<Vec<Cpu>>,
    flushes: RefCell<usize>,
    /// Frames written since each slot's log was last taken, as the guest knows it.
    written: RefCell<BTreeSet<u64>>,
}

impl Vm {
    /// Every processor forgets.
    fn flush(&self) {
        *self.flushes.borrow_mut() += 1;
        self.cpus.borrow_mut().iter_mut().for_each(|cpu| cpu.processor.flush());
    }

    fn settle<T: core::fmt::Debug, E: core::fmt::Debug>(&self, change: (Result<T, E>, FlushDue<Test>)) -> T {
        self.shadow.fulfil(change.1, || self.flush());
        change.0.expect("the VM is alive")
    }

    fn invalidate(&self, range: Range<Hva>) {
        self.settle(self.shadow.invalidate(range.clone(), &self.memory));
        testing::move_frames(range.start.0, (range.end.0 - range.start.0) >> PAGE_SHIFT);
    }
}

/// Tables in which every accessed and dirty bit is set that a walk would set.
struct Settled<'a>(&'a View<'a, Test>);

impl TableMemory for Settled<'_> {
    fn load_entry<W: Word>(&self, gpa: u64) -> Result<W, MemoryError> {
        self.0.load_entry(gpa)
    }
    fn exchange_entry<W: Word>(&self, gpa: u64, _old: W, new: W) -> Result<W, MemoryError> {
        let read_only = self.0.resolve(gpa >> PAGE_SHIFT).is_some_and(|frame| frame.read_only);
        assert!(read_only, "the entry at {gpa:#x} was used and is not {:#x}", new.low());
        Err(MemoryError::ReadOnly(gpa))
    }
}

/// The machine. A clone is the same machine, for hooks that do what another thread does.
#[derive(Clone)]
pub struct Machine {
    vm: Rc<Vm>,
    features: Features,
}

impl core::fmt::Debug for Machine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Machine").field("shadow", &self.vm.shadow).finish_non_exhaustive()
    }
}

impl Machine {
    /// `cpus` processors in reset state, and no memory.
    pub fn new(cpus: usize) -> Self {
        Self::build(cpus, Shadow::new(cpus, &CX).expect("memory"), EntryFormat::X86)
    }

    /// The same on nested tables. Accesses are at guest-physical addresses.
    pub fn nested(cpus: usize, format: EntryFormat) -> Self {
        Self::build(cpus, Shadow::nested(cpus, format, &CX).expect("memory"), format)
    }

    fn build(cpus: usize, shadow: Shadow<Test>, format: EntryFormat) -> Self {
        let features = Features::all();
        let memory = AddressSpace::new(cpus, &CX).expect("memory");
        let all = (0..cpus).map(|_| {
            let state = CpuState::reset(0);
            let paging = Paging::new(&state, features, 40);
            let (cache, processor) = (Cache::default(), Processor::new(format));
            Cpu { state, paging, root: Root::NONE, cache, processor, flushed: true, fresh: None }
        });
        let cpus = RefCell::new(all.collect());
        let vm = Vm { memory, shadow, cpus, flushes: RefCell::new(0), written: RefCell::default() };
        testing::map(BITMAP, 16);
        Self { vm: Rc::new(vm), features }
    }

    /// KVM_SET_USER_MEMORY_REGION; false if it was refused. New memory is mapped in the client, and stays when the
    /// slot goes.
    pub fn set_slot(&mut self, slot: u32, flags: u32, gpa: u64, pages: u64, hva: u64) -> bool {
        let (vm, memory_size) = (&*self.vm, pages << PAGE_SHIFT);
        let arg = KvmUserspaceMemoryRegion { slot, flags, guest_phys_addr: gpa, memory_size, userspace_addr: hva };
        let Ok(region) = Region::user(&arg) else { return false };
        vm.shadow.slots_change();
        let change = vm.memory.set_user_region(&region, &CX);
        let kind = change.map_or(ChangeKind::Nothing, |change| change.kind);
        let stale = matches!(kind, ChangeKind::Delete | ChangeKind::Move);
        let total = vm.memory.locked(&CX).pages();
        vm.shadow.slots_changed(stale, total, &CX, || vm.flush()).expect("alive");
        if kind == ChangeKind::LogBegins {
            vm.settle(vm.shadow.log_writes(region.frames()));
            // A new log.
            vm.written.borrow_mut().retain(|gfn| !region.frames().contains(gfn));
        }
        if kind == ChangeKind::LogEnds {
            vm.shadow.logging_ended(region.frames(), || vm.flush()).expect("alive");
        }
        if kind == ChangeKind::Create {
            for page in 0..pages {
                if <TestMemory as Memory>::load::<u8>(Hva(hva + (page << PAGE_SHIFT))).is_err() {
                    testing::map(hva + (page << PAGE_SHIFT), 1);
                }
            }
        }
        if stale {
            vm.written.borrow_mut().clear();
        }
        kind != ChangeKind::Nothing
    }

    /// KVM_SET_MEMORY_ALIAS; false if it was refused.
    pub fn set_alias(&mut self, slot: u32, gpa: u64, pages: u64, target: u64) -> bool {
        let vm = &*self.vm;
        let (memory_size, target_phys_addr) = (pages << PAGE_SHIFT, target);
        let arg = KvmMemoryAlias { slot, flags: 0, guest_phys_addr: gpa, memory_size, target_phys_addr };
        vm.shadow.slots_change();
        let change = vm.memory.set_alias(&arg, &CX);
        let total = vm.memory.locked(&CX).pages();
        vm.shadow.slots_changed(change.is_ok(), total, &CX, || vm.flush()).expect("alive");
        change.is_ok()
    }

    /// Changes the registers of a processor, as instructions of its guest would: with the flush that they bring.
    pub fn set_registers(&mut self, cpu: usize, change: impl FnOnce(&mut CpuState)) {
        let mut cpus = self.vm.cpus.borrow_mut();
        let cpu = &mut cpus[cpu];
        change(&mut cpu.state);
        cpu.paging = Paging::new(&cpu.state, self.features, 40);
        cpu.processor.flush();
        cpu.flushed = true;
    }

    /// What a processor's registers say.
    pub fn paging(&self, cpu: usize) -> Paging {
        self.vm.cpus.borrow()[cpu].paging
    }

    /// A processor makes an access. What it does and where it ends are held against the walker.
    pub fn access(&mut self, index: usize, access: Access) -> End {
        let end = self.try_access(index, access);
        self.look_at(access, end);
        end
    }

    /// A processor that is in the guest at this moment makes an access: with what it remembers and the tables that it
    /// walks. None: it leaves with a fault, and nothing has happened.
    pub fn access_inside(&mut self, index: usize, access: Access) -> Option<End> {
        let mut cpus = self.vm.cpus.borrow_mut();
        let cpu = &mut cpus[index];
        let translated = cpu.processor.translate(cpu.root, &cpu.paging, access.at(self.vm.shadow.is_nested()));
        drop(cpus);
        let end = self.touch(index, access, translated.ok()?);
        self.look_at(access, end);
        Some(end)
    }

    /// What was written is there, and is remembered for the dirty log.
    fn look_at(&self, access: Access, end: End) {
        if let Some(value) = access.write
            && let End::Done(gpa) = end
        {
            let got: u64 = self.peek(gpa, access.bytes());
            let wanted = if access.bytes() == 8 { value } else { value & 0xff };
            assert_eq!(got, wanted, "{access:x?} wrote elsewhere");
            let gfn = self.vm.memory.locked(&CX).unalias(gpa >> PAGE_SHIFT);
            self.vm.written.borrow_mut().insert(gfn);
        }
    }

    fn try_access(&mut self, index: usize, access: Access) -> End {
        let vm = self.vm.clone();
        for _ in 0..PATIENCE {
            let mut cpus = vm.cpus.borrow_mut();
            let cpu = &mut cpus[index];
            let paging = cpu.paging;
            let mut cache = core::mem::take(&mut cpu.cache);
            drop(cpus);
            let nested = vm.shadow.is_nested();
            let root = if nested {
                vm.shadow.load_nested_root(index, &vm.memory, &mut cache, &CX, || vm.flush())
            } else {
                vm.shadow.load_root(index, &paging, &vm.memory, &mut cache, &CX, || vm.flush())
            };
            let root = root.expect("alive");
            let mut cpus = vm.cpus.borrow_mut();
            let cpu = &mut cpus[index];
            if root != cpu.root {
                cpu.root = root;
                cpu.processor.flush();
            }
            if core::mem::take(&mut cpu.flushed) {
                cpu.fresh = None;
                drop(cpus);
                vm.shadow.guest_flushed(index, &vm.memory, || vm.flush()).expect("alive");
                cpus = vm.cpus.borrow_mut();
            }
            let cpu = &mut cpus[index];
            let translated = cpu.processor.translate(root, &paging, access.at(nested));
            drop(cpus);
            let code = match translated {
                Ok(hpa) => {
                    vm.cpus.borrow_mut()[index].cache = cache;
                    return self.touch(index, access, hpa);
                }
                Err(code) => code,
            };
            assert_eq!(code & x86::exception::pf::RSVD, 0, "reserved bits in shadow entries");
            let (shadow, request, flush) = (&vm.shadow, access.request(), || vm.flush());
            let resolved = if nested {
                shadow.nested_fault(index, access.gva, request, &vm.memory, &mut cache, &CX, flush)
            } else {
                shadow.fault(index, access.gva, request, &paging, &vm.memory, &mut cache, &CX, flush)
            };
            let resolved = resolved.expect("alive");
            vm.cpus.borrow_mut()[index].cache = cache;
            match resolved {
                Resolved::Retry => {}
                Resolved::Guest(code) => return End::Fault(code),
                Resolved::Device { gpa } => return End::Device(gpa),
                Resolved::BadAddress { gpa } => return End::BadAddress(gpa),
                Resolved::Table { .. } | Resolved::Emulate => return self.emulate(index, access),
            }
        }
        panic!("no progress: {access:x?}");
    }

    /// The access at a host-physical address that the processor has found.
    fn touch(&self, index: usize, access: Access, hpa: u64) -> End {
        let Some(page) = testing::client_page(hpa & !0xfff) else {
            panic!("{access:x?} reaches {hpa:#x}, which the host has taken away");
        };
        let hva = page.add(hpa & 0xfff);
        let fresh = self.vm.cpus.borrow()[index].fresh.clone();
        if fresh.is_none_or(|pages| pages.contains(&(access.gva >> PAGE_SHIFT))) {
            // Where it should go, with nothing left to be set in the guest's tables.
            let view = self.vm.memory.view(index).expect("a reader");
            let gpa = match walk(&Settled(&view), &self.paging(index), access.gva, access.request()) {
                Ok(translation) => translation.gpa,
                Err(error) => panic!("{access:x?} should have been {error:?}"),
            };
            let frame = view.frame(gpa >> PAGE_SHIFT).expect("memory");
            assert_eq!(frame.hva.add(gpa & 0xfff), hva, "{access:x?} goes elsewhere");
        }
        let gpa = self.gpa_of(hva);
        if let Some(value) = access.write {
            let bytes = value.to_le_bytes();
            <TestMemory as Memory>::copy_to(hva, &bytes[..access.bytes()]).expect("memory behind a translation");
            if !self.vm.shadow.is_plain(gpa >> PAGE_SHIFT) {
                // It may have been a table that the guest may write as it likes.
                self.vm.cpus.borrow_mut().iter_mut().for_each(|cpu| cpu.fresh = Some(BTreeSet::new()));
            }
        }
        End::Done(gpa)
    }

    fn gpa_of(&self, hva: Hva) -> u64 {
        let view = self.vm.memory.locked(&CX);
        let slot = view.slots().iter().find(|slot| (hva.0.wrapping_sub(slot.hva.0)) >> PAGE_SHIFT < slot.pages);
        slot.map_or(u64::MAX, |slot| (slot.base << PAGE_SHIFT) + (hva.0 - slot.hva.0))
    }

    /// The hypervisor makes the access.
    fn emulate(&mut self, index: usize, access: Access) -> End {
        let view = self.vm.memory.view(index).expect("a reader");
        let walked = walk(&view, &self.paging(index), access.gva, access.request());
        drop(view);
        match walked {
            Ok(translation) => match access.write {
                Some(value) => {
                    let bytes = value.to_le_bytes();
                    self.write(translation.gpa, &bytes[..access.bytes()]);
                    End::Done(translation.gpa)
                }
                None => End::Done(translation.gpa),
            },
            Err(WalkError::Fault(code)) => End::Fault(code),
            Err(error) => panic!("{error:?}"),
        }
    }

    /// The hypervisor writes guest memory, in one page, and tells.
    pub fn write(&mut self, gpa: u64, bytes: &[u8]) {
        let vm = &*self.vm;
        let view = vm.memory.locked(&CX);
        let mut old = vec![0; bytes.len()];
        if view.read(gpa, &mut old).is_err() || view.write(gpa, bytes).is_err() {
            return;
        }
        let gfn = view.unalias(gpa >> PAGE_SHIFT);
        vm.written.borrow_mut().insert(gfn);
        if vm.shadow.is_plain(gfn) {
            return;
        }
        let change = vm.shadow.written(&view, &Written { gpa, old: &old, new: bytes });
        drop(view);
        vm.settle(change);
    }

    /// The guest writes the entry by which the page of `gva` is mapped on a processor, somewhere in memory that leads to it. None: there
    /// is no such entry.
    pub fn write_entry(&mut self, index: usize, gva: u64, entry: u64) -> Option<()> {
        let vm = self.vm.clone();
        let view = vm.memory.view(index)?;
        let paging = self.paging(index);
        let mut trace = Trace::default();
        let _ = walk_traced(&view, &paging, gva, Request::READ.lift_smap(), &mut trace);
        let last = *trace.steps().last()?;
        let (gfn, bytes) =
            (view.unalias(last.gpa >> PAGE_SHIFT), if paging.mode == PagingMode::Bits32 { 4 } else { 8 });
        let plain = !vm.shadow.is_protected(gfn) && view.resolve(gfn).is_some_and(|frame| !frame.read_only);
        if !plain {
            drop(view);
            self.write(last.gpa, &entry.to_le_bytes()[..bytes]);
            return Some(());
        }
        view.write(last.gpa, &entry.to_le_bytes()[..bytes]).ok()?;
        vm.written.borrow_mut().insert(gfn);
        vm.cpus.borrow_mut().iter_mut().for_each(|cpu| cpu.fresh = Some(BTreeSet::new()));
        Some(())
    }

    /// The same for a 64-bit word.
    pub fn put(&mut self, gpa: u64, value: u64) {
        self.write(gpa, &value.to_le_bytes());
    }

    /// The client's device writes guest memory: nobody hears of it.
    pub fn dma(&self, gpa: u64, bytes: &[u8]) {
        let _ = self.vm.memory.locked(&CX).write(gpa, bytes);
    }

    /// Guest memory.
    pub fn peek(&self, gpa: u64, bytes: usize) -> u64 {
        let mut value = [0; 8];
        let _ = self.vm.memory.locked(&CX).read(gpa, &mut value[..bytes]);
        u64::from_le_bytes(value)
    }

    /// The guest makes every processor forget what it remembers, as it has to after changes of its tables.
    pub fn guest_flush(&mut self) {
        let count = self.vm.cpus.borrow().len();
        for index in 0..count {
            self.guest_flush_of(index);
        }
    }

    /// The guest makes one processor forget everything.
    pub fn guest_flush_of(&mut self, index: usize) {
        let vm = &*self.vm;
        let mut cpus = vm.cpus.borrow_mut();
        cpus[index].processor.flush();
        cpus[index].fresh = None;
        drop(cpus);
        vm.shadow.guest_flushed(index, &vm.memory, || vm.flush()).expect("alive");
    }

    /// The guest makes one processor forget the page of `gva`.
    pub fn guest_flush_page(&mut self, index: usize, gva: u64) {
        let vm = &*self.vm;
        let mut cpus = vm.cpus.borrow_mut();
        cpus[index].processor.forget(gva);
        if let Some(fresh) = &mut cpus[index].fresh {
            fresh.insert(gva >> PAGE_SHIFT);
        }
        drop(cpus);
        vm.shadow.guest_flushed_page(index, gva, &vm.memory, || vm.flush()).expect("alive");
    }

    /// The host puts a large page behind the 2 MiB of the client around `hva`.
    pub fn make_large(&self, hva: u64) {
        let first = hva & !((1 << LARGE_PAGE_SHIFT) - 1);
        self.invalidate(first, LARGE_FRAMES);
        testing::make_large(first);
    }

    /// The host takes away pages of the client.
    pub fn invalidate(&self, hva: u64, pages: u64) {
        self.vm.invalidate(Hva(hva)..Hva(hva + (pages << PAGE_SHIFT)));
    }

    /// The same, in the middle of the next fault that asks for a host page.
    pub fn invalidate_in_fault(&self, hva: u64, pages: u64) {
        let vm = self.vm.clone();
        testing::at_next_host_frame(move || vm.invalidate(Hva(hva)..Hva(hva + (pages << PAGE_SHIFT))));
    }

    /// Runs `hook` in the middle of the next fault that asks for a host page.
    pub fn in_fault(&self, hook: impl FnOnce(&AddressSpace<Test>, &Shadow<Test>, &dyn Fn(FlushDue<Test>)) + 'static) {
        let vm = self.vm.clone();
        testing::at_next_host_frame(move || {
            hook(&vm.memory, &vm.shadow, &|due| vm.shadow.fulfil(due, || vm.flush()));
        });
    }

    /// Runs `hook` each time that the MMU lock has been given back, until it returns true: what other processors and the
    /// host do between a change and its flush.
    pub fn at_unlock(&self, mut hook: impl FnMut(&mut Self) -> bool + 'static) {
        let mut same = self.clone();
        testing::at_unlock(rank::MMU, move || hook(&mut same));
    }

    /// Whether pages of the client were used since this was last asked.
    pub fn take_young(&self, hva: u64, pages: u64) -> bool {
        let range = Hva(hva)..Hva(hva + (pages << PAGE_SHIFT));
        self.vm.shadow.young(range, &self.vm.memory, true).expect("alive")
    }

    /// KVM_GET_DIRTY_LOG of a slot with at most 4096 pages: what was written since is there. False: it has no log.
    pub fn get_dirty_log(&mut self, slot: u32) -> bool {
        let vm = &*self.vm;
        let arg = KvmDirtyLog { slot, padding1: 0, dirty_bitmap: BITMAP };
        let taken = vm.memory.get_dirty_log(&arg, &CX, |first, bits| vm.settle(vm.shadow.pages_cleaned(first, bits)));
        if taken.is_err() {
            return false;
        }
        let view = vm.memory.locked(&CX);
        let Some(found) = view.slot(slot) else { return false };
        for page in 0..found.pages {
            let byte = <TestMemory as Memory>::load::<u8>(Hva(BITMAP + page / 8)).expect("bitmap");
            if vm.written.borrow_mut().remove(&(found.base + page)) {
                assert!(byte >> (page % 8) & 1 != 0, "the write to page {page} of slot {slot} is not in its log");
            }
        }
        true
    }

    /// KVM_SET_NR_MMU_PAGES.
    pub fn set_limit(&self, pages: usize) {
        self.vm.settle(self.vm.shadow.set_limit(pages));
    }

    /// The host is short of memory.
    pub fn shrink(&self, pages: usize) -> usize {
        self.vm.settle(self.vm.shadow.shrink(pages))
    }

    /// A write to `gpa` could not be emulated.
    pub fn unprotect(&self, gpa: u64) -> bool {
        let view = self.vm.memory.locked(&CX);
        let change = self.vm.shadow.unprotect(&view, gpa);
        drop(view);
        self.vm.settle(change)
    }

    /// How often every processor was made to forget.
    pub fn flushes(&self) -> usize {
        *self.vm.flushes.borrow()
    }

    /// Bound and number of shadow pages.
    pub fn usage(&self) -> (usize, usize) {
        self.vm.shadow.usage()
    }

    /// Leaves, and large ones among them.
    pub fn leaves(&self) -> (u64, u64) {
        let report = self.vm.shadow.audit(&self.vm.memory, |_| None).expect("alive");
        (report.leaves as u64, report.large as u64)
    }

    /// A fault of processor `cpu` on nested tables at `gpa`, for a read that it does not make.
    pub fn map_far(&mut self, cpu: usize, gpa: u64) -> Resolved {
        let vm = &*self.vm;
        let mut cache = Cache::default();
        let resolved = vm.shadow.nested_fault(cpu, gpa, Request::READ, &vm.memory, &mut cache, &CX, || vm.flush());
        resolved.expect("alive")
    }

    /// A counter, by its name.
    pub fn counter(&self, name: &str) -> u64 {
        let index = crate::shadow::Counter::NAMES.iter().position(|n| *n == name).expect("a counter's name");
        self.vm.shadow.counter(index)
    }

    /// The guest's memory.
    pub fn memory(&self) -> &AddressSpace<Test> {
        &self.vm.memory
    }

    /// The shadow tables themselves.
    pub fn shadow(&self) -> &Shadow<Test> {
        &self.vm.shadow
    }

    /// Every invariant holds, and no processor remembers what it must not.
    pub fn check(&self) {
        let vm = &*self.vm;
        let flushed = vm.cpus.borrow().iter().all(|cpu| cpu.fresh.is_none());
        let report = if flushed {
            vm.shadow.audit_flushed(&vm.memory, testing::frame_of)
        } else {
            vm.shadow.audit(&vm.memory, testing::frame_of)
        };
        let report = report.expect("alive");
        let findings: Vec<_> = report.findings.iter().map(|finding| format!("{finding}")).collect();
        assert!(findings.is_empty(), "{findings:#?}");
        let view = vm.memory.locked(&CX);
        for cpu in vm.cpus.borrow().iter() {
            let small = cpu.processor.tlb.iter().map(|(page, cached)| (*page, cached.hpa, cached));
            let large = cpu.processor.large.iter().flat_map(|(unit, cached)| {
                (0..LARGE_FRAMES).map(move |n| (unit << 9 | n, cached.hpa + (n << PAGE_SHIFT), cached))
            });
            for (page, hpa, cached) in small.chain(large) {
                let hva = testing::client_page(hpa);
                let Some(hva) = hva else { panic!("page {page:#x} is remembered at {hpa:#x}: gone") };
                let slot = view.slots().iter().find(|slot| (hva.0.wrapping_sub(slot.hva.0)) >> PAGE_SHIFT < slot.pages);
                let Some(slot) = slot else { panic!("page {page:#x} is remembered in no slot") };
                let gfn = slot.base + ((hva.0 - slot.hva.0) >> PAGE_SHIFT);
                let table = vm.shadow.is_protected(gfn);
                assert!(!(cached.write && table), "page {page:#x} is remembered as writable, but is a table");
                let logged = slot.dirty().is_some_and(|log| !log.is_marked(gfn - slot.base));
                assert!(!(cached.write && logged), "page {page:#x} is remembered as writable, but not logged");
            }
        }
    }
}
