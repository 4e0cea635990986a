//! Several processors in one guest.
use abi::{KVM_CAP_IRQCHIP, KVM_CAP_MAX_VCPUS, KVM_CAP_NR_VCPUS, KVM_CREATE_VCPU};
use iced_x86::code_asm::*;
use x86::paging::{P, U, W};

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{
    Device, Errno,
    device::Thread,
    guest::{
        Live, Machine, Mode, Paging,
        layout::{DATA, FRAMES, STACK2, sel},
    },
    runner::{Case, case},
    vm::{Exit, Vcpu, until, while_running},
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("init-and-startup-by-the-local-apic", "D01 C04", init_startup).needs(KVM_CAP_IRQCHIP),
    case("init-of-a-processor-that-runs-in-long-mode", "D01 C04 C11", init_again).needs(KVM_CAP_IRQCHIP),
    case("locked-increments-of-two-processors", "D01 C09", count_together),
    case("a-page-is-taken-from-the-other-processor", "B08 D01", shoot_down).needs(KVM_CAP_IRQCHIP),
    case("rights-are-taken-from-the-other-processor", "B08 D01", shoot_down_rights).needs(KVM_CAP_IRQCHIP),
    case("two-processors-in-different-address-spaces", "B02 D01", two_spaces),
    case("one-processor-changes-the-tables-of-the-other", "B02 B08 D01", tables_of_another),
    case("numbers-of-processors", "D01", numbers),
    case("many-processors-come-and-go", "D01", many),
    case("a-vm-closed-while-its-processors-run", "A02 D01", closed_while_running),
];

/// The local APIC's page, where the guest sees it.
const APIC: u64 = 0xfee0_0000;
const ICR_LOW: u32 = 0xfee0_0300;
const ICR_HIGH: u32 = 0xfee0_0310;
const EOI: u32 = 0xfee0_00b0;
const SVR: u32 = 0xfee0_00f0;

/// Writes the local APIC's register.
fn apic(a: &mut CodeAssembler, register: u32, value: u32) -> Result<(), iced_x86::IcedError> {
    a.mov(edi, register)?;
    if a.bitness() == 64 { a.mov(dword_ptr(rdi), value as i32) } else { a.mov(dword_ptr(edi), value as i32) }
}

/// A VM with interrupt controllers and a machine with its local APIC mapped.
fn machine(mode: Mode) -> Machine {
    let mut m = Machine::new(mode);
    m.interruptible();
    if mode.paging() != Paging::Off {
        m.map(APIC, APIC | P | W);
    }
    m
}

fn start(m: &Machine, device: &Device) -> Live {
    let vm = device.vm();
    vm.irqchip();
    m.start_in(device, vm)
}

/// The second processor's program in real mode, at 0xc000: it counts at `DATA + 8` and halts.
fn startup_program(m: &mut Machine) {
    m.assemble(16, 0xc000, |a| {
        a.mov(bx, cs)?;
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.mov(word_ptr(DATA + 10), bx)?;
        a.inc(word_ptr(DATA + 8))?;
        a.hlt()?;
        Ok([])
    });
}

/// INIT, then SIPI twice, to the processor whose APIC identifier is 1. Before some local APIC of the VM is enabled, Linux does
/// not know the processor that was made last.
fn start_other(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    apic(a, SVR, 0x1ff)?;
    for command in [0x0000_c500, 0x0000_060c, 0x0000_060c] {
        apic(a, ICR_HIGH, 1 << 24)?;
        apic(a, ICR_LOW, command)?;
    }
    Ok(())
}

fn init_startup(device: &Device) {
    for mode in [Mode::Protected, Mode::LEGACY, Mode::LONG] {
        let mut m = machine(mode);
        startup_program(&mut m);
        let flag = DATA as u32 + 8;
        m.code(|a| {
            start_other(a)?;
            let mut wait = a.create_label();
            a.set_label(&mut wait)?;
            a.pause()?;
            a.cmp(word_ptr(flag), 0)?;
            a.je(wait)?;
            a.out(0x10, al)
        });
        let live = start(&m, device);
        let second = live.vm.vcpu(1);
        beside(&second, || assert!(matches!(live.vcpu.run(), Exit::Out { .. }), "{mode:?}"));
        // The second SIPI finds it running, or halted, and is ignored.
        assert_eq!((live.memory.u16(DATA as usize + 8), live.memory.u16(DATA as usize + 10)), (1, 0xc00), "{mode:?}");
        let s = second.sregs();
        assert_eq!((s.cs.selector, s.cs.base, s.cr0 & 1), (0xc00, 0xc000, 0));
    }
}

