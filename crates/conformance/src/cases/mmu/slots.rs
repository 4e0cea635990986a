//! Memory slots that change under a guest with paging (rows A15, A17, B03, B08).
use abi::{KVM_CAP_READONLY_MEM, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use iced_x86::code_asm::*;
use x86::paging::{P, W};

use super::{GVA, mark};
use crate::{
    Device,
    device::Memory,
    guest::{Live, Machine, Mode, Paging, layout::DATA},
    runner::{Case, case},
    vm::{Exit, until, while_running},
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("a-slot-deleted-under-a-running-guest", "A15 B08", deleted),
    case("a-slot-replaced-under-a-running-guest", "A15 B08", replaced),
    case("a-slot-moved-under-a-running-guest", "A15 B08", moved),
    case("a-slot-made-read-only-under-a-running-guest", "A15 B08", read_only).needs(KVM_CAP_READONLY_MEM),
    case("dirty-logging-begins-under-a-running-guest", "A17 B08", logging_begins),
    case("each-reading-of-the-dirty-log-begins-anew", "A17 B08", log_again),
    case("dirty-logging-of-large-pages-is-by-small-ones", "A17 B03", log_large),
    case("the-slot-of-the-page-tables-is-made-anew", "A15 B02 B03", tables_slot),
    case("slots-that-come-and-go", "A15", come_and_go),
];

/// A slot of 64 pages beyond the standard memory.
const SLOT: u64 = 0x200_0000;
const BYTES: usize = 64 * 4096;
/// Where the guest sees it.
const SEEN: u64 = GVA;

/// A guest that does `body` again and again, counting rounds in [`DATA`]; EDI holds [`SEEN`]. The slot's pages begin with
/// their marks.
fn looping(device: &Device, paging: Paging, body: &[u8]) -> (Live, Memory) {
    let mut m = Machine::new(Mode::Paged(paging));
    for n in 0..64 {
        m.map(SEEN + 4096 * n, (SLOT + 4096 * n) | P | W);
        m.map(SEEN + 0x10_0000 + 4096 * n, (SLOT + 0x10_0000 + 4096 * n) | P | W);
    }
    m.regs.rdi = SEEN;
    m.code(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.db(body)?;
        a.inc(dword_ptr(DATA as u32))?;
        a.jmp(again)
    });
    m.interruptible();
    let live = m.start(device);
    let memory = live.vm.memory(2, SLOT, BYTES);
    (0..64).for_each(|n| memory.set_u32(4096 * n, mark(n as u64)));
    (live, memory)
}

/// Waits until the guest has made some more rounds.
fn rounds(live: &Live) {
    let now = live.memory.u32(DATA as usize);
    until("the guest to go on", || live.memory.u32(DATA as usize).wrapping_sub(now) > 50);
}

const READ: &[u8] = &[0x8b, 0x07]; // mov eax, [edi]
const COUNT: &[u8] = &[0xff, 0x07]; // inc dword [edi]

fn deleted(device: &Device) {
    for paging in Paging::ALL {
        let (live, _) = looping(device, paging, READ);
        let (exit, ()) = while_running(&live.vcpu, |running| {
            rounds(&live);
            live.vm.delete_slot(2).expect("the slot can be deleted");
            until("an exit", || running.done());
        });
        assert_eq!(exit, Ok(Exit::Read { gpa: SLOT, len: 4 }), "{paging:?}");
        live.vcpu.answer(&[1, 2, 3, 4]);
        assert_eq!(live.vcpu.run(), Exit::Read { gpa: SLOT, len: 4 });
        assert_eq!(live.vcpu.regs().rax, 0x0403_0201);
    }
}

