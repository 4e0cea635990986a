//! Guest debugging: single step, breakpoints in registers and in code.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno},
    runner::{Case, Target, case},
    vm::{CODE, Exit, RealMode, Vcpu, at},
};

/// `svm::breakpoints` has it set those on execution up.
const TCG_DR7: &str = "QEMU's TCG sets no breakpoints up from the DR7 that VMRUN loads (helper_vmrun in svm_helper.c)";
const TCG_INT3: &str = "QEMU's TCG looks for the intercept of INT n, not for that of #BP, when the guest executes INT3 (raise_interrupt2 in excp_helper.c)";

const BOCHS_STEP: &str = "at an exit that ends an instruction early (EPT violation, port I/O) Bochs saves the instruction's \
    single-step trap as pending, and takes it at the next entry; Linux leaves it there";

pub(super) const CASES: &[Case] = &[
    case("single-step", "A14", single_step)
        .needs(KVM_CAP_SET_GUEST_DEBUG)
        .fails_below(Target::LINUX_INTEL_EPT, BOCHS_STEP),
    case("stepping-ends", "A14", stepping_ends).needs(KVM_CAP_SET_GUEST_DEBUG),
    case("a-step-over-port-io", "A14 A06", step_over_io)
        .needs(KVM_CAP_SET_GUEST_DEBUG)
        .fails_below(Target::LINUX_INTEL, BOCHS_STEP),
    case("a-step-over-a-read-of-device-memory", "A14 A07", step_over_mmio)
        .needs(KVM_CAP_SET_GUEST_DEBUG)
        .fails_below(Target::LINUX_INTEL_EPT, BOCHS_STEP),
    case("breakpoint-register", "A14", hardware).needs(KVM_CAP_SET_GUEST_DEBUG).fails_below(Target::LINUX_AMD, TCG_DR7),
    case("watchpoint-register", "A14", watchpoint).needs(KVM_CAP_SET_GUEST_DEBUG).fails_below(Target::IN_QEMU, TCG_DR7),
    case("the-guests-own-registers-are-kept", "A14", guests_own)
        .needs(KVM_CAP_SET_GUEST_DEBUG)
        .fails_below(Target::LINUX_AMD, TCG_DR7),
    case("breakpoint-instruction", "A14", software)
        .needs(KVM_CAP_SET_GUEST_DEBUG)
        .fails_below(Target::IN_QEMU, TCG_INT3),
    case("the-guests-own-breakpoint-instruction", "A14", guests_int3).needs(KVM_CAP_SET_GUEST_DEBUG),
    case("debugging-of-2007", "A14", of_2007).dropped("2007's KVM_DEBUG_GUEST; today's is KVM_SET_GUEST_DEBUG"),
];

const STEP: u32 = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;

fn set_debug(vcpu: &Vcpu, control: u32, debugreg: [u64; 8]) -> Result<i32, Errno> {
    vcpu.fd.put(KVM_SET_GUEST_DEBUG, &KvmGuestDebug { control, pad: 0, debugreg })
}

fn debug(vcpu: &Vcpu, control: u32, debugreg: [u64; 8]) {
    set_debug(vcpu, control, debugreg).expect("KVM_SET_GUEST_DEBUG");
}

/// The vector and the place of a debug exit.
#[track_caller]
fn debug_exit(vcpu: &Vcpu) -> (u32, u64) {
    match vcpu.run() {
        Exit::Debug { exception, pc, .. } => (exception, pc),
        other => panic!("{other:?} instead of a debug exit"),
    }
}

/// Three increments of BX, of two bytes with a prefix each, and HLT.
fn machine(device: &Device) -> RealMode {
    RealMode::new(device, |a| {
        a.inc(ebx)?;
        a.inc(ebx)?;
        a.inc(ebx)?;
        a.hlt()
    })
}

fn single_step(device: &Device) {
    let machine = machine(device);
    let vcpu = &machine.vcpu;
    debug(vcpu, STEP, [0; 8]);
    let mut last = CODE;
    for n in 1..=3 {
        let (vector, pc) = debug_exit(vcpu);
        let regs = vcpu.regs();
        assert_eq!((vector, pc, regs.rip, regs.rbx), (1, regs.rip, pc, n));
        assert!(pc > last, "{pc:#x} after {last:#x}");
        // The trap flag is the debugger's: the guest's RFLAGS do not show it.
        assert_eq!(regs.rflags & 0x100, 0);
        last = pc;
    }
}

fn stepping_ends(device: &Device) {
    let machine = machine(device);
    let vcpu = &machine.vcpu;
    debug(vcpu, STEP, [0; 8]);
    debug_exit(vcpu);
    debug(vcpu, 0, [0; 8]);
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rbx, 3);
}

fn step_over_io(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.in_(al, 0x10)?;
        a.nop()?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    debug(vcpu, STEP, [0; 8]);
    assert_eq!(vcpu.run(), Exit::input(0x10, 1));
    vcpu.answer(&[0x5a]);
    assert_eq!(debug_exit(vcpu), (1, CODE + 2));
    assert_eq!(vcpu.regs().rax & 0xff, 0x5a);
    assert_eq!(debug_exit(vcpu), (1, CODE + 3));
}

