//! Where everything is: linear addresses and segments that both processors see.
//!
//! The data are three pages between two holes: two that can be written, and one that cannot. All addresses are below
//! 4 GiB, so that every mode reaches them.
use x86::Attr;

/// Linear address of the data.
pub const DATA: u64 = 0x1000_0000;
/// Bytes of data that can be written.
pub const WRITABLE: u64 = 0x2000;
/// Bytes of data, with the page that can only be read.
pub const DATA_BYTES: usize = 0x3000;
/// Linear address of the code.
pub const CODE: u64 = 0x3517_0000;
/// Bytes of code; filled with INT3.
pub const CODE_BYTES: usize = 0x2000;
/// Linear address of the page through which code leaves on the host; only there.
pub const LANDING: u64 = CODE + CODE_BYTES as u64;

/// 64-bit user code.
pub const CS64: u16 = 0x33;
/// Flat 32-bit user code.
pub const CS32: u16 = 0x23;
/// Flat user data.
pub const FLAT: u16 = 0x2b;

/// The global descriptors that Linux gives a program, from selector 0 on.
pub const GDT: [u64; 7] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
];

/// A segment of the local descriptor table.
#[derive(Clone, Copy, Debug)]
pub struct Local {
    /// Linear base.
    pub base: u32,
    /// Limit in bytes, or in pages with `pages`.
    pub limit: u32,
    /// 0 data, 1 expand-down data, 2 code.
    pub contents: u32,
    /// D/B.
    pub big: bool,
    /// Data that cannot be written, code that cannot be read.
    pub restricted: bool,
    /// The limit counts pages.
    pub pages: bool,
    /// P.
    pub present: bool,
}

const fn local(base: u64, limit: u32, contents: u32, big: bool) -> Local {
    Local { base: base as u32, limit, contents, big, restricted: false, pages: false, present: true }
}

/// The local descriptor table.
pub const LDT: [Local; 11] = [
    local(CODE, CODE_BYTES as u32 - 1, 2, false),
    local(DATA, DATA_BYTES as u32 - 1, 0, false),
    local(DATA, DOWN_LIMIT, 1, false),
    local(DATA + 0x10, 0x17f5, 0, false),
    Local { restricted: true, ..local(DATA, DATA_BYTES as u32 - 1, 0, false) },
    local(CODE, CODE_BYTES as u32 - 1, 2, true),
    Local { pages: true, ..local(DATA - 0x1000, 3, 0, true) },
    local(DATA, DOWN_LIMIT, 1, true),
    Local { restricted: true, ..local(CODE, CODE_BYTES as u32 - 1, 2, true) },
    Local { present: false, ..local(DATA, 0xffff, 0, true) },
    Local { pages: true, ..local(DATA, 1, 0, true) },
];

/// The last offset that expand-down segments do not have.
pub const DOWN_LIMIT: u32 = 0x7ff;

/// The selector of entry `index` of [`LDT`].
pub const fn selector(index: usize) -> u16 {
    (index << 3 | 7) as u16
}

/// 16-bit code at [`CODE`].
pub const CS16: u16 = selector(0);
/// 16-bit data at [`DATA`].
pub const DS16: u16 = selector(1);
/// The same, expand-down.
pub const DOWN16: u16 = selector(2);
/// 32-bit code at [`CODE`].
pub const BASED_CS32: u16 = selector(5);
/// 32-bit data that begin a page below [`DATA`].
pub const BASED_DS32: u16 = selector(6);
/// 32-bit expand-down data at [`DATA`].
pub const DOWN32: u16 = selector(7);

impl Local {
    /// The descriptor that Linux makes of it: accessed, for user programs.
    pub fn descriptor(&self) -> u64 {
        let typ = 1 | (self.contents as u16) << 2 | (!self.restricted as u16) << 1;
        let mut attr = Attr::S | 3 << 5 | typ;
        for (on, bit) in [(self.present, Attr::P), (self.big, Attr::DB), (self.pages, Attr::G)] {
            attr |= if on { bit } else { 0 };
        }
        let limit = self.limit as u64;
        limit & 0xffff
            | (limit & 0xf_0000) << 32
            | (self.base as u64 & 0xff_ffff) << 16
            | (self.base as u64 & 0xff00_0000) << 32
            | (attr as u64 & 0xff) << 40
            | (attr as u64 >> 8 & 0xf) << 52
    }
}
