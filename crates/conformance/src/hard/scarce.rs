//! Memory that runs out at one allocation after the other: a client opens, creates, runs and closes again and again, and each time
//! the next allocation fails. The call that needed it answers ENOMEM, or does without; once more, and it works.
use std::{fs::File, io, os::unix::fs::FileExt};

use abi::*;

use super::guest;
use crate::{
    device::{Device, Errno, Event, Fd, Memory},
    vm::{cpuid2, list_with},
};

/// No allocation is as late as this.
const MOST: u32 = 100_000;

/// A file that says which allocation fails: as many as are written to it come first, and 0 means none. What is read from it is
/// how many are still to come. `/proc/thread-self/fail-nth` is such a file, on kernels that have it.
///
/// It stays open: opening it needs memory itself.
struct Knob(File);

impl Knob {
    fn open(path: &str) -> io::Result<Self> {
        Ok(Self(File::options().read(true).write(true).open(path)?))
    }

    fn set(&self, nth: u32) -> io::Result<()> {
        self.0.write_all_at(nth.to_string().as_bytes(), 0)
    }

    fn left(&self) -> io::Result<u32> {
        let mut text = [0; 16];
        let len = self.0.read_at(&mut text, 0)?;
        let digits = text[..len].iter().take_while(|byte| byte.is_ascii_digit());
        Ok(digits.fold(0, |number, digit| number * 10 + u32::from(digit - b'0')))
    }
}

/// What came of the calls.
#[derive(Default)]
struct Calls {
    /// Those that answered ENOMEM.
    refused: u32,
    wrong: Option<String>,
}

impl Calls {
    /// A call that may fail once, for want of memory.
    fn call<T>(&mut self, name: &str, act: impl Fn() -> Result<T, Errno>) -> Option<T> {
        let mut answer = act();
        if matches!(answer, Err(Errno::ENOMEM)) {
            self.refused += 1;
            answer = act();
        }
        match answer {
            Ok(value) => Some(value),
            Err(errno) => {
                self.wrong = Some(format!("{name} answers {errno}"));
                None
            }
        }
    }
}

/// Lets one allocation after the other fail, as the file `knob` makes them.
///
/// # Errors
/// A call that answers otherwise than it may, in words.
pub fn run(device: &Device, knob: &str) -> Result<bool, String> {
    let said = |error: io::Error| format!("{knob}: {error}");
    let (cpuid, memory) = (cpuid2(&device.fd, KVM_GET_SUPPORTED_CPUID), guest::memory());
    let (file, events) = (Knob::open(knob).map_err(said)?, [Event::new(), Event::new()]);
    let mut refused = 0;
    for nth in 1..MOST {
        let mut calls = Calls::default();
        file.set(nth).map_err(said)?;
        let done = life(device, &cpuid, memory, &events, &mut calls).is_some();
        let left = file.left().map_err(said)?;
        file.set(0).map_err(said)?;
        if !done {
            return Err(format!("allocation {nth}: {}", calls.wrong.unwrap_or_default()));
        }
        if left != 0 {
            println!("{} allocations failed in turn: {refused} calls answered ENOMEM, the others did without", nth - 1);
            return Ok(refused != 0);
        }
        refused += calls.refused;
    }
    Err(format!("there are more than {MOST} allocations"))
}

/// One life of a VM. None: a call has answered otherwise than it may.
fn life(
    device: &Device,
    cpuid: &[KvmCpuidEntry2],
    memory: Memory,
    events: &[Event; 2],
    calls: &mut Calls,
) -> Option<()> {
    let vm = calls.call("KVM_CREATE_VM", || device.fd.make(KVM_CREATE_VM, 0))?;
    calls.call("a slot", || guest::slot(&vm, 0, 0, &memory))?;
    calls.call("KVM_CREATE_IRQCHIP", || vm.number(KVM_CREATE_IRQCHIP, 0))?;
    calls.call("KVM_CREATE_PIT2", || vm.put(KVM_CREATE_PIT2, &KvmPitConfig::default()))?;
    let irqfd = |flags| KvmIrqfd { fd: events[0].raw() as u32, gsi: 5, flags, ..KvmIrqfd::zeroed() };
    calls.call("KVM_IRQFD", || vm.put(KVM_IRQFD, &irqfd(0)))?;
    let ioeventfd = |flags| KvmIoeventfd { addr: 0x30, len: 1, fd: events[1].raw(), flags, ..KvmIoeventfd::zeroed() };
    calls.call("KVM_IOEVENTFD", || vm.put(KVM_IOEVENTFD, &ioeventfd(KVM_IOEVENTFD_FLAG_PIO)))?;
    let vcpus: Vec<Fd> =
        (0..2).map_while(|id| calls.call("KVM_CREATE_VCPU", || vm.make(KVM_CREATE_VCPU, id))).collect();
    let [first, _] = &vcpus[..] else { return None };
    let table = list_with(&KvmCpuid2 { nent: cpuid.len() as u32, padding: 0 }, cpuid);
    calls.call("KVM_SET_CPUID2", || first.buffer(KVM_SET_CPUID2, &mut table.clone()))?;
    calls.call("registers", || guest::start(first))?;
    calls.call("KVM_GET_XSAVE", || first.get::<KvmXsave>(KVM_GET_XSAVE))?;
    // Twice around, the second time with the slot's pages to be marked.
    run_once(calls, first)?;
    calls.call("a slot's flags", || guest::slot(&vm, 0, KVM_MEM_LOG_DIRTY_PAGES, &memory))?;
    run_once(calls, first)?;
    let statistics = calls.call("KVM_GET_STATS_FD", || vm.make(KVM_GET_STATS_FD, 0))?;
    drop(statistics);
    calls.call("KVM_IRQFD's end", || vm.put(KVM_IRQFD, &irqfd(KVM_IRQFD_FLAG_DEASSIGN)))?;
    let end = KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DEASSIGN;
    calls.call("KVM_IOEVENTFD's end", || vm.put(KVM_IOEVENTFD, &ioeventfd(end)))?;
    calls.call("a slot's end", || {
        vm.put(KVM_SET_USER_MEMORY_REGION, &KvmUserspaceMemoryRegion { slot: 0, ..Default::default() })
    })?;
    Some(())
}

/// KVM_RUN until the guest tells its port.
fn run_once(calls: &mut Calls, vcpu: &Fd) -> Option<()> {
    calls.call("KVM_RUN", || vcpu.number(KVM_RUN, 0)).map(drop)
}
