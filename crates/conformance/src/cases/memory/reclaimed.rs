//! The host's own memory management takes pages from a running guest and brings them back, elsewhere perhaps: what is in them
//! stays. What the advice here sets going depends on the host: it pages out if it has a swap device, and merges if it has been
//! told to (`/sys/kernel/mm/ksm/run`). The guest must not notice either way.
use std::{thread, time::Duration};

use iced_x86::code_asm::*;
use x86::paging::{P, W};

use crate::{
    device::{Device, Memory},
    guest::{Live, Machine, Mode, Paging, layout::DATA},
    vm::{scaled, until, while_running},
};

/// A slot beyond the standard memory, and where the guest sees it.
const SLOT: u64 = 0x200_0000;
const GVA: u64 = 0x4000_0000;
const PAGE: usize = 4096;
const PAGES: usize = 64;
/// What is in every page, but for its first word, which the guest counts.
const FILL: u8 = 0x5a;

/// Where the guest counts its rounds, and where it is told to write.
const ROUNDS: usize = DATA as usize;
const WRITES: usize = DATA as usize + 4;

/// A guest that goes through all pages for ever. It adds `[WRITES]`, 0 or 1, to the first word of each, and compares the last one
/// with what belongs there: it tells port 0x10 if that is wrong. A page that is added 0 to is only read.
fn guest(device: &Device, paging: Paging) -> (Live, Memory) {
    let mut m = Machine::new(Mode::Paged(paging));
    for n in 0..PAGES as u64 {
        m.map(GVA + (n << 12), (SLOT + (n << 12)) | P | W);
    }
    m.code(|a| {
        let (mut round, mut page, mut read, mut wrong) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut round)?;
        a.mov(edi, GVA as u32)?;
        a.mov(ecx, PAGES as u32)?;
        a.mov(edx, dword_ptr(WRITES as u32))?;
        a.set_label(&mut page)?;
        a.cmp(edx, 0)?;
        a.je(read)?;
        a.db(&[0xff, 0x07])?; // inc dword [edi]
        a.set_label(&mut read)?;
        a.db(&[0x81, 0xbf, 0xfc, 0x0f, 0, 0])?; // cmp dword [edi + 0xffc], FILL FILL FILL FILL
        a.db(&[FILL; 4])?;
        a.jne(wrong)?;
        a.add(edi, PAGE as i32)?;
        a.dec(ecx)?;
        a.jne(page)?;
        a.inc(dword_ptr(ROUNDS as u32))?;
        a.jmp(round)?;
        a.set_label(&mut wrong)?;
        a.out(0x10, al)
    });
    m.interruptible();
    let live = m.start(device);
    let memory = live.vm.memory(2, SLOT, PAGES * PAGE);
    memory.write(0, &[FILL; PAGES * PAGE]);
    (0..PAGES).for_each(|n| memory.set_u32(n * PAGE, 0));
    (live, memory)
}

/// Waits until the guest has been through all pages.
fn rounds(live: &Live) {
    let now = live.memory.u32(ROUNDS);
    until("the guest to go on", || live.memory.u32(ROUNDS).wrapping_sub(now) > 2);
}

/// All pages hold what the guest has left in them.
fn check(memory: &Memory, paging: Paging) {
    let count = memory.u32(0);
    assert_ne!(count, 0, "{paging:?}: the guest has written");
    for n in 0..PAGES {
        // It was stopped in the middle of a round.
        let behind = count.wrapping_sub(memory.u32(n * PAGE));
        assert!(behind <= 1, "{paging:?}: page {n} is {behind} behind the first");
        assert!(memory.read(n * PAGE + 4, PAGE - 4).iter().all(|byte| *byte == FILL), "{paging:?}: page {n}");
    }
}

pub(super) fn paged_out(device: &Device) {
    for paging in Paging::ALL {
        let (live, memory) = guest(device, paging);
        live.memory.set_u32(WRITES, 1);
        while_running(&live.vcpu, |running| {
            for n in 0..10 {
                rounds(&live);
                let advice = if n % 3 == 0 { libc::MADV_COLD } else { libc::MADV_PAGEOUT };
                memory.advise(0, PAGES * PAGE, advice);
            }
            rounds(&live);
            running.stop();
        })
        .0
        .expect_err("a signal");
        check(&memory, paging);
    }
}

pub(super) fn merged(device: &Device) {
    for paging in [Paging::Legacy, Paging::Long] {
        let (live, memory) = guest(device, paging);
        memory.advise(0, PAGES * PAGE, libc::MADV_MERGEABLE);
        while_running(&live.vcpu, |running| {
            for _ in 0..2 {
                // All pages are alike while the guest only reads them, and each is its own when it writes again.
                live.memory.set_u32(WRITES, 0);
                rounds(&live);
                thread::sleep(scaled(Duration::from_millis(40)));
                rounds(&live);
                live.memory.set_u32(WRITES, 1);
                rounds(&live);
            }
            running.stop();
        })
        .0
        .expect_err("a signal");
        check(&memory, paging);
    }
}
