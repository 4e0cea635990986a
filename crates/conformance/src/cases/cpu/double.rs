//! Exceptions while an exception is delivered: which pairs are a double fault, and what follows (SDM vol. 3, table 6-5),
//! and the blocking of NMIs and of interrupts.
use abi::{KVM_CAP_USER_NMI, KVM_NMI};
use iced_x86::code_asm::*;

use crate::{
    Device,
    cases::mmu::SHADOW_AMD,
    guest::{
        Live, Machine, Mode,
        layout::{DATA, STUBS, sel},
    },
    runner::{Case, Target, case},
    vm::{Exit, in_shadow},
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("benign-then-contributory-is-serial", "C09", |device| benign(device, Mode::LEGACY)),
    case("benign-then-contributory-is-serial-in-long-mode", "C09", |device| benign(device, Mode::LONG))
        .fails_below(Target::IN_QEMU, super::exceptions::LONG_ERROR),
    case("contributory-twice-is-a-double-fault", "C09", contributory),
    case("page-fault-then-contributory-is-a-double-fault", "C09", page_fault_first)
        .fails_below(SHADOW_AMD, "VMRUN of QEMU's TCG does not count the page fault that it injects as the first of two (helper_vmrun in svm_helper.c leaves old_exception alone)"),
    case("contributory-then-page-fault-is-serial", "C09", page_fault_second),
    case("page-fault-twice-is-a-double-fault", "C09", page_faults),
    case("a-double-fault-that-cannot-be-delivered-shuts-down", "A05 C09", triple),
    case("an-empty-idt-shuts-down", "A05 C09", no_idt),
    case("nmi-waits-for-iret", "A12 C09", nmi_blocked).needs(KVM_CAP_USER_NMI),
    case("iret-that-faults-ends-nmi-blocking-or-not-as-hardware-does", "A12 C09", nmi_iret).needs(KVM_CAP_USER_NMI),
    case("sti-holds-interrupts-for-one-instruction", "A12 C09", sti_shadow),
    case("mov-ss-holds-interrupts-for-one-instruction", "A12 C09", mov_ss_shadow),
    case("an-interrupt-wakes-nobody-with-if-clear", "A12 D06", no_if),
];

const MODES: [Mode; 2] = [Mode::LEGACY, Mode::LONG];

/// A machine whose gate for `missing` is not present.
fn without_gate(mode: Mode, missing: &[u8]) -> Machine {
    let mut m = Machine::new(mode);
    let code = if mode == Mode::LONG { sel::CODE } else { sel::CODE32 };
    for vector in missing {
        m.gate(*vector, code, STUBS, 0x0e, 0);
    }
    m.touch();
    m
}

const UD2: &[u8] = &[0x0f, 0x0b];
const DIVIDE: &[u8] = &[0x31, 0xc9, 0xf7, 0xf1]; // xor ecx, ecx; div ecx
const TOUCH: &[u8] = &[0xbf, 0, 0, 0xff, 0, 0x8b, 0x07]; // mov edi, 0xff0000; mov eax, [edi]

fn benign(device: &Device, mode: Mode) {
    let mut m = without_gate(mode, &[6]);
    let at = m.bytes(UD2);
    let event = m.run(device).event();
    // EXT says that the first event was none of the program's INT n.
    assert_eq!((event.vector, event.code & !1, event.rip), (11, 6 * 8 + 2, at));
}

#[track_caller]
fn double(device: &Device, missing: u8, code: &[u8], offset: u64) {
    for mode in MODES {
        let mut m = without_gate(mode, &[missing]);
        let at = m.bytes(code);
        let event = m.run(device).event();
        assert_eq!((event.vector, event.code, event.rip), (8, 0, at + offset), "{mode:?}");
    }
}

fn contributory(device: &Device) {
    double(device, 0, DIVIDE, 2);
    // #GP from a selector, then #NP.
    double(device, 13, &[0xb8, 0, 0x10, 0, 0, 0x8e, 0xd8], 5);
}

