//! A machine in some mode with tables that make sense, in which the input has changed this and that.
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use x86::{Attr, CpuState, Cr0, Cr4, Efer, Mode, Segment, Shadow, Table, flags};

use crate::{input::Input, invariants, memory::Pages};

/// Guest memory from 0 on.
pub const RAM: u64 = 0x20000;
/// Behind it a page that the guest may only read, and one that its client has taken away.
pub const ALL: u64 = RAM + 0x2000;
/// Where the input's code is.
pub const CODE: u64 = 0x1000;
const STACK: u64 = 0x2800;
const DATA: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const TSS: u64 = 0x6000;
const LDT: u64 = 0x6800;
const HANDLER: u64 = 0x7000;
const LONG_ROOT: u64 = 0x8000;
const PAE_PDPT: u64 = 0xc000;
const LEGACY_ROOT: u64 = 0xd000;
/// How long the first run's physical addresses are; what KVM_GET_SUPPORTED_CPUID says.
pub const PHYSICAL_BITS: u32 = 40;

/// How an exit of the processor brings an instruction to the core.
#[derive(Clone, Copy, Debug)]
pub enum Why {
    /// It cannot run it.
    Emulate,
    /// It met device memory at this address.
    Fault(u64),
    /// It leaves task switches to software.
    TaskSwitch,
    /// It leaves XSETBV to software.
    Xsetbv,
    /// It met a string instruction for a port.
    StringPio(u16),
}

/// What one input makes of the machine.
pub struct Machine {
    /// Registers at the start.
    pub state: CpuState,
    /// Why the core has to emulate.
    pub why: Why,
    /// An interrupt or an NMI to begin with.
    pub event: Option<Option<u8>>,
    /// What devices answer.
    pub device: u64,
    /// Let the software CPU run freely too, not only step by step.
    pub free: bool,
    image: Vec<u8>,
    memory: MutexGuard<'static, Pages>,
}

