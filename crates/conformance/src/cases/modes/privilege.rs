//! Changes of privilege: gates, IRET, SYSENTER, SYSCALL, conforming code, and the stacks that come with them
//! (SDM vol. 3, 5.8 and 6.12).
use iced_x86::code_asm::*;

use super::to_user;
use crate::{
    Device,
    guest::{
        Live, Machine, Mode, efer,
        layout::{DATA, STACK, STACK2, STUBS, TSS, USER_STACK, sel},
        segments::{descriptor, flat, gate},
    },
    runner::{Case, Target, case},
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("interrupts-take-the-stack-of-the-task", "C09", stack_of_task),
    case("interrupt-stack-table", "C09", ist),
    case("interrupt-gates-clear-if-and-trap-gates-do-not", "C09", gate_flags),
    case("flags-that-an-interrupt-clears", "C09", cleared_flags),
    case("long-mode-aligns-the-stack-of-an-interrupt", "C09", alignment),
    case("call-gate-with-parameters", "C09", call_gate),
    case("call-gate-in-long-mode", "C09", call_gate_long),
    case("call-gates-that-do-not-let-through", "C09", call_gate_refused),
    case("conforming-code-keeps-the-level", "C09", conforming),
    case("iret-to-level-3-takes-inner-segments-away", "C09", iret_nulls),
    case("iret-refuses-what-is-not-legal", "C09", iret_refused),
    case("popf-and-iret-of-level-3-leave-if-and-iopl", "C09", flags_of_user),
    case("sysenter-and-sysexit", "C09 C10", sysenter),
    case("syscall-and-sysret", "C09 C10", syscall),
    case("syscall-keeps-the-flags-that-fmask-leaves", "C09 C10", syscall_flags).fails_below(
        Target::IN_QEMU,
        "QEMU's TCG loses the arithmetic flags (helper_syscall in seg_helper.c loads env->eflags, which has none)",
    ),
    case("syscall-without-sce-is-undefined", "C09 C10", syscall_off),
    case("compatibility-mode-by-far-return", "C04 C09", compatibility),
    case("io-permissions-of-the-task", "C09", io_map),
    case("verr-verw-lar-lsl-arpl", "C09", verify),
];

fn stack_of_task(device: &Device) {
    for mode in [Mode::LEGACY, Mode::PAE, Mode::LONG] {
        let mut m = Machine::new(mode);
        let user = m.user_code(|a| a.db(&[0xcd, 0x80]));
        m.regs.rip = to_user(&mut m);
        m.regs.rbp = user;
        let live = m.run(device);
        let event = live.event();
        assert_eq!((event.vector, event.rip, event.cs), (0x80, user + 2, sel::USER), "{mode:?}");
        assert_eq!((event.rsp, event.ss), (USER_STACK, sel::USER_DATA));
        // The handler's stack began at the task's: the frame lies right below it.
        let frame = if mode == Mode::LONG { STACK - 8 } else { STACK - 4 };
        assert_eq!(live.memory.u32(frame as usize), sel::USER_DATA.into(), "{mode:?}");
        let sregs = live.vcpu.sregs();
        assert_eq!(sregs.cs.dpl, 0);
        assert_eq!(sregs.ss.selector, if mode == Mode::LONG { 0 } else { sel::DATA }, "{mode:?}");
    }
}

fn ist(device: &Device) {
    let mut m = Machine::new(Mode::LONG);
    m.gate(0x21, sel::CODE, STUBS + 16 * 0x21, 0x8e, 1);
    m.code(|a| {
        a.mov(rsp, 0x7800u64)?;
        a.int(0x21)
    });
    let live = m.run(device);
    assert_eq!((live.event().rsp, live.event().ss), (0x7800, sel::DATA));
    assert_eq!(live.memory.u64((STACK2 - 8) as usize), sel::DATA.into());
}

const IF: u64 = 1 << 9;
const TF: u64 = 1 << 8;
const NT: u64 = 1 << 14;

