//! Many VMs at once, and what they do not share (rows D04, C06, B06).
use iced_x86::code_asm::*;

use crate::{
    Device,
    guest::{Machine, Mode, cr4, layout::DATA},
    runner::{Case, case},
    vm::Exit,
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("many-vms-one-after-the-other", "D04", one_after_the_other),
    case("many-vms-side-by-side", "D04", side_by_side),
    case("vms-do-not-share-registers", "C06 D04", registers),
    case("vms-do-not-share-translations", "B01 D04", translations),
    case("a-vm-that-ends-badly-leaves-the-others-alone", "A05 D04", bad_end),
];

/// A guest that adds `n` to what lies in [`DATA`], each time that it is run.
fn adder(n: u32) -> Machine {
    let mut m = Machine::new(Mode::LONG);
    m.code(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.add(dword_ptr(DATA as u32), n as i32)?;
        a.hlt()?;
        a.jmp(again)
    });
    m
}

fn one_after_the_other(device: &Device) {
    for n in 0..40 {
        let live = adder(n).run(device);
        assert_eq!(live.memory.u32(DATA as usize), n);
    }
}

fn side_by_side(device: &Device) {
    let mut all: Vec<_> = (1..20).map(|n| (n, adder(n).start(device))).collect();
    for round in 1..4 {
        for (n, live) in &all {
            live.vcpu.run_to_hlt();
            assert_eq!(live.memory.u32(DATA as usize), n * round);
        }
        // Some go, the rest stays.
        all.retain(|(n, _)| n % (round + 2) != 0);
    }
}

/// XMM and x87 registers of two guests that take turns.
fn registers(device: &Device) {
    let guest = |n: u32| {
        let mut m = Machine::new(Mode::LONG);
        m.cr4 |= cr4::OSFXSR;
        m.image.write32(DATA, n);
        m.code(|a| {
            let mut again = a.create_label();
            a.fninit()?;
            a.fild(dword_ptr(DATA as u32))?;
            a.movd(xmm7, dword_ptr(DATA as u32))?;
            a.mov(r13d, dword_ptr(DATA as u32))?;
            a.set_label(&mut again)?;
            a.hlt()?;
            // As they were, and one more.
            a.fist(dword_ptr(DATA as u32 + 4))?;
            a.movd(dword_ptr(DATA as u32 + 8), xmm7)?;
            a.mov(dword_ptr(DATA as u32 + 12), r13d)?;
            a.jmp(again)
        });
        m.start(device)
    };
    let (one, two) = (guest(1111), guest(2222));
    one.vcpu.run_to_hlt();
    two.vcpu.run_to_hlt();
    for _ in 0..5 {
        for (live, n) in [(&one, 1111), (&two, 2222)] {
            live.vcpu.run_to_hlt();
            let word = |at| live.memory.u32(DATA as usize + at);
            assert_eq!((word(4), word(8), word(12)), (n, n, n));
        }
    }
}

/// The same addresses, roots and all, in two VMs.
fn translations(device: &Device) {
    let (one, two) = (adder(1).start(device), adder(100).start(device));
    for round in 1..20 {
        one.vcpu.run_to_hlt();
        two.vcpu.run_to_hlt();
        let counts = [&one, &two].map(|live| live.memory.u32(DATA as usize));
        assert_eq!(counts, [round, 100 * round]);
    }
}

fn bad_end(device: &Device) {
    let good = adder(3).start(device);
    for round in 1..5 {
        let mut bad = Machine::new(Mode::LONG);
        // An IDT without room: lidt of zeroes; ud2.
        bad.bytes(&[0xbf, 0, 0xa0, 0, 0, 0x0f, 0x01, 0x1f, 0x0f, 0x0b]);
        assert_eq!(bad.start(device).vcpu.run(), Exit::Shutdown);
        good.vcpu.run_to_hlt();
        assert_eq!(good.memory.u32(DATA as usize), 3 * round);
    }
}
