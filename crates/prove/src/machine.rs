//! The software CPU, with a guest around it that looks to a user program as the host does: the same segments, the same
//! memory at the same linear addresses, and handlers that only stop.
//!
//! It is the whole processor as guests have it: instructions are fetched through the page tables, decoded into blocks,
//! executed at privilege level 3 in long mode (or its compatibility mode), with memory reached through the soft TLB, and
//! their exceptions delivered through an IDT to level 0, where the frame is read.
use std::sync::atomic::AtomicU32;

use abi::KvmUserspaceMemoryRegion;
use anyhow::{Result, anyhow};
use hv::backend::{Backend, BackendVcpu, Env, Exit, Groups, GuestDebug};
use mmu::{AddressSpace, shadow::Root, slots::Region};
use platform::{Atomic, MaySleep};
use soft::{Soft, SoftVcpu, SoftVm};
use user::User;
use x86::{Attr, CpuState, Cr0, Cr4, Efer, Features, Fpu, Segment, Shadow, Table, Vector, flags};

use crate::{
    case::{Case, Image, Outcome, collect, end},
    layout::{CODE, CODE_BYTES, DATA, DATA_BYTES, GDT, LDT, WRITABLE},
};

/// Bytes of guest memory.
const RAM: u64 = 0x2_0000;
/// Where what only the supervisor sees is, in the upper half of the address space.
const UPPER: u64 = 0xffff_8000_0000_0000;
const PML4: u64 = 0x1000;
const LOWER_PDPT: u64 = 0x2000;
const LOWER_PD: u64 = 0x3000;
const DATA_PT: u64 = 0x4000;
const CODE_PT: u64 = 0x5000;
const UPPER_PDPT: u64 = 0x6000;
const UPPER_PD: u64 = 0x7000;
const UPPER_PT: u64 = 0x8000;
/// The rest is at the same offset from [`UPPER`] as in guest memory.
const TABLES: u64 = 0x9000;
const GDT_AT: u64 = TABLES;
const LDT_AT: u64 = TABLES + 0x100;
const TSS_AT: u64 = TABLES + 0x200;
/// One HLT for each vector.
const HANDLERS: u64 = TABLES + 0x800;
const IDT_AT: u64 = 0xa000;
const STACK: u64 = 0xc000;
const DATA_AT: u64 = 0x1_0000;
const CODE_AT: u64 = 0x1_4000;

const TSS_SELECTOR: u16 = 0x40;
const LDT_SELECTOR: u16 = 0x50;

/// The software CPU and its guest.
pub struct Machine {
    ram: *mut u8,
    memory: AddressSpace<User>,
    vcpu: SoftVcpu<User>,
    _vm: SoftVm<User>,
    features: Features,
    template: CpuState,
    requests: AtomicU32,
    breakpoints: bool,
    /// How the last case left the guest, if not as a program can.
    pub left: Option<Exit>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("features", &self.features).finish_non_exhaustive()
    }
}

impl Machine {
    /// A machine whose guest is offered what both the host and the software CPU have. `cpu` is the number of the processor
    /// that the host's side runs on, as RDPID shows it.
    pub fn new(image: &Image, cpu: u32) -> Result<Self> {
        user::fault::install()?;
        let cx = MaySleep::at_entry();
        // SAFETY: a new mapping.
        let ram = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RAM as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if ram == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let out = |what: &'static str| move |e| anyhow!("{what}: {e:?}");
        let memory = AddressSpace::new(1, &cx).map_err(|e| anyhow!("address space: {e:?}"))?;
        let region = KvmUserspaceMemoryRegion {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: RAM,
            userspace_addr: ram as u64,
        };
        let region = Region::user(&region).map_err(|e| anyhow!("memory slot: {e:?}"))?;
        let _ = memory.set_user_region(&region, &cx).map_err(|e| anyhow!("memory slot: {e:?}"))?;
        let backend = Soft::<User>::new();
        let vm = backend.create_vm(&cx).map_err(out("VM"))?;
        let mut vcpu = backend.create_vcpu(&vm, 0, &cx).map_err(out("vCPU"))?;
        let mut features = backend.features() & !lacking();
        features.set(Features::AMD, host_is_amd());
        vcpu.set_features(features, backend.xcr0(), 40);
        vcpu.set_debug(GuestDebug { software_breakpoints: true, ..GuestDebug::default() });
        let mut machine = Self {
            ram: ram.cast(),
            memory,
            vcpu,
            _vm: vm,
            features,
            template: template(cpu as u64, backend.xcr0()),
            requests: AtomicU32::new(0),
            breakpoints: true,
            left: None,
        };
        machine.fill(image);
        // Where Linux keeps the number of the processor, readable by all.
        let number =
            Segment { selector: 0, attr: Attr(Attr::P | Attr::S | Attr::DB | 3 << 5 | 5), limit: cpu, base: 0 };
        machine.write64(GDT_AT + 0x78, number.to_descriptor());
        Ok(machine)
    }

