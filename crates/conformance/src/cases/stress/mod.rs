//! Things that go wrong rarely, done often: CONFORMANCE_TIMES says how often; if it does not, no more often than takes
//! a moment on a busy machine.
use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno, Memory, Thread, block, install_counting, take_pending},
    runner::{Case, case},
    vm::{Exit, RealMode, at, until},
};

pub(super) const CASES: &[Case] = &[
    case("memory-goes-as-soon-as-its-slot-has", "A15 B08", slots),
    case("every-signal-stays-pending-once", "A09", pending),
    case("every-handler-runs-once", "A02 A09", handlers),
];

fn times(unless_told: usize) -> usize {
    std::env::var("CONFORMANCE_TIMES").ok().and_then(|text| text.parse().ok()).unwrap_or(unless_told)
}

/// A slot of a running guest is deleted and its memory unmapped at once: nobody touches it any more.
fn slots(device: &Device) {
    let machine = RealMode::spinning(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.inc(word_ptr(0))?;
        a.jmp(start)
    });
    machine.vcpu.edit_sregs(|s| at(&mut s.ds, 0x20000));
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let runner = scope.spawn(|| {
            while !end.load(Ordering::SeqCst) {
                match machine.vcpu.try_run() {
                    // Between two slots there is no memory.
                    Ok(Exit::Read { gpa: 0x20000, len: 2 }) => machine.vcpu.answer(&[0, 0]),
                    Ok(Exit::Write { gpa: 0x20000, .. }) | Err(Errno::EINTR) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        for n in 0..times(60) {
            let memory = Memory::new(0x1000);
            machine.vm.set_slot(1, 0, 0x20000, memory).expect("a slot");
            // Now and then the guest has not got there yet.
            if n % 4 != 0 {
                soon("the guest to count", || memory.u16(0) != 0 || runner.is_finished());
            }
            machine.vm.delete_slot(1).expect("deletion");
            memory.unmap(0, 0x1000);
            if runner.is_finished() {
                break;
            }
        }
        end.store(true, Ordering::SeqCst);
        machine.vcpu.page.set_immediate_exit(true);
    });
}

/// Waits, sleeping for as short a time as can be.
#[track_caller]
fn soon(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + crate::vm::scaled(Duration::from_secs(10));
    while !done() {
        assert!(Instant::now() < end, "waited too long for: {what}");
        thread::sleep(Duration::from_micros(20));
    }
}

/// A guest of which KVM_RUN returns often.
fn busy(device: &Device) -> RealMode {
    RealMode::spinning(device, |a| {
        let (mut start, mut again) = (a.create_label(), a.create_label());
        a.set_label(&mut start)?;
        a.mov(cx, 40u32)?;
        a.set_label(&mut again)?;
        a.inc(word_ptr(0x500))?;
        a.loop_(again)?;
        a.out(0x10, al)?;
        a.jmp(start)
    })
}

/// One call of KVM_RUN: whether a signal ended it.
fn step(machine: &RealMode) -> bool {
    match machine.vcpu.try_run() {
        Ok(Exit::Out { .. }) => false,
        Err(Errno::EINTR) => {
            assert_eq!(machine.vcpu.page.exit_reason(), KVM_EXIT_INTR);
            true
        }
        other => panic!("{other:?}"),
    }
}

/// Signals that only KVM_SET_SIGNAL_MASK lets through come at every moment: each is found pending, once.
fn pending(device: &Device) {
    let machine = busy(device);
    let signal = libc::SIGRTMIN() + 1;
    // Threads inherit it.
    block(signal);
    let mut mask = KvmSignalMask { len: 8 }.bytes().to_vec();
    mask.extend((!(1u64 << (signal - 1))).to_le_bytes());
    machine.vcpu.fd.buffer(KVM_SET_SIGNAL_MASK, &mut mask).expect("KVM_SET_SIGNAL_MASK");
    let (taken, all) = (AtomicUsize::new(0), times(100));
    thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (machine, taken) = (&machine, &taken);
        scope.spawn(move || {
            sender.send(Thread::current()).expect("a receiver");
            while taken.load(Ordering::SeqCst) < all {
                let ended = step(machine);
                let mut found = 0;
                while take_pending(signal) {
                    found += 1;
                }
                // What ended it is there; one may also have come just behind it.
                assert!(found > 0 || !ended, "EINTR without a signal");
                taken.fetch_add(found, Ordering::SeqCst);
            }
            thread::sleep(Duration::from_millis(5));
            assert!(!take_pending(signal), "a signal came twice");
        });
        let thread = receiver.recv().expect("a thread");
        for sent in 0..all {
            // No more than a process may have queued.
            soon("signals to be taken", || taken.load(Ordering::SeqCst) + 20 > sent);
            thread.signal(signal);
        }
    });
    assert_eq!(taken.into_inner(), all);
}

/// Signals with a handler come at every moment: it runs once for each, and KVM_RUN goes on where it was.
fn handlers(device: &Device) {
    let machine = busy(device);
    let calls = install_counting(device.fd.sys(), libc::SIGUSR2);
    let (ended, end) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (machine, ended, end) = (&machine, &ended, &end);
        scope.spawn(move || {
            sender.send(Thread::current()).expect("a receiver");
            while !end.load(Ordering::SeqCst) {
                ended.fetch_add(usize::from(step(machine)), Ordering::SeqCst);
            }
        });
        let thread = receiver.recv().expect("a thread");
        for sent in 1..=times(100) {
            thread.signal(libc::SIGUSR2);
            soon("the handler", || calls.load(Ordering::SeqCst) >= sent);
            assert_eq!(calls.load(Ordering::SeqCst), sent, "a handler ran twice");
        }
        end.store(true, Ordering::SeqCst);
        until("the last handler", || calls.load(Ordering::SeqCst) >= times(100));
    });
    assert!(ended.into_inner() <= times(100), "more calls were interrupted than signals sent");
}