fn gate_flags(device: &Device) {
    for mode in [Mode::Protected, Mode::LONG] {
        for (access, stays) in [(0x8e, false), (0x8f, true)] {
            let mut m = Machine::new(mode);
            let handler = m.code(|a| a.hlt());
            let code = if mode == Mode::LONG { sel::CODE } else { sel::CODE32 };
            m.gate(0x21, code, handler, access, 0);
            m.regs.rip = m.code(|a| {
                a.sti()?;
                a.int(0x21)
            });
            assert_eq!(m.run(device).vcpu.regs().rflags & IF != 0, stays, "{mode:?}, access {access:#x}");
        }
    }
}

fn cleared_flags(device: &Device) {
    for mode in [Mode::Protected, Mode::LONG] {
        let mut m = Machine::new(mode);
        // pushf; or dword [esp], NT | RF-less flags; popf; int 0x21: the handler sees NT and TF clear, the frame has NT.
        let handler = m.code(|a| a.hlt());
        let code = if mode == Mode::LONG { sel::CODE } else { sel::CODE32 };
        m.gate(0x21, code, handler, 0x8f, 0);
        m.regs.rip = m.bytes(&[0x9c, 0x81, 0x0c, 0x24, 0xd5, 0x40, 0, 0, 0x9d, 0xcd, 0x21]);
        let live = m.run(device);
        let regs = live.vcpu.regs();
        assert_eq!(regs.rflags & (NT | TF | 0xd5), 0xd5, "{mode:?}");
        let saved = live.memory.u32(regs.rsp as usize + if mode == Mode::LONG { 16 } else { 8 });
        assert_eq!(u64::from(saved) & (NT | 0xd5), NT | 0xd5);
    }
}

fn alignment(device: &Device) {
    for offset in 0..16 {
        let mut m = Machine::new(Mode::LONG);
        let handler = m.code(|a| a.hlt());
        m.gate(0x21, sel::CODE, handler, 0x8e, 0);
        m.regs.rip = m.code(|a| {
            a.mov(rsp, 0x7800 + offset)?;
            a.int(0x21)
        });
        let live = m.run(device);
        assert_eq!(live.vcpu.regs().rsp, 0x7800 - 40);
        assert_eq!(live.memory.u64(0x7800 - 16), 0x7800 + offset);
    }
}

/// The far pointer that code jumps or calls through, in [`DATA`].
fn far_pointer(m: &mut Machine, selector: u16, offset: u32) {
    m.image.write32(DATA, offset);
    m.image.write32(DATA + 4, selector.into());
}

const GATE: u16 = sel::FREE;

fn call_gate(device: &Device) {
    let mut m = Machine::new(Mode::LEGACY);
    // The inner procedure looks at its parameters and goes back: retf 8.
    let inner = m.code(|a| {
        a.mov(ebx, cs)?;
        a.mov(ecx, ss)?;
        a.mov(esi, dword_ptr(esp + 8))?;
        a.mov(edi, dword_ptr(esp + 12))?;
        a.mov(edx, esp)?;
        a.retf_1(8)
    });
    m.descriptor(GATE, gate(sel::CODE, inner, 0xec, 2));
    far_pointer(&mut m, GATE | 3, 0xdead_beef);
    let user = m.user_code(|a| {
        a.push(0x11)?;
        a.push(0x22)?;
        a.call(fword_ptr(DATA))?;
        a.mov(eax, cs)?;
        a.int(0x80)
    });
    m.regs.rip = to_user(&mut m);
    m.regs.rbp = user;
    let live = m.run(device);
    let (regs, event) = (live.vcpu.regs(), live.event());
    assert_eq!((regs.rbx as u16, regs.rcx as u16), (sel::CODE, sel::DATA), "inside");
    assert_eq!((regs.rsi, regs.rdi), (0x22, 0x11), "the parameters");
    assert_eq!(regs.rdx, STACK - 24, "return address, two parameters, stack");
    assert_eq!((regs.rax as u16, event.vector, event.rsp), (sel::USER, 0x80, USER_STACK), "back again");
    assert_eq!(live.memory.u32((STACK2 - 4) as usize), 0);
}

