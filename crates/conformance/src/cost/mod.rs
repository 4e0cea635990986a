//! What exits cost: a guest measures loops around one thing each by its time-stamp counter, and `conformance cost` writes a line
//! for each. Nothing here decides what is right; `cargo xtask bench-exits` compares two devices under one emulator, whose
//! counter counts instructions.
mod guest;
mod rows;

pub use guest::Measured;
pub use rows::ROWS;

use crate::Device;

/// One thing that costs something.
pub struct Row {
    /// As the table names it; no word of it ends in a colon.
    pub name: &'static str,
    measure: fn(&Device) -> Measured,
}

impl Row {
    /// Makes a guest and measures.
    pub fn measure(&self, device: &Device) -> Measured {
        (self.measure)(device)
    }
}
