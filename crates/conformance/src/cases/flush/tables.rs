//! Page tables in frames that can be written through translations made before: the hypervisor has to see the writes.
use abi::KVM_SET_NR_MMU_PAGES;
use iced_x86::{
    IcedError,
    code_asm::{CodeAssembler, cr3, dword_ptr, eax, ebx, ecx, ptr, qword_ptr},
};

use super::{DIRECTORY, FRAMES, PWU, Paged, TABLE, WINDOW, store};
use crate::{
    device::Device,
    vm::{Exit, assemble},
};

/// Frames with values.
const A: u32 = FRAMES;
const B: u32 = FRAMES + 0x1000;
/// A frame that becomes a table.
const X: u32 = FRAMES + 0x2000;
/// What X maps as a table.
const FAR: u32 = 2 << 22;

fn machine(device: &Device) -> Paged {
    let machine = Paged::new(device);
    machine.memory.set_u32(A as usize, 0xaaaa);
    machine.memory.set_u32(B as usize, 0xbbbb);
    machine
}

pub(super) fn data_becomes_a_table(device: &Device) {
    let machine = machine(device);
    let vcpus = [machine.vcpu(0), machine.vcpu(1)];
    for writer in &vcpus {
        // Written as data, then used.
        machine.write(writer, X, A | PWU);
        machine.write(&vcpus[0], DIRECTORY + 8, X | PWU);
        machine.execute(&vcpus[0], |a| a.invlpg(ptr(FAR)));
        assert_eq!(machine.read(&vcpus[0], FAR), 0xaaaa);
        machine.write(writer, X, B | PWU);
        machine.execute(&vcpus[0], |a| a.invlpg(ptr(FAR)));
        assert_eq!(machine.read(&vcpus[0], FAR), 0xbbbb);
        machine.write(&vcpus[0], DIRECTORY + 8, 0);
        machine.execute(&vcpus[0], |a| a.invlpg(ptr(FAR)));
    }
}

pub(super) fn data_becomes_a_root(device: &Device) {
    let machine = machine(device);
    let vcpus = [machine.vcpu(0), machine.vcpu(1)];
    let other = X + 0x1000;
    let directory = machine.memory.read(DIRECTORY as usize, 4096);
    machine.memory.write(X as usize, &directory);
    machine.memory.set_u32(TABLE as usize, A | PWU);
    machine.memory.set_u32(other as usize, B | PWU);
    machine.write(&vcpus[1], X + 4, TABLE | PWU);
    for (table, expected) in [(TABLE, 0xaaaa), (other, 0xbbbb), (TABLE, 0xaaaa)] {
        machine.write(&vcpus[1], X + 4, table | PWU);
        let regs = machine.execute(&vcpus[0], |a| {
            a.mov(eax, X)?;
            a.mov(cr3, eax)?;
            a.mov(ebx, dword_ptr(WINDOW))
        });
        assert_eq!(regs.rbx as u32, expected);
    }
}

/// One vCPU writes an entry that both have used, and each flushes for itself.
pub(super) fn by_another(device: &Device) {
    let machine = machine(device);
    let vcpus = [machine.vcpu(0), machine.vcpu(1)];
    machine.memory.set_u32(TABLE as usize, A | PWU);
    for n in 0..6usize {
        let expected = [0xaaaa, 0xbbbb][n % 2];
        vcpus.iter().for_each(|vcpu| assert_eq!(machine.read(vcpu, WINDOW), expected));
        machine.write(&vcpus[n / 2 % 2], TABLE, [B, A][n % 2] | PWU);
        for vcpu in &vcpus {
            machine.execute(vcpu, |a| {
                a.mov(eax, DIRECTORY)?;
                if n < 3 { a.invlpg(ptr(WINDOW)) } else { a.mov(cr3, eax) }
            });
            assert_eq!(machine.read(vcpu, WINDOW), 0xaaaa ^ 0xbbbb ^ expected);
        }
    }
}

