//! The device as a client sees it: from `open` to a guest that runs, and every way of closing.
mod common;

use std::{
    os::fd::RawFd,
    ptr,
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
    thread,
    time::{Duration, Instant},
};

use abi::*;
use common::{RW, ioctl, number};
use hv::Errno;
use user::device::{self, Options};

/// A VM with one vCPU and a page of memory at 0x1000, in which the guest's program lies.
struct Guest {
    kvm: RawFd,
    vm: RawFd,
    vcpu: RawFd,
    run: *mut u8,
    size: usize,
    memory: *mut u8,
}

impl Guest {
    fn new(program: &[u8]) -> Self {
        Self::on(device::open().unwrap(), program)
    }

    /// On the device `kvm`.
    fn on(kvm: RawFd, program: &[u8]) -> Self {
        assert_eq!(number(kvm, KVM_GET_API_VERSION, 0), Ok(12));
        let vm = number(kvm, KVM_CREATE_VM, 0).unwrap();
        // SAFETY: a new mapping.
        let memory = unsafe {
            libc::mmap(ptr::null_mut(), 4096, RW, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0).cast::<u8>()
        };
        // SAFETY: the mapping is a page, the program shorter.
        unsafe { ptr::copy_nonoverlapping(program.as_ptr(), memory, program.len()) };
        let mut region = KvmUserspaceMemoryRegion {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0x1000,
            memory_size: 4096,
            userspace_addr: memory as u64,
        };
        ioctl(vm, KVM_SET_USER_MEMORY_REGION, &mut region).unwrap();
        let vcpu = number(vm, KVM_CREATE_VCPU, 0).unwrap();
        let size = number(kvm, KVM_GET_VCPU_MMAP_SIZE, 0).unwrap() as usize;
        let run = device::mmap(vcpu, size, RW, libc::MAP_SHARED, 0).unwrap();
        let mut sregs = KvmSregs::default();
        ioctl(vcpu, KVM_GET_SREGS, &mut sregs).unwrap();
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        ioctl(vcpu, KVM_SET_SREGS, &mut sregs).unwrap();
        let mut regs = KvmRegs { rip: 0x1000, rflags: 2, rax: 2, rbx: 2, ..KvmRegs::default() };
        ioctl(vcpu, KVM_SET_REGS, &mut regs).unwrap();
        Self { kvm, vm, vcpu, run, size, memory }
    }

    fn run(&self) -> Result<i32, Errno> {
        number(self.vcpu, KVM_RUN, 0)
    }

    fn field(&self, offset: usize) -> u32 {
        // SAFETY: within the mapping; nobody writes it while the vCPU does not run.
        unsafe { self.run.add(offset).cast::<u32>().read_volatile() }
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: within the mapping, which lives as long as self.
        unsafe { AtomicU8::from_ptr(self.run.add(KVM_RUN_IMMEDIATE_EXIT_OFFSET)) }
    }
}

// SAFETY: addresses of mappings that live as long as the value.
unsafe impl Sync for Guest {}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: our own mappings; references to them end with self.
        unsafe {
            device::munmap(self.run, self.size).unwrap();
            for fd in [self.kvm, self.vm, self.vcpu] {
                let _ = device::close(fd);
            }
            libc::munmap(self.memory.cast(), 4096);
        }
    }
}

/// mov dx, 0x3f8; add al, bl; add al, '0'; out dx, al; mov al, 10; out dx, al; hlt
const ADD: &[u8] = &[0xba, 0xf8, 0x03, 0x00, 0xd8, 0x04, b'0', 0xee, 0xb0, b'\n', 0xee, 0xf4];
/// jmp $
const SPIN: &[u8] = &[0xeb, 0xfe];

#[test]
fn a_guest_adds_two_and_two() {
    add(&Guest::new(ADD));
}

#[test]
fn processors_of_every_kind_live_side_by_side() {
    let guests = Options::ALL.map(|kind| Guest::on(device::open_with(kind).unwrap(), ADD));
    guests.iter().for_each(add);
}

