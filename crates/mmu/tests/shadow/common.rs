//! A machine with one slot, and page tables in it.
use mmu::testing::{Access, End, Machine};
use x86::{
    Cr0, Cr4, Efer,
    paging::{P, U, W},
};

/// Where the client keeps the first slot.
pub const CLIENT: u64 = 0x5000_0000_0000;
/// Frames of the first slot.
pub const FRAMES: u64 = 0x400;
/// The frame of the top table.
pub const ROOT: u64 = 0x10;
pub const PWU: u64 = P | W | U;

/// Processors on a slot of zeros.
pub fn machine(cpus: usize) -> Machine {
    let mut machine = Machine::new(cpus);
    assert!(machine.set_slot(0, 0, 0, FRAMES, CLIENT));
    machine
}

/// CR0, CR4 and EFER of long mode with everything on that protects.
pub fn long(machine: &mut Machine, cpu: usize) {
    machine.set_registers(cpu, |state| {
        state.cr0 = (Cr0::PE | Cr0::PG | Cr0::WP).bits();
        state.cr4 = Cr4::PAE.bits();
        state.efer = (Efer::LME | Efer::LMA | Efer::NXE).bits();
        state.cr3 = ROOT << 12;
        state.refresh();
    });
}

/// Where the entry for `gva` at `level` is, with tables in fixed frames: top, then one below the other.
pub fn entry_at(gva: u64, level: u64) -> u64 {
    let table = ROOT + 4 - level;
    table << 12 | (gva >> (12 + 9 * (level - 1)) & 511) << 3
}

/// A long-mode machine whose tables lead to one page table, for gva 0 to 2 MiB: frames ROOT to ROOT + 3.
pub fn paged(cpus: usize) -> Machine {
    let mut machine = machine(cpus);
    for level in 2..=4 {
        machine.put(entry_at(0, level), (ROOT + 5 - level) << 12 | PWU);
    }
    (0..cpus).for_each(|cpu| long(&mut machine, cpu));
    machine
}

/// Maps the page of `gva` (below 2 MiB) of a [`paged`] machine.
pub fn map(machine: &mut Machine, gva: u64, gfn: u64, bits: u64) {
    machine.put(entry_at(gva, 1), gfn << 12 | bits);
    machine.guest_flush();
}

/// A read that succeeds.
#[track_caller]
pub fn read(machine: &mut Machine, cpu: usize, gva: u64, gpa: u64) {
    assert_eq!(machine.access(cpu, Access::read(gva)), End::Done(gpa));
    machine.check();
}

/// A write that succeeds.
#[track_caller]
pub fn write(machine: &mut Machine, cpu: usize, gva: u64, value: u64, gpa: u64) {
    assert_eq!(machine.access(cpu, Access::write(gva, value)), End::Done(gpa));
    machine.check();
}
