//! Execution of single instructions by the hypervisor itself: device memory, string I/O, and whatever the processor
//! leaves to it.
mod access;
mod breakpoints;
mod deliver;
mod glance;
mod guest;
mod report;
mod string_io;
mod transaction;

use core::sync::atomic::Ordering::Relaxed;

use emulate::{MovToCr, Plain, Stop};
use platform::MaySleep;
use x86::{Exception, Seg, Shadow, Vector, debug, flags};

use crate::{
    Errno,
    backend::{Backend, BackendVcpu, Exit, Groups},
    exits,
    stats::Counter,
    vcpu::{Run, Step, TprAccess},
};
pub(crate) use glance::Glance;
use guest::{Guest, Why};
pub(crate) use transaction::{Bulk, Completion, DeviceAccess, PendingPio, Transaction};

/// Iterations of a REP between two looks at the request word.
const BATCH: u32 = 256;

/// How one execution ended.
enum End {
    Done,
    Restart,
    Fault(Exception),
    Exit(Why),
}

/// What the run loop wants to know of an instruction.
pub(crate) struct Seen {
    /// VMCALL or VMMCALL.
    pub(crate) hypercall: bool,
    /// A system call or the return from one.
    pub(crate) system_call: bool,
    int3: bool,
    pub(crate) len: u8,
}

impl<B: Backend> Run<'_, B> {
    /// Emulates the instruction at CS:RIP, or goes on with it.
    pub(crate) fn emulate(&mut self, cx: &MaySleep) -> Result<Step, Errno> {
        self.emulate_known(None, cx)
    }

    /// The same for one that need not be decoded.
    pub(crate) fn emulate_known(&mut self, mut known: Option<MovToCr>, cx: &MaySleep) -> Result<Step, Errno> {
        for _ in 0..BATCH {
            match self.emulate_once(known.take()) {
                End::Done => {
                    self.inner.tx.finished();
                    return self.ask_client();
                }
                End::Restart => {
                    self.inner.tx.finished();
                    if self.ask_client()? == Step::ToClient {
                        return Ok(Step::ToClient);
                    }
                    if self.shared.requests.load(Relaxed) != 0 {
                        break;
                    }
                }
                End::Fault(exception) => {
                    self.inner.tx.finished();
                    self.raise(exception);
                    return self.ask_client();
                }
                End::Exit(Why::Device) => {
                    self.inner.tx.stopped();
                    return self.ask_client();
                }
                End::Exit(Why::Again) => {
                    // The log answers the next try.
                    self.inner.tx.stopped();
                    if self.shared.requests.load(Relaxed) != 0 {
                        break;
                    }
                }
                End::Exit(Why::BadAddress) => {
                    self.inner.tx.abandon();
                    return Err(Errno::EFAULT);
                }
                End::Exit(Why::Unsupported) => {
                    self.inner.tx.abandon();
                    if self.try_unprotected()? {
                        return Ok(Step::Continue);
                    }
                    return self.emulation_failed();
                }
                End::Exit(Why::Intercept(what)) => {
                    self.inner.tx.abandon();
                    return exits::intercepted(self, Exit::intercepted(what, 0, 0), cx);
                }
            }
        }
        // What the last try has written goes out before anything else.
        self.ask_client()
    }

    fn emulate_once(&mut self, known: Option<MovToCr>) -> End {
        self.shared.stats.count(Counter::Emulation);
        let inner = &mut *self.inner;
        // The others take long to fetch and to write.
        let groups = if known.is_some() { Groups::GENERAL.and(Groups::CONTROL) } else { Groups::ALL_BUT_FPU };
        let state = inner.cpu.registers_mut(groups);
        let at = state.seg[Seg::Cs as usize].base.wrapping_add(state.rip);
        let rip = state.rip;
        inner.tx.begin(at);
        // The shadow of STI or MOV SS ends with this instruction, unless it makes a new one.
        let shadow = core::mem::replace(&mut state.shadow, Shadow::None);
        let single_step = state.flags.control(flags::TF);
        let mut guest = Guest::new(inner, groups, self.vm, self.shared, self.index, self.page);
        let result = match known {
            Some(known) => known.execute(&mut guest),
            None => {
                let mut decoded = emulate::fetch_decode(&mut guest);
                if decoded.as_ref().is_ok_and(|op| op.vector) {
                    // Few need these registers.
                    guest = Guest::new(inner, Groups::ALL, self.vm, self.shared, self.index, self.page);
                    decoded = emulate::fetch_decode(&mut guest);
                }
                decoded.and_then(|op| op.execute(&mut guest))
            }
        };
        let (notes, payload) = (core::mem::take(&mut guest.notes), guest.payload);
        if result.is_ok() {
            guest.state.flags.set_control(flags::RF, 0);
        } else {
            guest.state.shadow = shadow;
        }
        notes.carry_out_flush(inner);
        if let Some(write) = notes.tpr {
            inner.tpr.accessed(TprAccess { rip, write });
        }
        if notes.unblock_nmi {
            inner.cpu.set_nmi_blocked(false);
        }
        match result {
            Ok(()) => {
                inner.events.stepped = inner.debug.single_step;
                let step = single_step.then_some(Exception::debug(debug::DR6_BS));
                let behind = match (notes.after, step) {
                    // One debug exception with all its reasons.
                    (Some(after), Some(step)) if after.vector == Vector::DB => {
                        Some(Exception::debug(after.payload | step.payload))
                    }
                    (after, step) => after.or(step),
                };
                if let Some(exception) = behind {
                    self.raise(exception);
                }
                End::Done
            }
            // A REP that has done an iteration locks nothing.
            Err(Stop::RESTART) if notes.lost_race => End::Exit(Why::Again),
            Err(Stop::RESTART) => End::Restart,
            Err(stop) => match stop.exception(payload) {
                Some(exception) => End::Fault(exception),
                None => End::Exit(notes.why.unwrap_or(Why::Unsupported)),
            },
        }
    }

    /// The length of the instruction at CS:RIP, 0 if it cannot be read.
    pub(crate) fn instruction_len(&mut self) -> u8 {
        self.instruction().map_or(0, |seen| seen.len)
    }

    /// Whether the instruction at CS:RIP is INT3.
    fn is_int3(&mut self) -> bool {
        self.instruction().is_some_and(|seen| seen.int3)
    }

    /// The instruction at CS:RIP, if it can be read.
    pub(crate) fn instruction(&mut self) -> Option<Seen> {
        if let Some(Plain { len, hypercall }) = self.first_bytes().and_then(Plain::of) {
            return Some(Seen { hypercall, system_call: false, int3: false, len });
        }
        let inner = &mut *self.inner;
        // All that decoding reads, and nothing of it changes.
        inner.cpu.registers(Groups::ALL_BUT_FPU);
        let mut guest = Guest::new(inner, Groups::GENERAL, self.vm, self.shared, self.index, self.page);
        let op = emulate::fetch_decode(&mut guest).ok()?;
        Some(Seen { hypercall: op.is_hypercall(), system_call: op.is_system_call(), int3: op.is_int3(), len: op.len })
    }
}