/// Runs `act` while the vCPU, which waits to be started, is run: KVM_RUN answers EAGAIN when that has happened.
fn beside(vcpu: &Vcpu, act: impl FnOnce()) {
    let done = AtomicBool::new(false);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            sender.send(Thread::current()).expect("a receiver");
            let mut exit = vcpu.try_run();
            while exit == Err(Errno::EAGAIN) {
                exit = vcpu.try_run();
            }
            // For the report, if the other one waits for ever.
            eprintln!("the started processor: {exit:?}");
            done.store(true, Ordering::SeqCst);
        });
        let thread = receiver.recv().expect("the thread's name");
        act();
        vcpu.page.set_immediate_exit(true);
        until("KVM_RUN to end", || {
            if !done.load(Ordering::SeqCst) {
                thread.signal(libc::SIGUSR1);
            }
            done.load(Ordering::SeqCst)
        });
        vcpu.page.set_immediate_exit(false);
    });
}

/// INIT takes a processor out of long mode, from wherever it is.
fn init_again(device: &Device) {
    let mut m = machine(Mode::LONG);
    startup_program(&mut m);
    let flag = DATA as u32 + 8;
    m.code(|a| {
        let (mut ready, mut wait) = (a.create_label(), a.create_label());
        a.set_label(&mut ready)?;
        a.pause()?;
        a.cmp(dword_ptr(DATA as u32), 0)?;
        a.je(ready)?;
        start_other(a)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(word_ptr(flag), 0)?;
        a.je(wait)?;
        a.out(0x10, al)
    });
    let busy = m.code(|a| {
        let mut again = a.create_label();
        a.mov(r12, 0x1234_5678_9abcu64)?;
        a.set_label(&mut again)?;
        a.inc(dword_ptr(DATA as u32))?;
        a.jmp(again)
    });
    let live = start(&m, device);
    let second = other(&live, &m, device, busy, STACK2);
    let (_, ()) = while_running(&second, |running| {
        assert!(matches!(live.vcpu.run(), Exit::Out { .. }));
        running.stop();
    });
    let (s, regs) = (second.sregs(), second.regs());
    assert_eq!((s.cs.selector, s.cr0 & 0x8000_0001, s.efer & 0x500, s.cr4, s.cr3), (0xc00, 0, 0, 0, 0));
    assert_eq!((regs.r12, regs.rflags & !0x44), (0, 2), "INIT clears the general registers");
}

/// A second vCPU in the machine's mode, at `rip`.
fn other(live: &Live, m: &Machine, device: &Device, rip: u64, stack: u64) -> Vcpu {
    let vcpu = live.vm.vcpu(1);
    m.prepare(device, &vcpu);
    vcpu.edit_regs(|regs| (regs.rip, regs.rsp) = (rip, stack));
    if device.cap(abi::KVM_CAP_MP_STATE) != 0 {
        vcpu.set_mp_state(abi::KVM_MP_STATE_RUNNABLE).expect("KVM_SET_MP_STATE");
    }
    vcpu
}

fn count_together(device: &Device) {
    const ROUNDS: u32 = 3000;
    for mode in [Mode::Protected, Mode::LONG] {
        let mut m = Machine::new(mode);
        let at = m.code(|a| {
            let mut again = a.create_label();
            a.mov(ecx, ROUNDS)?;
            a.set_label(&mut again)?;
            a.lock().inc(dword_ptr(DATA as u32))?;
            a.mov(eax, 1)?;
            a.lock().xadd(dword_ptr(DATA as u32 + 4), eax)?;
            a.lock().bts(dword_ptr(DATA as u32 + 8), 31)?;
            a.dec(ecx)?;
            a.jne(again)?;
            a.out(0x10, al)
        });
        let live = m.start(device);
        let second = other(&live, &m, device, at, STACK2);
        let (exit, ()) = while_running(&second, |_| {
            assert!(matches!(live.vcpu.run(), Exit::Out { .. }));
        });
        assert!(matches!(exit, Ok(Exit::Out { .. })));
        let word = |n: usize| live.memory.u32(DATA as usize + 4 * n);
        assert_eq!((word(0), word(1), word(2)), (2 * ROUNDS, 2 * ROUNDS, 1 << 31), "{mode:?}");
    }
}

