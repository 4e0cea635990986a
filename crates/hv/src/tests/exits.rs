//! Each exit, and what the client or the guest sees of it.
use abi::*;
use x86::{Exception, Mode, Vector};

use crate::{
    Errno,
    backend::{CrOp, Event, EventKind, Exit, PioExit},
    testing::{CODE, Machine, host::set_signal, script::Note},
};

fn event(exception: Exception) -> Event {
    Event { kind: EventKind::Exception(exception) }
}

const GP: Exception = Exception::with_code(Vector::GP, 0);

#[test]
fn exits_that_only_return_to_the_client() {
    for (exit, reason) in [
        (Exit::Shutdown, KVM_EXIT_SHUTDOWN),
        (Exit::FailEntry { reason: 7 }, KVM_EXIT_FAIL_ENTRY),
        (Exit::Unknown { reason: 7 }, KVM_EXIT_UNKNOWN),
        (Exit::Hlt { len: 1 }, KVM_EXIT_HLT),
        (Exit::Debug { dr6: 1 }, KVM_EXIT_DEBUG),
        (Exit::Cr { op: CrOp::Write { number: 8, value: 0 }, len: 3 }, KVM_EXIT_SET_TPR),
    ] {
        let m = Machine::new();
        m.set_run_field(KVM_RUN_CR8_OFFSET as u64, 9u64);
        m.script.exit(exit);
        assert_eq!(m.run(), Ok(reason), "{exit:?}");
        if reason == KVM_EXIT_FAIL_ENTRY || reason == KVM_EXIT_UNKNOWN {
            assert_eq!(m.payload::<u64>(), 7);
        }
    }
    let m = Machine::new();
    m.script.exit(Exit::BadAddress { gpa: 0 });
    assert_eq!(m.run(), Err(Errno::EFAULT));
}

#[test]
fn exits_that_stay_inside() {
    for (exit, rip) in [
        (Exit::Interrupted, CODE),
        (Exit::InterruptWindow, CODE),
        (Exit::Pause { len: 2 }, CODE + 2),
        (Exit::CacheFlush { len: 2 }, CODE + 2),
        (Exit::MonitorMwait { len: 3, wait: true }, CODE + 3),
        (Exit::Cpuid { len: 2 }, CODE + 2),
        (Exit::Hypercall { len: 3 }, CODE + 3),
    ] {
        let m = Machine::new();
        m.script.exit(exit);
        assert_eq!((m.run(), m.state(|s| s.rip)), (Ok(KVM_EXIT_UNKNOWN), rip), "{exit:?}");
    }
}

#[test]
fn exits_that_are_exceptions_of_the_guest() {
    let ud = Exception::plain(Vector::UD);
    for (exit, exception) in [
        (Exit::Rsm, ud),
        (Exit::Exception { exception: ud }, ud),
        (Exit::Cr { op: CrOp::Write { number: 8, value: 16 }, len: 3 }, GP),
    ] {
        let m = Machine::new();
        m.script.exit(exit);
        assert_eq!(m.run(), Ok(KVM_EXIT_UNKNOWN));
        assert_eq!((m.script.take_injected(), m.state(|s| s.rip)), ([event(exception)].to_vec(), CODE), "{exit:?}");
    }
}

/// A processor that knows only its own hypercall instruction leaves with #UD for the other.
#[test]
fn either_vendors_hypercall_is_one() {
    for (code, is_hypercall) in [([0x0f, 0x01, 0xc1], true), ([0x0f, 0x01, 0xd9], true), ([0x0f, 0x0b, 0x90], false)] {
        let m = Machine::new();
        m.poke(CODE, &code);
        m.state(|s| s.gpr[0] = 999);
        let exception = Exception::plain(Vector::UD);
        m.script.exit(Exit::Exception { exception });
        m.run().unwrap();
        let (rip, rax) = m.state(|s| (s.rip, s.gpr[0]));
        let expected = if is_hypercall { (CODE + 3, -1000i32 as u32 as u64) } else { (CODE, 999) };
        assert_eq!((rip, rax), expected, "{code:x?}");
        assert_eq!(m.script.take_injected().is_empty(), is_hypercall);
    }
}

