//! The trap flag and the guest's own breakpoints (SDM vol. 3, chapter 17).
use iced_x86::code_asm::*;

use crate::{
    Device,
    guest::{
        Live, Machine, Mode,
        layout::{DATA, sel},
    },
    runner::{Case, Target, case},
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("the-trap-flag-traps-after-each-instruction", "A14 C09", trap_flag),
    case("the-trap-flag-in-a-string-instruction", "A14 C09", trap_string).fails_below(
        Target::LINUX_INTEL_EPT,
        "at an EPT violation Bochs saves the instruction's single-step trap as pending, and takes it at the next entry; \
         Linux leaves it there",
    ),
    case("mov-ss-holds-the-trap-back", "A14 C09", trap_mov_ss),
    case("the-trap-flag-over-emulated-instructions", "A14 C09", trap_emulated),
    case("breakpoints-on-execution-are-faults", "A14 C09", execution)
        .fails_below(
            Target::IN_QEMU,
            "QEMU's TCG does not set RF in the saved flags (do_interrupt_protected and do_interrupt64 in seg_helper.c)",
        )
        .fails_below(Target::IN_BOCHS, "Bochs does not set RF in the saved flags"),
    case("breakpoints-on-data-are-traps", "A14 C09", data).fails_below(
        Target::IN_QEMU,
        "QEMU's TCG makes two aligned accesses of one that is not, which touch more than it (load_helper in cputlb.c)",
    ),
    case("a-breakpoint-that-mov-ss-meets-waits", "A14 C09 C01", mov_ss_meets).fails_below(
        Target::IN_QEMU,
        "QEMU's TCG takes it behind MOV SS itself (breakpoint_handler in bpt_helper.c), or not at all where VMRUN has loaded DR7 \
         (helper_vmrun in svm_helper.c sets no breakpoint up)",
    ),
    case("general-detect", "A14 C09", general_detect)
        .fails_below(Target::LINUX_AMD, "QEMU's TCG does not look at DR7.GD (helper_get_dr in bpt_helper.c)"),
    case("dr6-and-dr7-keep-their-fixed-bits", "A14 C09", fixed_bits),
    case("debug-registers-of-level-3", "A14 C09", user),
];

const MODES: [Mode; 2] = [Mode::Protected, Mode::LONG];

/// pushf; or dword [esp], TF; popf
const SET_TF: &[u8] = &[0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d];
/// pushf; and dword [esp], ~TF; popf
const CLEAR_TF: &[u8] = &[0x9c, 0x81, 0x24, 0x24, 0xff, 0xfe, 0xff, 0xff, 0x9d];

/// Runs `code` with the trap flag set; the addresses of the traps, from the code's beginning.
fn traps(device: &Device, mode: Mode, prepare: impl Fn(&mut Machine), code: &[u8]) -> (Vec<u64>, Live) {
    let mut m = Machine::new(mode);
    prepare(&mut m);
    m.resume(1);
    m.regs.rsp = 0x7c00;
    let at = m.bytes(&[SET_TF, code, CLEAR_TF, &[0xf4]].concat()) + SET_TF.len() as u64;
    let live = m.run(device);
    let events = live.events();
    assert!(events.iter().all(|event| event.vector == 1), "{events:x?}");
    let end = code.len() as u64;
    (events.iter().map(|event| event.rip - at).filter(|rip| *rip <= end).collect(), live)
}

fn trap_flag(device: &Device) {
    for mode in MODES {
        // nop; inc ecx (two bytes); jmp +0; nop
        let (at, _) = traps(device, mode, |_| (), &[0x90, 0xff, 0xc1, 0xeb, 0x00, 0x90]);
        assert_eq!(at, [1, 3, 5, 6], "{mode:?}");
    }
}

fn trap_string(device: &Device) {
    for mode in MODES {
        let prepare = |m: &mut Machine| (m.regs.rdi, m.regs.rcx, m.regs.rax) = (DATA, 3, 0x5a);
        let (at, live) = traps(device, mode, prepare, &[0xf3, 0xaa, 0x90]); // rep stosb; nop
        assert_eq!(at, [0, 0, 2, 3], "{mode:?}: one trap each time");
        assert_eq!(live.memory.read(DATA as usize, 4), [0x5a, 0x5a, 0x5a, 0]);
    }
}

