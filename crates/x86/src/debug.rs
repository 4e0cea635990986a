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
/// DR7: the breakpoints that are enabled, each for its task or for all.
pub const DR7_ENABLED: u64 = 0xff;
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

/// The breakpoints (bit n for DRn) of a kind that `of` accepts which `bytes` bytes at `address` touch.
pub fn hits(addresses: &[u64; 4], dr7: u64, address: u64, bytes: u64, of: impl Fn(Watch) -> bool) -> u64 {
    let mut hits = 0;
    for (n, &at) in (0..).zip(addresses) {
        if let Some((watch, len)) = breakpoint(dr7, n)
            && of(watch)
        {
            let len = if watch == Watch::Execute { 1 } else { len };
            let start = at & !(len - 1);
            if address < start.wrapping_add(len) && start < address.wrapping_add(bytes) {
                hits |= 1 << n;
            }
        }
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breakpoint_is_hit_by_whatever_touches_it() {
        // DR0: execution; DR1: four bytes written; DR2: one byte accessed, not enabled; DR3: eight bytes accessed.
        let dr7 = 2 | 2 << 2 | 2 << 6 | 0xd << 20 | 3 << 24 | 0xb << 28;
        let at = [0x1003, 0x2002, 0x2000, 0x3000];
        let data = |watch| matches!(watch, Watch::Write | Watch::Access);
        for (address, bytes, expected) in [
            (0x2000, 1, 2),
            (0x2003, 1, 2),
            (0x2004, 8, 0),
            (0x1fff, 1, 0),
            (0x1fff, 2, 2),
            (0x3007, 1, 8),
            (0x1003, 1, 0),
        ] {
            assert_eq!(hits(&at, dr7, address, bytes, data), expected, "{address:#x}");
        }
        assert_eq!(hits(&at, dr7, 0x1003, 1, |watch| watch == Watch::Execute), 1);
        assert_eq!(hits(&at, dr7, 0x1002, 1, |watch| watch == Watch::Execute), 0);
        assert_eq!(hits(&at, dr7, 0x3000, 1, |watch| watch == Watch::Write), 0);
    }
}