/// AMD's processors have SYSENTER outside of long mode only, Intel's SYSCALL in 64-bit mode only: what the guest's has is executed.
#[test]
fn system_calls_that_the_processor_does_not_know_are_the_guests() {
    let exception = Exception::plain(Vector::UD);
    // SYSENTER; and SYSCALL, which is not switched on.
    for (code, has, rip) in [(0x34, true, 0x7000), (0x05, false, CODE)] {
        let m = Machine::new();
        m.poke(CODE, &[0x0f, code]);
        m.state(|s| {
            s.cr0 |= x86::Cr0::PE.bits();
            (s.sysenter_cs, s.sysenter_eip) = (8, 0x7000);
            s.refresh();
        });
        m.script.exit(Exit::Exception { exception });
        m.script.exit(Exit::Shutdown);
        m.run().unwrap();
        assert_eq!((m.state(|s| s.rip), m.script.take_injected().is_empty()), (rip, has));
    }
}

/// A register that is rarely changed by instructions is not fetched, nor written back, for those that leave it alone.
#[test]
fn the_fpu_is_asked_for_by_instructions_that_use_it() {
    const DEVICE: u64 = 0xd_0000;
    // mov al, [bx]; movd mm0, [bx]
    for (code, asked) in [(&[0x8a, 0x07][..], false), (&[0x0f, 0x6e, 0x07], true)] {
        let m = Machine::new();
        m.use_supported_cpuid(&m.vcpu);
        m.poke(CODE, code);
        m.state(|s| (s.gpr[3], s.seg[3].base) = (0, DEVICE));
        m.script.exit(Exit::Emulate);
        let before = m.script.fpu_looks();
        let _ = m.run();
        assert_eq!(m.script.fpu_looks() != before, asked, "{code:x?}");
    }
}

#[test]
fn performance_counters_that_exist_stand_still() {
    // Intel's need CPUID to offer them; VMware's pseudo counters are everybody's.
    for (counter, amd, exists) in [
        (0, true, true),
        (3, true, true),
        (4, true, false),
        (0, false, false),
        (0x1_0001, false, true),
        (0xfff, true, false),
    ] {
        let m = Machine::new();
        m.vcpu.with_inner(|inner| inner.features.set(x86::Features::AMD, amd));
        m.state(|s| (s.gpr[0], s.gpr[1], s.gpr[2]) = (7, counter, 7));
        m.script.exit(Exit::Rdpmc { len: 2 });
        m.run().unwrap();
        let injected = m.script.take_injected();
        if exists {
            assert!(injected.is_empty() && m.state(|s| s.rip == CODE + 2), "{counter:#x}");
            assert!(counter > 3 || m.state(|s| (s.gpr[0], s.gpr[2]) == (0, 0)));
        } else {
            assert_eq!((injected, m.state(|s| s.rip)), ([event(GP)].to_vec(), CODE), "{counter:#x}");
        }
    }
}

#[test]
fn cpuid_is_the_clients_table() {
    let m = Machine::new();
    m.state(|s| (s.gpr[0], s.gpr[1]) = (0xffff_ffff_4000_0000, 0));
    m.script.exit(Exit::Cpuid { len: 2 });
    m.run().unwrap();
    m.state(|s| {
        let text = [s.gpr[3], s.gpr[1], s.gpr[2]].map(|r| (r as u32).to_le_bytes()).concat();
        assert_eq!(text, b"KVMKVMKVM\0\0\0");
    });
}

#[test]
fn msrs_are_read_written_and_refused() {
    let m = Machine::new();
    m.state(|s| (s.gpr[1], s.gpr[0], s.gpr[2]) = (x86::msr::STAR.into(), 0x1111_2222, 0x3333));
    m.script.exit(Exit::MsrWrite { len: 2 });
    m.script.exit(Exit::MsrRead { len: 2 });
    m.run().unwrap();
    m.state(|s| assert_eq!((s.star, s.gpr[0], s.gpr[2], s.rip), (0x3333_1111_2222, 0x1111_2222, 0x3333, CODE + 4)));
    m.state(|s| s.gpr[1] = 0xdead_beef);
    m.script.take_notes();
    m.script.exit(Exit::MsrRead { len: 2 });
    m.run().unwrap();
    assert_eq!(m.script.take_injected(), [event(GP)]);
}

