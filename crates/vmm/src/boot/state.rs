//! The processor state in which the guest starts: flat segments, and 64-bit mode with the first 4 GiB mapped one to one
//! or protected mode without paging.

use super::Entry;
use crate::kvm::{KvmError, Vcpu};
use crate::layout::*;
use crate::memory::GuestRam;
use kvm_bindings::{kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// The first state could not be written.
pub type StateError = GuestMemoryError;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;
const GDT_ENTRIES: u64 = 6;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const PTE_PRESENT_WRITABLE: u64 = 3;
const PTE_LARGE: u64 = 1 << 7;

const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Variable ranges on, memory is write-back unless said otherwise.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// A segment that covers everything; `type_` as in a descriptor.
fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment { base: 0, limit: 0xffff_ffff, selector, type_, present: 1, s: 1, g: 1, ..Default::default() }
}

fn code(entry: Entry) -> kvm_segment {
    let long = matches!(entry, Entry::Long(_)).into();
    kvm_segment { l: long, db: 1 - long, ..flat(CODE_SELECTOR, 0xb) }
}

fn data() -> kvm_segment {
    kvm_segment { db: 1, ..flat(DATA_SELECTOR, 0x3) }
}

fn tss() -> kvm_segment {
    kvm_segment { s: 0, g: 0, limit: 0x67, ..flat(TSS_SELECTOR, 0xb) }
}

/// A descriptor in the form that memory holds (SDM vol. 3, 3.4.5).
fn descriptor(s: &kvm_segment) -> u64 {
    let limit = u64::from(if s.g == 1 { s.limit >> 12 } else { s.limit });
    let access = u64::from(s.type_) | u64::from(s.s) << 4 | u64::from(s.dpl) << 5 | u64::from(s.present) << 7;
    let flags = u64::from(s.avl) | u64::from(s.l) << 1 | u64::from(s.db) << 2 | u64::from(s.g) << 3;
    (limit & 0xffff)
        | (s.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (s.base >> 24 & 0xff) << 56
}

/// Writes the descriptor table, and the page tables if `entry` needs them.
///
/// # Errors
/// When guest memory ends below them.
pub fn prepare_memory(ram: &GuestRam, entry: Entry) -> Result<(), StateError> {
    let gdt = [0, 0, descriptor(&code(entry)), descriptor(&data()), descriptor(&tss()), 0];
    for (i, entry) in (0..).zip(gdt) {
        ram.write_obj::<u64>(entry, GuestAddress(GDT + 8 * i))?;
    }
    if let Entry::Protected(_) = entry {
        return Ok(());
    }
    let table = |n: u64| PAGE_TABLES + 0x1000 * n;
    ram.write_slice(&[0; 0x2000], GuestAddress(table(0)))?;
    ram.write_obj(table(1) | PTE_PRESENT_WRITABLE, GuestAddress(table(0)))?;
    for gib in 0..4u64 {
        ram.write_obj(table(2 + gib) | PTE_PRESENT_WRITABLE, GuestAddress(table(1) + 8 * gib))?;
        let mut directory = [0u8; 0x1000];
        for (i, entry) in (0u64..).zip(directory.chunks_exact_mut(8)) {
            let page = (gib << 30 | i << 21) | PTE_PRESENT_WRITABLE | PTE_LARGE;
            entry.copy_from_slice(&page.to_le_bytes());
        }
        ram.write_slice(&directory, GuestAddress(table(2 + gib)))?;
    }
    Ok(())
}

/// Puts the first processor at `entry` into the mode that it says, `RSI` pointing at the boot parameters.
/// [`prepare_memory`] must have been called for its memory.
///
/// # Errors
/// What the hypervisor answers.
pub fn setup_bootstrap_vcpu(vcpu: &Vcpu, entry: Entry) -> Result<(), KvmError> {
    let mut sregs = vcpu.sregs()?;
    sregs.cs = code(entry);
    sregs.ds = data();
    sregs.es = data();
    sregs.fs = data();
    sregs.gs = data();
    sregs.ss = data();
    sregs.tr = tss();
    sregs.gdt.base = GDT;
    sregs.gdt.limit = (GDT_ENTRIES * 8 - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    // In protected mode the kernel wants EBP and EDI to be zero and brings a stack of its own.
    let (rip, stack) = match entry {
        Entry::Long(rip) => {
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
            (rip, BOOT_STACK)
        }
        Entry::Protected(rip) => {
            sregs.cr0 = CR0_PE | CR0_ET;
            (sregs.cr3, sregs.cr4, sregs.efer) = (0, 0, 0);
            (rip, 0)
        }
    };
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rip, rsi: BOOT_PARAMS, rsp: stack, rbp: stack, rflags: 2, ..Default::default() })
}

/// State that every processor gets, the waiting ones too.
///
/// # Errors
/// What the hypervisor answers.
pub fn setup_every_vcpu(vcpu: &Vcpu) -> Result<(), KvmError> {
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() })?;
    // A hypervisor without MTRRs treats all memory as write-back anyway and
    // answers that it took none: nothing is lost.
    let entry = kvm_msr_entry { index: MSR_MTRR_DEF_TYPE, data: MTRR_ENABLED_WRITE_BACK, ..Default::default() };
    vcpu.set_msrs(&[entry]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_manuals() {
        assert_eq!(descriptor(&code(Entry::Long(0))), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&code(Entry::Protected(0))), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&data()), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&tss()), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn four_gibibytes_are_mapped_one_to_one() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        prepare_memory(&ram, Entry::Long(0)).unwrap();
        let entry = |table: u64, i: u64| -> u64 { ram.read_obj(GuestAddress((table & !0xfff) + 8 * i)).unwrap() };
        for gva in [0u64, 0x1234_5678, 0xd000_0000, 0xffff_f000] {
            let pdpt = entry(PAGE_TABLES, gva >> 39 & 511);
            let pd = entry(pdpt, gva >> 30 & 511);
            let page = entry(pd, gva >> 21 & 511);
            assert_eq!(page & 0x83, 0x83);
            assert_eq!(page & !0xfff, gva & !0x1f_ffff);
        }
        assert_eq!(entry(entry(PAGE_TABLES, 0), 4), 0, "nothing above 4 GiB");
    }
}