/// The memory is kept from input to input.
fn memory() -> MutexGuard<'static, Pages> {
    static MEMORY: OnceLock<Mutex<Pages>> = OnceLock::new();
    let new = || {
        let pages = Pages::new(ALL, 0x10_0000);
        pages.protect(RAM + 0x1000, libc::PROT_NONE);
        Mutex::new(pages)
    };
    MEMORY.get_or_init(new).lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    /// Takes the machine and its code from the input.
    pub fn new(input: &mut Input<'_>) -> Self {
        let template = input.u8();
        let options = input.u8();
        let mut image = vec![0; RAM as usize + 0x1000];
        let mut state = CpuState::reset(0x600);
        for (n, r) in state.gpr.iter_mut().enumerate() {
            *r = DATA + 0x40 * n as u64;
        }
        (state.gpr[4], state.gpr[1], state.rip) = (STACK, 7, CODE);
        state.fpu.legacy.fcw = x86::fpu::FCW_INIT;
        let long = tables(&mut state, &mut image, template);
        let mut machine = Self {
            why: Why::Emulate,
            event: None,
            device: 0x8877_6655_4433_2211,
            free: options & 1 != 0,
            state,
            image,
            memory: memory(),
        };
        for _ in 0..options >> 4 {
            machine.change(input, long);
        }
        machine.state.refresh();
        if machine.state.mode != Mode::Long64 {
            machine.state.rip &= 0xffff_ffff;
        }
        invariants::check(&machine.state, PHYSICAL_BITS);
        let code = input.bytes(256);
        machine.put(CODE, code);
        machine.reset_memory();
        machine
    }

    /// Memory as the input has it.
    pub fn reset_memory(&self) {
        self.memory.write(0, &self.image);
    }

    /// The address of guest-physical 0 in this process.
    pub fn memory_at(&self) -> u64 {
        self.memory.at()
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            if let Some(to) = self.image.get_mut(at as usize + i) {
                *to = byte;
            }
        }
    }

    /// One change that the input asks for.
    fn change(&mut self, input: &mut Input<'_>, long: bool) {
        let (what, which) = (input.u8(), input.u8());
        let value = input.value();
        let s = &mut self.state;
        let canonical = if long { ((value << 16) as i64 >> 16) as u64 } else { value & 0xffff_ffff };
        match what % 32 {
            0..5 => s.gpr[usize::from(which) % 16] = value,
            5 => s.flags.set(value & !flags::VM | s.flags.get() & flags::VM),
            6 => {
                let free = Cr0::MP | Cr0::EM | Cr0::TS | Cr0::NE | Cr0::WP | Cr0::AM | Cr0::CD;
                s.cr0 ^= value & free.bits();
            }
            7 => {
                let mut free =
                    Cr4::all() - Cr4::PAE - Cr4::LA57 - Cr4::VMXE - Cr4::SMXE - Cr4::PKE - Cr4::CET - Cr4::PKS;
                if !long {
                    free -= Cr4::PCIDE;
                }
                s.cr4 ^= value & free.bits();
            }
            8 => s.efer ^= value & (Efer::SCE | Efer::NXE).bits(),
            9 | 10 => {
                let segment = &mut s.seg[usize::from(which) % 6];
                match which >> 4 {
                    0..4 => segment.base = canonical,
                    4..8 => segment.limit = value as u32,
                    8..12 => segment.selector = value as u16,
                    _ => segment.attr = Attr(value as u16 & 0x1fff),
                }
                if which % 6 == 1 {
                    // A processor does not have a code segment that is both.
                    let attr = segment.attr.0;
                    segment.attr = Attr(if attr & Attr::L != 0 { attr & !Attr::DB } else { attr });
                    if !long {
                        segment.attr.0 &= !Attr::L;
                    }
                }
            }
            11 => s.dr[usize::from(which) % 4] = value,
            12 => s.dr7 = value & x86::debug::DR7_VOLATILE | x86::debug::DR7_FIXED,
            13 => self.put(GDT + u64::from(which % 32) * 8, &value.to_le_bytes()),
            14 => self.put(IDT + u64::from(which) * 8, &value.to_le_bytes()),
            15 => self.put(LDT + u64::from(which % 32) * 8, &value.to_le_bytes()),
            16 | 17 => {
                self.put(LONG_ROOT + 0x1000 * u64::from(which % 8) + 8 * u64::from(which >> 3), &value.to_le_bytes())
            }
            18 => self.put(TSS + 4 * u64::from(which), &value.to_le_bytes()),
            19 => self.put(u64::from(which) << 8, &value.to_le_bytes()),
            20 => s.fpu.legacy.fcw = value as u16 | 0x40,
            21 => s.fpu.legacy.mxcsr = value as u32 & x86::fpu::MXCSR_MASK,
            22 => s.fpu.legacy.xmm[usize::from(which) % 16][usize::from(which >> 4)] = value as u8,
            23 => (s.fpu.legacy.fsw, s.fpu.legacy.ftw) = (value as u16, which),
            24 => match which % 8 {
                0 => s.star = value,
                1 => s.lstar = canonical,
                2 => s.cstar = canonical,
                3 => s.sfmask = value & 0xffff_ffff,
                4 => s.sysenter_cs = value,
                5 => s.sysenter_esp = canonical,
                6 => s.sysenter_eip = canonical,
                _ => s.kernel_gs_base = canonical,
            },
            25 => s.cr8 = value & 15,
            26 => s.xcr0 = [1, 3, 7, 1][usize::from(which) % 4],
            27 => match which % 4 {
                0 => s.gdtr.limit = value as u16,
                1 => s.idtr.limit = value as u16,
                2 => s.tr.limit = value as u32,
                _ => s.ldtr.limit = value as u32,
            },
            28 => s.shadow = [Shadow::None, Shadow::Sti, Shadow::MovSs][usize::from(which) % 3],
            29 => s.rip = canonical & if long { u64::MAX } else { 0xffff },
            30 => self.event = Some((which & 1 != 0).then_some(value as u8)),
            _ => match which % 5 {
                0 => self.why = Why::Fault(value),
                1 => self.why = Why::TaskSwitch,
                2 => self.why = Why::Xsetbv,
                3 => self.why = Why::StringPio(value as u16),
                _ => self.device = value,
            },
        }
    }
}

