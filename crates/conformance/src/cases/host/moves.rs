//! vCPUs on several processors of the host, which is where its scheduler takes them (rows B08, C01, C02, D01). On a host with one
//! they stay where they are.
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use iced_x86::code_asm::*;
use x86::{
    msr,
    paging::{P, W},
};

use crate::{
    Device,
    device::{Errno, Memory, Thread, processors},
    guest::{
        Live, Machine, Mode,
        layout::{DATA, FRAMES},
    },
    runner::{Case, case},
    vm::{Exit, RealMode, at, until, while_running},
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("vcpus-run-on-each-processor-in-turn", "A10 C01 C02 D01", in_turn),
    case("a-running-vcpu-goes-from-processor-to-processor", "B08 C01 C02 D01", while_it_runs),
    case("a-slot-goes-while-its-reader-is-on-another-processor", "A15 B08 D01", slot_goes),
];

/// Processors of the host, each followed by another one if there is one, for ever.
fn in_turns() -> impl Iterator<Item = usize> {
    processors().into_iter().cycle()
}

/// A guest that counts `step` up in a register, puts the sum into FS base, and halts.
fn counter(step: i32) -> Machine {
    let mut m = Machine::new(Mode::LONG);
    m.code(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.add(rbx, step)?;
        a.mov(ecx, msr::FS_BASE)?;
        a.mov(eax, ebx)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.hlt()?;
        a.jmp(again)
    });
    m
}

/// Two vCPUs take turns on each processor, and are looked at from another one than they ran on.
fn in_turn(device: &Device) {
    let guests = [3, 0x1000].map(|step| (step as u64, counter(step).start(device)));
    let mut cpus = in_turns();
    let mut next = || Thread::current().pin(cpus.next().expect("a processor"));
    for round in 1..=24 {
        next();
        guests.iter().for_each(|(_, live)| live.vcpu.run_to_hlt());
        next();
        for (step, live) in &guests {
            assert_eq!(live.vcpu.regs().rbx, step * round);
            assert_eq!(live.vcpu.sregs().fs.base, step * round);
            assert_eq!(live.vcpu.msr(msr::FS_BASE), Some(step * round));
            assert_eq!(live.vcpu.sregs().cs.base, 0);
        }
        if round % 3 != 0 {
            // Sometimes they run where they did last.
            next();
        }
    }
}

/// The page that changes its frame.
const GVA: u64 = 0x80_0000;

/// A guest that points a page at one of two frames after the other, and finds the right one behind it each time: what a processor
/// remembers from the last time that the vCPU was there must not count.
fn turncoat() -> Machine {
    let mut m = Machine::new(Mode::LONG);
    m.interruptible();
    for n in 0..2 {
        m.image.write32(FRAMES + 4096 * n, n as u32);
    }
    m.map(GVA, FRAMES | P | W);
    let entry = m.entry(GVA, 1) as u32;
    m.code(|a| {
        let (mut again, mut wrong) = (a.create_label(), a.create_label());
        a.xor(r13d, r13d)?;
        a.set_label(&mut again)?;
        a.xor(r13d, 1)?;
        a.mov(eax, r13d)?;
        a.shl(eax, 12)?;
        a.add(eax, (FRAMES | P | W) as i32)?;
        a.mov(dword_ptr(entry), eax)?;
        a.mov(edi, GVA as u32)?;
        a.invlpg(byte_ptr(rdi))?;
        a.cmp(dword_ptr(rdi), r13d)?;
        a.jne(wrong)?;
        a.inc(r12)?;
        a.mov(qword_ptr(DATA as u32), r12)?;
        a.jmp(again)?;
        a.set_label(&mut wrong)?;
        a.out(0x10, al)
    });
    m
}

fn while_it_runs(device: &Device) {
    let live: Live = turncoat().start(device);
    let rounds = || live.memory.u64(DATA as usize);
    let (exit, ()) = while_running(&live.vcpu, |running| {
        for cpu in in_turns().take(40) {
            running.thread().pin(cpu);
            let before = rounds();
            until("the guest to go on", || rounds() > before + 1 || running.done());
        }
        running.stop();
    });
    assert_eq!(exit, Err(Errno::EINTR), "the page's old frame was behind it");
    assert!(live.vcpu.regs().r12 - rounds() <= 1);
}

/// What memory holds that belongs to no slot any more.
const GONE: u16 = 0xdead;

/// A slot is deleted while a vCPU on another processor reads it without an end: behind the call, it no longer does.
fn slot_goes(device: &Device) {
    let machine = RealMode::spinning(device, |a| {
        let (mut again, mut wrong) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.mov(ax, word_ptr(0))?;
        a.mov(word_ptr(0x500).es(), ax)?;
        a.cmp(ax, i32::from(GONE))?;
        a.jne(again)?;
        a.set_label(&mut wrong)?;
        a.out(0x10, al)
    });
    machine.vcpu.edit_sregs(|s| at(&mut s.ds, 0x20000));
    let all = processors();
    let (first, last) = (all[0], all[all.len() - 1]);
    let end = AtomicBool::new(false);
    Thread::current().pin(first);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            Thread::current().pin(last);
            while !end.load(Ordering::SeqCst) {
                match machine.vcpu.try_run() {
                    // Between two slots there is no memory.
                    Ok(Exit::Read { gpa: 0x20000, len: 2 }) => machine.vcpu.answer(&[0, 0]),
                    Err(Errno::EINTR) => {}
                    other => panic!("{other:?}: memory of a deleted slot was read"),
                }
            }
        });
        for n in 1..40 {
            let memory = Memory::new(0x1000);
            memory.set_u16(0, n);
            machine.vm.set_slot(1, 0, 0x20000, memory).expect("a slot");
            until("the guest to read", || machine.memory.u16(0x500) == n || reader.is_finished());
            machine.vm.delete_slot(1).expect("deletion");
            memory.set_u16(0, GONE);
        }
        end.store(true, Ordering::SeqCst);
        machine.vcpu.page.set_immediate_exit(true);
    });
}