/// The table's page is in the log each time, whether the hypervisor has to execute the write or not.
pub(super) fn logged(device: &Device) {
    let machine = machine(device);
    let vcpu = machine.vcpu(0);
    machine.vm.set_slot(0, abi::KVM_MEM_LOG_DIRTY_PAGES, 0, machine.memory).expect("a log");
    for n in 0..4usize {
        machine.write(&vcpu, TABLE, [A, B][n % 2] | PWU);
        machine.execute(&vcpu, |a| a.invlpg(ptr(WINDOW)));
        assert_eq!(machine.read(&vcpu, WINDOW), [0xaaaa, 0xbbbb][n % 2]);
        machine.vm.dirty(0, 256);
        // Now it is known to be a table, and its page is clean.
        for _ in 0..2 {
            machine.write(&vcpu, TABLE + 4, A | PWU);
            let dirty = machine.vm.dirty(0, 256);
            assert!(dirty.contains(&(TABLE as usize >> 12)), "{dirty:x?}");
        }
    }
}

/// The same in long mode, whose tables from the root on are made of the guest's at the load of CR3.
pub(super) fn data_becomes_a_long_root(device: &Device) {
    use iced_x86::code_asm::{rax, rbx, rcx};
    let vm = device.vm();
    let memory = vm.memory(0, 0, 0x10_0000);
    // Top tables at 0x2000 (the writer's) and 0x3000; both lead to a large page of everything, the second in its entry 1
    // to one of two tables of 1 GiB more: their first page is A or B.
    let (tops, low) = ([0x2000usize, 0x3000], 0x4000usize);
    for top in tops {
        memory.set_u64(top, 0x4007);
    }
    memory.set_u64(low, 0x5007);
    memory.set_u64(0x5000, 0x87);
    for (n, frame) in [A, B].into_iter().enumerate() {
        let table = 0x6000 + n * 0x3000;
        memory.set_u64(table, (table as u64 + 0x1000) | 7);
        memory.set_u64(table + 0x1000, (table as u64 + 0x2000) | 7);
        memory.set_u64(table + 0x2000, u64::from(frame) | 7);
        memory.set_u32(frame as usize, [0xaaaa, 0xbbbb][n]);
    }
    let cpuid = crate::vm::cpuid2(&device.fd, abi::KVM_GET_SUPPORTED_CPUID);
    let vcpus = [0, 1].map(|id| {
        let vcpu = vm.vcpu(id);
        vcpu.set_cpuid(&cpuid).expect("KVM_SET_CPUID2");
        vcpu.edit_sregs(|s| {
            let flat = abi::KvmSegment { limit: u32::MAX, present: 1, s: 1, g: 1, ..abi::KvmSegment::default() };
            s.cs = abi::KvmSegment { selector: 8, type_: 11, l: 1, ..flat };
            for segment in [&mut s.ds, &mut s.es, &mut s.fs, &mut s.gs, &mut s.ss] {
                *segment = abi::KvmSegment { selector: 16, type_: 3, db: 1, ..flat };
            }
            (s.cr0, s.cr3, s.cr4, s.efer) = (0x8001_0031, tops[0] as u64, 0x20, 0x500);
        });
        vcpu
    });
    let mut at = 0xc000;
    let mut execute = |vcpu: &crate::vm::Vcpu, code: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        let bytes = assemble(64, at, |a| {
            code(a)?;
            a.hlt()
        });
        memory.write(at as usize, &bytes);
        vcpu.edit_regs(|r| (r.rip, r.rsp, r.rflags) = (at, 0x8000, 2));
        at += 0x100;
        vcpu.run_to_hlt();
        vcpu.regs()
    };
    for (table, expected) in [(0x6000u64, 0xaaaa), (0x9000, 0xbbbb), (0x6000, 0xaaaa)] {
        execute(&vcpus[1], &|a| {
            a.mov(rax, table | 7)?;
            a.mov(rcx, tops[1] as u64 + 8)?;
            a.mov(qword_ptr(rcx), rax)
        });
        let regs = execute(&vcpus[0], &|a| {
            a.mov(eax, tops[1] as u32)?;
            a.mov(cr3, rax)?;
            a.mov(rcx, 1u64 << 39)?;
            a.mov(rbx, qword_ptr(rcx))
        });
        assert_eq!(regs.rbx & 0xffff_ffff, expected);
    }
}

