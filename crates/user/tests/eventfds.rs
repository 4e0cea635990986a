//! Real eventfds, the real device: irqfd, ioeventfd, and the ring of coalesced writes.
mod common;

use std::{
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    thread,
    time::Duration,
};

use abi::*;
use common::{Map, ioctl, number, vcpu, vm};
use user::device;

fn eventfd() -> OwnedFd {
    // SAFETY: a new descriptor.
    unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_NONBLOCK)) }
}

fn signal(fd: &OwnedFd) {
    // SAFETY: 8 bytes.
    assert_eq!(unsafe { libc::write(fd.as_raw_fd(), (&raw const ONE).cast(), 8) }, 8);
}
static ONE: u64 = 1;

/// The count, which is 0 afterwards.
fn take(fd: &OwnedFd) -> u64 {
    let mut count = 0u64;
    // SAFETY: room for 8 bytes. An empty one is EAGAIN.
    unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) };
    count
}

/// Waits until somebody has signalled.
fn wait(fd: &OwnedFd) -> u64 {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid element.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 20_000) }, 1, "nobody signalled");
    take(fd)
}

/// A guest's memory at 0x1000, which belongs to the VM, with a program.
fn program(vm: RawFd, code: &[u8]) -> Map {
    let mut region = KvmMemoryRegion { slot: 0, flags: 0, guest_phys_addr: 0x1000, memory_size: 0x2000 };
    ioctl(vm, KVM_SET_MEMORY_REGION, &mut region).unwrap();
    let map = Map::new(vm, 0x1000, 0x2000);
    map.write(0, code);
    map
}

fn reason(run: &Map) -> u32 {
    run.read(KVM_RUN_EXIT_REASON_OFFSET).into()
}

#[test]
fn guest_writes_signal_eventfds_without_an_exit() {
    let vm = vm();
    // mov ax, 7; out 0x10, ax; out 0x10, ax; inc ax; out 0x10, ax; mov [0x8000], al; hlt
    let code = &[0xb8, 7, 0, 0xe7, 0x10, 0xe7, 0x10, 0x40, 0xe7, 0x10, 0xa2, 0x00, 0x80, 0xf4];
    let _memory = program(vm, code);
    let (port, memory) = (eventfd(), eventfd());
    let flags = KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH;
    let bind = |fd: &OwnedFd, addr, len, datamatch, flags| {
        let mut io = KvmIoeventfd { datamatch, addr, len, fd: fd.as_raw_fd(), flags, pad: [0; 36] };
        ioctl(vm, KVM_IOEVENTFD, &mut io).unwrap();
    };
    bind(&port, 0x10, 2, 7, flags);
    bind(&memory, 0x8000, 0, 0, 0);
    let (vcpu, run) = vcpu(vm, 0x1000);
    number(vcpu, KVM_RUN, 0).unwrap();
    // 8 is nobody's: the client gets it.
    assert_eq!((reason(&run), take(&port), take(&memory)), (KVM_EXIT_IO, 2, 0));
    number(vcpu, KVM_RUN, 0).unwrap();
    assert_eq!((reason(&run), take(&port), take(&memory)), (KVM_EXIT_HLT, 0, 1));
    bind(&port, 0x10, 2, 7, flags | KVM_IOEVENTFD_FLAG_DEASSIGN);
    for fd in [vm, vcpu] {
        device::close(fd).unwrap();
    }
}

/// A handler of vector 0x23 at 0x1100 that ends the interrupt at the 8259A: mov al, 0x20; out 0x20, al; iret
const HANDLER: &[u8] = &[0xb0, 0x20, 0xe6, 0x20, 0xcf];

