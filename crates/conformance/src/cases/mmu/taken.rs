//! The host takes memory away while a guest uses it (row B12).
use iced_x86::code_asm::*;
use x86::paging::{P, W};

use super::{GVA, LINUX_SHADOW, mark};
use crate::{
    Device, Errno,
    device::{Memory, leave_holes},
    guest::{Live, Machine, Mode, Paging, layout::DATA},
    runner::{Case, Target, case},
    vm::{until, while_running},
};

const FOLLOW: &str = "shadow pages follow the guest's writes to its tables, not the client's";

pub(in crate::cases) const CASES: &[Case] = &[
    case("pages-given-back-read-as-zeroes", "B12", discarded),
    case("pages-given-back-under-a-running-guest", "B12 B08", discarded_while_running),
    case("memory-without-access-is-efault", "B12", protected),
    case("memory-that-may-only-be-read-is-efault-when-written", "B12", write_protected),
    case("unmapped-memory-is-efault-until-it-is-back", "B12", unmapped),
    case("memory-that-moved-away-is-efault", "B12", moved_away),
    case("access-taken-from-a-running-guest", "B12 B08", protected_while_running),
    case("page-tables-given-back-map-nothing-after-a-flush", "B12 B02", tables_discarded)
        .inapplicable(LINUX_SHADOW, FOLLOW)
        .inapplicable(Target::SOFT_SHADOW.or(Target::SOFT_SHADOW_ADVERSARIAL), FOLLOW)
        .inapplicable(Target::MODULE_SHADOW, FOLLOW),
];

/// A slot of 16 pages beyond the standard memory, where the guest sees it at [`GVA`].
const SLOT: u64 = 0x200_0000;
const BYTES: usize = 16 * 4096;

/// A guest that runs `code` again from its start after each HLT; EDI holds [`GVA`].
fn guest(device: &Device, paging: Paging, code: &[u8]) -> (Live, Memory, u64) {
    let mut m = Machine::new(Mode::Paged(paging));
    for n in 0..16 {
        m.map(GVA + 4096 * n, (SLOT + 4096 * n) | P | W);
    }
    m.regs.rdi = GVA;
    let at = m.bytes(code);
    let live = m.start(device);
    leave_holes();
    let memory = live.vm.memory(2, SLOT, BYTES);
    memory.fence_below();
    memory.set_u32(0, mark(0));
    (live, memory, at)
}

const READ: &[u8] = &[0x8b, 0x07, 0xf4]; // mov eax, [edi]; hlt
const WRITE: &[u8] = &[0xff, 0x07, 0xf4]; // inc dword [edi]; hlt

fn read(live: &Live, at: u64) -> u64 {
    live.go(at);
    live.vcpu.regs().rax
}

fn discarded(device: &Device) {
    for paging in Paging::ALL {
        let (live, memory, at) = guest(device, paging, READ);
        for n in 1..4 {
            memory.set_u32(0, mark(n));
            assert_eq!(read(&live, at), u64::from(mark(n)), "{paging:?}");
            memory.discard(0, 4096);
            assert_eq!(read(&live, at), 0, "{paging:?}");
        }
    }
}

/// A guest that counts in the page for ever.
fn counting(device: &Device, paging: Paging) -> (Live, Memory) {
    let mut m = Machine::new(Mode::Paged(paging));
    m.map(GVA, SLOT | P | W);
    m.code(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        // Locked, so that no count is carried over what happens to the page meanwhile.
        a.lock().inc(dword_ptr(GVA as u32))?;
        a.inc(dword_ptr(DATA as u32))?;
        a.jmp(again)
    });
    m.interruptible();
    let live = m.start(device);
    let memory = live.vm.memory(2, SLOT, BYTES);
    (live, memory)
}

fn discarded_while_running(device: &Device) {
    for paging in Paging::ALL {
        let (live, memory) = counting(device, paging);
        while_running(&live.vcpu, |running| {
            for _ in 0..5 {
                // High, then low again, and what the guest writes is seen here: it writes the page that is mapped now.
                memory.set_u32(0, 0x7000_0000);
                until("the guest to count on", || memory.u32(0) > 0x7000_0010);
                memory.discard(0, 4096);
                until("the guest to begin again", || (1..0x7000_0000).contains(&memory.u32(0)));
            }
            running.stop();
        })
        .0
        .expect_err("a signal");
    }
}