/// The page that both processors use.
const GVA: u64 = 0x80_0000;
const VECTOR: u8 = 0x50;

/// The second processor reads (or writes) the page for ever; the first changes the entry, sends an interrupt to the other,
/// whose handler does INVLPG, and then looks whether the old mapping is still used.
fn shoot(device: &Device, rights_only: bool) {
    for mode in [Mode::LEGACY, Mode::PAE, Mode::LONG] {
        let long = mode == Mode::LONG;
        let mut m = machine(mode);
        m.map(GVA, FRAMES | P | W | U);
        m.map(GVA + 0x10_0000, FRAMES | P | W);
        m.map(GVA + 0x10_1000, (FRAMES + 4096) | P | W);
        let entry = m.entry(GVA, 1) as u32;
        let (ack, sum) = (DATA as u32, DATA as u32 + 4);
        let new = if rights_only { FRAMES | P | U } else { (FRAMES + 4096) | P | W | U } as i32;
        let old = (FRAMES | P | W | U) as i32;
        m.code(|a| {
            let (mut round, mut wait, mut look) = (a.create_label(), a.create_label(), a.create_label());
            let mut starts = a.create_label();
            apic(a, SVR, 0x1ff)?;
            // An interrupt that comes before the other has switched its local APIC on is lost.
            a.set_label(&mut starts)?;
            a.pause()?;
            a.cmp(dword_ptr(GVA as u32 + 0x10_0000), 0)?;
            a.je(starts)?;
            a.mov(ebp, 3)?;
            a.set_label(&mut round)?;
            a.mov(dword_ptr(ack), 0)?;
            a.mov(dword_ptr(entry), new)?;
            apic(a, ICR_HIGH, 1 << 24)?;
            apic(a, ICR_LOW, 0x4000 | u32::from(VECTOR))?;
            a.set_label(&mut wait)?;
            a.pause()?;
            a.cmp(dword_ptr(ack), 0)?;
            a.je(wait)?;
            // From here on nobody counts in the first frame: two looks, some time apart.
            a.mov(ebx, dword_ptr(GVA as u32 + 0x10_0000))?;
            a.mov(ecx, 300)?;
            a.set_label(&mut look)?;
            a.dec(ecx)?;
            a.jne(look)?;
            a.sub(ebx, dword_ptr(GVA as u32 + 0x10_0000))?;
            a.or(dword_ptr(sum), ebx)?;
            a.mov(dword_ptr(entry), old)?;
            if long {
                a.mov(rax, cr3)?;
                a.mov(cr3, rax)?;
            } else {
                a.mov(eax, cr3)?;
                a.mov(cr3, eax)?;
            }
            a.mov(dword_ptr(ack), 0)?;
            let mut again = a.create_label();
            apic(a, ICR_HIGH, 1 << 24)?;
            apic(a, ICR_LOW, 0x4000 | u32::from(VECTOR))?;
            a.set_label(&mut again)?;
            a.pause()?;
            a.cmp(dword_ptr(ack), 0)?;
            a.je(again)?;
            a.dec(ebp)?;
            a.jne(round)?;
            a.out(0x10, al)
        });
        let handler = m.code(|a| {
            if long {
                a.push(rdi)?
            } else {
                a.push(edi)?
            }
            a.db(&[0xbf])?;
            a.dd(&[GVA as u32])?; // mov edi, GVA
            a.db(&[0x0f, 0x01, 0x3f])?; // invlpg [edi]
            apic(a, EOI, 0)?;
            a.inc(dword_ptr(ack))?;
            if long {
                a.pop(rdi)?;
                a.iretq()
            } else {
                a.pop(edi)?;
                a.iretd()
            }
        });
        // A write to the read-only page is told to the handler for #PF, which lets it be: the count goes on behind it.
        let fault = m.code(|a| {
            if long {
                a.add(rsp, 8)?;
                a.add(qword_ptr(rsp), 2)?;
                a.iretq()
            } else {
                a.add(esp, 4)?;
                a.add(dword_ptr(esp), 2)?;
                a.iretd()
            }
        });
        let code = if long { sel::CODE } else { sel::CODE32 };
        m.gate(VECTOR, code, handler, 0x8e, 0);
        m.gate(14, code, fault, 0x8e, 0);
        let worker = m.code(|a| {
            let mut again = a.create_label();
            apic(a, SVR, 0x1ff)?;
            a.mov(edi, GVA as u32)?;
            a.sti()?;
            a.set_label(&mut again)?;
            a.db(&[0xff, 0x07])?; // inc dword [edi]
            a.jmp(again)
        });
        let live = start(&m, device);
        let second = other(&live, &m, device, worker, STACK2);
        let (_, ()) = while_running(&second, |running| {
            assert!(matches!(live.vcpu.run(), Exit::Out { .. }), "{mode:?}");
            running.stop();
        });
        assert_eq!(live.memory.u32(sum as usize), 0, "{mode:?}: the old mapping was used after the acknowledgement");
        assert_ne!(live.memory.u32(FRAMES as usize), 0, "{mode:?}: the other processor did count");
    }
}