fn trap_mov_ss(device: &Device) {
    for mode in MODES {
        let prepare = |m: &mut Machine| m.regs.rax = sel::DATA.into();
        let (at, _) = traps(device, mode, prepare, &[0x90, 0x8e, 0xd0, 0x90, 0x90]); // nop; mov ss, eax; nop; nop
        assert_eq!(at, [1, 4, 5], "{mode:?}: no trap between MOV SS and the next");
    }
}

/// Instructions that a hypervisor executes itself trap as well.
fn trap_emulated(device: &Device) {
    for mode in MODES {
        // cpuid; mov eax, cr0; mov cr0, eax; nop
        let code = [0x0f, 0xa2, 0x0f, 0x20, 0xc0, 0x0f, 0x22, 0xc0, 0x90];
        let (at, _) = traps(device, mode, |_| (), &code);
        assert_eq!(at, [2, 5, 8, 9], "{mode:?}");
    }
}

/// mov eax, value; mov drN, eax
fn set_dr(n: u8, value: u64) -> Vec<u8> {
    let mut code = vec![0xb8];
    code.extend((value as u32).to_le_bytes());
    code.extend([0x0f, 0x23, 0xc0 + 8 * n]);
    code
}

/// Takes the breakpoints away before HLT, as every guest here has to. QEMU's TCG sets breakpoints up and removes them only
/// when DR7 is written: VMRUN and #VMEXIT load DR7 alone (`helper_vmrun`, `do_vmexit`). What a guest leaves behind would
/// hit other guests, and crash QEMU when another kind of breakpoint is set in its place (`hw_breakpoint_remove`).
fn disarm() -> Vec<u8> {
    [&set_dr(7, 0x400)[..], &[0xf4]].concat()
}

fn execution(device: &Device) {
    for mode in MODES {
        let mut m = Machine::new(mode);
        let disarmed = m.bytes(&disarm());
        let start = m.next_code();
        // Two loads of debug registers and a NOP lie before the instruction at the breakpoint: inc ecx.
        let target = start + 17;
        let code = [&set_dr(0, target)[..], &set_dr(7, 0x402), &[0x90, 0xff, 0xc1, 0x90], &disarm()].concat();
        assert_eq!(m.bytes(&code), start);
        m.regs.rip = start;
        let live = m.run(device);
        let event = live.event();
        assert_eq!((event.vector, event.rip), (1, target), "{mode:?}");
        assert_eq!(live.vcpu.regs().rcx, 0, "{mode:?}: before the instruction");
        let resumes = event.rflags >> 16 & 1;
        if resumes == 0 {
            live.go(disarmed);
        }
        assert_eq!(resumes, 1, "{mode:?}: RF is saved set, so that IRET goes on");
        // It goes on by IRET, without meeting the breakpoint again.
        live.resume(1);
        live.go(start);
        assert_eq!((live.vectors(), live.vcpu.regs().rcx), (vec![1], 1), "{mode:?}");
    }
}

fn data(device: &Device) {
    for mode in MODES {
        let mut m = Machine::new(mode);
        m.resume(1);
        let start = m.next_code();
        // DR0: writes of four bytes, DR1: reads or writes of one.
        let enable = 0x400 | 2 | 8 | 0xd << 16 | 0x3 << 20;
        let mut code = [&set_dr(0, DATA)[..], &set_dr(1, DATA + 8), &set_dr(7, enable)].concat();
        code.extend([0xbf, 0, 0xa0, 0, 0]); // mov edi, DATA
        let read = code.len() as u64;
        code.extend([0x8b, 0x07]); // mov eax, [edi]: no watch on reads there
        code.extend([0xc6, 0x47, 3, 1]); // mov byte [edi+3], 1
        let first = code.len() as u64;
        code.extend([0x8a, 0x47, 8]); // mov al, [edi+8]
        let second = code.len() as u64;
        code.extend([0x8b, 0x47, 9]); // mov eax, [edi+9]
        code.extend(disarm());
        m.bytes(&code);
        let live = m.run(device);
        let at: Vec<_> = live.events().iter().map(|event| (event.vector, event.rip - start)).collect();
        assert_eq!(at, [(1, first), (1, second)], "{mode:?}, the read is at {read}");
        let debug: abi::KvmDebugregs = live.vcpu.fd.get(abi::KVM_GET_DEBUGREGS).expect("KVM_GET_DEBUGREGS");
        // Whether the first one's bit stays in DR6 is the processor's choice.
        assert_eq!((debug.dr6 & 0xe, debug.db[0], debug.db[1]), (2, DATA, DATA + 8), "{mode:?}");
    }
}

