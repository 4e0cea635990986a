//! What single steps cost: an exit to the client and back, a signal that ends KVM_RUN, a look at the memory slots, a page walk, a
//! fault.
use std::{
    hint::black_box,
    ptr,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use abi::*;
use criterion::{Criterion, criterion_group, criterion_main};
use mmu::{AddressSpace, Paging, PhysMem, Region, Request, walk};
use platform::{Hva, MaySleep, Memory};
use user::{ClientMemory, User, device};
use x86::{CpuState, Features};

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn anonymous(bytes: usize, prot: i32) -> u64 {
    // SAFETY: a new mapping, never unmapped.
    let at = unsafe { libc::mmap(ptr::null_mut(), bytes, prot, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at as u64
}

fn ioctl(fd: i32, nr: u32, arg: u64) -> i32 {
    // SAFETY: the callers pass what each request asks for.
    unsafe { device::ioctl(fd, nr, arg) }.unwrap()
}

/// A vCPU that executes `code` in real mode.
fn vcpu(code: &[u8], irqchip: bool) -> i32 {
    let kvm = device::open().unwrap();
    let vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if irqchip {
        ioctl(vm, KVM_CREATE_IRQCHIP, 0);
    }
    let memory = anonymous(4096, RW);
    ClientMemory::copy_to(Hva(memory), code).unwrap();
    let region = KvmUserspaceMemoryRegion {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0x1000,
        memory_size: 4096,
        userspace_addr: memory,
    };
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, ptr::from_ref(&region) as u64);
    let vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    let mut sregs = KvmSregs::default();
    ioctl(vcpu, KVM_GET_SREGS, ptr::from_mut(&mut sregs) as u64);
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    ioctl(vcpu, KVM_SET_SREGS, ptr::from_ref(&sregs) as u64);
    let regs = KvmRegs { rip: 0x1000, rflags: 2, ..KvmRegs::default() };
    ioctl(vcpu, KVM_SET_REGS, ptr::from_ref(&regs) as u64);
    for fd in [vm, kvm] {
        device::close(fd).unwrap();
    }
    vcpu
}

/// KVM_RUN of a guest that does nothing but `out 0x80, al` in a loop: one PIO exit each.
fn pio_exit(c: &mut Criterion) {
    // out 0x80, al; jmp -4
    let vcpu = vcpu(&[0xe6, 0x80, 0xeb, 0xfc], false);
    c.bench_function("KVM_RUN to a PIO exit", |b| b.iter(|| ioctl(vcpu, KVM_RUN, 0)));
    device::close(vcpu).unwrap();
}

extern "C" fn note(_: libc::c_int) {
    user::signals::note();
}

/// From a signal to the vCPU's thread until KVM_RUN has returned EINTR there.
fn signals(c: &mut Criterion) {
    // SAFETY: an ordinary handler; all zeroes are valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = note as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut()), 0);
    }
    // jmp -2; hlt
    for (name, code, irqchip) in [("busy", &[0xeb, 0xfe][..], false), ("halted", &[0xf4], true)] {
        let vcpu = vcpu(code, irqchip);
        c.bench_function(&format!("a signal ends KVM_RUN of a {name} guest"), |b| {
            b.iter_custom(|times| interrupted(vcpu, times));
        });
        device::close(vcpu).unwrap();
    }
}

/// The time of so many.
fn interrupted(vcpu: i32, times: u64) -> Duration {
    let (tell, ended) = mpsc::channel();
    let (go, told) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            while let Ok(()) = told.recv() {
                // SAFETY: asks for this thread's own name.
                tell.send((Instant::now(), unsafe { libc::pthread_self() })).unwrap();
                // SAFETY: KVM_RUN takes no argument.
                assert_eq!(unsafe { device::ioctl(vcpu, KVM_RUN, 0) }, Err(hv::Errno::EINTR));
                // SAFETY: as above.
                tell.send((Instant::now(), unsafe { libc::pthread_self() })).unwrap();
            }
        });
        let one = |_| {
            go.send(()).unwrap();
            let (_, thread) = ended.recv().unwrap();
            loop {
                // It gets there meanwhile. If not, the signal has ended nothing.
                thread::sleep(Duration::from_millis(1));
                let start = Instant::now();
                // SAFETY: the thread waits for us.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                if let Ok((end, _)) = ended.recv_timeout(Duration::from_secs(1)) {
                    break end - start;
                }
            }
        };
        let all = (0..times).map(one).sum();
        drop(go);
        all
    })
}

fn memory(c: &mut Criterion) {
    user::fault::install().unwrap();
    let cx = MaySleep::at_entry();
    let space = AddressSpace::<User>::new(1, &cx).unwrap();
    let at = anonymous(1 << 20, RW);
    for slot in 0..8 {
        let region = KvmUserspaceMemoryRegion {
            slot,
            flags: 0,
            guest_phys_addr: u64::from(slot) << 24,
            memory_size: 1 << 20,
            userspace_addr: at,
        };
        let _ = space.set_user_region(&Region::user(&region).unwrap(), &cx).unwrap();
    }
    c.bench_function("load of client memory", |b| b.iter(|| ClientMemory::load::<u64>(black_box(Hva(at)))));
    c.bench_function("resolve a frame", |b| b.iter(|| space.resolve(0, black_box(0x5042))));

    // Four levels in pages 1 to 4, which map page 5; accessed and dirty bits are set by the first walk.
    let view = space.view(0).unwrap();
    for page in 1..5u64 {
        view.store(page << 12, (page + 1) << 12 | 7).unwrap();
    }
    drop(view);
    let mut state = CpuState::reset(0);
    (state.cr0, state.cr3, state.cr4, state.efer) = (0x8001_0001, 0x1000, 0x20, 0xd00);
    let paging = Paging::new(&state, Features::empty(), 40);
    c.bench_function("walk four levels", |b| {
        b.iter(|| walk(&space.view(0).unwrap(), &paging, black_box(0x123), Request::WRITE.user()));
    });
    let gone = anonymous(4096, libc::PROT_NONE);
    c.bench_function("load that faults", |b| b.iter(|| ClientMemory::load::<u64>(black_box(Hva(gone)))));
}

criterion_group!(
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(1)).warm_up_time(std::time::Duration::from_millis(300));
    targets = memory, pio_exit, signals
);
criterion_main!(benches);
