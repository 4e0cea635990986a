//! Guests with several processors, limits, many VMs, and HLT (rows D01, D04, D06, B08).
pub(super) mod halt;
pub(super) mod smp;
pub(super) mod vms;
