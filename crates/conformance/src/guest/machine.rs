//! The standard guest, described before it is made: a mode, its memory, its tables and its registers.
use abi::{KvmDtable, KvmRegs, KvmSregs};
use iced_x86::{
    BlockEncoderOptions, IcedError,
    code_asm::{CodeAssembler, CodeLabel},
};
use x86::paging::{P, U, W};

use super::{
    handlers,
    image::Image,
    layout::*,
    segments::{descriptor, flat, null_segment, real_segment, segment},
    tables::{Paging, Tables},
};

/// The mode in which a guest starts, set up by the client and not by the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode, all segment bases 0.
    Real,
    /// Protected mode with 16-bit code and stack.
    Protected16,
    /// Protected mode with flat 32-bit segments, no paging.
    Protected,
    /// The same with paging in one of the three formats; `Long` has 64-bit code.
    Paged(Paging),
}

impl Mode {
    /// 32-bit paging.
    pub const LEGACY: Self = Self::Paged(Paging::Legacy);
    /// PAE.
    pub const PAE: Self = Self::Paged(Paging::Pae);
    /// Long mode.
    pub const LONG: Self = Self::Paged(Paging::Long);

    /// Width of code.
    pub fn bits(self) -> u32 {
        match self {
            Self::Real | Self::Protected16 => 16,
            Self::Paged(Paging::Long) => 64,
            _ => 32,
        }
    }

    /// Format of the page tables.
    pub fn paging(self) -> Paging {
        if let Self::Paged(paging) = self { paging } else { Paging::Off }
    }
}

/// CR0.
pub mod cr0 {
    #![allow(missing_docs)] // the manual's names
    pub const PE: u64 = 1;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4.
pub mod cr4 {
    #![allow(missing_docs)] // the manual's names
    pub const VME: u64 = 1;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const PGE: u64 = 1 << 7;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// EFER.
pub mod efer {
    #![allow(missing_docs)] // the manual's names
    pub const SCE: u64 = 1;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// A guest that is being built.
#[derive(Clone)]
pub struct Machine {
    /// The mode that it starts in.
    pub mode: Mode,
    /// Its memory.
    pub image: Image,
    /// Where its page tables come from.
    pub tables: Tables,
    /// The page tables' root: CR3.
    pub root: u64,
    /// General registers; RSP, RFLAGS and RIP (the first code that was added) are set.
    pub regs: KvmRegs,
    /// CR0 at the start.
    pub cr0: u64,
    /// CR4 at the start.
    pub cr4: u64,
    /// EFER at the start.
    pub efer: u64,
    next_code: u64,
    next_user: u64,
}

/// Types of the standard task-state segment and of a local descriptor table.
const BUSY_TSS: u8 = 0x8b;

impl Machine {
    /// A guest in `mode` with the standard memory, tables and handlers. With paging on, the pages up to
    /// [`LOW_END`] and those of the page tables are mapped to themselves; only user code, user stack and
    /// [`DATA`] can be reached by level 3.
    pub fn new(mode: Mode) -> Self {
        let paging = mode.paging();
        let mut tables = Tables::new(paging, TABLES);
        let root = if paging == Paging::Off { 0 } else { tables.table() };
        let (mut cr0, mut cr4, mut efer) = (cr0::ET | cr0::NE, 0, 0);
        if mode != Mode::Real {
            cr0 |= cr0::PE;
        }
        match paging {
            Paging::Off => {}
            Paging::Legacy => cr4 = cr4::PSE,
            Paging::Pae => (cr4, efer) = (cr4::PAE, efer::NXE),
            Paging::Long => (cr4, efer) = (cr4::PAE, efer::NXE | efer::LME | efer::LMA | efer::SCE),
        }
        if paging != Paging::Off {
            cr0 |= cr0::PG | cr0::WP;
        }
        let mut machine = Self {
            mode,
            image: Image::default(),
            tables,
            root,
            regs: KvmRegs { rsp: STACK, rflags: 2, rip: CODE, ..KvmRegs::default() },
            cr0,
            cr4,
            efer,
            next_code: CODE,
            next_user: USER_CODE,
        };
        machine.fill_gdt();
        let bits = if mode == Mode::Protected16 { 32 } else { mode.bits() };
        handlers::install(&mut machine.image, bits);
        machine.fill_tss();
        if paging != Paging::Off {
            machine.map_itself();
        }
        machine
    }

