//! Builds, tests and boots rekvm.
fn main() {}
