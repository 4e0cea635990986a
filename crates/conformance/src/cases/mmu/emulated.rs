//! Page faults of the guest's own that are found while an instruction with a device operand is emulated (row B09), and
//! device memory seen through page tables.
use x86::paging::{A, D, P, U, W};

use super::{GVA, frame, mark};
use crate::{
    Device,
    guest::{
        Live, Machine, Mode, Paging,
        layout::{FRAMES, HOLE, RAM_END, STUBS, USER_STACK, sel},
        live::Registers,
    },
    runner::{Case, case},
    vm::Exit,
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("windows-2000-moves-from-a-device-to-an-unmapped-page", "B09 C04", windows_2000),
    case("a-move-to-a-device-from-an-unmapped-page", "B09", to_device),
    case("a-push-of-device-memory-on-an-unmapped-stack", "B09", push),
    case("repeated-moves-stop-where-the-page-ends", "B09 C09", repeated),
    case("a-device-page-without-the-right-to-write", "B09", no_right),
    case("a-device-page-of-the-kernel", "B09", of_the_kernel),
    case("a-large-page-over-memory-and-devices", "B01 B09", large_page),
    case("a-device-page-becomes-memory-and-back", "B02 B08 B09", remapped),
    case("device-pages-have-accessed-and-dirty-bits", "B01 B09", accessed),
    case("an-access-half-memory-half-device", "B09 C09", half),
];

/// Where a device's page is mapped.
const MMIO: u64 = GVA + 0x10_0000;
/// The device.
const DEVICE: u64 = RAM_END + 0x5000;

/// In each format: a device page at [`MMIO`], an unmapped page at [`GVA`], ESI and EDI as given, and `code`.
fn each(device: &Device, rsi: u64, rdi: u64, code: &[u8], check: impl Fn(&Machine, &Live)) {
    for paging in Paging::ALL {
        let mut m = Machine::new(Mode::Paged(paging));
        let at = frame(&mut m, 0);
        m.map(GVA - 4096, (at + 4096) | P | W);
        m.map(GVA, at);
        m.map(GVA + 8192, (at + 8192) | P | W);
        m.map(MMIO, DEVICE | P | W);
        (m.regs.rsi, m.regs.rdi) = (rsi, rdi);
        if paging == Paging::Long {
            m.gate(14, sel::CODE, STUBS + 16 * 14, 0x8e, 1); // on a stack that is there in any case
        }
        m.bytes(code);
        check(&m, &m.start(device));
    }
}

/// Makes the page at [`GVA`] present, as a handler would, and goes on at the instruction that faulted.
fn map_and_retry(m: &Machine, live: &Live, registers: &mut Registers) {
    let event = live.event();
    // The lower half alone changes, in every format.
    live.memory.set_u32(m.entry(GVA, 1) as usize, (FRAMES | P | W) as u32);
    live.clear();
    live.vcpu.edit_regs(|regs| (regs.rip, regs.rsp) = (event.rip, crate::guest::layout::STACK));
    // A client that changes page tables has the translations forgotten.
    live.edit_sregs(|_| {});
    assert_eq!(live.serve(registers), Exit::Hlt);
    assert_eq!(live.events(), []);
}

fn windows_2000(device: &Device) {
    // movsb; hlt
    each(device, MMIO + 3, GVA + 5, &[0xa4, 0xf4], |m, live| {
        let mut registers = Registers::with(DEVICE + 3, &[0x5a]);
        assert_eq!(live.serve(&mut registers), Exit::Hlt);
        let event = live.event();
        assert_eq!((event.vector, event.code, event.cr2, event.rip), (14, 2, GVA + 5, m.regs.rip), "{:?}", m.mode);
        let regs = live.vcpu.regs();
        assert_eq!((regs.rsi, regs.rdi), (MMIO + 3, GVA + 5));
        map_and_retry(m, live, &mut registers);
        let regs = live.vcpu.regs();
        assert_eq!((regs.rsi, regs.rdi), (MMIO + 4, GVA + 6));
        assert_eq!(live.memory.u8(FRAMES as usize + 5), 0x5a);
    });
}

fn to_device(device: &Device) {
    // movsd; hlt
    each(device, GVA + 4, MMIO + 8, &[0xa5, 0xf4], |m, live| {
        let mut registers = Registers::default();
        assert_eq!(live.serve(&mut registers), Exit::Hlt);
        let event = live.event();
        assert_eq!((event.vector, event.code, event.cr2, event.rip), (14, 0, GVA + 4, m.regs.rip), "{:?}", m.mode);
        assert_eq!(registers.accesses, []);
        live.memory.set_u32(FRAMES as usize + 4, 0xcafe_f00d);
        map_and_retry(m, live, &mut registers);
        assert_eq!(registers.bytes(DEVICE + 8, 4), 0xcafe_f00d_u32.to_le_bytes());
        assert_eq!(registers.traffic(), (0, 4));
    });
}