fn protected(device: &Device) {
    for paging in Paging::ALL {
        let (live, memory, at) = guest(device, paging, READ);
        assert_eq!(read(&live, at), u64::from(mark(0)));
        for _ in 0..2 {
            memory.protect(0, 4096, libc::PROT_NONE);
            live.vcpu.edit_regs(|regs| (regs.rip, regs.rax) = (at, 5));
            for _ in 0..2 {
                assert_eq!(live.vcpu.try_run(), Err(Errno::EFAULT), "{paging:?}");
                let regs = live.vcpu.regs();
                assert_eq!((regs.rip, regs.rax), (at, 5), "the instruction has not been executed");
            }
            memory.protect(0, 4096, libc::PROT_READ | libc::PROT_WRITE);
            live.vcpu.run_to_hlt();
            assert_eq!(live.vcpu.regs().rax, u64::from(mark(0)));
        }
    }
}

fn write_protected(device: &Device) {
    for paging in Paging::ALL {
        let (live, memory, at) = guest(device, paging, WRITE);
        live.vcpu.run_to_hlt();
        assert_eq!(memory.u32(0), mark(1));
        memory.protect(0, 4096, libc::PROT_READ);
        live.vcpu.edit_regs(|regs| regs.rip = at);
        assert_eq!(live.vcpu.try_run(), Err(Errno::EFAULT), "{paging:?}");
        assert_eq!((memory.u32(0), live.vcpu.regs().rip), (mark(1), at));
        memory.protect(0, 4096, libc::PROT_READ | libc::PROT_WRITE);
        live.vcpu.run_to_hlt();
        assert_eq!(memory.u32(0), mark(2));
    }
}

fn unmapped(device: &Device) {
    for paging in Paging::ALL {
        let (live, memory, at) = guest(device, paging, READ);
        assert_eq!(read(&live, at), u64::from(mark(0)));
        memory.unmap(0, 4096);
        live.vcpu.edit_regs(|regs| regs.rip = at);
        assert_eq!(live.vcpu.try_run(), Err(Errno::EFAULT), "{paging:?}");
        // Other memory comes to the same place.
        memory.map_again(0, 4096);
        memory.set_u32(0, 77);
        live.vcpu.run_to_hlt();
        assert_eq!(live.vcpu.regs().rax, 77, "{paging:?}");
    }
}

fn moved_away(device: &Device) {
    for paging in Paging::ALL {
        let (live, memory, at) = guest(device, paging, WRITE);
        live.vcpu.run_to_hlt();
        let elsewhere = memory.move_away(0, 4096);
        assert_eq!(elsewhere.u32(0), mark(1));
        live.vcpu.edit_regs(|regs| regs.rip = at);
        assert_eq!(live.vcpu.try_run(), Err(Errno::EFAULT), "{paging:?}");
        assert_eq!(elsewhere.u32(0), mark(1), "{paging:?}: the guest reached memory that is not there any more");
        memory.map_again(0, 4096);
        live.vcpu.run_to_hlt();
        assert_eq!((memory.u32(0), elsewhere.u32(0)), (1, mark(1)));
    }
}

fn protected_while_running(device: &Device) {
    for paging in Paging::ALL {
        let (live, memory) = counting(device, paging);
        for _ in 0..3 {
            let (exit, ()) = while_running(&live.vcpu, |running| {
                let now = memory.u32(0);
                until("the guest to count", || memory.u32(0) != now);
                memory.protect(0, 4096, libc::PROT_READ);
                let then = memory.u32(0);
                until("KVM_RUN to fail", || running.done());
                assert_eq!(memory.u32(0), then, "{paging:?}: written after the call had returned");
            });
            assert_eq!(exit, Err(Errno::EFAULT), "{paging:?}");
            memory.protect(0, 4096, libc::PROT_READ | libc::PROT_WRITE);
        }
    }
}

/// The table of the page at [`GVA`] alone is given back.
fn tables_discarded(device: &Device) {
    for paging in Paging::ALL {
        let mut m = Machine::new(Mode::Paged(paging));
        let gva = paging.span(2) * 40;
        m.map(gva, SLOT | P | W);
        let table = m.entry(gva, 1) & !0xfff;
        m.code(|a| {
            // Each run begins with a flush.
            if paging == Paging::Long {
                a.mov(rax, cr3)?;
                a.mov(cr3, rax)?;
            } else {
                a.mov(eax, cr3)?;
                a.mov(cr3, eax)?;
            }
            a.mov(eax, dword_ptr(gva as u32))?;
            a.hlt()
        });
        let live = m.start(device);
        live.vm.memory(2, SLOT, BYTES).set_u32(0, mark(0));
        live.vcpu.run_to_hlt();
        assert_eq!((live.vcpu.regs().rax, live.events()), (u64::from(mark(0)), vec![]));
        live.memory.discard(table as usize, 4096);
        live.go(m.regs.rip);
        let event = live.event();
        assert_eq!((event.vector, event.code, event.cr2), (14, 0, gva), "{paging:?}");
    }
}
