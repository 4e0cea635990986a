//! The cases. A folder is a subject; adding one is a line here.
use crate::runner::Folder;

mod cpuid;
mod device;
mod dirty;
mod lifetime;
mod memory;
mod mmio;
mod pio;
mod run;
mod signal;
mod state;

/// All folders.
pub const FOLDERS: &[Folder] = &[
    ("device", device::CASES),
    ("lifetime", lifetime::CASES),
    ("run", run::CASES),
    ("signal", signal::CASES),
    ("state", state::CASES),
    ("cpuid", cpuid::CASES),
    ("pio", pio::CASES),
    ("mmio", mmio::CASES),
    ("memory", memory::CASES),
    ("dirty", dirty::CASES),
];