fn add(guest: &Guest) {
    let mut output = Vec::new();
    loop {
        guest.run().unwrap();
        match guest.field(KVM_RUN_EXIT_REASON_OFFSET) {
            KVM_EXIT_IO => {
                let data = guest.field(KVM_RUN_UNION_OFFSET + 8) as usize;
                // SAFETY: the device says that the data is there, within the mapping.
                output.push(unsafe { guest.run.add(data).read_volatile() });
            }
            KVM_EXIT_HLT => break,
            other => panic!("exit reason {other}"),
        }
    }
    assert_eq!(output, b"4\n");
}

#[test]
fn memory_that_the_client_takes_away_is_efault() {
    let guest = Guest::new(SPIN);
    // SAFETY: our own mapping; the guest's use of it is what is tested.
    assert_eq!(unsafe { libc::mprotect(guest.memory.cast(), 4096, libc::PROT_NONE) }, 0);
    assert_eq!(guest.run(), Err(Errno::EFAULT));
}

extern "C" fn on_signal(_: libc::c_int) {
    user::signals::note();
}

/// Runs a guest in a thread until `stop`, which gets the thread, has ended its KVM_RUN.
fn stopped_by(program: &[u8], stop: impl Fn(&Guest, libc::pthread_t)) {
    let guest = Guest::new(program);
    let (inside, tid) = (AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    thread::scope(|s| {
        let runner = s.spawn(|| {
            // SAFETY: asks for this thread's own name.
            tid.store(unsafe { libc::pthread_self() }, Ordering::SeqCst);
            inside.store(true, Ordering::SeqCst);
            guest.run()
        });
        while !inside.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        stop(&guest, tid.load(Ordering::SeqCst));
        assert_eq!(runner.join().unwrap(), Err(Errno::EINTR));
        assert!(start.elapsed() < Duration::from_secs(1));
    });
    assert_eq!(guest.field(KVM_RUN_EXIT_REASON_OFFSET), KVM_EXIT_INTR);
}

#[test]
fn a_spinning_guest_is_stopped() {
    stopped_by(SPIN, |guest, _| device::kick(guest.vcpu).unwrap());
    stopped_by(SPIN, |_, thread| {
        // SAFETY: an ordinary handler, and a thread that has not been joined.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            libc::sigaction(libc::SIGUSR2, &action, ptr::null_mut());
            libc::pthread_kill(thread, libc::SIGUSR2);
        }
    });
    let guest = Guest::new(SPIN);
    guest.immediate_exit().store(1, Ordering::SeqCst);
    assert_eq!(guest.run(), Err(Errno::EINTR));
}

#[test]
fn a_signal_that_the_mask_lets_through_ends_the_run_and_stays_pending() {
    let signal = libc::SIGRTMIN() + 1;
    // Another signal is pending already when KVM_RUN begins, but the mask blocks it.
    let blocked = libc::SIGRTMIN() + 2;
    // SAFETY: sets and times are valid for the calls, which concern this test's own thread.
    unsafe {
        let mut both: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut both, signal);
        libc::sigaddset(&mut both, blocked);
        libc::pthread_sigmask(libc::SIG_BLOCK, &both, ptr::null_mut());
        libc::raise(blocked);
    }
    let guest = Guest::new(SPIN);
    let mut mask = [0u8; 12];
    mask[..4].copy_from_slice(&8u32.to_le_bytes());
    mask[4..].copy_from_slice(&(!(1u64 << (signal - 1))).to_le_bytes());
    ioctl(guest.vcpu, KVM_SET_SIGNAL_MASK, &mut mask).unwrap();
    // SAFETY: this thread lives until the scope ends.
    let thread = unsafe { libc::pthread_self() };
    thread::scope(|s| {
        s.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            // SAFETY: as above.
            unsafe { libc::pthread_kill(thread, signal) };
        });
        assert_eq!(guest.run(), Err(Errno::EINTR));
    });
    // Until the client takes it, the next call ends at once.
    assert_eq!(guest.run(), Err(Errno::EINTR));
    for expected in [signal, blocked] {
        // SAFETY: as above.
        let taken = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&mut set, expected);
            libc::sigtimedwait(&set, ptr::null_mut(), &libc::timespec { tv_sec: 0, tv_nsec: 0 })
        };
        assert_eq!(taken, expected);
    }
}