#[test]
fn hypercalls_answer_in_rax_and_keep_the_rest() {
    for (nr, cpl, answer) in [(1, 0, 0), (5, 0, 0), (999, 0, -1000i64 as u64), (5, 3, -1i64 as u64)] {
        let m = Machine::new();
        m.state(|s| {
            (s.mode, s.cpl, s.gpr[0], s.gpr[3], s.gpr[1]) = (Mode::Long64, cpl, nr, 77, 0);
        });
        m.script.exit(Exit::Hypercall { len: 3 });
        m.run().unwrap();
        m.state(|s| assert_eq!((s.gpr[0], s.gpr[3]), (answer, 77), "call {nr} at CPL {cpl}"));
    }
}

/// KVM_HC_SEND_IPI: a bitmap of APIC ids from a first one on.
#[test]
fn an_ipi_to_many_is_one_hypercall() {
    let m = Machine::with_irqchip();
    let (second, _run) = Machine::new_vcpu(&m.vm, 1);
    for vcpu in [&m.vcpu, &second] {
        vcpu.with_inner(|inner| {
            let apic = inner.apic.as_mut().unwrap();
            apic.mmio_write(0xf0, &0x1ffu32.to_le_bytes(), m.vm.shared(), &inner.tsc);
        });
    }
    // low, high, first, ICR: how many took it, and the vector.
    for (args, answer, vector) in [
        ([0b111, 0, 0, 0x45], 2, Some(0x45)),
        ([0, 0b10, u64::MAX - 63, 0x46], 0, Some(0x45)),
        ([0b10, 0, 0, 0x47], 1, Some(0x47)),
        ([0xffff_ffff, 0, 0xffff_ffff, 0], 0, Some(0x47)),
        ([1, 0, 0, 1 << 18 | 0x50], -KVM_EINVAL, Some(0x47)),
        ([1, 0, 0, 1 << 11 | 0x50], -KVM_EINVAL, Some(0x47)),
    ] {
        m.state(|s| {
            (s.mode, s.gpr[0]) = (Mode::Long64, KVM_HC_SEND_IPI);
            [s.gpr[3], s.gpr[1], s.gpr[2], s.gpr[6]] = args;
        });
        m.script.exit(Exit::Hypercall { len: 3 });
        m.run().unwrap();
        assert_eq!(m.state(|s| s.gpr[0]), answer as u64, "{args:x?}");
        assert_eq!(m.vm.shared().vcpu(1).lapic.highest_request(), vector, "{args:x?}");
    }
    let m = Machine::new();
    m.state(|s| (s.mode, s.gpr[0]) = (Mode::Long64, KVM_HC_SEND_IPI));
    m.script.exit(Exit::Hypercall { len: 3 });
    m.run().unwrap();
    assert_eq!(m.state(|s| s.gpr[0]), -KVM_EOPNOTSUPP as u64);
}

const fn pio(port: u16, size: u8, write: bool) -> Exit {
    Exit::Pio(PioExit { port, size, write, string: false, len: 2 })
}

#[test]
fn port_reads_and_writes_go_through_the_data_page() {
    for (size, rax) in [(1u8, 0x1122_3344_5566_77eeu64), (2, 0x1122_3344_5566_ddee), (4, 0xbbcc_ddee)] {
        let m = Machine::new();
        m.state(|s| s.gpr[0] = 0x1122_3344_5566_7788);
        m.script.exit(pio(0x3f8, size, false));
        assert_eq!(m.run(), Ok(KVM_EXIT_IO));
        let io: KvmRunIo = m.payload();
        assert_eq!((io.direction, io.size, io.port, io.count, io.data_offset), (KVM_EXIT_IO_IN, size, 0x3f8, 1, 4096));
        assert_eq!(m.state(|s| s.rip), CODE);
        m.set_run_field(4096, [0xee, 0xdd, 0xcc, 0xbbu8]);
        // What the client leaves in the exit itself means nothing.
        m.set_run_field(KVM_RUN_UNION_OFFSET as u64, [0xffu8; 16]);
        m.run().unwrap();
        m.state(|s| assert_eq!((s.gpr[0], s.rip), (rax, CODE + 2)));
    }
    let m = Machine::new();
    m.state(|s| s.gpr[0] = 0x55);
    m.script.exit(pio(0x80, 1, true));
    assert_eq!(m.run(), Ok(KVM_EXIT_IO));
    let io: KvmRunIo = m.payload();
    assert_eq!((io.direction, m.run_field::<u8>(4096)), (KVM_EXIT_IO_OUT, 0x55));
    m.run().unwrap();
    assert_eq!(m.state(|s| s.rip), CODE + 2);
}

