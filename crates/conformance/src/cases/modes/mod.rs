//! Processor modes and the ways between them: mode switches, privilege changes, virtual-8086 mode, task switches
//! (rows B01, C01, C04, C05, C09).
use crate::guest::{
    Machine, Mode,
    layout::{USER_STACK, sel},
};

pub(super) mod privilege;
pub(super) mod switches;
pub(super) mod tasks;
pub(super) mod v86;

/// Adds code that goes to level 3 at the address in (R/E)BP, by IRET, with the user's stack.
pub(super) fn to_user(m: &mut Machine) -> u64 {
    let mut code = Vec::new();
    for word in [u64::from(sel::USER_DATA), USER_STACK, 2, u64::from(sel::USER)] {
        code.push(0x68);
        code.extend((word as u32).to_le_bytes());
    }
    code.push(0x55);
    code.extend(if m.mode == Mode::LONG { &[0x48, 0xcf][..] } else { &[0xcf] });
    m.bytes(&code)
}
