//! Hardware task switches (SDM vol. 3, chapter 7).
use iced_x86::code_asm::*;

use crate::{
    Device,
    cases::mmu::SHADOW_AMD,
    guest::{
        Live, Machine, Mode, cr0,
        layout::{DATA, GDT, SPARE, STACK2, TSS, sel},
        segments::{descriptor, gate},
    },
    runner::{Case, case},
};

const NO_INTERCEPT: &str = "QEMU's TCG has no intercept of task switches: the guest's CR3 becomes the processor's \
    (switch_tss_ra in seg_helper.c)";

pub(in crate::cases) const CASES: &[Case] = &[
    case("jump-to-a-task", "C09", jump).hangs_below(SHADOW_AMD, NO_INTERCEPT),
    case("call-a-task-and-return", "C09", call).hangs_below(SHADOW_AMD, NO_INTERCEPT),
    case("jump-through-a-task-gate", "C09", through_gate).hangs_below(SHADOW_AMD, NO_INTERCEPT),
    case("an-interrupt-through-a-task-gate", "C09", interrupt).hangs_below(SHADOW_AMD, NO_INTERCEPT),
    case("an-exception-with-error-code-through-a-task-gate", "C09", exception).hangs_below(SHADOW_AMD, NO_INTERCEPT),
    case("sixteen-bit-tasks", "C09", sixteen).hangs_below(SHADOW_AMD, NO_INTERCEPT),
    case("a-task-brings-its-page-tables", "C09 B01", own_tables).hangs_below(SHADOW_AMD, NO_INTERCEPT),
    case("a-task-brings-its-local-table", "C09", own_ldt).hangs_below(SHADOW_AMD, NO_INTERCEPT),
    case("switches-that-are-refused", "C09", refused),
    case("iret-with-nt-needs-a-busy-task", "C09", iret_not_busy),
];

/// The second task's descriptor and its place.
const OTHER: u16 = sel::FREE;
const GATE: u16 = sel::FREE + 8;

/// Offsets in a 32-bit task-state segment.
mod at {
    pub const LINK: u64 = 0;
    pub const CR3: u64 = 28;
    pub const EIP: u64 = 32;
    pub const EFLAGS: u64 = 36;
    pub const EAX: u64 = 40;
    pub const ESP: u64 = 56;
    pub const ES: u64 = 72;
    pub const LDT: u64 = 96;
}

/// The standard machine, whose first code has the pages brought in that a switch needs.
fn machine(mode: Mode) -> Machine {
    let mut m = Machine::new(mode);
    m.touch();
    m
}

/// Fills a 32-bit task-state segment: a task of level 0 that starts at `eip`.
fn task(m: &mut Machine, eip: u64) {
    m.descriptor(OTHER, descriptor(SPARE as u32, 0x67, 0x89, 0));
    // A switch does not save CR3: it is there from the start.
    m.image.write32(TSS + at::CR3, m.root as u32);
    for (offset, value) in [(at::CR3, m.root), (at::EIP, eip), (at::EFLAGS, 2), (at::EAX, 0x1234), (at::ESP, STACK2)] {
        m.image.write32(SPARE + offset, value as u32);
    }
    let segments = [sel::USER_DATA, sel::CODE, sel::DATA, sel::USER_DATA, sel::USER_DATA, sel::USER_DATA];
    for (n, selector) in segments.into_iter().enumerate() {
        m.image.write32(SPARE + at::ES + 4 * n as u64, selector.into());
    }
}

fn busy(live: &Live, selector: u16) -> bool {
    live.memory.u8((GDT + u64::from(selector & !7) + 5) as usize) & 2 != 0
}

/// `jmp` or `call` to a selector.
fn far(a: &mut CodeAssembler, opcode: u8, selector: u16) -> Result<(), iced_x86::IcedError> {
    a.db(&[opcode, 0, 0, 0, 0])?;
    a.dw(&[selector])
}

const JMP: u8 = 0xea;
const CALL: u8 = 0x9a;

const MODES: [Mode; 3] = [Mode::Protected, Mode::LEGACY, Mode::PAE];

fn jump(device: &Device) {
    for mode in MODES {
        let mut m = machine(mode);
        let start = m.code(|a| {
            a.mov(eax, 0x77)?;
            far(a, JMP, OTHER)
        });
        let inside = m.code(|a| {
            a.pushfd()?;
            a.pop(ebx)?;
            a.hlt()
        });
        task(&mut m, inside);
        let live = m.run(device);
        let (regs, sregs) = (live.vcpu.regs(), live.vcpu.sregs());
        assert_eq!((regs.rax, regs.rbx, regs.rsp, regs.rip), (0x1234, 2, STACK2, inside + 3), "{mode:?}");
        assert_eq!((sregs.tr.selector, sregs.tr.base, sregs.cr0 & cr0::TS), (OTHER, SPARE, cr0::TS));
        assert_eq!((busy(&live, OTHER), busy(&live, sel::TSS)), (true, false));
        // The old task was saved, with the address behind the jump.
        assert_eq!(live.memory.u32((TSS + at::EAX) as usize), 0x77);
        assert_eq!(u64::from(live.memory.u32((TSS + at::EIP) as usize)), start + 5 + 7);
        assert_eq!(live.memory.u16((SPARE + at::LINK) as usize), 0);
    }
}

