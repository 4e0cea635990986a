//! Debug registers (SDM vol. 3, 17.2).

/// Bits of DR6 that are always one (without RTM and bus-lock detection: those bits read as one too).
pub const DR6_FIXED: u64 = 0xffff_0ff0;
/// DR6: a debug register was accessed while DR7.GD was set.
pub const DR6_BD: u64 = 1 << 13;
/// DR6: single step.
pub const DR6_BS: u64 = 1 << 14;
/// DR6: task switch into a TSS with the T bit.
pub const DR6_BT: u64 = 1 << 15;
/// DR7: bit 10, always one.
pub const DR7_FIXED: u64 = 0x400;
/// DR7: general detect, accesses to debug registers are #DB.
pub const DR7_GD: u64 = 1 << 13;
/// DR7 bits that can be set by software.
pub const DR7_VOLATILE: u64 = 0xffff_2bff;

/// What a breakpoint of DR7 waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Instruction execution.
    Execute,
    /// Data writes.
    Write,
    /// I/O reads and writes (with CR4.DE).
    Io,
    /// Data reads and writes.
    Access,
}

/// The condition and the length in bytes of breakpoint `n` (0 to 3), or None if DR7 leaves it disabled.
pub fn breakpoint(dr7: u64, n: u32) -> Option<(Watch, u64)> {
    if dr7 >> (2 * n) & 3 == 0 {
        return None;
    }
    let watch = match dr7 >> (16 + 4 * n) & 3 {
        0 => Watch::Execute,
        1 => Watch::Write,
        2 => Watch::Io,
        _ => Watch::Access,
    };
    let len = [1, 2, 8, 4][(dr7 >> (18 + 4 * n) & 3) as usize];
    Some((watch, len))
}
