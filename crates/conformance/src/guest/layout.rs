//! Where everything lies in the standard guest's memory. All of it is below 64 KiB, so that a real-mode guest with
//! zero segment bases has the same addresses.

/// Interrupt vectors of real mode.
pub const IVT: u64 = 0;
/// Global descriptor table.
pub const GDT: u64 = 0x1000;
/// Interrupt descriptor table of protected and long mode.
pub const IDT: u64 = 0x2000;
/// The task-state segment that TR points at.
pub const TSS: u64 = 0x3000;
/// A page half for cases that need further task-state segments or a local descriptor table.
pub const SPARE: u64 = 0x3800;
/// What the handlers record: see [`super::handlers`].
pub const LOG: u64 = 0x4000;
/// One stub of 16 bytes for each vector.
pub const STUBS: u64 = 0x5000;
/// The code that all stubs jump to.
pub const COMMON: u64 = 0x6000;
/// Top of the stack at privilege level 0.
pub const STACK: u64 = 0x8000;
/// Top of a second stack (IST, rings 1 and 2).
pub const STACK2: u64 = 0x9000;
/// Top of the stack at privilege level 3.
pub const USER_STACK: u64 = 0xa000;
/// A page that both privilege levels may read and write.
pub const DATA: u64 = 0xa000;
/// Code of privilege level 0.
pub const CODE: u64 = 0xb000;
/// Code of privilege level 3; up to 64 KiB.
pub const USER_CODE: u64 = 0xe000;
/// End of the user's code.
pub const USER_END: u64 = 0x1_0000;
/// What the steps of a script leave.
pub const RESULTS: u64 = 0x1_0000;
/// Code of scripts.
pub const SCRIPT: u64 = 0x1_2000;
/// End of the pages above.
pub const LOW_END: u64 = 0x2_0000;

/// First gpa after low memory; nothing is there up to [`HIGH`]: device memory.
pub const HOLE: u64 = 0xa_0000;
/// Memory again.
pub const HIGH: u64 = 0x10_0000;
/// Page tables are made from here on.
pub const TABLES: u64 = HIGH;
/// What no table builder touches: frames for the cases.
pub const FRAMES: u64 = 0x20_0000;
/// End of memory; device memory from here on.
pub const RAM_END: u64 = 0x100_0000;

/// Selectors of the standard GDT. `CODE` and `USER` are in the machine's own width (64 bits in long mode), so the
/// order serves SYSENTER, SYSEXIT, SYSCALL and SYSRET.
pub mod sel {
    /// 32-bit code, level 0.
    pub const CODE32: u16 = 0x08;
    /// Code of the machine's own width, level 0.
    pub const CODE: u16 = 0x10;
    /// Data, level 0.
    pub const DATA: u16 = 0x18;
    /// 32-bit code, level 3.
    pub const USER32: u16 = 0x20 | 3;
    /// Data, level 3.
    pub const USER_DATA: u16 = 0x28 | 3;
    /// Code of the machine's own width, level 3.
    pub const USER: u16 = 0x30 | 3;
    /// 16-bit code with a limit of 64 KiB, level 0.
    pub const CODE16: u16 = 0x40;
    /// 16-bit data with a limit of 64 KiB, level 0.
    pub const DATA16: u16 = 0x48;
    /// The task-state segment (two slots in long mode).
    pub const TSS: u16 = 0x50;
    /// The local descriptor table (two slots in long mode).
    pub const LDT: u16 = 0x60;
    /// First selector that is free for cases.
    pub const FREE: u16 = 0x70;
}
