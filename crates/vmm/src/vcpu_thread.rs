//! One thread for each virtual CPU: run the guest, carry out what it asks for.

use crate::bus::Bus;
use crate::control::{Control, Ending};
use crate::kvm::{Exit, ImmediateExit, Vcpu};
use crate::report;
use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use std::cell::Cell;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::memory::GuestRam;

/// What all virtual CPUs share.
pub struct Board {
    /// Devices in port space.
    pub pio: Bus,
    /// Devices in memory space.
    pub mmio: Bus,
    /// How the machine ends.
    pub control: Arc<Control>,
    /// Stays mapped as long as a virtual CPU may run.
    pub ram: Arc<GuestRam>,
}

/// How a signal handler interrupts this thread's vCPU.
#[derive(Clone, Copy)]
struct Interruption {
    immediate_exit: ImmediateExit,
    note: fn(),
}

thread_local! {
    /// The vCPU that this thread runs, for the signal handler.
    static RUNNING: Cell<Option<Interruption>> = const { Cell::new(None) };
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Only there to interrupt `KVM_RUN`, also one that is just about to begin.
extern "C" fn on_kick(_: libc::c_int) {
    if let Some(Interruption { immediate_exit, note }) = RUNNING.get() {
        // SAFETY: the cell is emptied before this thread's vCPU is dropped.
        unsafe { immediate_exit.set() };
        note();
    }
}

/// Sets up the signal by which threads are stopped.
fn install_kick_handler() -> io::Result<()> {
    // SAFETY: the structure is valid; the handler touches a plain thread-local and one byte.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_kick as *const () as usize;
        libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// All threads of a machine.
pub struct Vcpus(Vec<JoinHandle<()>>);

impl Vcpus {
    /// Starts them all. Those that wait for the first one's start-up interrupt do so in the
    /// hypervisor.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn start(vcpus: Vec<Vcpu>, board: &Arc<Board>) -> io::Result<Self> {
        install_kick_handler()?;
        let mut started = Self(Vec::new());
        for (id, vcpu) in (0..).zip(vcpus) {
            let shared = board.clone();
            let spawned =
                std::thread::Builder::new().name(format!("vcpu-{id}")).spawn(move || thread(id, vcpu, &shared));
            match spawned {
                Ok(thread) => started.0.push(thread),
                Err(error) => {
                    board.control.end(Ending::Host(error.to_string()));
                    started.0.iter().for_each(kick);
                    return Err(error);
                }
            }
        }
        Ok(started)
    }

    /// Waits for all threads; the machine must have ended. Answers whether they all came
    /// back: a back end that hangs keeps its thread.
    pub fn stop(mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_micros(200);
        loop {
            self.0.retain(|thread| !thread.is_finished());
            if self.0.is_empty() {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            self.0.iter().for_each(kick);
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

fn kick(thread: &JoinHandle<()>) {
    // SAFETY: the thread has not been joined, so its handle is valid.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
}

/// Ends the machine when a thread panics: a guest with a dead processor is no guest.
struct EndOnPanic<'a>(&'a Control, u32);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(Ending::Host(format!("the thread of vCPU {} panicked", self.1)));
        }
    }
}

fn thread(id: u32, mut vcpu: Vcpu, board: &Board) {
    let _guard = EndOnPanic(&board.control, id);
    unblock_kick();
    RUNNING.set(Some(Interruption { immediate_exit: vcpu.immediate_exit(), note: vcpu.signal_note() }));
    loop {
        vcpu.clear_immediate_exit();
        if board.control.ended() {
            break;
        }
        if let Some(stop) = step(&mut vcpu, board) {
            board.control.end(stop.ending(id, &vcpu, &board.ram));
        }
    }
    RUNNING.set(None);
}

fn unblock_kick() {
    // SAFETY: the set is initialised before it is used.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, kick_signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Why a vCPU cannot go on.
enum Stop {
    PowerOff,
    Reset,
    Crash(&'static str),
    Hypervisor(String),
}

impl Stop {
    /// The ending, with the registers where they help.
    fn ending(self, id: u32, vcpu: &Vcpu, ram: &GuestRam) -> Ending {
        match self {
            Self::PowerOff => Ending::PowerOff,
            Self::Reset => Ending::Reset,
            Self::Crash(what) => Ending::Crash(format!("{what} on vCPU {id}\n{}", report::registers(vcpu, ram))),
            Self::Hypervisor(what) => {
                Ending::Hypervisor(format!("vCPU {id}: {what}\n{}", report::registers(vcpu, ram)))
            }
        }
    }
}

/// Runs the guest up to its next request and carries that out.
fn step(vcpu: &mut Vcpu, board: &Board) -> Option<Stop> {
    match vcpu.run() {
        Ok(Exit::Interrupted) => None,
        Ok(Exit::PortOut(port, data)) => {
            for element in data.bytes.chunks_exact(data.size) {
                board.pio.write(u64::from(port), element);
            }
            None
        }
        Ok(Exit::PortIn(port, data)) => {
            for element in data.bytes.chunks_exact_mut(data.size) {
                board.pio.read(u64::from(port), element);
            }
            None
        }
        Ok(Exit::MmioRead(gpa, data)) => {
            board.mmio.read(gpa, data);
            None
        }
        Ok(Exit::MmioWrite(gpa, data)) => {
            board.mmio.write(gpa, data);
            None
        }
        Ok(Exit::Shutdown) => Some(Stop::Crash("triple fault")),
        Ok(Exit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN)) => Some(Stop::PowerOff),
        Ok(Exit::SystemEvent(KVM_SYSTEM_EVENT_RESET)) => Some(Stop::Reset),
        Ok(Exit::SystemEvent(KVM_SYSTEM_EVENT_CRASH)) => Some(Stop::Crash("crash told by the guest")),
        Ok(Exit::SystemEvent(other)) => Some(Stop::Hypervisor(format!("unknown system event {other}"))),
        Ok(Exit::FailEntry { reason, cpu }) => Some(Stop::Hypervisor(format!(
            "the processor refused to enter the guest (reason {reason:#x} on host CPU {cpu})"
        ))),
        Ok(Exit::InternalError { suberror, data }) => Some(Stop::Hypervisor(report::internal_error(suberror, &data))),
        Ok(Exit::Hlt) => Some(Stop::Hypervisor("it left HLT to the monitor".to_owned())),
        Ok(Exit::Malformed) => Some(Stop::Hypervisor("it reported a port access without data".to_owned())),
        Ok(Exit::Other(reason)) => Some(Stop::Hypervisor(format!("unknown exit {reason}"))),
        Err(error) => Some(Stop::Hypervisor(error.to_string())),
    }
}