fn call_gate_long(device: &Device) {
    let mut m = Machine::new(Mode::LONG);
    let inner = m.code(|a| {
        a.mov(ebx, cs)?;
        a.mov(ecx, ss)?;
        a.mov(rdx, rsp)?;
        a.db(&[0x48, 0xcb]) // retfq
    });
    m.descriptor(GATE, gate(sel::CODE, inner, 0xec, 0));
    m.descriptor(GATE + 8, 0);
    far_pointer(&mut m, GATE | 3, 0);
    let user = m.user_code(|a| {
        a.mov(edi, DATA as u32)?;
        a.call(fword_ptr(rdi))?;
        a.mov(eax, ss)?;
        a.int(0x80)
    });
    m.regs.rip = to_user(&mut m);
    m.regs.rbp = user;
    let live = m.run(device);
    let (regs, event) = (live.vcpu.regs(), live.event());
    assert_eq!((regs.rbx as u16, regs.rcx as u16, regs.rdx), (sel::CODE, 0, STACK - 32));
    assert_eq!((regs.rax as u16, event.vector, event.cs), (sel::USER_DATA, 0x80, sel::USER));
}

fn call_gate_refused(device: &Device) {
    // DPL 0, not present, to data, to code that is less privileged than the caller is (from level 0).
    for (access, target, vector, code) in
        [(0x8c, sel::CODE, 13, GATE), (0x6c, sel::CODE, 11, GATE), (0xec, sel::DATA, 13, sel::DATA), (0xec, 0, 13, 0)]
    {
        let mut m = Machine::new(Mode::LEGACY);
        m.descriptor(GATE, gate(target, 0, access, 0));
        far_pointer(&mut m, GATE | 3, 0);
        let user = m.user_code(|a| a.call(fword_ptr(DATA)));
        m.regs.rip = to_user(&mut m);
        m.regs.rbp = user;
        let event = m.run(device).event();
        assert_eq!((event.vector, event.code, event.rip), (vector, code.into(), user), "access {access:#x}");
    }
}

fn conforming(device: &Device) {
    let mut m = Machine::new(Mode::LEGACY);
    m.descriptor(GATE, descriptor(0, 0xfffff, 0x9f, 0xc)); // conforming, level 0
    let shared = m.user_code(|a| {
        a.mov(ebx, cs)?;
        a.retf()
    });
    far_pointer(&mut m, GATE, shared as u32);
    let user = m.user_code(|a| {
        a.call(fword_ptr(DATA))?;
        a.mov(eax, cs)?;
        a.int(0x80)
    });
    m.regs.rip = to_user(&mut m);
    m.regs.rbp = user;
    let live = m.run(device);
    let regs = live.vcpu.regs();
    assert_eq!((regs.rbx as u16, regs.rax as u16), (GATE | 3, sel::USER));
    assert_eq!(live.event().cs, sel::USER);
    // Code of level 0 that does not conform is out of reach.
    far_pointer(&mut m, sel::CODE | 3, shared as u32);
    let event = m.run(device).event();
    assert_eq!((event.vector, event.code), (13, sel::CODE.into()));
}

fn iret_nulls(device: &Device) {
    for mode in [Mode::LEGACY, Mode::LONG] {
        let mut m = Machine::new(mode);
        let user = m.user_code(|a| a.db(&[0x8c, 0xe0, 0x8c, 0xeb, 0xcd, 0x80])); // mov eax, fs; mov ebx, gs; int 0x80
        let start = to_user(&mut m);
        m.regs.rbp = user;
        m.regs.rip = m.code(|a| {
            a.mov(eax, u32::from(sel::DATA))?;
            a.mov(fs, eax)?; // level 0: taken away
            a.mov(eax, u32::from(sel::USER_DATA))?;
            a.mov(gs, eax)?; // level 3: stays
            a.jmp(start)
        });
        let live = m.run(device);
        let regs = live.vcpu.regs();
        assert_eq!((regs.rax as u16, regs.rbx as u16), (0, sel::USER_DATA), "{mode:?}");
        assert_eq!(live.event().vector, 0x80);
    }
}

