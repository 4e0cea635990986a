//! System management mode: the SMI, the handler's memory and registers, the way back.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno, Memory},
    runner::{Case, case},
    vm::{CODE, Exit, RealMode, Vcpu, assemble},
};

mod memory;
mod saved;
mod state;

pub(super) const CASES: &[Case] = &[
    case("an-smi-runs-the-handler", "E02", handler).needs(KVM_CAP_X86_SMM),
    case("registers-in-the-handler", "E02", handler_registers).needs(KVM_CAP_X86_SMM),
    case("from-64-bit-mode-and-back", "E02", long_mode).needs(KVM_CAP_X86_SMM),
    case("one-smi-waits-for-rsm", "E02", second_waits).needs(KVM_CAP_X86_SMM),
    case("nmi-waits-for-rsm", "E02 A12", nmi_waits).needs(KVM_CAP_X86_SMM),
    case("an-interrupt-waits-for-rsm", "E02 A12", interrupt_waits).needs(KVM_CAP_X86_SMM),
    case("an-smi-ends-hlt", "E02 D06", ends_hlt).needs(KVM_CAP_X86_SMM),
    case("rsm-outside-is-undefined", "E02", rsm_outside).needs(KVM_CAP_X86_SMM),
    case("saved-with-64-bits", "E02", saved::bits64).needs(KVM_CAP_X86_SMM),
    case("saved-with-32-bits", "E02", saved::bits32).needs(KVM_CAP_X86_SMM),
    case("the-handler-changes-registers", "E02", saved::changed).needs(KVM_CAP_X86_SMM),
    case("into-another-mode", "E02", saved::other_mode).needs(KVM_CAP_X86_SMM),
    case("smbase-moves", "E02", saved::base).needs(KVM_CAP_X86_SMM),
    case("impossible-registers-shut-down", "E02", saved::impossible).needs(KVM_CAP_X86_SMM),
    case("the-handler-has-memory-of-its-own", "E02 A15", memory::own).needs(KVM_CAP_X86_SMM),
    case("the-same-address-is-another-page", "E02 A15", memory::same_address).needs(KVM_CAP_X86_SMM),
    case("code-at-the-same-address", "E02 A15", memory::same_code).needs(KVM_CAP_X86_SMM),
    case("slots-of-its-own", "E02 A15", memory::slots).needs(KVM_CAP_MULTI_ADDRESS_SPACE),
    case("dirty-log-of-its-own", "E02 A17", memory::dirty).needs(KVM_CAP_X86_SMM),
    case("device-memory-from-the-handler", "E02 A07", memory::device).needs(KVM_CAP_X86_SMM),
    case("the-mode-is-shown-and-set", "E02 A10", state::events).needs(KVM_CAP_X86_SMM),
    case("a-pending-smi-is-shown-and-set", "E02 A10", state::pending).needs(KVM_CAP_X86_SMM),
    case("init-waits-for-rsm", "E02 A10", state::init).needs(KVM_CAP_X86_SMM),
    case("its-msrs", "E02 A10", state::msrs).needs(KVM_CAP_X86_SMM),
];

/// Where SMBASE is after reset, and the handler.
const SMBASE: u64 = 0x3_0000;
/// The state save area, from SMBASE.
const AREA: usize = 0xfe00;
/// The port that handlers write to.
const PORT: u32 = 0x10;

/// A machine whose vCPU sees in system management mode the same 64 KiB, and SMRAM behind SMBASE, which holds `handler`.
struct Machine {
    real: RealMode,
    smram: Memory,
}