/// When the call has returned, the guest cannot write the old memory any more.
fn replaced(device: &Device) {
    for paging in Paging::ALL {
        let (live, old) = looping(device, paging, COUNT);
        // Deleting first lets the guest meet a moment without memory: its exits are answered.
        let new = Memory::new(BYTES);
        let (exit, ()) = while_running(&live.vcpu, |running| {
            rounds(&live);
            live.vm.delete_slot(2).expect("the slot can be deleted");
            until("an exit", || running.done());
        });
        assert_eq!(exit, Ok(Exit::Read { gpa: SLOT, len: 4 }));
        let last = old.u32(0);
        live.vm.set_slot(2, 0, SLOT, new).expect("a new slot");
        live.vcpu.answer(&[0; 4]);
        let (_, ()) = while_running(&live.vcpu, |running| {
            // The write of the pending instruction may still be an exit.
            until("the guest to write", || new.u32(0) > 50 || running.done());
            running.stop();
        });
        if new.u32(0) <= 50 {
            let (_, ()) = while_running(&live.vcpu, |running| {
                until("the guest to write", || new.u32(0) > 50);
                running.stop();
            });
        }
        assert_eq!(old.u32(0), last, "{paging:?}: the old memory was written");
    }
}

fn moved(device: &Device) {
    for paging in Paging::ALL {
        let (live, memory) = looping(device, paging, READ);
        let (exit, ()) = while_running(&live.vcpu, |running| {
            rounds(&live);
            live.vm.set_slot(2, 0, SLOT + 0x10_0000, memory).expect("the slot can be moved");
            until("an exit", || running.done());
        });
        assert_eq!(exit, Ok(Exit::Read { gpa: SLOT, len: 4 }), "{paging:?}");
        live.vcpu.answer(&[0; 4]);
        live.vcpu.page.set_immediate_exit(true);
        let _ = live.vcpu.try_run();
        live.vcpu.page.set_immediate_exit(false);
        live.vcpu.edit_regs(|regs| regs.rdi = SEEN + 0x10_0000);
        let (_, ()) = while_running(&live.vcpu, |running| {
            rounds(&live);
            running.stop();
        });
        assert_eq!(live.vcpu.regs().rax, u64::from(mark(0)), "{paging:?}");
    }
}

fn read_only(device: &Device) {
    for paging in Paging::ALL {
        let (live, memory) = looping(device, paging, COUNT);
        let (exit, ()) = while_running(&live.vcpu, |running| {
            rounds(&live);
            // Only a new slot may be read-only.
            live.vm.set_slot(2, KVM_MEM_READONLY, SLOT, memory).expect_err("flags of a slot that exists");
            rounds(&live);
            live.vm.delete_slot(2).expect("the slot can be deleted");
            until("an exit", || running.done());
        });
        assert_eq!(exit, Ok(Exit::Read { gpa: SLOT, len: 4 }), "{paging:?}");
        live.vcpu.answer(&[9, 0, 0, 0]);
        assert_eq!(live.vcpu.run(), Exit::write(SLOT, &[10, 0, 0, 0]));
        live.vm.set_slot(2, KVM_MEM_READONLY, SLOT, memory).expect("a read-only slot");
        let value = memory.u32(0);
        // From now on reads find memory, and writes leave.
        assert_eq!(live.vcpu.run(), Exit::write(SLOT, &(value + 1).to_le_bytes()));
        assert_eq!(memory.u32(0), value);
    }
}

/// Writes a dword into each of the 64 pages, which it counts up.
const ALL_PAGES: &[u8] = &[
    0x89, 0xfe, // mov esi, edi
    0xff, 0x06, // next: inc dword [esi]
    0x81, 0xc6, 0x00, 0x10, 0, 0, // add esi, 4096
    0x81, 0xfe, 0x00, 0x00, 0x84, 0, // cmp esi, SEEN + 64 * 4096
    0x75, 0xf0, // jne next
];

fn logging_begins(device: &Device) {
    for paging in Paging::ALL {
        let (live, memory) = looping(device, paging, ALL_PAGES);
        let (_, dirty) = while_running(&live.vcpu, |running| {
            rounds(&live);
            live.vm.set_slot(2, KVM_MEM_LOG_DIRTY_PAGES, SLOT, memory).expect("logging");
            rounds(&live);
            let dirty = live.vm.dirty(2, 64);
            running.stop();
            dirty
        });
        assert_eq!(dirty, (0..64).collect::<Vec<_>>(), "{paging:?}");
    }
}