fn shoot_down(device: &Device) {
    shoot(device, false);
}

fn shoot_down_rights(device: &Device) {
    shoot(device, true);
}

fn two_spaces(device: &Device) {
    for mode in [Mode::LEGACY, Mode::PAE, Mode::LONG] {
        let mut m = Machine::new(mode);
        let levels = mode.paging().levels();
        let gva = mode.paging().span(levels) * 2;
        m.map(gva, FRAMES | P | W);
        let first = m.root;
        let second_root = m.another_root();
        m.root = second_root;
        m.change(gva, levels, !0, 0);
        m.map(gva, (FRAMES + 4096) | P | W);
        m.root = first;
        let at = m.code(|a| {
            let mut again = a.create_label();
            a.mov(ecx, 2000)?;
            a.set_label(&mut again)?;
            if mode == Mode::LONG {
                a.inc(dword_ptr(rbx))?
            } else {
                a.inc(dword_ptr(ebx))?
            }
            a.dec(ecx)?;
            a.jne(again)?;
            a.out(0x10, al)
        });
        m.regs.rbx = gva;
        let live = m.start(device);
        let second = other(&live, &m, device, at, STACK2);
        second.edit_sregs(|s| s.cr3 = second_root);
        let (exit, ()) = while_running(&second, |_| assert!(matches!(live.vcpu.run(), Exit::Out { .. })));
        assert!(matches!(exit, Ok(Exit::Out { .. })));
        let counts = [0, 4096].map(|offset| live.memory.u32(FRAMES as usize + offset));
        assert_eq!(counts, [2000, 2000], "{mode:?}");
    }
}