impl Machine {
    fn new(
        device: &Device,
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
        handler: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Self {
        let real = RealMode::new(device, code);
        real.vm.set_slot(1 << 16, 0, 0, real.memory).expect("a slot of address space 1");
        let smram = real.vm.memory(1 << 16 | 1, SMBASE, 0x1_0000);
        smram.write(0x8000, &assemble(16, 0x8000, handler));
        Self { real, smram }
    }

    fn vcpu(&self) -> &Vcpu {
        &self.real.vcpu
    }

    /// KVM_SMI.
    fn smi(&self) {
        self.vcpu().fd.number(KVM_SMI, 0).expect("KVM_SMI");
    }

    /// Runs until the handler writes AL to its port.
    #[track_caller]
    fn run_to_out(&self) -> u8 {
        match self.vcpu().run() {
            Exit::Out { port: 0x10, size: 1, data } => data[0],
            other => panic!("{other:?}"),
        }
    }
}

/// `kvm_run.flags` says that the vCPU is in system management mode.
fn flagged(vcpu: &Vcpu) -> bool {
    vcpu.page.0.pod::<u16>(KVM_RUN_FLAGS_OFFSET) & KVM_RUN_X86_SMM != 0
}

/// A handler that writes `value` to its port and goes back.
fn tell(value: i32) -> impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError> {
    move |a| {
        a.mov(al, value)?;
        a.out(PORT, al)?;
        a.rsm()
    }
}

/// Counts in BX, then halts.
fn count_and_halt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.inc(bx)?;
    a.hlt()
}

fn handler(device: &Device) {
    let machine = Machine::new(device, count_and_halt, tell(7));
    let vcpu = machine.vcpu();
    vcpu.edit_regs(|r| (r.rax, r.rbx, r.rflags) = (0x1234, 5, 0x46));
    machine.smi();
    assert!(!flagged(vcpu));
    assert_eq!((machine.run_to_out(), flagged(vcpu), vcpu.regs().rbx), (7, true, 5));
    vcpu.run_to_hlt();
    // AL is the guest's again.
    let regs = vcpu.regs();
    assert_eq!((regs.rax, regs.rbx, regs.rip, flagged(vcpu)), (0x1234, 6, CODE + 2, false));
}

fn handler_registers(device: &Device) {
    let machine = Machine::new(device, count_and_halt, tell(7));
    let vcpu = machine.vcpu();
    vcpu.edit_sregs(|s| (s.cr0, s.idt.limit) = (s.cr0 | 0xc, 0x3ff));
    vcpu.edit_regs(|r| r.rflags = 0xed7);
    let before = vcpu.sregs();
    machine.smi();
    machine.run_to_out();
    let (sregs, regs) = (vcpu.sregs(), vcpu.regs());
    assert_eq!((sregs.cs.selector, sregs.cs.base, sregs.cs.limit, sregs.cs.db), (0x3000, SMBASE, u32::MAX, 0));
    for segment in [sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss] {
        assert_eq!((segment.selector, segment.base, segment.limit, segment.db), (0, 0, u32::MAX, 0));
    }
    assert_eq!((sregs.cr0, sregs.cr4, sregs.efer, sregs.idt.limit), (before.cr0 & !0x8000_000d, 0, 0, 0));
    // The stack pointer is the guest's.
    assert_eq!((regs.rflags, regs.rsp), (2, 0x8000));
    assert_eq!(vcpu.fd.get::<KvmDebugregs>(KVM_GET_DEBUGREGS).expect("KVM_GET_DEBUGREGS").dr7, 0x400);
    vcpu.run_to_hlt();
    let after = vcpu.sregs();
    // A segment's type means nothing in real mode: Linux shows another one for CS on Intel's processors.
    let code = |s: &KvmSregs| KvmSegment { type_: 0, ..s.cs };
    assert_eq!((after.cr0, after.idt.limit, code(&after), after.ss), (before.cr0, 0x3ff, code(&before), before.ss));
    assert_eq!(vcpu.regs().rflags, 0x603, "carry, interrupts and direction as they were, INC's others");
}