/// The trap comes behind the instruction after MOV SS, also if a hypervisor executes that.
fn mov_ss_meets(device: &Device) {
    for mode in MODES {
        for next in [&[0x90, 0x90][..], &[0x0f, 0xa2]] {
            let mut m = Machine::new(mode);
            m.resume(1);
            let start = m.next_code();
            m.image.write(DATA, &sel::DATA.to_le_bytes());
            // DR1: reads or writes of two bytes.
            let mut code = [&set_dr(1, DATA)[..], &set_dr(7, 0x400 | 8 | 0x7 << 20)].concat();
            code.extend([0xbf, 0, 0xa0, 0, 0]); // mov edi, DATA
            code.extend([0x8e, 0x17]); // mov ss, [edi]
            let due = code.len() as u64 + if next[0] == 0x90 { 1 } else { 2 };
            code.extend(next); // nop; nop, or cpuid
            code.extend(disarm());
            m.bytes(&code);
            let live = m.run(device);
            let at: Vec<_> = live.events().iter().map(|event| (event.vector, event.rip - start)).collect();
            assert_eq!(at, [(1, due)], "{mode:?}, {next:x?}");
            let debug: abi::KvmDebugregs = live.vcpu.fd.get(abi::KVM_GET_DEBUGREGS).expect("KVM_GET_DEBUGREGS");
            assert_eq!(debug.dr6 & 0x400f, 2, "{mode:?}, {next:x?}");
        }
    }
}

fn general_detect(device: &Device) {
    for mode in MODES {
        let mut m = Machine::new(mode);
        let start = m.next_code();
        let code = [&set_dr(7, 0x2400)[..], &[0x0f, 0x21, 0xc3, 0xf4]].concat(); // mov ebx, dr0
        m.bytes(&code);
        let live = m.run(device);
        let event = live.event();
        assert_eq!((event.vector, event.rip), (1, start + 8), "{mode:?}");
        let debug: abi::KvmDebugregs = live.vcpu.fd.get(abi::KVM_GET_DEBUGREGS).expect("KVM_GET_DEBUGREGS");
        assert_eq!((debug.dr6 & 1 << 13, debug.dr7 & 1 << 13), (1 << 13, 0), "{mode:?}: BD set, GD cleared");
    }
}

fn fixed_bits(device: &Device) {
    for mode in MODES {
        let mut m = Machine::new(mode);
        m.code(|a| {
            a.xor(eax, eax)?;
            a.db(&[0x0f, 0x23, 0xf0])?; // mov dr6, eax
            a.db(&[0x0f, 0x23, 0xf8])?; // mov dr7, eax
            a.db(&[0x0f, 0x21, 0xf3])?; // mov ebx, dr6
            a.db(&[0x0f, 0x21, 0xf9])?; // mov ecx, dr7
            a.hlt()
        });
        let regs = m.run(device).vcpu.regs();
        assert_eq!((regs.rbx & 0xffff_0ff0 & !(1 << 16 | 1 << 11), regs.rcx), (0xfffe_07f0, 0x400), "{mode:?}");
    }
}

fn user(device: &Device) {
    for mode in [Mode::LEGACY, Mode::LONG] {
        let mut m = Machine::new(mode);
        let at = m.user_code(|a| a.db(&[0x0f, 0x21, 0xc0]));
        m.regs.rip = crate::cases::modes::to_user(&mut m);
        m.regs.rbp = at;
        let event = m.run(device).event();
        assert_eq!((event.vector, event.code, event.rip), (13, 0, at), "{mode:?}");
    }
}