#[test]
fn an_out_that_resets_the_machine_is_not_finished() {
    let m = Machine::new();
    m.script.exit(pio(0xcf9, 1, true));
    m.run().unwrap();
    let mut regs: KvmRegs = m.get(KVM_GET_REGS);
    regs.rip = 0xfff0;
    m.ioctl(KVM_SET_REGS, &mut regs).unwrap();
    m.run().unwrap();
    assert_eq!(m.state(|s| s.rip), 0xfff0);
}

#[test]
fn devices_inside_the_hypervisor_answer_without_the_client() {
    let m = Machine::with_irqchip();
    m.state(|s| s.gpr[0] = 0x5a);
    m.script.exit(pio(0x21, 1, true));
    m.script.entry(|s, _| {
        s.gpr[0] = 0;
        pio(0x21, 1, false)
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_UNKNOWN));
    assert_eq!(m.state(|s| s.gpr[0]), 0x5a);
}

#[test]
fn a_lower_task_priority_is_told_and_cr8_goes_both_ways() {
    let m = Machine::new();
    m.set_run_field(KVM_RUN_CR8_OFFSET as u64, 5u64);
    m.script.exit(Exit::Cr { op: CrOp::Write { number: 8, value: 9 }, len: 4 });
    m.script.exit(Exit::Cr { op: CrOp::Write { number: 8, value: 3 }, len: 4 });
    assert_eq!(m.run(), Ok(KVM_EXIT_SET_TPR));
    assert_eq!(m.run_field::<u64>(KVM_RUN_CR8_OFFSET as u64), 3);
    m.set_run_field(KVM_RUN_CR8_OFFSET as u64, 16u64);
    assert_eq!(m.run(), Err(Errno::EINVAL));
}

#[test]
fn debug_exits_say_where() {
    let m = Machine::new();
    let mut debug = KvmGuestDebug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP, ..KvmGuestDebug::default() };
    m.ioctl(KVM_SET_GUEST_DEBUG, &mut debug).unwrap();
    m.script.exit(Exit::Exception { exception: Exception::plain(Vector::BP) });
    assert_eq!(m.run(), Ok(KVM_EXIT_DEBUG));
    let arch: KvmDebugExitArch = m.payload();
    assert_eq!((arch.exception, arch.pc), (3, CODE));
    assert!(matches!(m.script.take_notes()[0], Note::Debug(d) if d.software_breakpoints));
    debug.control = 1 << 7;
    assert_eq!(m.ioctl(KVM_SET_GUEST_DEBUG, &mut debug).unwrap_err(), Errno::EINVAL);
}

#[test]
fn single_step_over_a_handled_exit_traps() {
    let m = Machine::new();
    m.state(|s| s.flags.set(x86::flags::TF));
    m.script.exit(Exit::Cpuid { len: 2 });
    m.run().unwrap();
    assert_eq!(m.script.take_injected(), [event(Exception::debug(x86::debug::DR6_BS))]);
}

#[test]
fn the_debugger_is_told_of_steps_that_the_processor_did_not_finish() {
    let m = Machine::new();
    let mut debug =
        KvmGuestDebug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, ..KvmGuestDebug::default() };
    m.ioctl(KVM_SET_GUEST_DEBUG, &mut debug).unwrap();
    m.script.exit(Exit::Cpuid { len: 2 });
    assert_eq!(m.run(), Ok(KVM_EXIT_DEBUG));
    let arch: KvmDebugExitArch = m.payload();
    assert_eq!((arch.exception, arch.pc, arch.dr6), (1, CODE + 2, x86::debug::DR6_BS));
    // Port I/O is finished by the next KVM_RUN, and only then is the step over.
    m.script.exit(Exit::Pio(PioExit { port: 0x10, size: 1, write: true, string: false, len: 1 }));
    assert_eq!(m.run(), Ok(KVM_EXIT_IO));
    assert_eq!(m.run(), Ok(KVM_EXIT_DEBUG));
    let arch: KvmDebugExitArch = m.payload();
    assert_eq!(arch.pc, CODE + 3);
    // Nobody steps any more: nothing is told.
    m.script.exit(Exit::Pio(PioExit { port: 0x10, size: 1, write: true, string: false, len: 1 }));
    assert_eq!(m.run(), Ok(KVM_EXIT_IO));
    debug.control = 0;
    m.ioctl(KVM_SET_GUEST_DEBUG, &mut debug).unwrap();
    assert_eq!(m.run(), Ok(KVM_EXIT_UNKNOWN));
}

