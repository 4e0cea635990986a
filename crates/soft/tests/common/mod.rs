//! A platform with plain memory, and small guests on it.
#![allow(dead_code)]
use std::{
    ptr,
    sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst},
};

use abi::KvmUserspaceMemoryRegion;
use hv::backend::{Backend, BackendVcpu, Env, Exit, Groups};
use iced_x86::code_asm::CodeAssembler;
use mmu::{AddressSpace, shadow::Root, slots::Region};
use platform::{
    BadAddress, HostFrame, Hva, Level, MaySleep, Memory, Platform, TablePage, TimerCallback, Word,
    table::{CheckedTablePage, identity_frame, identity_frames},
    testing::{NoEventFd, NoPages, TestLock, TestTimer, TestWaiter},
};
use soft::{Options, Soft, SoftVcpu, SoftVm};
use x86::{Attr, CpuState, Cr0, Cr4, Efer, Features, Segment, flags};

pub struct Test;

pub struct Plain;

/// Host pages that "the client has unmapped".
static GONE: AtomicU64 = AtomicU64::new(0);

pub fn unmap(at: u64) {
    GONE.store(at & !0xfff, SeqCst);
}

fn check(at: Hva, bytes: u64) -> Result<(), BadAddress> {
    let gone = GONE.load(SeqCst);
    if gone != 0 && at.0 < gone + 0x1000 && at.0 + bytes > gone { Err(BadAddress) } else { Ok(()) }
}

