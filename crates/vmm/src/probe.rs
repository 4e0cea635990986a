//! Can this `/dev/kvm` really run a guest?
//!
//! Some devices open, answer every question and then hang in `KVM_RUN` where
//! no signal reaches, or run a guest so slowly that it never gets anywhere. So a child process tries, and the parent waits for its
//! report for a bounded time. A hung child is killed and left behind: waiting
//! for it could last forever.

use crate::accel::Sys;
use crate::boot::{self, Entry};
use crate::kvm::{Exit, IoData, Kvm};
use crate::memory::{self, GuestRam};
use std::ffi::CStr;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// How long a device may take. A working one needs milliseconds, a nested and emulated one
/// a few tens of them.
pub const DEADLINE: Duration = Duration::from_millis(1800);

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// {0} cannot be opened: {1}
    #[error("{0} cannot be opened: {1}")]
    Open(String, String),
    /// {path} answers but did not run a test guest within {seconds} s (it got as far as {step})
    #[error("{path} answers but did not run a test guest within {seconds} s (it got as far as {step})")]
    Hangs {
        /// The device node.
        path: String,
        /// What the child was at.
        step: &'static str,
        /// The deadline.
        seconds: f32,
    },
    /// {path} failed to run a test guest: {what} (at {step})
    #[error("{path} failed to run a test guest: {what} (at {step})")]
    Fails {
        /// The device node.
        path: String,
        /// What the child was at.
        step: &'static str,
        /// What came of it.
        what: String,
    },
    /// cannot start a process to test {0}: {1}
    #[error("cannot start a process to test {0}: {1}")]
    Host(String, io::Error),
}

/// The child's steps, as numbers in its report.
const STEPS: [&str; 7] = [
    "opening it",
    "KVM_GET_API_VERSION",
    "KVM_CREATE_VM",
    "KVM_CREATE_VCPU",
    "KVM_RUN in real mode",
    "KVM_RUN in 64-bit mode",
    "closing it",
];
/// The report's last byte when all went well.
const DONE: u8 = 100;
/// The report's byte after which comes a text that tells how a step failed.
const FAILED: u8 = 101;

/// Runs a test guest on the device at `path`; answers how long that took.
///
/// # Errors
/// [`ProbeError`]: it cannot be opened, hangs, or fails.
pub fn probe(sys: Arc<dyn Sys>, path: &CStr) -> Result<Duration, ProbeError> {
    probe_within(sys, path, DEADLINE)
}

fn probe_within(sys: Arc<dyn Sys>, path: &CStr, deadline: Duration) -> Result<Duration, ProbeError> {
    let name = path.to_string_lossy().into_owned();
    let start = Instant::now();
    let (child, report) = spawn(sys, path).map_err(|error| ProbeError::Host(name.clone(), error))?;
    let bytes = read_report(report, start + deadline);
    reap(child);
    let step = bytes.iter().rev().find_map(|b| STEPS.get(usize::from(*b))).unwrap_or(&STEPS[0]);
    match bytes.iter().position(|b| *b >= DONE) {
        Some(at) if bytes[at] == DONE => Ok(start.elapsed()),
        Some(at) => {
            let step = STEPS[usize::from(bytes[at.saturating_sub(1)]).min(STEPS.len() - 1)];
            let what = String::from_utf8_lossy(&bytes[at + 1..]).into_owned();
            if step == STEPS[0] {
                return Err(ProbeError::Open(name, what));
            }
            Err(ProbeError::Fails { path: name, step, what })
        }
        None if start.elapsed() >= deadline => {
            Err(ProbeError::Hangs { path: name, step, seconds: deadline.as_secs_f32() })
        }
        None => Err(ProbeError::Fails { path: name, step, what: "ended the process that tried it".to_owned() }),
    }
}