/// What lies on the stack for IRET, the vector and the error code.
fn iret_refused(device: &Device) {
    let user = u32::from(sel::USER);
    for mode in [Mode::LEGACY, Mode::LONG] {
        for (code, stack, vector, error) in [
            (0u32, u32::from(sel::USER_DATA), 13, 0), // a null code segment
            (u32::from(sel::USER_DATA), u32::from(sel::USER_DATA), 13, u32::from(sel::USER_DATA) & !3), // data
            (user & !3, u32::from(sel::USER_DATA), 13, user & !3), // code of level 3 for level 0
            (user, u32::from(sel::DATA), 13, u32::from(sel::DATA)), // a stack of level 0 for level 3
            (user, 0x1003, 13, 0x1000),               // a stack beyond the table
            (0x1003, u32::from(sel::USER_DATA), 13, 0x1000),
        ] {
            let mut m = Machine::new(mode);
            let mut bytes = Vec::new();
            for word in [stack, USER_STACK as u32, 2, code, 0xe000] {
                bytes.push(0x68);
                bytes.extend(word.to_le_bytes());
            }
            let at = bytes.len() as u64;
            bytes.extend(if mode == Mode::LONG { &[0x48, 0xcf][..] } else { &[0xcf] });
            let start = m.bytes(&bytes);
            m.regs.rip = start;
            let event = m.run(device).event();
            let what = format!("{mode:?}, code {code:#x}, stack {stack:#x}");
            assert_eq!((event.vector, event.code, event.rip), (vector, error, start + at), "{what}");
        }
    }
}

fn flags_of_user(device: &Device) {
    for mode in [Mode::LEGACY, Mode::LONG] {
        let mut m = Machine::new(mode);
        // push 0x3202 (IOPL 3, IF); popf; pushf; pop eax; int 0x80
        let user = m.user_code(|a| a.db(&[0x68, 0x02, 0x32, 0, 0, 0x9d, 0x9c, 0x58, 0xcd, 0x80]));
        m.regs.rip = to_user(&mut m);
        m.regs.rbp = user;
        let live = m.run(device);
        assert_eq!((live.vcpu.regs().rax, live.event().vector), (2, 0x80), "{mode:?}");
    }
}

const MSR_SYSENTER: [u32; 3] = [0x174, 0x175, 0x176];

fn sysenter(device: &Device) {
    let mut m = Machine::new(Mode::LEGACY);
    let inner = m.code(|a| {
        a.mov(ebx, cs)?;
        a.mov(esi, ss)?;
        a.mov(edi, esp)?;
        a.sysexit()
    });
    let back = m.user_code(|a| {
        a.mov(eax, cs)?;
        a.int(0x80)
    });
    let user = m.user_code(|a| {
        a.mov(ecx, USER_STACK as u32 - 64)?;
        a.mov(edx, back as u32)?;
        a.sysenter()
    });
    let start = to_user(&mut m);
    m.regs.rbp = user;
    m.regs.rip = m.code(|a| {
        for (msr, value) in MSR_SYSENTER.into_iter().zip([u32::from(sel::CODE), STACK2 as u32, inner as u32]) {
            a.mov(ecx, msr)?;
            a.mov(eax, value)?;
            a.xor(edx, edx)?;
            a.wrmsr()?;
        }
        a.jmp(start)
    });
    let live = m.run(device);
    let (regs, event) = (live.vcpu.regs(), live.event());
    assert_eq!((regs.rbx as u16, regs.rsi as u16, regs.rdi), (sel::CODE, sel::DATA, STACK2), "inside");
    assert_eq!((regs.rax as u16, event.vector), (sel::USER32, 0x80), "back again");
    assert_eq!((event.rsp, event.ss, event.rip), (USER_STACK - 64, sel::USER_DATA, back + 4));
    // With a null SYSENTER_CS both instructions are #GP(0).
    m.regs.rip = m.code(|a| {
        a.mov(ecx, MSR_SYSENTER[0])?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.jmp(start)
    });
    let event = m.run(device).event();
    assert_eq!((event.vector, event.code, event.cs), (13, 0, sel::USER));
}

