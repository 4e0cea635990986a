//! The cases. A folder is a subject; adding one is a line here.
use crate::runner::Folder;

mod cpu;
mod cpuid;
mod device;
mod dirty;
mod flush;
mod host;
mod lifetime;
mod memory;
mod mmio;
mod mmu;
mod modes;
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
    ("mmu/rights", mmu::rights::CASES),
    ("mmu/accessed", mmu::accessed::CASES),
    ("mmu/flush", mmu::flush::CASES),
    ("mmu/writes", mmu::writes::CASES),
    ("mmu/structure", mmu::structure::CASES),
    ("mmu/emulated", mmu::emulated::CASES),
    ("mmu/slots", mmu::slots::CASES),
    ("mmu/taken", mmu::taken::CASES),
    ("cpu/exceptions", cpu::exceptions::CASES),
    ("cpu/double", cpu::double::CASES),
    ("cpu/debug", cpu::debug::CASES),
    ("cpu/devices", cpu::devices::CASES),
    ("cpu/strings", cpu::strings::CASES),
    ("cpu/msrs", cpu::msrs::CASES),
    ("cpu/registers", cpu::registers::CASES),
    ("modes/switches", modes::switches::CASES),
    ("modes/privilege", modes::privilege::CASES),
    ("modes/v86", modes::v86::CASES),
    ("modes/tasks", modes::tasks::CASES),
    ("host/smp", host::smp::CASES),
    ("host/vms", host::vms::CASES),
    ("host/halt", host::halt::CASES),
    ("flush", flush::CASES),
];
