//! The cases. A folder is a subject; adding one is a line here.
use crate::runner::Folder;

mod device;
mod mmio;
mod pio;

/// All folders.
pub const FOLDERS: &[Folder] = &[("device", device::CASES), ("pio", pio::CASES), ("mmio", mmio::CASES)];
