//! The terminal on which the guest's console appears.

mod escape;
mod output;
mod terminal;

pub use escape::{Action, Escape, HELP};
pub use output::Output;
pub use terminal::{RawTerminal, guard_fatal_signals, is_foreground_terminal, restore};
