//! Clients that call whatever comes to their mind: every request on any descriptor with any argument, guests that run in another
//! thread meanwhile, page tables that point anywhere, memory that goes away, a `kvm_run` that is scribbled over, descriptors that are
//! closed. Each is a process of its own, which is killed at any moment.
use std::{
    thread,
    time::{Duration, Instant},
};

use abi::*;

use super::{
    guest::{self, CODE},
    rng::Rng,
};
use crate::{
    device::{Address, Device, Errno, Event, Fd, Memory, PAGE, fenced, in_child},
    vm::{cpuid2, list_with},
};

/// How long a client lives at most.
const LIFE: Duration = Duration::from_millis(1500);
/// Room for arguments, and for what a request writes behind its structure.
const ARGUMENTS: usize = 16 * PAGE;
/// Most objects of a client.
const OBJECTS: usize = 12;
/// Where the guest's page tables are.
const TABLES: usize = 0x8000;

/// One client after the other, `clients` in all, each killed when its time has come.
pub fn run(device: &Device, seed: u64, clients: u64) {
    for number in seed..seed.wrapping_add(clients) {
        let mut rng = Rng::new(number);
        let life = LIFE.mul_f64((rng.next() >> 40) as f64 / f64::from(1 << 24));
        let child = in_child(|| {
            Client::new(device, rng).live();
            0
        });
        thread::sleep(life);
        child.signal(libc::SIGKILL);
        child.wait();
    }
    println!("{clients} random clients have lived and gone");
}

struct Client<'a> {
    device: &'a Device,
    rng: Rng,
    /// The guests' memory, and what the requests take.
    memory: Memory,
    arguments: Memory,
    cpuid: Vec<KvmCpuidEntry2>,
    event: Event,
    vms: Vec<Fd>,
    vcpus: Vec<Fd>,
    pages: Vec<Memory>,
}

impl<'a> Client<'a> {
    fn new(device: &'a Device, rng: Rng) -> Self {
        let (_, arguments) = fenced(&[0; ARGUMENTS]);
        Self {
            device,
            rng,
            memory: guest::memory(),
            arguments,
            cpuid: cpuid2(&device.fd, KVM_GET_SUPPORTED_CPUID),
            event: Event::new(),
            vms: Vec::new(),
            vcpus: Vec::new(),
            pages: Vec::new(),
        }
    }

    /// Acts until it is killed, or has had enough.
    fn live(mut self) {
        let end = Instant::now() + LIFE * 2;
        while Instant::now() < end {
            match self.rng.below(20) {
                0 => drop(self.set_up()),
                1..=9 => self.request(),
                10..=12 => self.run_beside(),
                13 => self.scribble(),
                14 => self.spoil_memory(),
                15 => self.change_memory(),
                16 => self.event.signal(),
                17 => self.close(),
                _ => self.run(),
            }
        }
    }

    /// A VM with a guest that can run, as far as that comes.
    fn set_up(&mut self) -> Result<(), Errno> {
        if self.vcpus.len() >= OBJECTS {
            return Ok(());
        }
        let vm = self.device.fd.make(KVM_CREATE_VM, 0)?;
        let (choice, log) = (self.rng.next(), self.rng.below(2) as u32 * KVM_MEM_LOG_DIRTY_PAGES);
        guest::slot(&vm, 0, log, &self.memory)?;
        if choice & 1 != 0 {
            vm.number(KVM_CREATE_IRQCHIP, 0)?;
            vm.put(KVM_CREATE_PIT2, &KvmPitConfig::default())?;
            vm.put(KVM_IRQFD, &KvmIrqfd { fd: self.event.raw() as u32, gsi: 5, ..KvmIrqfd::zeroed() })?;
        }
        for id in 0..1 + (choice >> 1 & 1) {
            let vcpu = vm.make(KVM_CREATE_VCPU, id)?;
            let header = KvmCpuid2 { nent: self.cpuid.len() as u32, padding: 0 };
            vcpu.buffer(KVM_SET_CPUID2, &mut list_with(&header, &self.cpuid))?;
            if choice & 4 == 0 {
                guest::start(&vcpu)?;
            } else {
                self.start_with_paging(&vcpu)?;
            }
            self.pages.push(vcpu.map(self.device.run_bytes(), 0)?);
            self.vcpus.push(vcpu);
        }
        self.vms.push(vm);
        Ok(())
    }