/// Reads until end of file or deadline.
fn read_report(report: OwnedFd, deadline: Instant) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = std::fs::File::from(report);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry.
        let n = unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as i32 + 1) };
        let mut part = [0; 64];
        match n {
            0 => return bytes,
            n if n < 0 => {
                if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                    return bytes;
                }
            }
            _ => match file.read(&mut part) {
                Ok(0) | Err(_) => return bytes,
                Ok(n) => bytes.extend_from_slice(&part[..n]),
            },
        }
        if left.is_zero() || bytes.len() > 1024 {
            return bytes;
        }
    }
}

/// Kills the child and collects it if it dies at once; else init will.
fn reap(child: libc::pid_t) {
    // SAFETY: the process is our child and has not been waited for, so its number is its own.
    unsafe { libc::kill(child, libc::SIGKILL) };
    for _ in 0..20 {
        // SAFETY: a null status is allowed.
        if unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::WNOHANG) } != 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Starts the child; answers its number and the reading end of its report.
fn spawn(sys: Arc<dyn Sys>, path: &CStr) -> io::Result<(libc::pid_t, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: two descriptors are written to the array.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both are new and owned by nobody else.
    let (reader, writer) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: the child runs `child` below and leaves by _exit. It allocates memory, which
    // after a fork is sound with the C library's allocator.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(reader);
            child(sys, path, writer.as_raw_fd());
        }
        pid => Ok((pid, reader)),
    }
}

/// The child: leads no life of its own. It holds nothing open but its report, so that
/// nobody waits for a pipe's end because of it, and it dies with its parent.
fn child(sys: Arc<dyn Sys>, path: &CStr, report: RawFd) -> ! {
    // SAFETY: plain system calls on numbers; the panic hook and terminal are the parent's
    // business. Descriptors 0 to 2 become /dev/null, all others but the report are closed.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        for fd in 0..3 {
            libc::dup2(null, fd);
        }
        if libc::dup2(report, 3) == 3 {
            libc::close_range(4, libc::c_uint::MAX, 0);
        }
    }
    let say = |bytes: &[u8]| {
        // SAFETY: the buffer is valid for reads of its own length.
        unsafe { libc::write(3, bytes.as_ptr().cast(), bytes.len()) };
    };
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| run_test_guest(sys, path, &say)));
    match outcome {
        Ok(Ok(())) => say(&[DONE]),
        Ok(Err(Failure(text))) => say(&[&[FAILED], text.as_bytes()].concat()),
        Err(_) => say(&[&[FAILED], "a panic".as_bytes()].concat()),
    }
    // SAFETY: ends this process without running the parent's exit handlers.
    unsafe { libc::_exit(0) }
}

/// What went wrong, in words.
struct Failure(String);

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

const PORT: u16 = 0x10;
const CODE: u64 = 0x1000;
/// Rounds of a loop of three instructions. A processor needs milliseconds for them, an emulated
/// one that can still boot a kernel some tenths of a second. A device that emulates each
/// instruction runs into the deadline: with it, a kernel would seem to hang.
const ROUNDS: u32 = 2_000_000;