const STAR: u32 = 0xc000_0081;

/// SYSCALL and SYSRET with DF, AF and CF set, of which FMASK clears DF.
fn syscall_and_back(device: &Device) -> Live {
    let mut m = Machine::new(Mode::LONG);
    let inner = m.code(|a| {
        a.mov(ebx, cs)?;
        a.mov(esi, ss)?;
        a.pushfq()?;
        a.pop(rdi)?;
        a.sysretq()
    });
    let user = m.user_code(|a| {
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x411)?; // DF, AF, CF
        a.popfq()?;
        a.syscall()?;
        a.mov(eax, cs)?;
        a.mov(edx, ss)?;
        a.int(0x80)
    });
    let start = to_user(&mut m);
    m.regs.rbp = user;
    m.regs.rip = m.code(|a| {
        let star = u64::from(sel::CODE) << 32 | u64::from(sel::USER32) << 48;
        for (msr, value) in [(STAR, star), (STAR + 1, inner), (STAR + 3, 0x400)] {
            a.mov(ecx, msr)?;
            a.mov(eax, value as u32)?;
            a.mov(edx, (value >> 32) as u32)?;
            a.wrmsr()?;
        }
        a.jmp(start)
    });
    m.run(device)
}

fn syscall_flags(device: &Device) {
    assert_eq!(syscall_and_back(device).vcpu.regs().rdi & 0x411, 0x011);
}

fn syscall(device: &Device) {
    let live = syscall_and_back(device);
    let (regs, event) = (live.vcpu.regs(), live.event());
    assert_eq!((regs.rbx as u16, regs.rsi as u16), (sel::CODE, sel::DATA), "inside");
    assert_eq!(regs.rdi & 0x400, 0, "FMASK clears DF");
    assert_eq!((regs.rax as u16, regs.rdx as u16), (sel::USER, sel::USER_DATA), "back again");
    assert_eq!((regs.rcx, regs.r11 & 0x411), (event.rip - 6, 0x411), "RCX and R11");
    assert_eq!((event.vector, event.rsp, event.rflags & 0x411), (0x80, USER_STACK, 0x411));
}

fn syscall_off(device: &Device) {
    let mut m = Machine::new(Mode::LONG);
    m.efer &= !efer::SCE;
    let user = m.user_code(|a| a.syscall());
    m.regs.rip = to_user(&mut m);
    m.regs.rbp = user;
    let event = m.run(device).event();
    assert_eq!((event.vector, event.rip, event.cs), (6, user, sel::USER));
}

/// 64-bit code, compatibility mode at level 0 and level 3, and back.
fn compatibility(device: &Device) {
    let mut m = Machine::new(Mode::LONG);
    // In 32-bit code 0x48 is DEC EAX, in 64-bit code a prefix: it tells the mode.
    let tell = [0x31, 0xc0, 0x48, 0x90]; // xor eax, eax; dec eax; nop, or xor eax, eax; nop
    let user = 0xf000;
    m.image.write(user, &[&tell[..], &[0x8c, 0xcb, 0xcd, 0x80]].concat()); // mov ebx, cs; int 0x80
    let mut code = Vec::new();
    for word in [u32::from(sel::USER_DATA), USER_STACK as u32, 2, u32::from(sel::USER32), user as u32] {
        code.push(0x68);
        code.extend(word.to_le_bytes());
    }
    code.extend([0x48, 0xcf]);
    m.bytes(&code);
    let live = m.run(device);
    let (regs, event) = (live.vcpu.regs(), live.event());
    assert_eq!((regs.rax as u32, regs.rbx as u16), (0xffff_ffff, sel::USER32));
    assert_eq!((event.vector, event.cs, event.rip, event.rsp), (0x80, sel::USER32, user + 8, USER_STACK));
    assert!(live.vcpu.sregs().cs.l == 1, "the handler is 64-bit code");
}