    /// What the guest is offered.
    pub fn features(&self) -> Features {
        self.features
    }

    fn at(&self, gpa: u64, bytes: usize) -> *mut u8 {
        assert!(gpa + bytes as u64 <= RAM);
        // SAFETY: inside of the mapping.
        unsafe { self.ram.add(gpa as usize) }
    }

    fn write(&mut self, gpa: u64, bytes: &[u8]) {
        let at = self.at(gpa, bytes.len());
        // SAFETY: inside of the mapping; the guest does not run.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
    }

    fn write64(&mut self, gpa: u64, value: u64) {
        self.write(gpa, &value.to_le_bytes());
    }

    fn read64(&self, gpa: u64) -> u64 {
        let at = self.at(gpa, 8);
        // SAFETY: inside of the mapping; the guest does not run.
        unsafe { at.cast::<u64>().read_unaligned() }
    }

    fn fill(&mut self, image: &Image) {
        const USER: u64 = 7;
        const USER_READ: u64 = 5;
        const SUPERVISOR: u64 = 3;
        let index = |linear: u64, level: u64| (linear >> (12 + 9 * level) & 511) * 8;
        self.write64(PML4, LOWER_PDPT | USER);
        self.write64(PML4 + index(UPPER, 3), UPPER_PDPT | SUPERVISOR);
        self.write64(LOWER_PDPT, LOWER_PD | USER);
        self.write64(UPPER_PDPT, UPPER_PD | SUPERVISOR);
        self.write64(UPPER_PD, UPPER_PT | SUPERVISOR);
        self.write64(LOWER_PD + index(DATA, 1), DATA_PT | USER);
        self.write64(LOWER_PD + index(CODE, 1), CODE_PT | USER);
        for offset in (0..DATA_BYTES as u64).step_by(4096) {
            let rights = if offset < WRITABLE { USER } else { USER_READ };
            self.write64(DATA_PT + index(DATA + offset, 0), (DATA_AT + offset) | rights);
        }
        for offset in (0..CODE_BYTES as u64).step_by(4096) {
            self.write64(CODE_PT + index(CODE + offset, 0), (CODE_AT + offset) | USER);
        }
        for page in (0..RAM).step_by(4096) {
            self.write64(UPPER_PT + index(page, 0), page | SUPERVISOR);
        }
        for (i, descriptor) in (0..).zip(GDT) {
            self.write64(GDT_AT + 8 * i, descriptor);
        }
        for (i, local) in (0..).zip(LDT) {
            self.write64(LDT_AT + 8 * i, local.descriptor());
        }
        let system = |typ: u16, base: u64, limit: u32| Segment { selector: 0, attr: Attr(Attr::P | typ), limit, base };
        for (selector, segment) in
            [(TSS_SELECTOR, system(11, UPPER + TSS_AT, 0x67)), (LDT_SELECTOR, system(2, UPPER + LDT_AT, ldt_limit()))]
        {
            self.write64(GDT_AT + selector as u64, segment.to_descriptor());
            self.write64(GDT_AT + selector as u64 + 8, segment.base >> 32);
        }
        self.write64(TSS_AT + 4, UPPER + STACK);
        // No I/O bitmap.
        self.write(TSS_AT + 0x66, &[0xff, 0xff]);
        for vector in 0..256 {
            let handler = UPPER + HANDLERS + vector;
            // Programs may raise #BP and #OF.
            let gate = if matches!(vector, 3 | 4) { 0xee00 } else { 0x8e00 };
            let low = handler & 0xffff | 0x10 << 16 | gate << 32 | (handler >> 16 & 0xffff) << 48;
            self.write64(IDT_AT + 16 * vector, low);
            self.write64(IDT_AT + 16 * vector + 8, handler >> 32);
        }
        self.write(HANDLERS, &[0xf4; 256]);
        self.write(CODE_AT, &[0xcc; CODE_BYTES]);
        self.write(DATA_AT, &image.0);
    }