#[test]
fn closing_in_any_order() {
    let guest = Guest::new(ADD);
    device::close(guest.kvm).unwrap();
    device::close(guest.vm).unwrap();
    let again = device::dup(guest.vcpu).unwrap();
    device::close(guest.vcpu).unwrap();
    assert_eq!(guest.run(), Err(Errno(libc::EBADF)));
    assert_eq!(number(again, KVM_RUN, 0), Ok(0));
    assert_eq!(guest.field(KVM_RUN_EXIT_REASON_OFFSET), KVM_EXIT_IO);
    device::close(again).unwrap();
    assert_eq!(device::close(again), Err(Errno(libc::EBADF)));
    assert!(!device::owns(again));
}

#[test]
fn wrong_descriptors_and_arguments() {
    let guest = Guest::new(ADD);
    for fd in [-1, i32::MAX, i32::MIN, 0] {
        assert_eq!(number(fd, KVM_RUN, 0), Err(Errno(libc::EBADF)));
    }
    assert_eq!(number(guest.kvm, KVM_RUN, 0), Err(Errno::ENOTTY));
    assert_eq!(number(guest.kvm, KVM_GET_API_VERSION, 1), Err(Errno::EINVAL));
    assert_eq!(number(guest.vcpu, KVM_GET_REGS, 8), Err(Errno::EFAULT));
    assert_eq!(number(guest.vcpu, KVM_GET_REGS, u64::MAX), Err(Errno::EFAULT));
    let map = |fd, len, offset| device::mmap(fd, len, RW, libc::MAP_SHARED, offset);
    assert_eq!(map(guest.kvm, 4096, 0), Err(Errno::ENODEV));
    assert_eq!(map(guest.vcpu, guest.size + 1, 0), Err(Errno::EINVAL));
    assert_eq!(map(guest.vcpu, 4096, u64::MAX - 4095), Err(Errno::EINVAL));
    assert_eq!(device::pread(guest.vcpu, &mut [0], 0), Err(Errno::EINVAL));
}

#[test]
fn statistics_can_be_read() {
    let guest = Guest::new(ADD);
    guest.run().unwrap();
    let stats = number(guest.vcpu, KVM_GET_STATS_FD, 0).unwrap();
    let mut header = KvmStatsHeader::default();
    assert_eq!(device::pread(stats, header.bytes_mut(), 0), Ok(size_of::<KvmStatsHeader>()));
    // The software CPU's own are among them: what it has executed up to the first OUT.
    let entry = size_of::<KvmStatsDesc>() + header.name_size as usize;
    let mut instructions = None;
    for n in 0..u64::from(header.num_desc) {
        let at = u64::from(header.desc_offset) + n * entry as u64;
        let (mut desc, mut name) = (KvmStatsDesc::default(), [0; 17]);
        device::pread(stats, desc.bytes_mut(), at).unwrap();
        device::pread(stats, &mut name, at + size_of::<KvmStatsDesc>() as u64).unwrap();
        if name == *b"soft_instructions" {
            let mut value = [0; 8];
            device::pread(stats, &mut value, u64::from(header.data_offset + desc.offset)).unwrap();
            instructions = Some(u64::from_le_bytes(value));
        }
    }
    assert!(instructions.is_some_and(|n| (3..100).contains(&n)), "{instructions:?}");
    assert_eq!(number(stats, KVM_RUN, 0), Err(Errno::ENOTTY));
    device::close(stats).unwrap();
}

#[test]
fn the_shared_pages_cannot_be_taken_away() {
    let guest = Guest::new(ADD);
    // SAFETY: a descriptor of ours.
    assert_ne!(unsafe { libc::ftruncate(guest.vcpu, 0) }, 0);
    guest.run().unwrap();
}
