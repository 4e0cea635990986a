//! Exceptions, interrupts, debugging, model-specific registers and reset state (rows C04, C05, C09 to C11).
pub(super) mod debug;
pub(super) mod devices;
pub(super) mod double;
pub(super) mod exceptions;
pub(super) mod msrs;
pub(super) mod registers;
pub(super) mod strings;
