//! Translations that have to go: after changes of memory that the guest knows nothing of, and after changes of page tables
//! that the hypervisor has to see. On a processor that forgets nothing by itself each of these needs the hypervisor's
//! own flush; one that is left out shows as an old value.
use abi::{KVM_CAP_MMU_SHADOW_CACHE_CONTROL, KVM_GET_SUPPORTED_CPUID, KvmCpuidEntry2, KvmRegs, KvmSegment};
use iced_x86::{
    IcedError,
    code_asm::{CodeAssembler, dword_ptr, eax},
};
use std::cell::Cell;

use crate::{
    device::{Device, Memory},
    runner::{Case, case},
    vm::{Vcpu, Vm, assemble, cpuid2},
};

mod slots;
mod tables;

pub(super) const CASES: &[Case] = &[
    case("a-slot-with-other-memory", "A15 B08", slots::other_memory),
    case("a-slot-that-is-gone", "A15 B08", slots::gone),
    case("an-alias-of-another-frame", "A15", slots::alias).dropped("KVM_SET_MEMORY_ALIAS went in 2.6.36"),
    case("a-log-that-begins", "A17 B08", slots::log_begins),
    case("a-log-that-was-taken", "A17 B08", slots::log_taken),
    case("data-becomes-a-table", "B04 B06", tables::data_becomes_a_table),
    case("data-becomes-a-root", "B04 B06", tables::data_becomes_a_root),
    case("data-becomes-a-root-in-long-mode", "B04 B06", tables::data_becomes_a_long_root),
    case("a-table-written-through-a-lost-entry", "B04 B06", tables::through_a_stale_entry),
    case("a-table-written-through-a-lost-right", "B04 B06", tables::through_a_stale_right),
    case("a-table-that-another-processor-writes", "B02 B08", tables::by_another),
    case("writes-to-a-table-are-in-the-dirty-log", "A17 B02", tables::logged),
    case("a-table-that-an-odd-instruction-writes", "B06 C09", tables::odd_instruction),
    case("fewer-shadow-pages", "B11", tables::fewer_pages).needs(KVM_CAP_MMU_SHADOW_CACHE_CONTROL),
];

/// The page directory.
const DIRECTORY: u32 = 0x2000;
/// Maps the first 4 MiB to themselves.
const LOW: u32 = 0x3000;
/// Maps 4 MiB from [`WINDOW`] on.
const TABLE: u32 = 0x4000;
/// Where [`TABLE`] shows what a case puts there.
const WINDOW: u32 = 0x40_0000;
/// Free for cases.
const FRAMES: u32 = 0x1_0000;
/// Code of a case, and up to where.
const CODE: u32 = 0xf_8000;
/// Guest-physical addresses without memory, mapped to themselves.
const HOLE: u32 = 0x20_0000;
/// Present, writable, user.
const PWU: u32 = 7;

/// A guest with 32-bit paging and 1 MiB of memory.
struct Paged {
    vm: Vm,
    memory: Memory,
    next: Cell<u32>,
    cpuid: Vec<KvmCpuidEntry2>,
}

impl Paged {
    fn new(device: &Device) -> Self {
        let vm = device.vm();
        let memory = vm.memory(0, 0, 0x10_0000);
        for page in 0..1024 {
            memory.set_u32((LOW + 4 * page) as usize, page << 12 | PWU);
        }
        memory.set_u32(DIRECTORY as usize, LOW | PWU);
        memory.set_u32(DIRECTORY as usize + 4, TABLE | PWU);
        let cpuid = cpuid2(&device.fd, KVM_GET_SUPPORTED_CPUID);
        Self { vm, memory, next: Cell::new(CODE), cpuid }
    }

    /// A vCPU in protected mode with paging on.
    fn vcpu(&self, id: u32) -> Vcpu {
        let vcpu = self.vm.vcpu(id);
        vcpu.set_cpuid(&self.cpuid).expect("KVM_SET_CPUID2");
        vcpu.edit_sregs(|s| {
            let flat = KvmSegment { limit: u32::MAX, present: 1, s: 1, db: 1, g: 1, ..KvmSegment::default() };
            s.cs = KvmSegment { selector: 8, type_: 11, ..flat };
            for segment in [&mut s.ds, &mut s.es, &mut s.fs, &mut s.gs, &mut s.ss] {
                *segment = KvmSegment { selector: 16, type_: 3, ..flat };
            }
            (s.cr0, s.cr3) = (0x8001_0031, u64::from(DIRECTORY));
        });
        vcpu
    }

    /// Has a vCPU execute `code` and HLT, at an address of its own; the registers then.
    #[track_caller]
    fn execute(&self, vcpu: &Vcpu, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> KvmRegs {
        self.begin(vcpu, code);
        vcpu.run_to_hlt();
        vcpu.regs()
    }

    /// Brings a vCPU to `code` and a HLT behind it.
    fn begin(&self, vcpu: &Vcpu, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        let at = self.next.get();
        let bytes = assemble(32, at.into(), |a| {
            code(a)?;
            a.hlt()
        });
        self.memory.write(at as usize, &bytes);
        self.next.set((at + bytes.len() as u32).next_multiple_of(16));
        vcpu.edit_regs(|r| (r.rip, r.rsp, r.rflags) = (at.into(), 0x8000, 2));
    }

    #[track_caller]
    fn read(&self, vcpu: &Vcpu, address: u32) -> u32 {
        self.execute(vcpu, |a| a.mov(eax, dword_ptr(address))).rax as u32
    }

    #[track_caller]
    fn write(&self, vcpu: &Vcpu, address: u32, value: u32) {
        self.execute(vcpu, |a| store(a, address, value));
    }
}

/// Writes a doubleword.
fn store(a: &mut CodeAssembler, address: u32, value: u32) -> Result<(), IcedError> {
    a.mov(eax, value)?;
    a.mov(dword_ptr(address), eax)
}