    fn fill_gdt(&mut self) {
        let long = self.mode == Mode::LONG;
        let own = if long { flat::CODE64 } else { flat::CODE32 };
        for (selector, value) in [
            (sel::CODE32, flat::CODE32),
            (sel::CODE, own),
            (sel::DATA, flat::DATA),
            (sel::USER32 & !3, flat::CODE32 | flat::DPL3),
            (sel::USER_DATA & !3, flat::DATA | flat::DPL3),
            (sel::USER & !3, own | flat::DPL3),
            (0x38, flat::DATA | flat::DPL3),
            (sel::CODE16, flat::CODE16),
            (sel::DATA16, flat::DATA16),
            (sel::TSS, descriptor(TSS as u32, 0x67, BUSY_TSS, 0)),
        ] {
            self.descriptor(selector, value);
        }
    }

    fn fill_tss(&mut self) {
        if self.mode == Mode::LONG {
            for (at, stack) in [(4, STACK), (12, STACK2), (20, STACK2), (36, STACK2)] {
                self.image.write64(TSS + at, stack);
            }
        } else {
            self.image.write32(TSS + 4, STACK as u32);
            self.image.write32(TSS + 8, sel::DATA.into());
        }
        self.image.write32(TSS + 0x64, 0x68 << 16); // no I/O permission map
    }

    fn map_itself(&mut self) {
        for page in (0..LOW_END).step_by(4096) {
            let user =
                if (USER_CODE..USER_END).contains(&page) || page == DATA || page == USER_STACK - 4096 { U } else { 0 };
            self.map(page, page | P | W | user);
        }
        for page in (TABLES..FRAMES).step_by(4096) {
            self.map(page, page | P | W);
        }
    }

    /// Writes a descriptor into the GDT.
    pub fn descriptor(&mut self, selector: u16, value: u64) {
        self.image.write64(GDT + u64::from(selector & !7), value);
    }

    /// Maps the 4 KiB page at `gva`; `value` holds the frame and the flags.
    pub fn map(&mut self, gva: u64, value: u64) {
        self.tables.map(&mut self.image, self.root, gva, 1, value);
    }

    /// Maps the large page at `gva`: 4 MiB or 2 MiB as the format has it.
    pub fn map_large(&mut self, gva: u64, value: u64) {
        self.tables.map(&mut self.image, self.root, gva, 2, value | x86::paging::PS);
    }

    /// Address of the paging entry of `level` for `gva`.
    pub fn entry(&self, gva: u64, level: u32) -> u64 {
        self.tables.entry(&self.image, self.root, gva, level)
    }

    /// Changes the paging entry of `level` for `gva`: clears some bits and sets some.
    pub fn change(&mut self, gva: u64, level: u32, clear: u64, set: u64) {
        let at = self.entry(gva, level);
        let old = if self.mode == Mode::LEGACY { self.image.read64(at) & 0xffff_ffff } else { self.image.read64(at) };
        let tables = self.tables.clone();
        tables.store(&mut self.image, at, old & !clear | set);
    }

    /// A second root that begins as a copy of the first: it shares the tables below.
    pub fn another_root(&mut self) -> u64 {
        let at = self.tables.table();
        let copy: [u8; 4096] = self.image.read(self.root);
        self.image.write(at, &copy);
        at
    }

    /// Adds code of level 0 in the machine's own width and returns its address. The first that is added is where the
    /// guest starts.
    pub fn code(&mut self, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
        self.code_with(|a| write(a).map(|()| [])).0
    }

    /// [`Self::code`], also with the addresses of labels.
    pub fn code_with<const N: usize>(
        &mut self,
        write: impl FnOnce(&mut CodeAssembler) -> Result<[CodeLabel; N], IcedError>,
    ) -> (u64, [u64; N]) {
        let at = self.next_code;
        let (labels, len) = self.assemble(self.mode.bits(), at, write);
        self.next_code = (at + len).next_multiple_of(16);
        assert!(self.next_code <= USER_CODE, "too much code");
        (at, labels)
    }

    /// Adds code of level 3.
    pub fn user_code(&mut self, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
        let at = self.next_user;
        let (_, len) = self.assemble(self.mode.bits(), at, |a| write(a).map(|()| []));
        self.next_user = (at + len).next_multiple_of(16);
        assert!(self.next_user <= USER_END, "too much code");
        at
    }

    /// Puts code of any width anywhere. Returns its labels and how many bytes it has.
    pub fn assemble<const N: usize>(
        &mut self,
        bits: u32,
        at: u64,
        write: impl FnOnce(&mut CodeAssembler) -> Result<[CodeLabel; N], IcedError>,
    ) -> ([u64; N], u64) {
        let (bytes, labels) = assemble(bits, at, write);
        self.image.write(at, &bytes);
        (labels, bytes.len() as u64)
    }

    /// Puts bytes where the next code of level 0 goes.
    pub fn bytes(&mut self, bytes: &[u8]) -> u64 {
        self.code(|a| bytes.chunks(16).try_for_each(|part| a.db(part)))
    }

