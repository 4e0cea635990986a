//! The rekvm command.
fn main() {}
