//! A standard guest on a device.
use std::collections::BTreeMap;

use abi::{KVM_GET_SUPPORTED_CPUID, KvmSregs};

use super::{
    handlers::{CAPACITY, RECORDS, RESUME},
    layout::{HIGH, HOLE, LOG, RAM_END, STACK},
    machine::{Machine, Mode},
    script::Script,
};
use crate::{
    Device,
    device::Memory,
    runner::Target,
    vm::{Exit, Vcpu, Vm, cpuid2},
};

/// What a handler of the guest recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Vector.
    pub vector: u8,
    /// Error code; 0 where there is none.
    pub code: u32,
    /// Saved instruction pointer.
    pub rip: u64,
    /// Saved code segment.
    pub cs: u16,
    /// Saved flags.
    pub rflags: u64,
    /// Saved stack pointer, where one is saved.
    pub rsp: u64,
    /// Saved stack segment, where one is saved.
    pub ss: u16,
    /// CR2 in the handler.
    pub cr2: u64,
}

/// A guest that exists: a VM with the standard memory in slots 0 and 1, and its first vCPU.
pub struct Live {
    /// The VM.
    pub vm: Vm,
    /// Its first vCPU.
    pub vcpu: Vcpu,
    /// Its memory, by guest-physical address; the hole belongs to no slot.
    pub memory: Memory,
    /// The mode that it started in.
    pub mode: Mode,
    busy_tss: u8,
}

/// The type that TR is given. QEMU's TCG aborts ("invalid tss type") when an interrupt changes the stack while the hidden
/// part of TR says busy, as the architecture has it: it knows only what its own LTR leaves there.
fn busy_tss(device: &Device) -> u8 {
    if Target::IN_QEMU.contains(device.target()) { 9 } else { 11 }
}

impl Machine {
    /// Makes the guest on a device: nothing of it has run yet.
    pub fn start(&self, device: &Device) -> Live {
        self.start_in(device, device.vm())
    }

    /// Makes the guest in a VM that has been prepared (interrupt controllers, capabilities).
    pub fn start_in(&self, device: &Device, vm: Vm) -> Live {
        let memory = Memory::new(RAM_END as usize);
        vm.set_slot(0, 0, 0, memory.part(0, HOLE as usize)).expect("slot 0");
        let high = memory.part(HIGH as usize, (RAM_END - HIGH) as usize);
        vm.set_slot(1, 0, HIGH, high).expect("slot 1");
        self.image.pages().for_each(|(gpa, page)| memory.write(gpa as usize, page));
        let vcpu = vm.vcpu(0);
        self.prepare(device, &vcpu);
        Live { vm, vcpu, memory, mode: self.mode, busy_tss: busy_tss(device) }
    }

    /// Brings a vCPU to the machine's start, with all features that the device supports.
    pub fn prepare(&self, device: &Device, vcpu: &Vcpu) {
        vcpu.set_cpuid(&cpuid2(&device.fd, KVM_GET_SUPPORTED_CPUID)).expect("KVM_SET_CPUID2");
        vcpu.edit_sregs(|sregs| {
            self.fill(sregs);
            sregs.tr.type_ = busy_tss(device);
        });
        vcpu.set_regs(&self.regs);
    }

    /// Makes the guest and runs it until it halts.
    pub fn run(&self, device: &Device) -> Live {
        let live = self.start(device);
        live.vcpu.run_to_hlt();
        live
    }
}

impl Live {
    /// Changes some system registers between two runs.
    pub fn edit_sregs(&self, edit: impl FnOnce(&mut KvmSregs)) {
        self.vcpu.edit_sregs(|sregs| {
            if sregs.tr.type_ == 11 {
                sregs.tr.type_ = self.busy_tss;
            }
            edit(sregs);
        });
    }

    /// The type that TR is given here when it holds a task-state segment.
    pub fn tss_type(&self) -> u8 {
        self.busy_tss
    }