fn call(device: &Device) {
    for mode in MODES {
        let mut m = machine(mode);
        m.code(|a| {
            a.mov(edx, 0x99)?;
            far(a, CALL, OTHER)?;
            a.mov(ecx, 0x55)?;
            far(a, CALL, OTHER)?; // goes on behind its IRET
            a.hlt()
        });
        let inside = m.code(|a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.inc(dword_ptr(DATA as u32))?;
            a.pushfd()?;
            a.pop(dword_ptr(DATA as u32 + 4))?;
            a.iretd()?;
            a.jmp(again)
        });
        task(&mut m, inside);
        let live = m.run(device);
        let (regs, sregs) = (live.vcpu.regs(), live.vcpu.sregs());
        assert_eq!((regs.rcx, regs.rdx, live.memory.u32(DATA as usize)), (0x55, 0x99, 2), "{mode:?}");
        assert_eq!(live.memory.u32(DATA as usize + 4), 0x4002, "NT in the called task");
        assert_eq!((sregs.tr.selector, regs.rflags & 0x4000), (sel::TSS, 0));
        assert_eq!((busy(&live, OTHER), busy(&live, sel::TSS)), (false, true));
        assert_eq!(live.memory.u16((SPARE + at::LINK) as usize), sel::TSS);
    }
}

fn through_gate(device: &Device) {
    let mut m = machine(Mode::LEGACY);
    m.descriptor(GATE, gate(OTHER, 0, 0x85, 0));
    m.code(|a| far(a, JMP, GATE));
    let inside = m.code(|a| a.hlt());
    task(&mut m, inside);
    let live = m.run(device);
    assert_eq!((live.vcpu.regs().rip, live.vcpu.sregs().tr.selector), (inside + 1, OTHER));
}

fn interrupt(device: &Device) {
    for mode in MODES {
        let mut m = machine(mode);
        m.gate(0x21, OTHER, 0, 0x85, 0);
        let start = m.code(|a| {
            a.int(0x21)?;
            a.mov(ecx, 7)?;
            a.hlt()
        });
        let inside = m.code(|a| {
            a.inc(dword_ptr(DATA as u32))?;
            a.iretd()
        });
        task(&mut m, inside);
        let live = m.run(device);
        assert_eq!((live.vcpu.regs().rcx, live.memory.u32(DATA as usize)), (7, 1), "{mode:?}");
        assert_eq!(u64::from(live.memory.u32((TSS + at::EIP) as usize)), start + 2);
    }
}

/// The error code lies on the new task's stack.
fn exception(device: &Device) {
    for mode in [Mode::LEGACY, Mode::PAE] {
        let mut m = machine(mode);
        m.gate(14, OTHER, 0, 0x85, 0);
        let start = m.code(|a| a.mov(eax, dword_ptr(0xff_0000u32)));
        let inside = m.code(|a| {
            a.pop(ebx)?;
            a.mov(ecx, cr2)?;
            a.hlt()
        });
        task(&mut m, inside);
        let live = m.run(device);
        let regs = live.vcpu.regs();
        assert_eq!((regs.rbx, regs.rcx, regs.rsp), (0, 0xff_0000, STACK2), "{mode:?}");
        assert_eq!(
            u64::from(live.memory.u32((TSS + at::EIP) as usize)),
            start,
            "a fault: the instruction's own address"
        );
        assert_eq!(live.memory.u16((SPARE + at::LINK) as usize), sel::TSS);
    }
}

/// Both tasks have 16-bit segments: Linux saves the old task in the format of the new one.
fn sixteen(device: &Device) {
    let mut m = machine(Mode::Protected);
    m.descriptor(sel::TSS, descriptor(TSS as u32, 0x2b, 0x83, 0));
    m.descriptor(OTHER, descriptor(SPARE as u32, 0x2b, 0x81, 0));
    let inside = 0xc800;
    m.assemble(16, inside, |a| {
        a.inc(word_ptr(DATA))?;
        a.mov(word_ptr(DATA + 2), ax)?;
        a.iret()?;
        Ok([])
    });
    // IP, FLAGS, AX, ..., SP, ..., ES, CS, SS, DS.
    for (offset, value) in [
        (14, inside as u16),
        (16, 2),
        (18, 0x4321),
        (26, STACK2 as u16),
        (34, sel::DATA16),
        (36, sel::CODE16),
        (38, sel::DATA16),
        (40, sel::DATA16),
    ] {
        m.image.write(SPARE + offset, &value.to_le_bytes());
    }
    m.code(|a| {
        a.mov(esi, 0x1122_3344)?;
        far(a, CALL, OTHER)?;
        a.hlt()
    });
    let live = m.start(device);
    live.edit_sregs(|s| (s.tr.type_, s.tr.limit) = (3, 0x2b));
    live.vcpu.run_to_hlt();
    assert_eq!((live.memory.u16(DATA as usize), live.memory.u16(DATA as usize + 2)), (1, 0x4321));
    assert_eq!((live.vcpu.regs().rsi & 0xffff, live.vcpu.sregs().tr.selector), (0x3344, sel::TSS));
    assert_eq!(live.memory.u16(SPARE as usize), sel::TSS);
    assert!(!busy(&live, OTHER));
}