    /// Executes `cases` on the data `image`.
    pub fn run(&mut self, image: &Image, cases: &[Case], outcomes: &mut [Outcome]) {
        self.write(DATA_AT, &image.0[..WRITABLE as usize]);
        for (case, outcome) in cases.iter().zip(outcomes) {
            self.execute(image, case, outcome);
        }
    }

    fn execute(&mut self, image: &Image, case: &Case, outcome: &mut Outcome) {
        let base = if case.before.selectors[1] & 4 != 0 { 0 } else { CODE };
        let code = CODE_AT + case.before.rip - base;
        self.write(DATA_AT + case.patch_at as u64, &case.patch[..case.patch_len as usize]);
        self.write(code, case.bytes());
        if self.breakpoints != (case.lands != 0) {
            self.breakpoints = case.lands != 0;
            self.vcpu.set_debug(GuestDebug { software_breakpoints: self.breakpoints, ..GuestDebug::default() });
        }
        self.load(case);
        self.vcpu.load(&Atomic::at_entry());
        let exit = self.enter();
        self.store(exit, outcome);
        self.write(code, &[0xcc; 16][..case.len as usize]);
        let data = self.at(DATA_AT, WRITABLE as usize);
        // SAFETY: both are so long and aligned, and the guest does not run.
        unsafe { collect(data, image.0.as_ptr(), outcome) };
    }

    fn enter(&mut self) -> Exit {
        // An instruction that is retried over and over, or repeated, comes back now and then.
        for _ in 0..100_000 {
            let exit =
                self.vcpu.enter(&Env { memory: &self.memory, reader: 0, requests: &self.requests, root: Root::NONE });
            match exit {
                Exit::Interrupted => {}
                Exit::Pause { len } => self.vcpu.registers_mut(Groups::ALL).rip += len as u64,
                exit => return exit,
            }
        }
        Exit::Interrupted
    }

    fn load(&mut self, case: &Case) {
        let before = &case.before;
        let segments = segments(before.selectors);
        let state = self.vcpu.registers_mut(Groups::ALL);
        state.clone_from(&self.template);
        state.gpr = before.gpr;
        state.rip = before.rip;
        state.flags.set(before.flags);
        state.seg = segments;
        if case.bases != 0 {
            (state.seg[4].base, state.seg[5].base) = (before.bases[0], before.bases[1]);
        }
        state.fpu = fpu(&before.xsave);
        state.shadow = Shadow::None;
        state.refresh();
    }

    fn store(&mut self, exit: Exit, outcome: &mut Outcome) {
        let (rip, selectors, bases) = {
            let state = self.vcpu.registers(Groups::ALL);
            outcome.after.gpr = state.gpr;
            outcome.after.flags = state.flags.get();
            // SAFETY: the type consists of integers without padding, and is as large.
            outcome.after.xsave = unsafe { std::mem::transmute::<Fpu, [u8; 832]>(state.fpu) };
            outcome.cr2 = state.cr2;
            (state.rip, state.seg.map(|s| s.selector), [state.seg[4].base, state.seg[5].base])
        };
        let after = &mut outcome.after;
        after.rip = rip;
        after.bases = bases;
        after.selectors[..6].copy_from_slice(&selectors);
        outcome.error = 0;
        outcome.end = match exit {
            Exit::Exception { exception } if exception.vector == Vector::BP => end::COMPLETED,
            Exit::Hlt { .. } if rip.wrapping_sub(UPPER + HANDLERS) < 256 => rip - (UPPER + HANDLERS),
            exit => {
                self.left = Some(exit);
                end::LEFT
            }
        };
        if outcome.end >= end::COMPLETED {
            return;
        }
        let has_code = matches!(outcome.end, 8 | 10..=14 | 17 | 21);
        let mut frame = STACK - if has_code { 48 } else { 40 };
        if has_code {
            outcome.error = self.read64(frame);
            frame += 8;
        }
        let after = &mut outcome.after;
        after.rip = self.read64(frame);
        after.selectors[1] = self.read64(frame + 8) as u16;
        after.flags = self.read64(frame + 16);
        after.gpr[4] = self.read64(frame + 24);
        after.selectors[2] = self.read64(frame + 32) as u16;
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; nothing runs on it.
        unsafe { libc::munmap(self.ram.cast(), RAM as usize) };
    }
}