fn long_mode(device: &Device) {
    let machine = Machine::new(device, count_and_halt, tell(7));
    machine.real.go_long(device, 0x2000, |a| {
        a.out(PORT, al)?;
        a.inc(r15)?;
        a.hlt()
    });
    let vcpu = machine.vcpu();
    vcpu.edit_regs(|r| (r.rax, r.r8, r.r15) = (0x1_0000_0001, u64::MAX - 1, 0x8000_0000_0000_0000));
    assert_eq!(machine.run_to_out(), 1);
    let before = vcpu.sregs();
    machine.smi();
    assert_eq!((machine.run_to_out(), vcpu.sregs().efer), (7, 0));
    vcpu.run_to_hlt();
    let (regs, after) = (vcpu.regs(), vcpu.sregs());
    assert_eq!((regs.rax, regs.r8, regs.r15), (0x1_0000_0001, u64::MAX - 1, 0x8000_0000_0000_0001));
    assert_eq!((after.cs, after.ss, after.tr), (before.cs, before.ss, before.tr));
    assert_eq!((after.cr0, after.cr3, after.cr4, after.efer), (before.cr0, before.cr3, before.cr4, before.efer));
}

fn second_waits(device: &Device) {
    let machine = Machine::new(device, count_and_halt, tell(7));
    machine.smi();
    machine.run_to_out();
    // Of these, one is kept.
    machine.smi();
    machine.smi();
    assert_eq!(machine.run_to_out(), 7);
    machine.vcpu().run_to_hlt();
    assert_eq!(machine.vcpu().regs().rbx, 1);
}

fn nmi_waits(device: &Device) {
    let machine = Machine::new(device, count_and_halt, tell(7));
    machine.real.set_vector(2, 0x3000);
    machine.real.put_code(0x3000, |a| {
        a.mov(bx, 0x100)?;
        a.iret()
    });
    let vcpu = machine.vcpu();
    machine.smi();
    machine.run_to_out();
    assert_eq!(vcpu.events().nmi.masked, 1);
    vcpu.fd.number(KVM_NMI, 0).expect("KVM_NMI");
    vcpu.run_to_hlt();
    assert_eq!((vcpu.regs().rbx, vcpu.events().nmi.masked), (0x101, 0));
}

fn interrupt_waits(device: &Device) {
    let machine = Machine::new(device, count_and_halt, tell(7));
    machine.real.set_vector(0x40, 0x3000);
    machine.real.put_code(0x3000, |a| {
        a.mov(bx, 0x100)?;
        a.iret()
    });
    let vcpu = machine.vcpu();
    vcpu.edit_regs(|r| r.rflags = 0x202);
    machine.smi();
    machine.run_to_out();
    assert!(!vcpu.page.ready_for_interrupt() && !vcpu.page.if_flag());
    vcpu.page.request_interrupt_window(true);
    assert_eq!((vcpu.run(), flagged(vcpu), vcpu.regs().rip), (Exit::IrqWindow, false, CODE));
    vcpu.interrupt(0x40).expect("KVM_INTERRUPT");
    vcpu.page.request_interrupt_window(false);
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rbx, 0x101);
}

fn ends_hlt(device: &Device) {
    let vm = device.vm();
    vm.irqchip();
    let real = RealMode::with_code(vm, &assemble(16, CODE, count_and_halt));
    real.vm.set_slot(1 << 16, 0, 0, real.memory).expect("a slot of address space 1");
    let smram = real.vm.memory(1 << 16 | 1, SMBASE, 0x1_0000);
    smram.write(0x8000, &assemble(16, 0x8000, tell(7)));
    let machine = Machine { real, smram };
    machine.vcpu().set_mp_state(KVM_MP_STATE_HALTED).expect("KVM_SET_MP_STATE");
    machine.smi();
    assert_eq!((machine.run_to_out(), machine.vcpu().mp_state()), (7, KVM_MP_STATE_RUNNABLE));
}

fn rsm_outside(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.rsm()?;
        a.hlt()
    });
    machine.set_vector(6, 0x3000);
    machine.put_code(0x3000, |a| {
        a.mov(bx, 0x100)?;
        a.hlt()
    });
    machine.vcpu.run_to_hlt();
    assert_eq!((machine.vcpu.regs().rbx, machine.memory.u16(0x7ffa)), (0x100, CODE as u16));
    assert_eq!(machine.vcpu.fd.number(KVM_SMI, 1).err().filter(|e| *e != Errno::EINVAL), None);
}