    /// Puts code, for 32 or 64 bits, that writes to every page which events and task switches need, and goes on with the
    /// code that is added next.
    ///
    /// The host brings these pages in when they are touched first. If that happens while an event is delivered, the
    /// processor starts the delivery over; QEMU's TCG forgets meanwhile which event was the first of two
    /// (`helper_vmrun` leaves `old_exception` alone), that interrupts were held back (it does not load `int_state`),
    /// and how long INT n is (no next RIP in the VMCB), and has half of a task switch done (`switch_tss_ra`).
    pub fn touch(&mut self) -> u64 {
        let pages = [GDT, IDT, TSS, LOG, STUBS, COMMON, STACK - 4096, STACK2 - 4096, USER_STACK - 4096, DATA];
        // xchg al, [page], twice: neither registers nor flags change. NOPs up to the code that follows.
        let code = pages.map(|page| [0x86, 0x04, 0x25, 0, (page >> 8) as u8, 0, 0]).map(|exchange| [exchange; 2]);
        let mut code = code.as_flattened().as_flattened().to_vec();
        code.resize(code.len().next_multiple_of(16), 0x90);
        self.bytes(&code)
    }

    /// Where the next code of level 0 goes.
    pub fn next_code(&self) -> u64 {
        self.next_code
    }

    /// Sets the gate of a vector: `access` is P, DPL and type; `ist` counts in long mode.
    pub fn gate(&mut self, vector: u8, selector: u16, offset: u64, access: u8, ist: u8) {
        let bits = if self.mode == Mode::LONG { 64 } else { 32 };
        handlers::set_gate(&mut self.image, bits, vector, selector, offset, access, ist);
    }

    /// Allows interrupts, though none comes, to a guest that runs for long without an exit. Bochs 2.7 lets no interrupt of
    /// the host's end a guest that blocks its own: setEFlags looks at what is masked only when IF changes, and the host
    /// enters the guest with IF clear.
    pub fn interruptible(&mut self) {
        self.regs.rflags |= 0x200;
    }

    /// What the handlers do after they have recorded: see [`handlers::RESUME`].
    pub fn resume(&mut self, word: u64) {
        self.image.write64(handlers::RESUME, word);
    }

    /// Sets the machine's mode up in `sregs`, which come from a vCPU that was just made.
    pub fn fill(&self, sregs: &mut KvmSregs) {
        sregs.cr0 = self.cr0;
        sregs.cr3 = self.root;
        sregs.cr4 = self.cr4;
        sregs.efer = self.efer;
        sregs.gdt = KvmDtable { base: GDT, limit: 0xfff, ..KvmDtable::default() };
        let (cs, data) = match self.mode {
            Mode::Real => (real_segment(0, true), real_segment(0, false)),
            Mode::Protected16 => (segment(sel::CODE16, flat::CODE16), segment(sel::DATA16, flat::DATA16)),
            Mode::Paged(Paging::Long) => (segment(sel::CODE, flat::CODE64), segment(sel::DATA, flat::DATA)),
            _ => (segment(sel::CODE, flat::CODE32), segment(sel::DATA, flat::DATA)),
        };
        sregs.cs = cs;
        for s in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
            *s = data;
        }
        if self.mode.bits() == 32 {
            // IRET to level 3 would take segments of level 0 away.
            let user = segment(sel::USER_DATA, flat::DATA | flat::DPL3);
            (sregs.ds, sregs.es) = (user, user);
        }
        if self.mode == Mode::Real {
            sregs.idt = KvmDtable { base: IVT, limit: 0x3ff, ..KvmDtable::default() };
        } else {
            let limit = if self.mode == Mode::LONG { 0xfff } else { 0x7ff };
            sregs.idt = KvmDtable { base: IDT, limit, ..KvmDtable::default() };
            sregs.tr = segment(sel::TSS, descriptor(TSS as u32, 0x67, BUSY_TSS, 0));
            sregs.ldt = null_segment();
        }
    }
}

/// Code as bytes, and where its labels are.
pub fn assemble<const N: usize>(
    bits: u32,
    at: u64,
    write: impl FnOnce(&mut CodeAssembler) -> Result<[CodeLabel; N], IcedError>,
) -> (Vec<u8>, [u64; N]) {
    let mut a = CodeAssembler::new(bits).expect("16, 32 or 64 bits");
    let labels = write(&mut a).unwrap_or_else(|error| panic!("the case's code: {error}"));
    let code = a
        .assemble_options(at, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)
        .unwrap_or_else(|error| panic!("the case's code: {error}"));
    let labels = labels.map(|label| code.label_ip(&label).expect("a label of this code"));
    (code.inner.code_buffer, labels)
}