fn own_tables(device: &Device) {
    use crate::guest::layout::FRAMES;
    use x86::paging::{P, W};
    for mode in [Mode::LEGACY, Mode::PAE] {
        let mut m = machine(mode);
        let gva = 0xc000_0000u64;
        m.image.write32(FRAMES, 0x111);
        m.image.write32(FRAMES + 4096, 0x222);
        m.map(gva, FRAMES | P | W);
        let first = m.root;
        let second = m.another_root();
        m.root = second;
        m.change(gva, mode.paging().levels(), !0, 0);
        m.map(gva, (FRAMES + 4096) | P | W);
        m.code(|a| {
            // The second set of tables is brought in before the switch needs it.
            for page in 0..4 {
                a.or(byte_ptr(second as u32 + 4096 * page), 0)?;
            }
            a.mov(ebx, dword_ptr(gva as u32))?;
            far(a, CALL, OTHER)?;
            a.add(ebx, dword_ptr(gva as u32))?;
            a.hlt()
        });
        let inside = m.code(|a| {
            a.mov(ecx, dword_ptr(gva as u32))?;
            a.mov(dword_ptr(DATA as u32), ecx)?;
            a.iretd()
        });
        task(&mut m, inside);
        m.root = first;
        m.image.write32(TSS + at::CR3, first as u32); // not the second's
        let live = m.run(device);
        assert_eq!((live.vcpu.regs().rbx, live.memory.u32(DATA as usize)), (0x222, 0x222), "{mode:?}");
        assert_eq!(live.vcpu.sregs().cr3, first);
    }
}

fn own_ldt(device: &Device) {
    let mut m = machine(Mode::Protected);
    m.descriptor(sel::LDT, descriptor(SPARE as u32 + 0x100, 0x1f, 0x82, 0));
    // Its second descriptor is data with a base of its own.
    m.image.write64(SPARE + 0x108, descriptor(DATA as u32 + 0x100, 0xf, 0x93, 4));
    m.image.write32(DATA + 0x104, 0xabcd);
    let inside = m.code(|a| {
        a.mov(ebx, dword_ptr(4).fs())?;
        a.sldt(ecx)?;
        a.hlt()
    });
    m.regs.rip = m.code(|a| far(a, JMP, OTHER));
    task(&mut m, inside);
    m.image.write32(SPARE + at::LDT, sel::LDT.into());
    m.image.write32(SPARE + at::ES + 16, 0x0c);
    let live = m.run(device);
    let regs = live.vcpu.regs();
    assert_eq!((regs.rbx, regs.rcx as u16, live.vcpu.sregs().fs.selector), (0xabcd, sel::LDT, 0x0c));
}

/// What is checked before the old task is left is a fault of its own instruction.
fn refused(device: &Device) {
    for (what, value, vector, error) in [
        ("a busy task", descriptor(SPARE as u32, 0x67, 0x8b, 0), 13, OTHER),
        ("a task that is not present", descriptor(SPARE as u32, 0x67, 0x09, 0), 11, OTHER),
        ("a limit that is too small", descriptor(SPARE as u32, 0x66, 0x89, 0), 10, OTHER),
    ] {
        let mut m = machine(Mode::LEGACY);
        let start = m.code(|a| far(a, JMP, OTHER));
        task(&mut m, 0xb000);
        m.descriptor(OTHER, value);
        let live = m.run(device);
        let event = live.event();
        assert_eq!((event.vector, event.code, event.rip), (vector, error.into(), start), "{what}");
        assert_eq!((live.vcpu.sregs().tr.selector, busy(&live, sel::TSS)), (sel::TSS, true), "{what}");
    }
}

fn iret_not_busy(device: &Device) {
    let mut m = machine(Mode::LEGACY);
    let at = m.code(|a| {
        a.pushfd()?;
        a.or(dword_ptr(esp), 0x4000)?;
        a.popfd()?;
        a.iretd()
    });
    task(&mut m, at);
    m.image.write32(TSS, OTHER.into()); // available, not busy
    let event = m.run(device).event();
    assert_eq!((event.vector, event.code, event.rip), (10, OTHER.into(), at + 9));
    assert_ne!(event.rflags & 0x4000, 0);
}