fn io_map(device: &Device) {
    for mode in [Mode::LEGACY, Mode::LONG] {
        let mut m = Machine::new(mode);
        // The map begins at offset 0x68: ports 0 to 63, of which 0x10 and 0x12 are allowed.
        m.image.write32(TSS + 0x64, 0x68 << 16);
        let mut map = [0xff; 9];
        map[2] = 0xfa;
        m.image.write(TSS + 0x68, &map);
        m.descriptor(sel::TSS, descriptor(TSS as u32, 0x68 + 8, 0x8b, 0));
        let user = m.user_code(|a| a.db(&[0xe6, 0x10, 0xe6, 0x12, 0xe6, 0x11]));
        let word = m.user_code(|a| a.db(&[0xe7, 0x12])); // four ports, of which one is allowed
        let far = m.user_code(|a| a.db(&[0x66, 0xba, 0x40, 0x03, 0xee])); // beyond the map: mov dx, 0x340; out dx, al
        let start = to_user(&mut m);
        (m.regs.rip, m.regs.rbp, m.regs.rax) = (start, user, 0x5a);
        let live = m.start(device);
        live.edit_sregs(|s| s.tr.limit = 0x68 + 8);
        assert_eq!(live.vcpu.run(), crate::vm::Exit::out8(0x10, 0x5a), "{mode:?}");
        assert_eq!(live.vcpu.run(), crate::vm::Exit::out8(0x12, 0x5a), "{mode:?}");
        live.vcpu.run_to_hlt();
        let event = live.event();
        assert_eq!((event.vector, event.code, event.rip), (13, 0, user + 4), "{mode:?}");
        for at in [word, far + 4] {
            live.vcpu.edit_regs(|regs| (regs.rbp, regs.rdx) = (at, 0x340));
            live.go(start);
            assert_eq!((live.event().vector, live.event().rip), (13, at), "{mode:?}");
        }
    }
}

/// ZF of VERR, VERW, LAR, LSL for a few selectors, and ARPL's.
fn verify(device: &Device) {
    let mut m = Machine::new(Mode::Protected);
    m.descriptor(sel::FREE, flat::DATA & !(2 << 40)); // cannot be written
    let at = m.code(|a| {
        // One bit of EBX for each question.
        a.xor(ebx, ebx)?;
        for selector in [sel::CODE, sel::DATA, sel::FREE, 0, 0x1000, sel::TSS] {
            a.mov(eax, u32::from(selector))?;
            a.verr(ax)?;
            a.setz(cl)?;
            a.add(ebx, ebx)?;
            a.or(bl, cl)?;
            a.verw(ax)?;
            a.setz(cl)?;
            a.add(ebx, ebx)?;
            a.or(bl, cl)?;
            a.lar(edx, eax)?;
            a.setz(cl)?;
            a.add(ebx, ebx)?;
            a.or(bl, cl)?;
        }
        a.mov(eax, u32::from(sel::TSS))?;
        a.lsl(esi, eax)?;
        a.mov(eax, u32::from(sel::DATA))?;
        a.lsl(edi, eax)?;
        a.lar(edx, eax)?;
        a.mov(eax, 0x08)?;
        a.mov(ecx, 3)?;
        a.arpl(ax, cx)?;
        a.hlt()
    });
    m.regs.rip = at;
    let live = m.run(device);
    let regs = live.vcpu.regs();
    assert_eq!(regs.rbx, 0b101_111_101_000_000_001, "VERR, VERW, LAR");
    assert_eq!((regs.rsi, regs.rdi), (0x67, 0xffff_ffff), "LSL");
    // The limit's bits in what LAR gives are not defined.
    assert_eq!((regs.rdx & 0xf0_ff00, regs.rax & 0xffff), (0xc0_9300, 0x0b), "LAR and ARPL");
}