    /// What the handlers have recorded since the log was cleared.
    pub fn events(&self) -> Vec<Event> {
        let count = self.memory.u64(LOG as usize);
        assert!(count < CAPACITY, "the log is full");
        (0..count)
            .map(|i| {
                let word = |n: u64| self.memory.u64((RECORDS + 64 * i + 8 * n) as usize);
                Event {
                    vector: word(0) as u8,
                    code: word(1) as u32,
                    rip: word(2),
                    cs: word(3) as u16,
                    rflags: word(4),
                    rsp: word(5),
                    ss: word(6) as u16,
                    cr2: word(7),
                }
            })
            .collect()
    }

    /// The only event.
    #[track_caller]
    pub fn event(&self) -> Event {
        let events = self.events();
        assert_eq!(events.len(), 1, "{events:x?}");
        events[0]
    }

    /// The vectors of the events.
    pub fn vectors(&self) -> Vec<u8> {
        self.events().iter().map(|event| event.vector).collect()
    }

    /// Forgets the events.
    pub fn clear(&self) {
        self.memory.set_u64(LOG as usize, 0);
    }

    /// What the handlers do after they have recorded: see [`RESUME`].
    pub fn resume(&self, word: u64) {
        self.memory.set_u64(RESUME as usize, word);
    }

    /// Goes on at `rip` with a fresh stack and no events, until the guest halts.
    #[track_caller]
    pub fn go(&self, rip: u64) {
        self.clear();
        self.vcpu.edit_regs(|regs| (regs.rip, regs.rsp, regs.rflags) = (rip, STACK, 2));
        self.vcpu.run_to_hlt();
    }

    /// Runs a script to its end and compares.
    #[track_caller]
    pub fn script(&self, mut script: Script) {
        script.install(&self.memory);
        let (rip, rsp) = script.start();
        self.vcpu.edit_regs(|regs| (regs.rip, regs.rsp, regs.rflags) = (rip, rsp, 2));
        match self.vcpu.run() {
            Exit::Hlt => script.verify(self),
            other => panic!("{:?}: the script ended with {other:?} at {:#x}", self.mode, self.vcpu.regs().rip),
        }
    }

    /// Serves device memory until another exit, which is returned with the accesses.
    #[track_caller]
    pub fn serve(&self, device: &mut Registers) -> Exit {
        loop {
            match self.vcpu.run() {
                Exit::Read { gpa, len } => {
                    let data = device.read(gpa, len);
                    self.vcpu.answer(&data);
                }
                Exit::Write { gpa, data } => device.write(gpa, &data),
                exit => return exit,
            }
        }
    }
}

/// A device that remembers what is written to it, and every access.
#[derive(Default, Debug)]
pub struct Registers {
    bytes: BTreeMap<u64, u8>,
    /// The accesses: whether it writes, where, how many bytes.
    pub accesses: Vec<(bool, u64, u32)>,
}

impl Registers {
    /// A device with these bytes at `gpa`.
    pub fn with(gpa: u64, bytes: &[u8]) -> Self {
        Self { bytes: (gpa..).zip(bytes.iter().copied()).collect(), accesses: Vec::new() }
    }

    fn read(&mut self, gpa: u64, len: u32) -> Vec<u8> {
        self.accesses.push((false, gpa, len));
        self.bytes(gpa, len as usize)
    }

    fn write(&mut self, gpa: u64, data: &[u8]) {
        self.accesses.push((true, gpa, data.len() as u32));
        self.bytes.extend((gpa..).zip(data.iter().copied()));
    }

    /// What the device holds.
    pub fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        (gpa..gpa + len as u64).map(|at| self.bytes.get(&at).copied().unwrap_or(0)).collect()
    }

    /// How many bytes were read and written, however they were split.
    pub fn traffic(&self) -> (u32, u32) {
        let sum = |write| self.accesses.iter().filter(|a| a.0 == write).map(|a| a.2).sum();
        (sum(false), sum(true))
    }
}
