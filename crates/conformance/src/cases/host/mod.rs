//! Guests with several processors, limits, many VMs, HLT, and processors of the host (rows D01, D04, D06, B08, C01).
pub(super) mod halt;
pub(super) mod moves;
pub(super) mod smp;
pub(super) mod vms;