#[test]
fn a_guest_of_2007_has_its_own_hypercalls() {
    let m = Machine::new();
    let page = KvmVcpuPara { guest_version: 1, size: 24, ret: 99, hypercall_gpa: 0x3000, ..KvmVcpuPara::default() };
    m.poke(0x2000, page.bytes());
    m.state(|s| (s.gpr[1], s.gpr[0], s.gpr[2]) = (MSR_KVM_API_MAGIC.into(), 0x2000, 0));
    m.script.exit(Exit::MsrWrite { len: 2 });
    m.script.entry(|s, _| {
        (s.mode, s.gpr[0], s.gpr[7], s.gpr[9]) = (Mode::Long64, 3, 0x11, 0x66);
        Exit::Hypercall { len: 3 }
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_HYPERCALL));
    let page: KvmVcpuPara = m.peek(0x2000);
    assert_eq!((page.host_version, page.ret), (1, 0));
    assert_eq!(m.peek::<[u8; 4]>(0x3000), [0x0f, 0x01, 0xd9, 0xc3]);
    let call: KvmRunHypercall2007 = m.payload();
    assert_eq!((call.args[0], call.args[5], call.longmode), (0x11, 0x66, 1));
    m.set_run_field(KVM_RUN_UNION_OFFSET as u64 + 48, 0x77u64);
    m.run().unwrap();
    m.state(|s| assert_eq!((s.gpr[0], s.gpr[7], s.rip), (0x77, 0x11, CODE + 5)));
    // A page that is not there, or not aligned, is #GP.
    for gpa in [0x2001u64, 0x100_0000] {
        m.state(|s| (s.gpr[1], s.gpr[0]) = (MSR_KVM_API_MAGIC.into(), gpa));
        m.script.take_notes();
        m.script.exit(Exit::MsrWrite { len: 2 });
        m.run().unwrap();
        assert_eq!(m.script.take_injected(), [event(GP)]);
    }
}

#[test]
fn a_client_that_wants_no_exit_for_hlt_has_its_vcpu_sleep_inside() {
    let m = Machine::new();
    let mut cap = KvmEnableCap { cap: KVM_CAP_X86_DISABLE_EXITS, ..KvmEnableCap::default() };
    cap.args[0] = KVM_X86_DISABLE_EXITS_HLT;
    let enable = |vm: &crate::Vm<_>, cap: &mut KvmEnableCap| {
        m.client.with_bytes(cap.bytes_mut(), |arg| vm.ioctl(KVM_ENABLE_CAP, arg, &crate::testing::cx())).err()
    };
    // Before there is a vCPU, and nothing that is not offered.
    assert_eq!(enable(&m.vm, &mut cap), Some(Errno::EINVAL));
    let Ok(crate::Outcome::NewVm(vm)) = m.kvm.ioctl(KVM_CREATE_VM, 0, &crate::testing::cx()) else { panic!("no VM") };
    let mut cstate = cap;
    cstate.args[0] = KVM_X86_DISABLE_EXITS_CSTATE;
    assert_eq!((enable(&vm, &mut cstate), enable(&vm, &mut cap)), (Some(Errno::EINVAL), None));
    // A second interrupt of the client's is there already: it ends HLT at once, and no exit was seen.
    m.vm.shared().settings.disabled_exits.store(KVM_X86_DISABLE_EXITS_HLT, core::sync::atomic::Ordering::SeqCst);
    m.state(|s| s.flags.set_control(x86::flags::IF, x86::flags::IF));
    m.script.entry(|_, _| Exit::Hlt { len: 1 });
    m.script.entry(|_, _| Exit::Shutdown);
    m.vcpu.with_inner(|inner| [0x40, 0x41].map(|vector| inner.events.add_client_irq(vector)));
    assert_eq!((m.run(), m.state(|s| s.rip)), (Ok(KVM_EXIT_SHUTDOWN), CODE + 1));
}