impl Memory for Plain {
    fn load<T: Word>(at: Hva) -> Result<T, BadAddress> {
        check(at, T::BYTES)?;
        let p = at.0 as *const T;
        // SAFETY: slots of these tests are live memory.
        Ok(unsafe { p.read_unaligned() })
    }
    fn store<T: Word>(at: Hva, value: T) -> Result<(), BadAddress> {
        check(at, T::BYTES)?;
        // SAFETY: as above.
        unsafe { (at.0 as *mut T).write_unaligned(value) };
        Ok(())
    }
    fn compare_exchange<T: Word>(at: Hva, old: T, new: T) -> Result<T, BadAddress> {
        check(at, T::BYTES)?;
        if !at.0.is_multiple_of(T::BYTES) || T::BYTES > 8 {
            // Not atomic; the tests with several vCPUs align their locked operands.
            let seen = Self::load::<T>(at)?;
            if seen == old {
                Self::store(at, new)?;
            }
            return Ok(seen);
        }
        let (a, o, n) = (at.0 as usize, old.low(), new.low());
        // SAFETY: as above, and aligned.
        let seen = unsafe {
            match T::BYTES {
                1 => (&*(a as *const AtomicU8))
                    .compare_exchange(o as u8, n as u8, SeqCst, SeqCst)
                    .map_or_else(u64::from, u64::from),
                2 => (&*(a as *const AtomicU16))
                    .compare_exchange(o as u16, n as u16, SeqCst, SeqCst)
                    .map_or_else(u64::from, u64::from),
                4 => (&*(a as *const AtomicU32))
                    .compare_exchange(o as u32, n as u32, SeqCst, SeqCst)
                    .map_or_else(u64::from, u64::from),
                _ => (&*(a as *const AtomicU64)).compare_exchange(o, n, SeqCst, SeqCst).unwrap_or_else(|e| e),
            }
        };
        Ok(T::from_low(seen))
    }
    fn copy_from(at: Hva, to: &mut [u8]) -> Result<(), BadAddress> {
        check(at, to.len() as u64)?;
        // SAFETY: as above.
        unsafe { ptr::copy(at.0 as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }
    fn copy_to(at: Hva, from: &[u8]) -> Result<(), BadAddress> {
        check(at, from.len() as u64)?;
        // SAFETY: as above.
        unsafe { ptr::copy(from.as_ptr(), at.0 as *mut u8, from.len()) };
        Ok(())
    }
    fn copy_within(from: Hva, to: Hva, bytes: u64) -> u64 {
        if check(from, bytes).is_err() || check(to, bytes).is_err() {
            return 0;
        }
        if to.0.wrapping_sub(from.0) >= bytes {
            // SAFETY: as above.
            unsafe { ptr::copy(from.0 as *const u8, to.0 as *mut u8, bytes as usize) };
        } else {
            for i in 0..bytes {
                // SAFETY: as above.
                unsafe { *((to.0 + i) as *mut u8) = *((from.0 + i) as *const u8) };
            }
        }
        bytes
    }
    fn fill<T: Word>(at: Hva, value: T, count: u64) -> u64 {
        for i in 0..count {
            if Self::store(at.add(i * T::BYTES), value).is_err() {
                return i;
            }
        }
        count
    }
}

impl Platform for Test {
    type Memory = Plain;
    type Pages = NoPages;
    type EventFd = NoEventFd;
    type RawMutex = TestLock;
    type RawSpin = TestLock;
    type Waiter = TestWaiter;
    type Timer<C: TimerCallback> = TestTimer;
    type TablePage = CheckedTablePage;
    type Pin = ();
    fn now_ns() -> u64 {
        0
    }
    fn wall_clock_ns() -> u64 {
        0
    }
    fn tsc() -> u64 {
        1000
    }
    fn tsc_khz() -> u32 {
        0
    }
    fn random(buf: &mut [u8]) {
        buf.fill(7);
    }
    fn signal_pending() -> bool {
        false
    }
    fn relax(_cx: &MaySleep) {
        std::thread::yield_now();
    }
    fn pin() {}
    fn host_frame(hva: Hva, _write: bool, _cx: &MaySleep) -> Result<HostFrame, BadAddress> {
        identity_frame(hva)
    }
    fn host_frames_now(hva: Hva, hpas: &mut [u64], _cx: &MaySleep) -> usize {
        identity_frames(hva, hpas)
    }
    fn log(_level: Level, _message: core::fmt::Arguments<'_>) {}
}

pub const MIB: u64 = 1 << 20;
/// Where tests put their code.
pub const CODE: u64 = 0x10_0000;
/// Where tests put their data.
pub const DATA: u64 = 0x20_0000;
/// Top of the stack.
pub const STACK: u64 = 0x30_0000;
const TABLES: u64 = 0x1000;
pub const GDT: u64 = 0x8000;
pub const IDT: u64 = 0x9000;
pub const TSS: u64 = 0xa000;

/// 16 MiB of guest memory at 0, and what runs on it.
pub struct Guest {
    ram: *mut u8,
    layout: std::alloc::Layout,
    pub memory: AddressSpace<Test>,
    pub backend: Soft<Test>,
    pub vm: SoftVm<Test>,
    pub requests: AtomicU32,
}

// SAFETY: the memory is a guest's: everybody may write it.
unsafe impl Sync for Guest {}
// SAFETY: as above.
unsafe impl Send for Guest {}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`.
        unsafe { std::alloc::dealloc(self.ram, self.layout) };
    }
}

pub const RAM: u64 = 16 * MIB;

impl Guest {
    pub fn new() -> Self {
        Self::with(Options::default())
    }

    pub fn with(options: Options) -> Self {
        let layout = std::alloc::Layout::from_size_align(RAM as usize, 4096).unwrap();
        // SAFETY: the size is not zero.
        let ram = unsafe { std::alloc::alloc_zeroed(layout) };
        let cx = MaySleep::at_entry();
        let memory = AddressSpace::new(4, &cx).unwrap();
        let backend = Soft::with_options(options);
        let vm = backend.create_vm(&cx).unwrap();
        let guest = Self { ram, layout, memory, backend, vm, requests: AtomicU32::new(0) };
        guest.slot(0, 0, RAM, 0);
        guest.tables();
        guest
    }

    /// Makes a slot of the first `bytes` bytes of RAM at `gpa`.
    pub fn slot(&self, slot: u32, gpa: u64, bytes: u64, flags: u32) {
        self.slot_at(slot, gpa, bytes, flags, 0);
    }

    /// Makes a slot of `bytes` bytes of RAM from `offset` at `gpa`; none with 0 bytes.
    pub fn slot_at(&self, slot: u32, gpa: u64, bytes: u64, flags: u32, offset: u64) {
        let arg = KvmUserspaceMemoryRegion {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: bytes,
            userspace_addr: self.ram as u64 + offset,
        };
        let region = Region::user(&arg).unwrap();
        let _ = self.memory.set_user_region(&region, &MaySleep::at_entry()).unwrap();
    }

    pub fn hva(&self, gpa: u64) -> u64 {
        self.ram as u64 + gpa
    }

    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        assert!(gpa + bytes.len() as u64 <= RAM);
        Plain::copy_to(Hva(self.hva(gpa)), bytes).unwrap();
    }

    pub fn write64(&self, gpa: u64, value: u64) {
        self.write(gpa, &value.to_le_bytes());
    }

    pub fn read64(&self, gpa: u64) -> u64 {
        Plain::load(Hva(self.hva(gpa))).unwrap()
    }

    /// Assembles 64-bit code at `gpa`; returns its length.
    pub fn code(&self, gpa: u64, f: impl FnOnce(&mut CodeAssembler)) -> u64 {
        self.code_bits(64, gpa, gpa, f)
    }

    pub fn code_bits(&self, bits: u32, gpa: u64, rip: u64, f: impl FnOnce(&mut CodeAssembler)) -> u64 {
        let mut a = CodeAssembler::new(bits).unwrap();
        f(&mut a);
        let bytes = a.assemble(rip).unwrap();
        self.write(gpa, &bytes);
        bytes.len() as u64
    }

    /// A vCPU in reset state.
    pub fn vcpu(&self, index: usize) -> SoftVcpu<Test> {
        let mut vcpu = self.backend.create_vcpu(&self.vm, index, &MaySleep::at_entry()).unwrap();
        let all = Features::all().difference(Features::AMD);
        vcpu.set_features(all, 7, 40);
        vcpu
    }

    /// A vCPU in 64-bit mode at CODE, with 16 MiB mapped one to one in pages of 4 KiB for the supervisor, and again in the upper
    /// half.
    pub fn long(&self, index: usize) -> SoftVcpu<Test> {
        let mut vcpu = self.vcpu(index);
        let s = vcpu.registers_mut(Groups::ALL);
        long_mode(s);
        s.rip = CODE;
        s.gpr[4] = STACK - 0x1_0000 * index as u64;
        s.refresh();
        vcpu
    }

    fn tables(&self) {
        let (pml4, pdpt, pd) = (TABLES, TABLES + 0x1000, TABLES + 0x2000);
        self.write64(pml4, pdpt | 7);
        // The upper half shows the same memory, global.
        self.write64(pml4 + 8 * 256, pdpt | 7);
        self.write64(pdpt, pd | 7);
        for i in 0..8 {
            let pt = 0x40_0000 + 0x1000 * i;
            self.write64(pd + 8 * i, pt | 7);
            for j in 0..512 {
                self.write64(pt + 8 * j, (i * 512 + j) << 12 | 3);
            }
        }
    }

    /// The page-table entry of `gva` in `tables`.
    pub fn pte(gva: u64) -> u64 {
        0x40_0000 + 8 * (gva >> 12 & 0xfff)
    }

    pub fn enter(&self, vcpu: &mut SoftVcpu<Test>) -> Exit {
        vcpu.enter(&Env { memory: &self.memory, reader: 0, requests: &self.requests, root: Root::NONE })
    }

    pub fn enter_shadow(&self, vcpu: &mut SoftVcpu<Test>, tables: &Shadow) -> Exit {
        vcpu.enter(&Env { memory: &self.memory, reader: 0, requests: &self.requests, root: tables.root() })
    }

    pub fn enter_as(&self, reader: usize, vcpu: &mut SoftVcpu<Test>, requests: &AtomicU32) -> Exit {
        vcpu.enter(&Env { memory: &self.memory, reader, requests, root: Root::NONE })
    }

    /// GDT, IDT with every vector at `handler(vector)`, and TSS.
    pub fn descriptors(&self, handler: impl Fn(u64) -> u64) {
        let gdt =
            [0, 0, 0x00af_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff, 0, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
        for (i, d) in gdt.iter().enumerate() {
            self.write64(GDT + 8 * i as u64, *d);
        }
        for v in 0..256 {
            let to = handler(v);
            let low = to & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (to >> 16 & 0xffff) << 48;
            self.write64(IDT + 16 * v, low);
            self.write64(IDT + 16 * v + 8, to >> 32);
        }
        self.write64(TSS + 4, STACK - 0x8000);
    }
}

/// Shadow tables made by hand.
pub struct Shadow {
    levels: u8,
    /// The root first.
    pages: Vec<CheckedTablePage>,
}

impl Shadow {
    /// None mapped, with 4 levels or 3 (PAE).
    pub fn new(levels: u8) -> Self {
        let mut tables = Self { levels, pages: Vec::new() };
        tables.page();
        tables
    }

    fn page(&mut self) -> u64 {
        let page = CheckedTablePage::new(false, &MaySleep::at_entry()).unwrap();
        let hpa = page.hpa();
        self.pages.push(page);
        hpa
    }

    pub fn root(&self) -> Root {
        Root { hpa: self.pages[0].hpa(), levels: self.levels }
    }

    /// The entry of `linear` at `level` (1 is the leaf); tables above it are made.
    pub fn entry(&mut self, linear: u64, level: u8) -> &'static AtomicU64 {
        let mut table = self.pages[0].hpa();
        let mut now = self.levels;
        loop {
            let index = (linear >> (12 + 9 * (now - 1)) & 511) as usize;
            let entry = CheckedTablePage::live_entry(table, index);
            if now == level {
                return entry;
            }
            if entry.load(SeqCst) & 1 == 0 {
                // PDPTEs have no rights.
                let bits = if now == 3 && self.levels == 3 { 1 } else { 7 };
                entry.store(self.page() | bits, SeqCst);
            }
            table = entry.load(SeqCst) & 0x000f_ffff_ffff_f000;
            now -= 1;
        }
    }

    /// Makes the entry of `linear`.
    pub fn map(&mut self, linear: u64, hpa: u64, bits: u64) {
        self.entry(linear, 1).store(hpa | bits, SeqCst);
    }

    /// Maps what `gva..gva + bytes` is in guest memory to itself.
    pub fn identity(&mut self, g: &Guest, gpa: u64, bytes: u64, bits: u64) {
        for page in (gpa & !0xfff..gpa + bytes).step_by(0x1000) {
            self.map(page, g.hva(page), bits);
        }
    }
}

pub fn long_mode(s: &mut CpuState) {
    let flat = |typ: u16, selector, extra| Segment {
        selector,
        attr: Attr(Attr::P | Attr::S | Attr::G | extra | typ),
        limit: u32::MAX,
        base: 0,
    };
    s.cr0 = (Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE | Cr0::WP).bits();
    s.cr4 = (Cr4::PAE | Cr4::PGE).bits();
    s.efer = (Efer::LME | Efer::LMA | Efer::SCE | Efer::NXE).bits();
    s.cr3 = TABLES;
    s.seg = [flat(3, 0x18, Attr::DB); 6];
    s.seg[1] = flat(11, 0x10, Attr::L);
    s.gdtr = x86::Table { base: GDT, limit: 0xff };
    s.idtr = x86::Table { base: IDT, limit: 0xfff };
    s.tr = Segment { selector: 0x40, attr: Attr(Attr::P | 11), limit: 0x67, base: TSS };
    s.flags.set(flags::FIXED);
    s.gpr = [0; 16];
}
