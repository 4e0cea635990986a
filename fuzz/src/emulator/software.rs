//! The software CPU without the core: it steps through the machine's code, and then runs it in blocks.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use abi::{KVM_MEM_READONLY, KvmUserspaceMemoryRegion};
use hv::backend::{Backend, BackendVcpu, Env, Event, EventKind, Exit, Groups, GuestDebug};
use mmu::{AddressSpace, shadow::Root, slots::Region};
use platform::MaySleep;
use soft::{Soft, SoftVcpu};
use user::User;

use super::machine::{Machine, PHYSICAL_BITS, RAM};
use crate::{deadline::Deadline, invariants};

/// Instructions to step through.
const STEPS: u32 = 24;
/// Exits of the free run.
const EXITS: u32 = 64;
/// Longest free run.
const TIME: Duration = Duration::from_millis(2);

const CX: MaySleep = MaySleep::at_entry();

/// The third vCPU: the first two have larger caches, which take longer to make.
const INDEX: usize = 2;

fn memory(machine: &Machine) -> AddressSpace<User> {
    let memory = AddressSpace::new(4, &CX).expect("no memory");
    let slots = [(0, 0, RAM, 0), (1, RAM, 0x1000, KVM_MEM_READONLY), (2, RAM + 0x1000, 0x1000, 0)];
    for (slot, gpa, bytes, flags) in slots {
        let userspace_addr = machine.memory_at() + gpa;
        let region = KvmUserspaceMemoryRegion { slot, flags, guest_phys_addr: gpa, memory_size: bytes, userspace_addr };
        let _ = memory.set_user_region(&Region::user(&region).expect("a good slot"), &CX).expect("no memory");
    }
    memory
}

/// Passes what the core would have done with an exit. False: the run ends.
fn answer(vcpu: &mut SoftVcpu<User>, exit: Exit, device: u64) -> bool {
    let s = vcpu.registers_mut(Groups::ALL);
    let len = match exit {
        Exit::Debug { .. } => 0,
        Exit::Pio(pio) if !pio.string => {
            if !pio.write {
                s.gpr[0] = device & 0xffff_ffff;
            }
            pio.len
        }
        Exit::Pause { len } | Exit::CacheFlush { len } | Exit::MsrWrite { len } | Exit::MonitorMwait { len, .. } => len,
        Exit::Cpuid { len } | Exit::Rdpmc { len } | Exit::MsrRead { len } => {
            (s.gpr[0], s.gpr[2]) = (device & 0xffff_ffff, device >> 32);
            len
        }
        _ => return false,
    };
    let end = s.rip.wrapping_add(len.into());
    s.rip = if s.mode == x86::Mode::Long64 { end } else { end & 0xffff_ffff };
    true
}

/// Runs the machine both ways.
pub(super) fn run(machine: &Machine) {
    let memory = memory(machine);
    let backend = Soft::<User>::new();
    let vm = backend.create_vm(&CX).expect("no VM");
    let mut vcpu = backend.create_vcpu(&vm, INDEX, &CX).expect("no vCPU");
    vcpu.set_features(backend.features(), backend.xcr0(), PHYSICAL_BITS);
    let requests = Arc::new(AtomicU32::new(0));
    for free in [false, true] {
        if free && !machine.free {
            break;
        }
        machine.reset_memory();
        let _ = vcpu.take_unfinished_event();
        *vcpu.registers_mut(Groups::ALL) = machine.state.clone();
        vcpu.registers_mut(Groups::ALL).xcr0 &= backend.xcr0();
        vcpu.flush(hv::backend::FlushTlb::All);
        vcpu.set_debug(GuestDebug { single_step: !free, ..GuestDebug::default() });
        if let Some(event) = machine.event {
            vcpu.inject(Event { kind: event.map_or(EventKind::Nmi, EventKind::Interrupt) });
        }
        requests.store(0, SeqCst);
        let _deadline = free.then(|| {
            let requests = requests.clone();
            Deadline::new(TIME, move || requests.store(1, SeqCst))
        });
        for _ in 0..if free { EXITS } else { STEPS } {
            let exit = vcpu.enter(&Env { memory: &memory, reader: INDEX, requests: &requests, root: Root::NONE });
            invariants::check(vcpu.registers(Groups::ALL), PHYSICAL_BITS);
            if !answer(&mut vcpu, exit, machine.device) {
                break;
            }
        }
    }
}