fn page_fault_first(device: &Device) {
    double(device, 14, TOUCH, 5);
}

/// In long mode, with stacks of their own for #PF and #DF, and RSP where nothing is.
fn on_no_stack(device: &Device, ist: &[u8], code: &[u8]) -> Live {
    let mut m = Machine::new(Mode::LONG);
    for vector in ist {
        m.gate(*vector, sel::CODE, STUBS + 16 * u64::from(*vector), 0x8e, 1);
    }
    m.bytes(&[&[0xbc, 0, 0x10, 0xff, 0][..], code].concat()); // mov esp, 0xff1000
    let live = m.start(device);
    live.vcpu.run_to_hlt();
    live
}

fn page_fault_second(device: &Device) {
    for code in [UD2, DIVIDE] {
        let event = on_no_stack(device, &[14, 8], code).event();
        // The push of SS is the first, right below RSP.
        assert_eq!((event.vector, event.code, event.cr2 & !0xfff), (14, 2, 0xff_0000), "{code:02x?}");
        assert_eq!(event.rsp, 0xff_1000);
    }
}

fn page_faults(device: &Device) {
    let event = on_no_stack(device, &[8], TOUCH).event();
    assert_eq!((event.vector, event.code, event.rsp), (8, 0, 0xff_1000));
}

#[track_caller]
fn shuts_down(m: &Machine, device: &Device) {
    let live = m.start(device);
    assert_eq!(live.vcpu.run(), Exit::Shutdown, "{:?}", m.mode);
    assert_eq!(live.events(), []);
}

fn triple(device: &Device) {
    for mode in MODES {
        let mut m = without_gate(mode, &[0, 8]);
        m.bytes(DIVIDE);
        shuts_down(&m, device);
    }
}

fn no_idt(device: &Device) {
    for mode in [Mode::Protected, Mode::LEGACY, Mode::PAE, Mode::LONG] {
        let mut m = Machine::new(mode);
        // mov edi, DATA; lidt [edi]; ud2, with a limit of 0
        m.bytes(&[0xbf, 0, 0xa0, 0, 0, 0x0f, 0x01, 0x1f, 0x0f, 0x0b]);
        shuts_down(&m, device);
    }
}

/// A handler that tells the client when it begins, and counts how deep it is.
fn nmi_machine(mode: Mode) -> Machine {
    let mut m = Machine::new(mode);
    let code = if mode == Mode::LONG { sel::CODE } else { sel::CODE32 };
    let depth = DATA as u32;
    let handler = m.code(|a| {
        a.inc(dword_ptr(depth))?;
        a.mov(eax, dword_ptr(depth))?;
        a.out(0x10, al)?;
        a.nop()?;
        a.nop()?;
        a.dec(dword_ptr(depth))?;
        a.inc(dword_ptr(depth + 4))?;
        if mode == Mode::LONG { a.iretq() } else { a.iretd() }
    });
    m.gate(2, code, handler, 0x8e, 0);
    m
}

fn nmi(live: &Live) {
    live.vcpu.fd.number(KVM_NMI, 0).expect("KVM_NMI");
}

fn nmi_blocked(device: &Device) {
    for mode in MODES {
        let mut m = nmi_machine(mode);
        m.regs.rip = m.bytes(&[0x90, 0x90, 0x90, 0xf4]);
        let live = m.start(device);
        nmi(&live);
        assert_eq!(live.vcpu.run(), Exit::out8(0x10, 1), "{mode:?}");
        nmi(&live);
        // The second one only begins when the first has ended.
        assert_eq!(live.vcpu.run(), Exit::out8(0x10, 1), "{mode:?}: it nested");
        live.vcpu.run_to_hlt();
        assert_eq!((live.memory.u32(DATA as usize), live.memory.u32(DATA as usize + 4)), (0, 2), "{mode:?}");
    }
}