#[test]
fn what_the_processor_does_not_take_is_executed_until_it_does() {
    let m = Machine::new();
    // mov al, 5; inc ax; nop. The handler of interrupt 0x31 at 0x2000: inc ax; iret.
    m.poke(CODE, &[0xb0, 0x05, 0x40, 0x90]);
    m.poke(4 * 0x31, &[0x00, 0x20, 0, 0]);
    m.poke(0x2000, &[0x40, 0xcf]);
    m.state(|s| {
        (s.rip, s.gpr[0], s.gpr[4]) = (CODE, 0, 0x4000);
        s.flags.set(x86::flags::IF);
    });
    *m.script.takes.lock().unwrap() = Some(|s| s.rip == CODE + 4);
    m.ioctl(KVM_INTERRUPT, &mut KvmInterrupt { irq: 0x31 }).unwrap();
    m.script.entry(|s, _| {
        assert_eq!((s.rip, s.gpr[0], s.gpr[4]), (CODE + 4, 6, 0x4000));
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    // The return address: the interrupt came before the first instruction.
    assert_eq!(m.peek::<u16>(0x4000 - 6), CODE as u16);
    assert_eq!(m.script.take_injected(), []);
}

#[test]
fn breakpoints_are_met_in_code_that_the_processor_does_not_run() {
    let m = Machine::new();
    // nop; int3. The handler of #DB is at 0x2000.
    m.poke(CODE, &[0x90, 0xcc]);
    m.poke(4, &[0x00, 0x20, 0, 0]);
    m.state(|s| (s.rip, s.gpr[4]) = (CODE, 0x4000));
    *m.script.takes.lock().unwrap() = Some(|_| false);
    let control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_USE_HW_BP;
    let mut debug = KvmGuestDebug { control, ..KvmGuestDebug::default() };
    (debug.debugreg[2], debug.debugreg[7]) = (CODE, 2 << 4);
    let met = || {
        let arch: KvmDebugExitArch = m.payload();
        (arch.exception, arch.pc, arch.dr6)
    };
    m.ioctl(KVM_SET_GUEST_DEBUG, &mut debug).unwrap();
    assert_eq!(m.run(), Ok(KVM_EXIT_DEBUG));
    assert_eq!(met(), (1, CODE, x86::debug::DR6_FIXED | 4));
    // The client goes over it as it does on a processor, and comes to its software breakpoint.
    m.state(|s| s.flags.set(x86::flags::RF));
    assert_eq!(m.run(), Ok(KVM_EXIT_DEBUG));
    assert_eq!(met(), (3, CODE + 1, 0));
    // The guest's own go to its handler.
    debug.control = 0;
    m.ioctl(KVM_SET_GUEST_DEBUG, &mut debug).unwrap();
    *m.script.takes.lock().unwrap() = Some(|s| s.rip == 0x2000);
    m.state(|s| (s.rip, s.dr[1], s.dr7) = (CODE, CODE, x86::debug::DR7_FIXED | 2 << 2));
    m.script.entry(|s, _| {
        assert_eq!((s.gpr[4], s.dr6 & 15), (0x4000 - 6, 2));
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    assert_eq!(m.peek::<u16>(0x4000 - 6), CODE as u16);
}

#[test]
fn a_signal_ends_a_loop_that_the_processor_does_not_run() {
    let m = Machine::new();
    // dec cx; jnz
    m.poke(CODE, &[0x49, 0x75, 0xfd]);
    m.state(|s| (s.rip, s.gpr[1]) = (CODE, 1000));
    *m.script.takes.lock().unwrap() = Some(|s| {
        // In the middle of the run.
        set_signal(true);
        s.rip == CODE + 3
    });
    let result = m.run();
    set_signal(false);
    assert_eq!(result, Err(Errno::EINTR));
}

#[test]
fn an_event_that_the_processor_cannot_deliver_is_delivered_by_the_core() {
    let m = Machine::new();
    m.poke(4 * 0x31, &[0x00, 0x20, 0, 0]);
    m.state(|s| {
        (s.rip, s.gpr[4]) = (CODE, 0x4000);
        s.flags.set(x86::flags::IF);
    });
    m.ioctl(KVM_INTERRUPT, &mut KvmInterrupt { irq: 0x31 }).unwrap();
    *m.script.cut_short.lock().unwrap() = true;
    m.script.exit(Exit::Delivery);
    m.script.entry(|s, _| {
        assert_eq!((s.rip, s.gpr[4]), (0x2000, 0x4000 - 6));
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
}
