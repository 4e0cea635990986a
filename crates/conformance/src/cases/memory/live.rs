//! Slots that change under a vCPU that is using them. When the call has returned, no vCPU uses the old memory.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno, Memory},
    vm::{Exit, RealMode, at, until, while_running},
};

/// Counts in the word at 0x20000 for ever, in slot 1.
fn counter(device: &Device) -> (RealMode, Memory) {
    let machine = RealMode::spinning(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.inc(word_ptr(0))?;
        a.jmp(start)
    });
    let memory = machine.vm.memory(1, 0x20000, 0x1000);
    machine.vcpu.edit_sregs(|s| at(&mut s.ds, 0x20000));
    (machine, memory)
}

pub(super) fn delete(device: &Device) {
    let (machine, memory) = counter(device);
    let (exit, ()) = while_running(&machine.vcpu, |_| {
        until("the guest to count", || memory.u16(0) != 0);
        machine.vm.delete_slot(1).expect("deletion");
        // Nobody uses it any more.
        memory.protect(0, 0x1000, libc::PROT_NONE);
    });
    assert_eq!(exit, Ok(Exit::Read { gpa: 0x20000, len: 2 }));
}

pub(super) fn moved(device: &Device) {
    let (machine, memory) = counter(device);
    let (exit, ()) = while_running(&machine.vcpu, |_| {
        until("the guest to count", || memory.u16(0) != 0);
        machine.vm.set_slot(1, 0, 0x40000, memory).expect("a move");
        let last = memory.u16(0);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(memory.u16(0), last, "the guest still counts in the old place");
    });
    assert_eq!(exit, Ok(Exit::Read { gpa: 0x20000, len: 2 }));
}

pub(super) fn replaced(device: &Device) {
    let (machine, first) = counter(device);
    let memories = [first, Memory::new(0x1000)];
    std::thread::scope(|scope| {
        let vm = &machine.vm;
        let changer = scope.spawn(move || {
            until("the guest to count", || first.u16(0) != 0);
            for n in 1..60 {
                vm.delete_slot(1).expect("deletion");
                // What the guest counted there is complete.
                let old = memories[(n + 1) % 2];
                let last = old.u16(0);
                vm.set_slot(1, 0, 0x20000, memories[n % 2]).expect("a slot");
                assert_eq!(old.u16(0), last);
            }
            vm.delete_slot(1).expect("deletion");
            vm.delete_slot(0).expect("deletion of the code");
        });
        loop {
            match machine.vcpu.try_run() {
                Ok(Exit::Read { gpa: 0x20000, len: 2 }) => machine.vcpu.answer(&[0, 0]),
                Ok(Exit::Write { gpa: 0x20000, .. }) => {}
                // The code is gone.
                Ok(Exit::InternalError(KVM_INTERNAL_ERROR_EMULATION)) => break,
                Err(Errno::EINTR) => {}
                other => panic!("{other:?}"),
            }
        }
        changer.join().expect("the thread that changes slots");
    });
}