fn fpu(xsave: &[u8; 832]) -> Fpu {
    // SAFETY: the type consists of integers without padding, and is as large.
    unsafe { std::mem::transmute::<[u8; 832], Fpu>(*xsave) }
}

const fn ldt_limit() -> u32 {
    8 * LDT.len() as u32 - 1
}

/// The descriptor that `selector` selects.
pub fn descriptor(selector: u16) -> u64 {
    let index = (selector >> 3) as usize;
    if selector & 4 != 0 {
        LDT.get(index).map_or(0, crate::layout::Local::descriptor)
    } else {
        GDT.get(index).copied().unwrap_or(0)
    }
}

/// The segment that a program has in a register after it has loaded `selector`.
pub fn segment(selector: u16) -> Segment {
    let mut segment = Segment::from_descriptor(selector, descriptor(selector));
    if selector < 4 {
        segment.attr = Attr(Attr::UNUSABLE);
    }
    segment
}

fn segments(selectors: [u16; 8]) -> [Segment; 6] {
    std::array::from_fn(|i| segment(selectors[i]))
}

/// The registers that all cases have in common.
fn template(tsc_aux: u64, xcr0: u64) -> CpuState {
    let mut s = CpuState::reset(0);
    s.cr0 = (Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::AM | Cr0::PG).bits();
    s.cr4 = (Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::FSGSBASE | Cr4::UMIP).bits();
    s.efer = (Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE).bits();
    s.cr3 = PML4;
    s.xcr0 = xcr0;
    s.tsc_aux = tsc_aux;
    s.gdtr = Table { base: UPPER + GDT_AT, limit: 0x7f };
    s.idtr = Table { base: UPPER + IDT_AT, limit: 0xfff };
    s.tr = Segment { selector: TSS_SELECTOR, attr: Attr(Attr::P | 11), limit: 0x67, base: UPPER + TSS_AT };
    s.ldtr = Segment { selector: LDT_SELECTOR, attr: Attr(Attr::P | 2), limit: ldt_limit(), base: UPPER + LDT_AT };
    s.flags.set(flags::FIXED);
    s
}

/// What the host's processor does not have, of what the software CPU executes without it.
fn lacking() -> Features {
    use std::arch::is_x86_feature_detected as host_has;
    let leaf7 = std::arch::x86_64::__cpuid_count(7, 0);
    let extended = std::arch::x86_64::__cpuid(0x8000_0001);
    [
        (Features::ADX, host_has!("adx")),
        (Features::BMI1, host_has!("bmi1")),
        (Features::BMI2, host_has!("bmi2")),
        (Features::LZCNT, host_has!("lzcnt")),
        (Features::MOVBE, host_has!("movbe")),
        (Features::POPCNT, host_has!("popcnt")),
        (Features::CX16, host_has!("cmpxchg16b")),
        (Features::RDRAND, host_has!("rdrand")),
        (Features::RDSEED, host_has!("rdseed")),
        (Features::INVPCID, leaf7.ebx & 1 << 10 != 0),
        (Features::SMAP, leaf7.ebx & 1 << 20 != 0),
        (Features::CLFLUSHOPT, leaf7.ebx & 1 << 23 != 0),
        (Features::CLWB, leaf7.ebx & 1 << 24 != 0),
        (Features::RDPID, leaf7.ecx & 1 << 22 != 0),
        (Features::PREFETCHW, extended.ecx & 1 << 8 != 0),
        (Features::RDTSCP, extended.edx & 1 << 27 != 0),
    ]
    .into_iter()
    .filter(|(_, has)| !has)
    .fold(Features::empty(), |all, (feature, _)| all | feature)
}

/// Whether the host's processor is AMD's: the vendors differ in a few instructions.
pub fn host_is_amd() -> bool {
    std::arch::x86_64::__cpuid(0).ecx == u32::from_le_bytes(*b"cAMD")
}