fn put64(image: &mut [u8], at: u64, value: u64) {
    image[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
}

fn flat(typ: u16, selector: u16, extra: u16, dpl: u8) -> Segment {
    let attr = Attr(Attr::P | Attr::S | Attr::G | extra | typ).with_dpl(dpl);
    Segment { selector: selector | u16::from(dpl), attr, limit: u32::MAX, base: 0 }
}

/// Registers and tables of a mode: the low three bits of `template` choose it, the next say user or kernel, the next
/// two the paging of protected mode. Returns whether it is long mode.
fn tables(s: &mut CpuState, image: &mut [u8], template: u8) -> bool {
    let (mode, dpl) = (template & 7, if template & 8 != 0 { 3 } else { 0 });
    let long = mode >= 4;
    // What a handler does: IRET, or stop.
    image[HANDLER as usize..][..4].copy_from_slice(&if template & 0x40 != 0 {
        [0xf4; 4]
    } else {
        [0x48, 0xcf, 0xf4, 0xf4]
    });
    paging(image);
    s.gdtr = Table { base: GDT, limit: 0xff };
    s.seg = [Segment::real(0, 0); 6];
    if mode == 0 {
        s.idtr = Table { base: 0, limit: 0x3ff };
        for vector in 0..256 {
            image[4 * vector..4 * vector + 2].copy_from_slice(&(HANDLER as u16).to_le_bytes());
        }
        return false;
    }
    let descriptors = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x0000_9b00_0000_ffff, // 0x38: 16-bit code
        0x0000_8b00_0000_0067 | TSS << 16,
        0,
        0x0000_8200_0000_00ff | LDT << 16, // 0x50
        0,
        0x0000_8900_0000_0067 | (TSS + 0x100) << 16, // 0x60: another task
        0,
        0x0000_ec00_0008_0000 | HANDLER, // 0x70: call gate
        0,
        0x0000_e500_0060_0000, // 0x80: task gate
        0x0000_9700_0000_ffff, // 0x88: expand-down data
        0x0000_9f00_0000_ffff, // 0x90: conforming code
    ];
    for (i, d) in descriptors.iter().enumerate() {
        put64(image, GDT + 8 * i as u64, *d);
        put64(image, LDT + 8 * i as u64, *d);
    }
    let code = if long { 0x10 } else { 0x08 };
    for vector in 0..256 {
        let gate = HANDLER & 0xffff | code << 16 | 0xee00 << 32;
        let at = if long { IDT + 16 * vector } else { IDT + 8 * vector };
        put64(image, at, gate);
    }
    // Stack of the inner level in both formats; the I/O bitmap begins at 0x68.
    put64(image, TSS + 4, 0x2f00 | if long { 0 } else { 0x18 << 32 });
    put64(image, TSS + 0x64, 0x0068_0000);
    for at in (TSS + 0x100..TSS + 0x168).step_by(4) {
        image[at as usize..at as usize + 4].copy_from_slice(&0x18u32.to_le_bytes());
    }
    s.idtr = Table { base: IDT, limit: if long { 0xfff } else { 0x7ff } };
    s.tr = Segment { selector: 0x40, attr: Attr(Attr::P | 11), limit: 0xfff, base: TSS };
    s.ldtr = Segment { selector: 0x50, attr: Attr(Attr::P | 2), limit: 0xff, base: LDT };
    s.cr0 |= Cr0::PE.bits() | Cr0::NE.bits();
    s.cr0 &= !(Cr0::CD | Cr0::NW).bits();
    s.cr4 = (Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::PGE | Cr4::PSE).bits();
    s.xcr0 = 7;
    let (big, l) = match mode {
        2 => (0, 0),
        4 | 6 | 7 => (0, Attr::L),
        _ => (Attr::DB, 0),
    };
    s.seg = [flat(3, if dpl == 3 { 0x30 } else { 0x18 }, Attr::DB, dpl); 6];
    let selector = match (dpl, l != 0) {
        (3, false) => 0x20,
        (3, true) => 0x28,
        (_, false) => 0x08,
        (_, true) => 0x10,
    };
    s.seg[1] = flat(11, selector, big | l, dpl);
    if mode == 1 {
        s.flags.set(flags::VM | u64::from(template >> 4 & 3) << 12);
        s.seg = [Segment::real(0, 3); 6];
    }
    if long {
        s.cr0 |= Cr0::PG.bits() | Cr0::WP.bits();
        s.cr4 |= Cr4::PAE.bits();
        s.efer = (Efer::LME | Efer::LMA | Efer::SCE | Efer::NXE).bits();
        s.cr3 = LONG_ROOT;
    } else if template & 0x10 != 0 {
        s.cr0 |= Cr0::PG.bits();
        s.cr3 = LEGACY_ROOT;
        if template & 0x20 != 0 {
            s.cr4 |= Cr4::PAE.bits();
            s.cr3 = PAE_PDPT;
            let directory = (LONG_ROOT + 0x2000) | 1;
            s.pdptr = [directory, directory, 0, directory];
        }
    }
    long
}