fn step_over_mmio(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.mov(al, byte_ptr(0).es())?;
        a.nop()?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    vcpu.edit_sregs(|s| at(&mut s.es, 0x20000));
    debug(vcpu, STEP, [0; 8]);
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20000, len: 1 });
    vcpu.answer(&[7]);
    let (vector, pc) = debug_exit(vcpu);
    assert_eq!((vector, pc, vcpu.regs().rip, vcpu.regs().rax & 0xff), (1, pc, pc, 7));
    assert!(pc > CODE && machine.memory.u8(pc as usize) == 0x90, "behind the instruction");
}

const HARDWARE: u32 = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;

fn hardware(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.nop()?;
        a.nop()?;
        a.inc(bx)?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    debug(vcpu, HARDWARE, [CODE + 2, 0, 0, 0, 0, 0, 0, 0x403]);
    assert_eq!(debug_exit(vcpu), (1, CODE + 2));
    let Exit::Debug { dr6: status, .. } = Exit::of(vcpu.page) else { panic!("no debug exit") };
    // A fault: before the instruction, and in DR6 the number of the register.
    assert_eq!((vcpu.regs().rip, vcpu.regs().rbx, status & 0xf), (CODE + 2, 0, 1));
    debug(vcpu, 0, [0; 8]);
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rbx & 0xffff, 1);
}

fn watchpoint(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.mov(ax, word_ptr(0x500))?;
        a.mov(word_ptr(0x502), ax)?;
        a.mov(word_ptr(0x500), ax)?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    // DR1: writes of two bytes at 0x500.
    debug(vcpu, HARDWARE, [0, 0x500, 0, 0, 0, 0, 0, 0x0050_040c]);
    let (vector, pc) = debug_exit(vcpu);
    let Exit::Debug { dr6: status, .. } = Exit::of(vcpu.page) else { panic!("no debug exit") };
    // A trap: behind the instruction that wrote.
    assert_eq!((vector, pc, status & 0xf), (1, CODE + 9, 2));
    vcpu.run_to_hlt();
}

fn guests_own(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.mov(eax, 0x1234)?;
        a.mov(dr0, eax)?;
        a.nop()?;
        a.mov(ecx, dr0)?;
        a.mov(edx, dr7)?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    // The breakpoint is the NOP.
    debug(vcpu, HARDWARE, [CODE + 9, 0, 0, 0, 0, 0, 0, 0x403]);
    assert_eq!(debug_exit(vcpu), (1, CODE + 9));
    let own: KvmDebugregs = vcpu.fd.get(KVM_GET_DEBUGREGS).expect("KVM_GET_DEBUGREGS");
    assert_eq!((own.db[0], own.dr7), (0x1234, 0x400));
    debug(vcpu, 0, [0; 8]);
    vcpu.run_to_hlt();
    assert_eq!((vcpu.regs().rcx, vcpu.regs().rdx), (0x1234, 0x400));
}

/// INC BX; INT3; INC BX; HLT, with a handler that sets CX.
fn with_int3(device: &Device) -> RealMode {
    let machine = RealMode::new(device, |a| {
        a.inc(bx)?;
        a.int3()?;
        a.inc(bx)?;
        a.hlt()
    });
    machine.set_vector(3, 0x3000);
    machine.put_code(0x3000, |a| {
        a.mov(cx, 3)?;
        a.iret()
    });
    machine
}

fn software(device: &Device) {
    let machine = with_int3(device);
    let vcpu = &machine.vcpu;
    debug(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP, [0; 8]);
    assert_eq!(debug_exit(vcpu), (3, CODE + 1));
    assert_eq!((vcpu.regs().rip, vcpu.regs().rcx), (CODE + 1, 0));
    // The debugger puts the instruction back that was there, and goes on.
    machine.memory.set_u8(CODE as usize + 1, 0x90);
    vcpu.run_to_hlt();
    assert_eq!((vcpu.regs().rbx & 0xffff, vcpu.regs().rcx), (2, 0));
}

fn guests_int3(device: &Device) {
    let machine = with_int3(device);
    let vcpu = &machine.vcpu;
    debug(vcpu, KVM_GUESTDBG_ENABLE, [0; 8]);
    vcpu.run_to_hlt();
    assert_eq!((vcpu.regs().rbx & 0xffff, vcpu.regs().rcx & 0xffff), (2, 3));
}

fn of_2007(device: &Device) {
    let machine = machine(device);
    let vcpu = &machine.vcpu;
    let mut debug = KvmDebugGuest { enabled: 1, singlestep: 1, ..KvmDebugGuest::default() };
    vcpu.fd.put(KVM_DEBUG_GUEST, &debug).expect("KVM_DEBUG_GUEST");
    assert!(matches!(vcpu.run(), Exit::Debug { .. }));
    assert_eq!(vcpu.regs().rbx, 1);
    // A breakpoint at the HLT.
    let hlt = CODE + 6;
    debug.singlestep = 0;
    (debug.breakpoints[0].enabled, debug.breakpoints[0].address) = (1, hlt);
    vcpu.fd.put(KVM_DEBUG_GUEST, &debug).expect("KVM_DEBUG_GUEST");
    assert!(matches!(vcpu.run(), Exit::Debug { .. }));
    assert_eq!((vcpu.regs().rip, vcpu.regs().rbx), (hlt, 3));
    vcpu.fd.put(KVM_DEBUG_GUEST, &KvmDebugGuest::default()).expect("KVM_DEBUG_GUEST");
    vcpu.run_to_hlt();
}