    /// Long mode, in which the code is mapped, and everything else as chance has it.
    fn start_with_paging(&mut self, vcpu: &Fd) -> Result<(), Errno> {
        const CODE64: &[u8] = &[
            0x48, 0x8b, 0x07, // mov rax, [rdi]
            0x48, 0x89, 0x47, 0x08, // mov [rdi + 8], rax
            0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add rdi, 0x1000
            0xeb, 0xf0, // jmp to the beginning
        ];
        let tables = TABLES as u64;
        self.memory.set_u64(TABLES, tables + 0x1007);
        self.memory.set_u64(TABLES + 0x1000, tables + 0x2007);
        self.memory.set_u64(TABLES + 0x2000, tables + 0x3007);
        for n in 0..512 {
            let entry = if n < 16 { (n << 12) as u64 | 7 } else { self.rng.value() & 0xf_f1ff | 7 };
            self.memory.set_u64(TABLES + 0x3000 + n * 8, entry);
        }
        self.memory.write(CODE as usize + 0x800, CODE64);
        let mut sregs: KvmSregs = vcpu.get(KVM_GET_SREGS)?;
        let flat =
            KvmSegment { limit: !0, selector: 0x18, type_: 3, present: 1, s: 1, db: 1, g: 1, ..KvmSegment::default() };
        (sregs.ds, sregs.es, sregs.ss) = (flat, flat, flat);
        sregs.cs = KvmSegment { selector: 0x10, type_: 11, l: 1, db: 0, ..flat };
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0011, tables, 0x620, 0x500);
        vcpu.put(KVM_SET_SREGS, &sregs)?;
        let rdi = 0x1_0000 + (self.rng.below(0x1f0) as u64) * 0x1000;
        vcpu.put(KVM_SET_REGS, &KvmRegs { rip: CODE + 0x800, rsp: 0x7000, rdi, rflags: 0x202, ..KvmRegs::default() })?;
        Ok(())
    }

    /// Any request, mostly one that exists, on any descriptor.
    fn request(&mut self) {
        let mut nr = KVM_IOCTL_NAMES[self.rng.below(KVM_IOCTL_NAMES.len())].0;
        if self.rng.below(20) == 0 {
            nr ^= 1 << self.rng.below(32);
        }
        // It would stay in a guest.
        if nr == KVM_RUN {
            return;
        }
        let value = self.rng.value();
        let takes_number = ioc_size(nr) == 0 && nr != KVM_REINJECT_CONTROL;
        let at = if takes_number { None } else { Some(self.argument(nr)) };
        let all: Vec<&Fd> = [&self.device.fd].into_iter().chain(&self.vms).chain(&self.vcpus).collect();
        // The newest are the most interesting.
        let fd = all[all.len() - 1 - self.rng.next() as usize % all.len().min(4)];
        let _ = match at {
            None => fd.number(nr, value).map(|made| {
                let makes = [KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_GET_STATS_FD].contains(&nr);
                // What it has made is closed again.
                if makes {
                    drop(self.device.adopt(made))
                }
            }),
            Some(at) => fd.at(nr, at).map(drop),
        };
    }

    /// The bytes of an argument: mostly zeroes and small numbers, and in the right places addresses of what is there.
    fn argument(&mut self, nr: u32) -> Address {
        if self.rng.below(20) == 0 {
            return Address::BAD[self.rng.below(Address::BAD.len())];
        }
        let bytes = ioc_size(nr).max(64);
        // At the very end of the room, or with space behind.
        let room = if self.rng.below(4) == 0 { bytes } else { ARGUMENTS - PAGE };
        let to = self.arguments.part(ARGUMENTS - room, room);
        (0..bytes / 8).for_each(|n| to.set_u64(n * 8, 0));
        for _ in 0..self.rng.below(8) {
            let at = self.rng.below(bytes / 4) * 4;
            to.set_u32(at, self.rng.value() as u32);
        }
        match nr {
            KVM_SET_USER_MEMORY_REGION | KVM_SET_USER_MEMORY_REGION2 => {
                let skip = self.rng.below(16) * PAGE;
                to.set_u64(16, ((self.memory.len() - skip) / PAGE) as u64 * PAGE as u64);
                to.set_u64(24, self.memory.address() + skip as u64);
            }
            KVM_GET_DIRTY_LOG | KVM_GET_ONE_REG => to.set_u64(8, self.arguments.address()),
            KVM_CLEAR_DIRTY_LOG | KVM_GET_DEVICE_ATTR | KVM_SET_DEVICE_ATTR => to.set_u64(16, self.arguments.address()),
            KVM_IRQFD => to.set_u32(0, self.event.raw() as u32),
            KVM_IOEVENTFD => to.set_u32(20, self.event.raw() as u32),
            _ => {}
        }
        Address::of(&to)
    }

    /// KVM_RUN of a vCPU in a thread of its own, until a signal comes, while requests go on here.
    fn run_beside(&mut self) {
        let Some(vcpu) = self.vcpus.pop() else { return };
        let length = Duration::from_micros(self.rng.next() % 8000);
        thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel();
            let vcpu = &vcpu;
            let runner = scope.spawn(move || {
                let _ = sender.send(crate::device::Thread::current());
                let _ = vcpu.number(KVM_RUN, 0);
            });
            let Ok(thread) = receiver.recv() else { return };
            let end = Instant::now() + length;
            while Instant::now() < end {
                match self.rng.below(4) {
                    0 => self.change_memory(),
                    1 => self.spoil_memory(),
                    _ => self.request(),
                }
            }
            while !runner.is_finished() {
                thread.signal(libc::SIGUSR1);
                thread::sleep(Duration::from_micros(200));
            }
        });
        self.vcpus.push(vcpu);
    }

    /// KVM_RUN that ends at once.
    fn run(&mut self) {
        let (Some(vcpu), Some(page)) = (self.vcpus.last(), self.pages.last()) else { return };
        // immediate_exit
        page.set_u8(1, 1);
        let _ = vcpu.number(KVM_RUN, 0);
        page.set_u8(1, 0);
    }

    fn scribble(&mut self) {
        let at = self.rng.below(512);
        if let Some(page) = self.pages.last() {
            page.set_u8(at, self.rng.next() as u8);
        }
    }

    /// The guest's memory, mostly its page tables.
    fn spoil_memory(&mut self) {
        let at =
            if self.rng.below(2) == 0 { TABLES + self.rng.below(0x800) * 8 } else { self.rng.below(0x8_0000) & !7 };
        let value = self.rng.value();
        // It may be away.
        self.memory.map_if_gone(at & !(PAGE - 1), PAGE);
        self.memory.set_u64(at, value);
    }

    fn change_memory(&mut self) {
        let at = self.rng.below(self.memory.len() / PAGE) * PAGE;
        match self.rng.below(5) {
            0 => self.memory.unmap(at, PAGE),
            1 => drop(self.memory.advise(at, PAGE, libc::MADV_PAGEOUT)),
            2 => drop(self.memory.advise(at, PAGE, libc::MADV_MERGEABLE)),
            _ => self.memory.map_if_gone(at, PAGE),
        }
    }

    fn close(&mut self) {
        let of = if self.rng.below(2) == 0 { &mut self.vms } else { &mut self.vcpus };
        if !of.is_empty() {
            drop(of.swap_remove(self.rng.next() as usize % of.len()));
        }
    }
}