#[test]
fn an_eventfd_wakes_a_halted_guest_and_hears_of_the_end_of_its_interrupt() {
    let vm = vm();
    number(vm, KVM_CREATE_IRQCHIP, 0).unwrap();
    // sti; hlt; hlt; out 0x80, al
    let memory = program(vm, &[0xfb, 0xf4, 0xf4, 0xe6, 0x80]);
    memory.write(0x100, HANDLER);
    // The first 8259A: vectors from 0x20 on, input 3 open and level triggered.
    let chip = KvmPicState { irq_base: 0x20, imr: 0xf7, elcr: 8, elcr_mask: 0xf8, init4: 1, ..KvmPicState::default() };
    let mut state = KvmIrqchip { chip_id: KVM_IRQCHIP_PIC_MASTER, ..KvmIrqchip::default() };
    state.chip[..size_of::<KvmPicState>()].copy_from_slice(chip.bytes());
    ioctl(vm, KVM_SET_IRQCHIP, &mut state).unwrap();
    let (raise, ended) = (eventfd(), eventfd());
    let mut irqfd = KvmIrqfd {
        fd: raise.as_raw_fd() as u32,
        gsi: 3,
        flags: KVM_IRQFD_FLAG_RESAMPLE,
        resamplefd: ended.as_raw_fd() as u32,
        pad: [0; 16],
    };
    ioctl(vm, KVM_IRQFD, &mut irqfd).unwrap();
    let (vcpu, run) = vcpu(vm, 0x1000);
    let mut sregs = KvmSregs::default();
    ioctl(vcpu, KVM_GET_SREGS, &mut sregs).unwrap();
    // The vector table in the program's second page, so that vector 0x23 is at 0x2000 + 0x8c.
    sregs.idt.base = 0x2000;
    sregs.ss.base = 0x1000;
    ioctl(vcpu, KVM_SET_SREGS, &mut sregs).unwrap();
    ioctl(vcpu, KVM_SET_REGS, &mut KvmRegs { rip: 0x1000, rflags: 2, rsp: 0x800, ..KvmRegs::default() }).unwrap();
    memory.write(0x1000 + 4 * 0x23, &[0x00, 0x11, 0, 0]);
    thread::scope(|s| {
        let runner = s.spawn(|| number(vcpu, KVM_RUN, 0));
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(20));
            assert!(!runner.is_finished());
            signal(&raise);
            assert_eq!(wait(&ended), 1);
        }
        runner.join().unwrap().unwrap();
    });
    assert_eq!((reason(&run), take(&raise)), (KVM_EXIT_IO, 0));
    irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
    ioctl(vm, KVM_IRQFD, &mut irqfd).unwrap();
    for fd in [vcpu, vm] {
        device::close(fd).unwrap();
    }
}

#[test]
fn every_vcpu_shows_the_vms_ring_of_coalesced_writes() {
    let vm = vm();
    // mov byte [0x8000], 5; out 0x70, al; hlt
    let _memory = program(vm, &[0xc6, 0x06, 0x00, 0x80, 5, 0xe6, 0x70, 0xf4]);
    for (addr, pio) in [(0x8000, 0), (0x70, 1)] {
        ioctl(vm, KVM_REGISTER_COALESCED_MMIO, &mut KvmCoalescedMmioZone { addr, size: 1, pio }).unwrap();
    }
    let (first, run) = vcpu(vm, 0x1000);
    let second = number(vm, KVM_CREATE_VCPU, 1).unwrap();
    let rings = [Map::new(first, 2 * 4096, 4096), Map::new(second, 2 * 4096, 4096), Map::new(second, 4096, 8192)];
    number(first, KVM_RUN, 0).unwrap();
    assert_eq!(reason(&run), KVM_EXIT_HLT);
    for (map, at) in [(&run, 2 * 4096), (&rings[0], 0), (&rings[1], 0), (&rings[2], 4096)] {
        assert_eq!((map.read(at), map.read(at + 4)), (0, 2));
        assert_eq!((map.read(at + 8 + 1), map.read(at + 8 + 16)), (0x80, 5));
        assert_eq!((map.read(at + 32), map.read(at + 32 + 12)), (0x70, 1));
    }
    // The client takes them; the ring goes on from there.
    rings[1].write(0, &[2]);
    for fd in [vm, first, second] {
        device::close(fd).unwrap();
    }
    assert_eq!(rings[0].read(0), 2, "what is mapped stays");
}