fn push(device: &Device) {
    // mov esp, edi; push dword or qword [esi]; hlt
    each(device, MMIO, GVA + 0x800, &[0x89, 0xfc, 0xff, 0x36, 0xf4], |m, live| {
        let mut registers = Registers::with(DEVICE, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let end = live.serve(&mut registers);
        if m.mode == Mode::LONG {
            assert_eq!(end, Exit::Hlt);
            let event = live.event();
            assert_eq!((event.vector, event.code, event.cr2), (14, 2, GVA + 0x7f8));
            assert_eq!((event.rsp, event.rip), (GVA + 0x800, m.regs.rip + 2));
        } else {
            // #PF cannot be delivered on that stack, nor #DF.
            assert_eq!(end, Exit::Shutdown);
        }
    });
}

fn repeated(device: &Device) {
    // mov ecx, 8; rep movsd; hlt: two words fit before the page that is not there.
    each(device, MMIO, GVA - 8, &[0xb9, 8, 0, 0, 0, 0xf3, 0xa5, 0xf4], |m, live| {
        let data: Vec<u8> = (0..32).collect();
        let mut registers = Registers::with(DEVICE, &data);
        assert_eq!(live.serve(&mut registers), Exit::Hlt);
        let event = live.event();
        assert_eq!((event.vector, event.code, event.cr2, event.rip), (14, 2, GVA, m.regs.rip + 5), "{:?}", m.mode);
        let regs = live.vcpu.regs();
        assert_eq!((regs.rdi, regs.rsi, regs.rcx), (GVA, MMIO + 8, 6));
        map_and_retry(m, live, &mut registers);
        let regs = live.vcpu.regs();
        assert_eq!((regs.rdi, regs.rsi, regs.rcx), (GVA + 24, MMIO + 32, 0));
        assert_eq!(live.memory.read(FRAMES as usize + 4096 + 0xff8, 8), data[..8]);
        assert_eq!(live.memory.read(FRAMES as usize, 24), data[8..]);
    });
}

fn no_right(device: &Device) {
    for paging in Paging::ALL {
        let mut m = Machine::new(Mode::Paged(paging));
        m.map(MMIO, DEVICE | P);
        m.regs.rdi = MMIO;
        m.bytes(&[0x8b, 0x07, 0x89, 0x07, 0xf4]); // mov eax, [edi]; mov [edi], eax; hlt
        let live = m.start(device);
        let mut registers = Registers::with(DEVICE, &[1, 2, 3, 4]);
        assert_eq!(live.serve(&mut registers), Exit::Hlt);
        let event = live.event();
        assert_eq!((event.vector, event.code, event.cr2, event.rip), (14, 3, MMIO, m.regs.rip + 2), "{paging:?}");
        assert_eq!(registers.accesses, [(false, DEVICE, 4)]);
        assert_eq!(live.vcpu.regs().rax, 0x0403_0201);
    }
}

/// Level 3 meets a device page of level 0, and one of its own.
fn of_the_kernel(device: &Device) {
    for paging in Paging::ALL {
        let mut m = Machine::new(Mode::Paged(paging));
        m.map(MMIO, DEVICE | P | W);
        m.map(MMIO + 4096, (DEVICE + 4096) | P | W | U);
        m.regs.rdi = MMIO;
        let user = m.user_code(|a| a.db(&[0x8b, 0x87, 0, 0x10, 0, 0, 0x8b, 0x07])); // mov eax, [edi+0x1000]; mov eax, [edi]
        let mut code = Vec::new();
        for word in [u64::from(sel::USER_DATA), USER_STACK, 2, u64::from(sel::USER), user] {
            code.push(0x68);
            code.extend((word as u32).to_le_bytes());
        }
        code.extend(if paging == Paging::Long { &[0x48, 0xcf][..] } else { &[0xcf] });
        m.bytes(&code);
        let live = m.start(device);
        let mut registers = Registers::with(DEVICE + 4096, &[9, 0, 0, 0]);
        assert_eq!(live.serve(&mut registers), Exit::Hlt);
        let event = live.event();
        assert_eq!((event.vector, event.code, event.cr2, event.rip), (14, 5, MMIO, user + 6), "{paging:?}");
        assert_eq!((live.vcpu.regs().rax, registers.accesses), (9, vec![(false, DEVICE + 4096, 4)]));
    }
}

fn large_page(device: &Device) {
    for paging in Paging::ALL {
        let mut m = Machine::new(Mode::Paged(paging));
        // The first large page of memory, with the hole in it.
        let large = paging.span(2) * 40;
        m.map_large(large, P | W);
        m.image.write32(HOLE - 4, mark(1));
        m.image.write32(FRAMES - 4, mark(2));
        m.regs.rdi = large + HOLE;
        // mov eax, [edi-4]; mov [edi], eax; mov ebx, [edi]; mov ecx, [edi + (FRAMES - HOLE) - 4]; hlt
        let mut code = vec![0x8b, 0x47, 0xfc, 0x89, 0x07, 0x8b, 0x1f, 0x8b, 0x8f];
        code.extend(((FRAMES - HOLE) as u32 - 4).to_le_bytes());
        code.push(0xf4);
        m.bytes(&code);
        let live = m.start(device);
        let mut registers = Registers::default();
        assert_eq!(live.serve(&mut registers), Exit::Hlt);
        assert_eq!(live.events(), [], "{paging:?}");
        assert_eq!(registers.accesses, [(true, HOLE, 4), (false, HOLE, 4)]);
        let regs = live.vcpu.regs();
        assert_eq!((regs.rax as u32, regs.rbx as u32, regs.rcx as u32), (mark(1), mark(1), mark(2)));
    }
}

/// One gva shows a device, memory, the device.
fn remapped(device: &Device) {
    for paging in Paging::ALL {
        let mut m = Machine::new(Mode::Paged(paging));
        let at = frame(&mut m, 0);
        m.map(MMIO, DEVICE | P | W);
        let entry = m.entry(MMIO, 1) as u32;
        m.code(|a| {
            use iced_x86::code_asm::*;
            for target in [at, DEVICE, at, DEVICE] {
                a.mov(ebx, dword_ptr(MMIO as u32))?;
                a.mov(dword_ptr(MMIO as u32 + 4), ebx)?;
                a.mov(dword_ptr(entry), (target | P | W) as i32)?;
                a.db(&[0xbf])?; // mov edi, MMIO
                a.dd(&[MMIO as u32])?;
                a.db(&[0x0f, 0x01, 0x3f])?; // invlpg [edi]
            }
            a.mov(ebx, dword_ptr(MMIO as u32))?;
            a.hlt()
        });
        let live = m.start(device);
        let mut registers = Registers::with(DEVICE, &[1, 0, 0, 0]);
        assert_eq!(live.serve(&mut registers), Exit::Hlt);
        let one = [(false, DEVICE, 4), (true, DEVICE + 4, 4)];
        assert_eq!(registers.accesses, [one[0], one[1], one[0], one[1], one[0]], "{paging:?}");
        assert_eq!((live.memory.u32(at as usize + 4), registers.bytes(DEVICE + 4, 1)), (mark(0), vec![1]));
    }
}

fn accessed(device: &Device) {
    // mov eax, [esi]; mov [edi], eax; hlt
    each(device, MMIO, MMIO, &[0x8b, 0x06, 0xf4, 0x89, 0x07, 0xf4], |m, live| {
        let bits = || live.memory.u32(m.entry(MMIO, 1) as usize) & (A | D) as u32;
        let mut registers = Registers::with(DEVICE, &[7]);
        assert_eq!(bits(), 0);
        assert_eq!(live.serve(&mut registers), Exit::Hlt);
        assert_eq!(bits(), A as u32, "{:?} after a read", m.mode);
        assert_eq!(live.serve(&mut registers), Exit::Hlt);
        assert_eq!(bits(), (A | D) as u32, "{:?} after a write", m.mode);
    });
}

/// A dword whose first half is memory and whose second half is the device's.
fn half(device: &Device) {
    for paging in Paging::ALL {
        let mut m = Machine::new(Mode::Paged(paging));
        let at = frame(&mut m, 0);
        m.map(MMIO - 4096, at | P | W);
        m.map(MMIO, DEVICE | P | W);
        m.image.write(at + 0xffe, &[0x11, 0x22]);
        m.regs.rdi = MMIO - 2;
        m.bytes(&[0x8b, 0x07, 0x0f, 0xc8, 0x89, 0x07, 0xf4]); // mov eax, [edi]; bswap eax; mov [edi], eax; hlt
        let live = m.start(device);
        let mut registers = Registers::with(DEVICE, &[0x33, 0x44]);
        assert_eq!(live.serve(&mut registers), Exit::Hlt);
        assert_eq!(live.events(), []);
        assert_eq!(live.vcpu.regs().rax, 0x1122_3344, "{paging:?}");
        assert_eq!(live.memory.read(at as usize + 0xffe, 2), [0x44, 0x33]);
        assert_eq!((registers.bytes(DEVICE, 2), registers.traffic()), (vec![0x22, 0x11], (2, 2)));
    }
}