/// Tables of all formats: memory one to one for everybody, then pages with each kind of restriction, large pages, and
/// the upper half as the lower.
fn paging(image: &mut [u8]) {
    let (pml4, pdpt, pd, pt) = (LONG_ROOT, LONG_ROOT + 0x1000, LONG_ROOT + 0x2000, LONG_ROOT + 0x3000);
    for i in [0, 256, 511] {
        put64(image, pml4 + 8 * i, pdpt | 7);
    }
    for i in [0, 511] {
        put64(image, pdpt + 8 * i, pd | 7);
    }
    put64(image, pdpt + 8, 0x87); // 1 GiB
    put64(image, pd, pt | 7);
    put64(image, pd + 8, 0x87); // 2 MiB
    put64(image, pd + 16, 0x0020_0087);
    put64(image, pd + 8 * 511, pt | 7);
    let legacy_pt = LEGACY_ROOT + 0x1000;
    for i in 0..0x30 {
        put64(image, pt + 8 * i, i << 12 | 7);
    }
    let odd = [0, 0x3005, 0x3003, 1 << 63 | 0x3007, 1 << 51 | 0x3007, 0x20007, 0x21007, 0xfee0_0007, 0x3107, 0x1001];
    for (i, entry) in odd.iter().enumerate() {
        put64(image, pt + 8 * (0x30 + i as u64), *entry);
    }
    put64(image, pt + 8 * 511, 0x3007);
    let mut put32 = |at: u64, value: u32| image[at as usize..at as usize + 4].copy_from_slice(&value.to_le_bytes());
    put32(LEGACY_ROOT, legacy_pt as u32 | 7);
    put32(LEGACY_ROOT + 4, 0x87);
    put32(LEGACY_ROOT + 4 * 1023, legacy_pt as u32 | 7);
    for i in 0..0x30 {
        put32(legacy_pt + 4 * i, (i as u32) << 12 | 7);
    }
    for (i, entry) in odd.iter().enumerate() {
        put32(legacy_pt + 4 * (0x30 + i as u64), *entry as u32);
    }
    for i in 0..4 {
        put64(image, PAE_PDPT + 8 * i, pd | 1);
    }
}
