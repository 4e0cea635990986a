//! The terminal on which the guest's console appears.

use std::fmt::Display;
use std::io::Write;

mod escape;
mod output;
mod terminal;

pub use escape::{Action, Escape, HELP};
pub use output::Output;
pub use terminal::{RawTerminal, guard_fatal_signals, is_foreground_terminal, restore};

/// Tells the user something, in one write. Whether anybody listens is no concern: a standard
/// error that is closed must not end the guest.
pub fn say(text: impl Display) {
    let _ = std::io::stderr().write_all(format!("rekvm: {text}\n").as_bytes());
}

/// As [`say`], on a new line: the guest may be in the middle of one.
pub fn say_below(text: impl Display) {
    let _ = std::io::stderr().write_all(format!("\nrekvm: {text}\n").as_bytes());
}
