//! Signals that end KVM_RUN, and KVM_SET_SIGNAL_MASK.
use abi::*;
use iced_x86::code_asm::*;

use super::lifetime::counter;
use crate::{
    device::{Device, Errno, Hears, Thread, block, install, install_counting, take_pending, unblock},
    runner::{Case, case},
    vm::{RealMode, Vcpu, until, while_running},
};

pub(super) const CASES: &[Case] = &[
    case("a-signal-ends-the-run", "A02 A09", ends_run),
    case("a-blocked-signal-does-not", "A09", blocked),
    case("a-signal-through-the-mask-stays-pending", "A09", through_mask),
    case("the-mask-is-in-force-during-runs-only", "A09", only_during_runs),
    case("a-signal-during-the-run-stays-pending", "A09", during_run),
    case("every-way-to-hear-of-a-pending-signal", "A09", every_way),
    case("no-mask-any-more", "A09", mask_removed),
    case("masks-of-other-sizes", "A09", sizes),
    case("many-signals-lose-no-instruction", "A09 A12", many),
];

/// KVM_SET_SIGNAL_MASK with the signals of `set` blocked.
fn set_mask(vcpu: &Vcpu, set: u64) -> Result<i32, Errno> {
    let mut bytes = KvmSignalMask { len: 8 }.bytes().to_vec();
    bytes.extend(set.to_le_bytes());
    vcpu.fd.buffer(KVM_SET_SIGNAL_MASK, &mut bytes)
}

fn all_but(signal: i32) -> u64 {
    !(1 << (signal - 1))
}

fn halts(device: &Device) -> RealMode {
    RealMode::new(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.inc(bx)?;
        a.hlt()?;
        a.jmp(start)
    })
}

fn ends_run(device: &Device) {
    let machine = counter(device);
    let (exit, ()) = while_running(&machine.vcpu, |running| {
        until("the guest to count", || machine.memory.u32(0x500) != 0);
        running.thread().signal(libc::SIGUSR1);
        until("KVM_RUN to end", || running.done());
    });
    assert_eq!(exit, Err(Errno::EINTR));
    assert_eq!(machine.vcpu.page.exit_reason(), KVM_EXIT_INTR);
}

fn blocked(device: &Device) {
    let machine = halts(device);
    block(libc::SIGUSR1);
    Thread::current().signal(libc::SIGUSR1);
    machine.vcpu.run_to_hlt();
    assert!(take_pending(libc::SIGUSR1));
    unblock(libc::SIGUSR1);
}

fn through_mask(device: &Device) {
    let machine = halts(device);
    let signal = libc::SIGRTMIN() + 1;
    block(signal);
    set_mask(&machine.vcpu, all_but(signal)).expect("KVM_SET_SIGNAL_MASK");
    machine.vcpu.run_to_hlt();
    Thread::current().signal(signal);
    // Until the client takes it.
    for _ in 0..3 {
        assert_eq!(machine.vcpu.try_run(), Err(Errno::EINTR));
        assert_eq!(machine.vcpu.page.exit_reason(), KVM_EXIT_INTR);
    }
    assert!(take_pending(signal), "the signal is no longer pending");
    assert!(!take_pending(signal));
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vcpu.regs().rbx & 0xffff, 2);
}

fn only_during_runs(device: &Device) {
    let machine = halts(device);
    // Nobody blocks it outside; inside, the mask does.
    set_mask(&machine.vcpu, 1 << (libc::SIGUSR2 - 1)).expect("KVM_SET_SIGNAL_MASK");
    install(device.fd.sys(), libc::SIGUSR2);
    machine.vcpu.run_to_hlt();
    Thread::current().signal(libc::SIGUSR2);
    machine.vcpu.run_to_hlt();
    assert!(!take_pending(libc::SIGUSR2), "the handler did not run");
}

fn during_run(device: &Device) {
    let machine = counter(device);
    let signal = libc::SIGRTMIN() + 2;
    // Threads inherit it.
    block(signal);
    set_mask(&machine.vcpu, all_but(signal)).expect("KVM_SET_SIGNAL_MASK");
    let still_pending = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (vcpu, still_pending) = (&machine.vcpu, &still_pending);
        let runner = scope.spawn(move || {
            sender.send(Thread::current()).expect("a receiver");
            let exit = vcpu.try_run();
            still_pending.store(take_pending(signal), std::sync::atomic::Ordering::SeqCst);
            exit
        });
        let thread = receiver.recv().expect("a thread");
        until("the guest to count", || machine.memory.u32(0x500) != 0);
        thread.signal(signal);
        assert_eq!(runner.join().expect("a thread"), Err(Errno::EINTR));
    });
    assert!(still_pending.into_inner());
}

/// Signalfd, sigwait and a handler in ppoll get what only KVM_SET_SIGNAL_MASK has let through, once.
fn every_way(device: &Device) {
    let machine = halts(device);
    let signal = libc::SIGRTMIN() + 3;
    let calls = install_counting(device.fd.sys(), signal);
    block(signal);
    set_mask(&machine.vcpu, all_but(signal)).expect("KVM_SET_SIGNAL_MASK");
    for hears in Hears::ALL {
        machine.vcpu.run_to_hlt();
        Thread::current().signal(signal);
        assert_eq!(machine.vcpu.try_run(), Err(Errno::EINTR));
        let before = calls.load(std::sync::atomic::Ordering::SeqCst);
        assert!(hears.take(signal), "{hears:?} does not hear of the signal");
        let ran = calls.load(std::sync::atomic::Ordering::SeqCst) - before;
        assert_eq!(ran, usize::from(matches!(hears, Hears::Ppoll)), "{hears:?}: calls of the handler");
        assert!(!take_pending(signal), "{hears:?}: the signal came twice");
    }
    assert_eq!(calls.load(std::sync::atomic::Ordering::SeqCst), 1, "the handler ran inside KVM_RUN");
}

fn mask_removed(device: &Device) {
    let machine = halts(device);
    let signal = libc::SIGRTMIN() + 1;
    block(signal);
    set_mask(&machine.vcpu, all_but(signal)).expect("KVM_SET_SIGNAL_MASK");
    machine.vcpu.fd.remove_signal_mask().expect("KVM_SET_SIGNAL_MASK of nothing");
    Thread::current().signal(signal);
    machine.vcpu.run_to_hlt();
    assert!(take_pending(signal));
}

fn sizes(device: &Device) {
    let machine = halts(device);
    for len in [0u32, 4, 7, 9, 16, 128, u32::MAX] {
        let mut bytes = KvmSignalMask { len }.bytes().to_vec();
        bytes.extend([0; 128]);
        assert_eq!(machine.vcpu.fd.buffer(KVM_SET_SIGNAL_MASK, &mut bytes), Err(Errno::EINVAL), "{len} bytes");
    }
    machine.vcpu.run_to_hlt();
}

fn many(device: &Device) {
    let machine = RealMode::spinning(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.inc(ebx)?;
        a.inc(dword_ptr(0x500))?;
        a.jmp(start)
    });
    let (vcpu, memory) = (&machine.vcpu, machine.memory);
    for _ in 0..100 {
        let before = memory.u32(0x500);
        let (exit, ()) = while_running(vcpu, |running| {
            until("the guest to go on", || memory.u32(0x500) != before);
            running.stop();
        });
        assert_eq!(exit, Err(Errno::EINTR));
        // Stopped between the two or behind both.
        let ahead = vcpu.regs().rbx.wrapping_sub(memory.u32(0x500).into());
        assert!(ahead <= 1, "{ahead}");
    }
}
