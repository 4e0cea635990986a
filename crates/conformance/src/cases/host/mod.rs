//! Guests with several processors, limits, many VMs, HLT, processors of the host, and whose time it is (rows A02, D01, D04, D06,
//! B08, C01).
pub(super) mod accounting;
pub(super) mod halt;
pub(super) mod moves;
pub(super) mod smp;
pub(super) mod vms;