/// After a handler that returns by other means NMIs stay blocked, until the next IRET whatever it returns from.
fn nmi_iret(device: &Device) {
    for mode in MODES {
        let mut m = Machine::new(mode);
        let code = if mode == Mode::LONG { sel::CODE } else { sel::CODE32 };
        let mut handler = m.next_code();
        let count = DATA as u32;
        let end = m.code(|a| {
            // Leaves without IRET.
            a.inc(dword_ptr(count))?;
            a.mov(eax, dword_ptr(count))?;
            a.out(0x10, al)?;
            a.out(0x11, al)?;
            a.int(0x21)?;
            a.hlt()
        });
        handler = handler.max(end);
        m.gate(2, code, handler, 0x8e, 0);
        let back = m.code(|a| if mode == Mode::LONG { a.iretq() } else { a.iretd() });
        m.gate(0x21, code, back, 0x8e, 0);
        m.regs.rip = m.bytes(&[0x90, 0x90, 0xf4]);
        let live = m.start(device);
        nmi(&live);
        assert_eq!(live.vcpu.run(), Exit::out8(0x10, 1), "{mode:?}");
        nmi(&live);
        assert_eq!(live.vcpu.run(), Exit::out8(0x11, 1), "{mode:?}: still blocked");
        assert_eq!(live.vcpu.run(), Exit::out8(0x10, 2), "{mode:?}: the interrupt's IRET ends it");
    }
}

/// `code`, with an interrupt that becomes possible in it, behind a shadow that ends at one of `right`: how far into it it
/// arrives.
fn arrives(device: &Device, code: &[u8], right: &[u64]) -> u64 {
    let attempt = || {
        let mut m = Machine::new(Mode::Protected);
        m.touch();
        let at = m.bytes(code);
        let live = m.start(device);
        live.vcpu.page.request_interrupt_window(true);
        assert_eq!(live.vcpu.run(), Exit::IrqWindow);
        live.vcpu.page.request_interrupt_window(false);
        live.vcpu.interrupt(0x40).expect("KVM_INTERRUPT");
        live.vcpu.run_to_hlt();
        let event = live.event();
        assert_eq!(event.vector, 0x40);
        event.rip - at
    };
    in_shadow(device, attempt, |at| right.contains(at))
}

fn sti_shadow(device: &Device) {
    // nop; sti; inc eax; inc eax; hlt
    assert_eq!(arrives(device, &[0x90, 0xfb, 0x40, 0x40, 0xf4], &[3]), 3);
    // sti; hlt: the HLT is executed, and the interrupt arrives behind it.
    let mut m = Machine::new(Mode::Protected);
    let at = m.bytes(&[0xfb, 0xf4, 0x90, 0xf4]);
    let live = m.start(device);
    live.vcpu.run_to_hlt();
    live.vcpu.interrupt(0x40).expect("KVM_INTERRUPT");
    live.vcpu.run_to_hlt();
    assert_eq!(live.event().rip, at + 2);
}

fn mov_ss_shadow(device: &Device) {
    // mov eax, ss; sti; mov ss, eax; inc eax; inc eax; hlt: the window opens behind the instruction after MOV SS.
    let rip = arrives(device, &[0x8c, 0xd0, 0xfb, 0x8e, 0xd0, 0x40, 0x40, 0xf4], &[5, 6]);
    assert!(rip == 5 || rip == 6, "it arrived at +{rip}");
}

fn no_if(device: &Device) {
    let mut m = Machine::new(Mode::Protected);
    m.bytes(&[0xf4, 0x40, 0xf4]);
    let live = m.start(device);
    live.vcpu.run_to_hlt();
    assert!(!live.vcpu.page.if_flag() && !live.vcpu.page.ready_for_interrupt());
    live.vcpu.run_to_hlt();
    assert_eq!((live.vcpu.regs().rax, live.events()), (1, vec![]));
}
