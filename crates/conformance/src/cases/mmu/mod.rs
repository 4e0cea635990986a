//! Translation in every paging mode (rows B01 to B06, B08, B09, B11, B12).
//!
//! Most cases are scripts that run in 32-bit paging, PAE and long mode alike: [`in_every_format`] makes the machine.
use crate::{
    Device,
    guest::{Machine, Mode, Paging, Script, layout::FRAMES},
    runner::Target,
};

pub(super) mod accessed;
pub(super) mod emulated;
pub(super) mod flush;
pub(super) mod late;
pub(super) mod rights;
pub(super) mod slots;
pub(super) mod structure;
pub(super) mod taken;
pub(super) mod writes;

/// Bits of a page fault's error code (SDM vol. 3, figure 4-12).
mod code {
    pub(super) const PRESENT: u32 = 1;
    pub(super) const WRITE: u32 = 2;
    pub(super) const USER: u32 = 4;
    pub(super) const RESERVED: u32 = 8;
    pub(super) const FETCH: u32 = 16;
}

/// AMD-V with nested paging, in QEMU: the processor, here QEMU, walks the guest's tables.
pub(in crate::cases) const NESTED_AMD: Target = Target::LINUX_AMD_NPT.or(Target::MODULE_AMD_NPT);

/// AMD-V with shadow paging, in QEMU.
pub(in crate::cases) const SHADOW_AMD: Target = Target::LINUX_AMD_SHADOW.or(Target::MODULE_AMD_SHADOW);

/// Linux with shadow paging.
const LINUX_SHADOW: Target = Target::LINUX_AMD_SHADOW.or(Target::LINUX_INTEL_SHADOW).or(Target::LINUX_INTEL_PENRYN);

/// Why what loads page-directory pointers fails in a guest on QEMU's nested paging.
pub(in crate::cases) const ACCESSED_POINTERS: &str = "QEMU's TCG sets the accessed bit in page-directory pointers, where it is reserved, so that they cannot be loaded again (mmu_translate in excp_helper.c)";

/// A gva that the standard machine does not map; cases map pages from here on.
const GVA: u64 = 0x80_0000;

/// Runs a script that `write` makes in each format of page tables.
fn in_every_format(device: &Device, write: impl Fn(&mut Machine, &mut Script)) {
    in_formats(device, &Paging::ALL, write);
}

fn in_formats(device: &Device, formats: &[Paging], write: impl Fn(&mut Machine, &mut Script)) {
    for paging in formats {
        let mut m = Machine::new(Mode::Paged(*paging));
        let mut s = Script::new(&mut m);
        write(&mut m, &mut s);
        s.run(m, device);
    }
}

/// The `n`th free frame, which holds the dword that [`mark`] tells.
fn frame(m: &mut Machine, n: u64) -> u64 {
    let at = FRAMES + 4096 * n;
    m.image.write32(at, mark(n));
    at
}

/// What the `n`th frame holds.
fn mark(n: u64) -> u32 {
    0x1234_0000 + n as u32
}