fn run_test_guest(sys: Arc<dyn Sys>, path: &CStr, say: &dyn Fn(&[u8])) -> Result<(), Failure> {
    say(&[0]);
    let kvm = Kvm::open(sys, path)?;
    say(&[1]);
    let version = kvm.api_version()?;
    if version != Kvm::API_VERSION {
        return Err(Failure(format!("version {version} of the ABI")));
    }
    say(&[2]);
    let vm = kvm.create_vm()?;
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
    vm.set_tss_addr(crate::layout::TSS)?;
    // SAFETY: `ram` was made after `vm`, but the VM's last descriptor is closed by the explicit
    // drop below, or with this process.
    unsafe { memory::register(&vm, &ram)? };
    boot::prepare_memory(&ram, Entry::Long(CODE))?;
    say(&[3]);
    let mut vcpu = vm.create_vcpu(0)?;
    // Not allowed any more once the vCPU has run.
    vcpu.set_cpuid(&kvm.supported_cpuid()?)?;

    say(&[4]);
    // mov al, 0x52; out PORT, al; hlt
    ram.write_slice(&[0xb0, 0x52, 0xe6, PORT as u8, 0xf4], GuestAddress(CODE))?;
    let mut sregs = vcpu.sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.regs()?;
    (regs.rip, regs.rflags) = (CODE, 2);
    vcpu.set_regs(&regs)?;
    expect_out_and_halt(&mut vcpu, 0x52)?;

    say(&[5]);
    let [a, b, c, d] = ROUNDS.to_le_bytes();
    #[rustfmt::skip]
    let code = [
        0xb9, a, b, c, d,                           // mov ecx, ROUNDS
        0xbf, 0x00, 0x80, 0x00, 0x00,               // mov edi, 0x8000
        0x48, 0x89, 0x0f,                           // again: mov [rdi], rcx
        0x48, 0xff, 0xc9,                           // dec rcx
        0x75, 0xf8,                                 // jnz again
        0x48, 0xb8, 0, 0, 0, 0, 0x64, 0, 0, 0,      // mov rax, 0x6400000000
        0x48, 0xc1, 0xe8, 32,                       // shr rax, 32
        0xe6, PORT as u8,                           // out PORT, al
        0xf4,                                       // hlt
    ];
    ram.write_slice(&code, GuestAddress(CODE))?;
    boot::setup_bootstrap_vcpu(&vcpu, Entry::Long(CODE))?;
    expect_out_and_halt(&mut vcpu, 0x64)?;
    say(&[6]);
    drop((vcpu, vm, kvm));
    Ok(())
}

fn expect_out_and_halt(vcpu: &mut crate::kvm::Vcpu, value: u8) -> Result<(), Failure> {
    let wrong = |exit: &Exit<'_>| Failure(format!("an unexpected exit: {exit:x?}"));
    match vcpu.run()? {
        Exit::PortOut(PORT, IoData { size: 1, bytes }) if *bytes == [value] => {}
        exit => return Err(wrong(&exit)),
    }
    match vcpu.run()? {
        Exit::Hlt => Ok(()),
        exit => Err(wrong(&exit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accel::Errno;
    use crate::accel::kernel::Kernel;

    /// A device that hangs at an ioctl, as some do.
    struct Hangs;

    impl Sys for Hangs {
        fn open(&self, _: &CStr) -> Result<RawFd, Errno> {
            Ok(1000)
        }
        unsafe fn ioctl(&self, _: RawFd, request: u32, _: usize) -> Result<i32, Errno> {
            if request == 0xae00 {
                return Ok(Kvm::API_VERSION);
            }
            loop {
                std::thread::park();
            }
        }
        fn mmap(&self, _: RawFd, _: usize, _: u64) -> Result<*mut u8, Errno> {
            Err(Errno(libc::ENODEV))
        }
        unsafe fn munmap(&self, _: *mut u8, _: usize) -> Result<(), Errno> {
            Ok(())
        }
        fn close(&self, _: RawFd) {}
        fn pread(&self, _: RawFd, _: &mut [u8], _: u64) -> Result<usize, Errno> {
            Err(Errno(libc::ENODEV))
        }
    }

    #[test]
    fn a_device_that_hangs_is_found_out_in_time() {
        let start = Instant::now();
        let deadline = Duration::from_millis(200);
        let error = probe_within(Arc::new(Hangs), c"/dev/kvm", deadline).unwrap_err();
        assert!(matches!(error, ProbeError::Hangs { step: "KVM_CREATE_VM", .. }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_device_that_is_not_there_cannot_be_opened() {
        let error = probe(Arc::new(Kernel), c"/nonexistent/kvm").unwrap_err();
        assert!(matches!(error, ProbeError::Open(..)), "{error}");
    }

    #[test]
    fn what_is_no_kvm_is_told_with_its_error() {
        let error = probe(Arc::new(Kernel), c"/dev/null").unwrap_err();
        let ProbeError::Fails { step, .. } = &error else { panic!("{error}") };
        assert_eq!(*step, "KVM_GET_API_VERSION");
    }
}