/// X is written through WINDOW by the second vCPU; then `change` is made to the entry there, and X, which nothing else
/// shows, becomes a table. A write through WINDOW that the second vCPU can still make has to be seen, as a processor that was not told to forget would make it.
fn stale(device: &Device, change: u32) {
    let machine = machine(device);
    let vcpus = [machine.vcpu(0), machine.vcpu(1)];
    machine.memory.set_u32(TABLE as usize, X | PWU);
    machine.write(&vcpus[1], WINDOW, A | PWU);
    machine.write(&vcpus[0], TABLE, change);
    machine.write(&vcpus[0], DIRECTORY + 8, X | PWU);
    assert_eq!(machine.read(&vcpus[0], FAR), 0xaaaa);
    machine.begin(&vcpus[1], |a| store(a, WINDOW, B | PWU));
    let written = match vcpus[1].run() {
        Exit::Hlt => true,
        // The processor knew that the entry does not allow it: there is no handler.
        Exit::Shutdown => false,
        other => panic!("{other:?}"),
    };
    assert_eq!(machine.memory.u32(X as usize) & !0x60, if written { B | PWU } else { A | PWU });
    machine.execute(&vcpus[0], |a| a.invlpg(ptr(FAR)));
    assert_eq!(machine.read(&vcpus[0], FAR), if written { 0xbbbb } else { 0xaaaa });
}

pub(super) fn through_a_stale_entry(device: &Device) {
    stale(device, 0);
}

pub(super) fn through_a_stale_right(device: &Device) {
    stale(device, X | PWU & !2);
}

pub(super) fn odd_instruction(device: &Device) {
    let machine = machine(device);
    let vcpu = machine.vcpu(0);
    machine.memory.set_u32(TABLE as usize, A | PWU);
    machine.memory.set_u32(TABLE as usize + 4, B | PWU);
    let new = X as usize;
    machine.memory.set_u32(new, B | PWU);
    machine.memory.set_u32(new + 4, A | PWU);
    assert_eq!(machine.read(&vcpu, WINDOW), 0xaaaa);
    // Two entries at once, by an instruction that hypervisors leave to the processor.
    machine.execute(&vcpu, |a| {
        a.fninit()?;
        a.fild(qword_ptr(X))?;
        a.fistp(qword_ptr(TABLE + 0x10))
    });
    let values = [1, 4, 5].map(|page| machine.read(&vcpu, WINDOW + page * 0x1000));
    assert_eq!(values, [0xbbbb, 0xbbbb, 0xaaaa]);
}

pub(super) fn fewer_pages(device: &Device) {
    const TABLES: u32 = 90;
    let (tables, frames) = (0x2_0000, 0x2_0000 + TABLES * 0x1000);
    let machine = machine(device);
    let vcpu = machine.vcpu(0);
    let mut expected = 0u32;
    for n in 0..TABLES {
        let (table, frame) = (tables + n * 0x1000, frames + n * 0x1000);
        machine.memory.set_u32((DIRECTORY + 4 * (16 + n)) as usize, table | PWU);
        machine.memory.set_u32(table as usize, A | PWU);
        machine.memory.set_u32(table as usize + 4, frame | PWU);
        machine.memory.set_u32(frame as usize, n + 1);
        expected = expected.wrapping_mul(3).wrapping_add(n + 1);
    }
    // One page of each table.
    let sum = |from: u32| {
        let regs = machine.execute(&vcpu, |a| {
            let mut next = a.create_label();
            a.xor(eax, eax)?;
            a.mov(ebx, from)?;
            a.mov(ecx, TABLES)?;
            a.set_label(&mut next)?;
            a.lea(eax, ptr(eax + eax * 2))?;
            a.add(eax, dword_ptr(ebx))?;
            a.add(ebx, 1 << 22)?;
            a.dec(ecx)?;
            a.jne(next)
        });
        regs.rax as u32
    };
    let first = (0..TABLES).fold(0u32, |sum, _| sum.wrapping_mul(3).wrapping_add(0xaaaa));
    assert_eq!(sum(16 << 22), first);
    machine.vm.fd.number(KVM_SET_NR_MMU_PAGES, 64).expect("KVM_SET_NR_MMU_PAGES");
    // The pages next to them.
    assert_eq!(sum((16 << 22) + 0x1000), expected);
}