/// The second processor only ever appears in the tables that the first one writes: what appears needs no flush.
fn tables_of_another(device: &Device) {
    const PAGES: u64 = 64;
    for mode in [Mode::LEGACY, Mode::PAE, Mode::LONG] {
        let mut m = Machine::new(mode);
        m.interruptible();
        for n in 0..PAGES {
            m.image.write32(FRAMES + 4096 * n, 1 << 16 | n as u32);
            m.map(GVA + 4096 * n, FRAMES + 4096 * n);
        }
        let size = mode.paging().entry_bytes() as i32;
        let (entry, shared) = (m.entry(GVA, 1) as u32, DATA as u32);
        // The first makes one page after the other present and says so.
        m.code(|a| {
            let mut again = a.create_label();
            a.mov(esi, entry)?;
            a.xor(ecx, ecx)?;
            a.set_label(&mut again)?;
            if mode == Mode::LONG {
                a.or(byte_ptr(rsi), P as i32)?
            } else {
                a.or(byte_ptr(esi), P as i32)?
            }
            a.add(esi, size)?;
            a.inc(ecx)?;
            a.mov(dword_ptr(shared), ecx)?;
            a.cmp(ecx, PAGES as i32)?;
            a.jne(again)?;
            a.out(0x10, al)
        });
        // The second waits for each and adds up what it finds.
        let reader = m.code(|a| {
            let mut again = a.create_label();
            a.xor(ecx, ecx)?;
            a.xor(ebx, ebx)?;
            a.mov(edi, GVA as u32)?;
            a.set_label(&mut again)?;
            a.pause()?;
            a.cmp(dword_ptr(shared), ecx)?;
            a.jbe(again)?;
            if mode == Mode::LONG {
                a.add(ebx, dword_ptr(rdi))?
            } else {
                a.add(ebx, dword_ptr(edi))?
            }
            a.add(edi, 4096)?;
            a.inc(ecx)?;
            a.cmp(ecx, PAGES as i32)?;
            a.jne(again)?;
            a.out(0x10, al)
        });
        let live = m.start(device);
        let second = other(&live, &m, device, reader, STACK2);
        let (exit, ()) = while_running(&second, |_| assert!(matches!(live.vcpu.run(), Exit::Out { .. })));
        assert!(matches!(exit, Ok(Exit::Out { .. })), "{mode:?}: {exit:?} {:x?}", live.events());
        assert_eq!(second.regs().rbx, (PAGES << 16) + PAGES * (PAGES - 1) / 2, "{mode:?}");
    }
}

fn numbers(device: &Device) {
    let most = device.cap(KVM_CAP_MAX_VCPUS);
    let soft = device.cap(KVM_CAP_NR_VCPUS);
    assert!(soft >= 1 && most >= soft, "{soft} of {most}");
    let vm = device.vm();
    let first = vm.vcpu(0);
    assert_eq!(vm.fd.number(KVM_CREATE_VCPU, 0), Err(Errno::EEXIST));
    let limit = match device.cap(abi::KVM_CAP_MAX_VCPU_ID) {
        0 => most,
        limit => limit,
    };
    for wrong in [limit as u64, 0x7fff_ffff, 0xffff_ffff] {
        assert_eq!(vm.fd.number(KVM_CREATE_VCPU, wrong), Err(Errno::EINVAL), "number {wrong:#x}");
    }
    // Numbers need not be dense.
    let far = vm.vcpu(limit as u32 - 1);
    assert_eq!((first.regs().rip, far.regs().rip), (0xfff0, 0xfff0));
}

fn many(device: &Device) {
    let count = device.cap(KVM_CAP_MAX_VCPUS).min(32) as u32;
    for _ in 0..3 {
        let vm = device.vm();
        let memory = vm.memory(0, 0, 0x1000);
        memory.write(0x100, &[0xff, 0x06, 0x00, 0x02, 0xf4]); // inc word [0x200]; hlt
        let vcpus: Vec<_> = (0..count).map(|n| vm.vcpu(n)).collect();
        for vcpu in &vcpus {
            crate::vm::RealMode::start(vcpu, 0x100);
            vcpu.run_to_hlt();
        }
        assert_eq!(u32::from(memory.u16(0x200)), count);
    }
}

/// Descriptors of the VM go first; the vCPUs keep it.
fn closed_while_running(device: &Device) {
    let vm = device.vm();
    let memory = vm.memory(0, 0, 0x1000);
    memory.write(0x100, &[0xff, 0x06, 0x00, 0x02, 0xeb, 0xfa]); // inc word [0x200]; jmp
    let (first, second) = (vm.vcpu(0), vm.vcpu(1));
    for vcpu in [&first, &second] {
        crate::vm::RealMode::start(vcpu, 0x100);
        vcpu.edit_regs(|r| r.rflags = 0x202);
    }
    let mut vm = Some(vm);
    while_running(&first, |one| {
        while_running(&second, |two| {
            until("both to run", || memory.u16(0x200) > 100);
            drop(vm.take());
            let now = memory.u16(0x200);
            until("them to go on", || memory.u16(0x200).wrapping_sub(now) > 100);
            two.stop();
        })
        .0
        .expect_err("a signal");
        one.stop();
    })
    .0
    .expect_err("a signal");
    assert_eq!(first.sregs().cr0 & 1, 0);
}
