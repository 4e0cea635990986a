//! Paravirtual devices (Virtual I/O Device specification 1.2).

pub mod blk;
pub mod disk;
pub mod mmio;