/// What has been told is told again if it is written again: no writer keeps its right to write.
fn log_again(device: &Device) {
    for paging in Paging::ALL {
        let (live, memory) = looping(device, paging, ALL_PAGES);
        live.vm.set_slot(2, KVM_MEM_LOG_DIRTY_PAGES, SLOT, memory).expect("logging");
        while_running(&live.vcpu, |running| {
            for _ in 0..10 {
                live.vm.dirty(2, 64);
                rounds(&live);
                assert_eq!(live.vm.dirty(2, 64), (0..64).collect::<Vec<_>>(), "{paging:?}");
            }
            running.stop();
        })
        .0
        .expect_err("a signal");
        // With nobody writing there is nothing to tell, but every change since the last reading has been told.
        live.vm.dirty(2, 64);
        let before: Vec<_> = (0..64).map(|n| memory.u32(4096 * n)).collect();
        assert_eq!(live.vm.dirty(2, 64), []);
        live.vcpu.edit_regs(|regs| regs.rdi = SEEN);
        while_running(&live.vcpu, |running| running.stop()).0.expect_err("a signal");
        let dirty = live.vm.dirty(2, 64);
        let changed: Vec<_> = (0..64).filter(|n| memory.u32(4096 * n) != before[*n]).collect();
        assert!(changed.iter().all(|page| dirty.contains(page)), "{changed:?} were written, {dirty:?} told");
    }
}

fn log_large(device: &Device) {
    for paging in Paging::ALL {
        let mut m = Machine::new(Mode::Paged(paging));
        let large = paging.span(2);
        // The large page of memory from 8 MiB on.
        m.map_large(large * 40, 0x80_0000 | P | W);
        m.code(|a| {
            for page in [3, 7, 200] {
                a.inc(dword_ptr((large * 40) as u32 + 4096 * page))?;
            }
            a.mov(eax, dword_ptr((large * 40) as u32 + 4096 * 9))?;
            a.hlt()
        });
        let live = m.run(device);
        let high = live.memory.part(0x10_0000, 0xf0_0000);
        live.vm.set_slot(1, KVM_MEM_LOG_DIRTY_PAGES, 0x10_0000, high).expect("logging");
        live.vm.dirty(1, 0xf00);
        for _ in 0..2 {
            live.go(m.regs.rip);
            let dirty = live.vm.dirty(1, 0xf00);
            let data: Vec<_> = dirty.into_iter().filter(|page| *page >= 0x700).collect();
            assert_eq!(data, [0x703, 0x707, 0x7c8], "{paging:?}");
        }
    }
}

/// The page tables lie in slot 1, which goes and comes back while the guest is stopped.
fn tables_slot(device: &Device) {
    for paging in Paging::ALL {
        let (live, _) = looping(device, paging, READ);
        let high = live.memory.part(0x10_0000, 0xf0_0000);
        for _ in 0..3 {
            while_running(&live.vcpu, |running| {
                rounds(&live);
                running.stop();
            })
            .0
            .expect_err("a signal");
            assert_eq!(live.vcpu.regs().rax, u64::from(mark(0)), "{paging:?}");
            live.vm.delete_slot(1).expect("the slot can be deleted");
            live.vm.set_slot(1, 0, 0x10_0000, high).expect("the slot can be made again");
        }
    }
}

/// Another slot comes and goes while the guest runs in the first ones.
fn come_and_go(device: &Device) {
    let (live, memory) = looping(device, Paging::Long, ALL_PAGES);
    let other = Memory::new(4096);
    while_running(&live.vcpu, |running| {
        for n in 0..30 {
            live.vm.set_slot(3, 0, 0x400_0000 + 4096 * n, other).expect("a slot");
            live.vm.delete_slot(3).expect("it can be deleted");
        }
        rounds(&live);
        running.stop();
    })
    .0
    .expect_err("a signal");
    // Every round has reached every page.
    let counts: Vec<_> = (0..64).map(|n| memory.u32(4096 * n) - mark(n as u64)).collect();
    assert!(counts[0] - counts[63] <= 1, "{counts:?}");
}
