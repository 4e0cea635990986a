//! One instruction is a transaction with the devices that it touches.
//!
//! An instruction that needs the client stops, and is executed again from its start when the client has answered. The
//! device accesses that it has made stand in a log, and the execution that comes later is answered from there: each
//! device sees each access once, in order. Writes to the client's devices need no answer: they are collected, the
//! instruction goes on, and the client gets them one by one before anything else happens.
use alloc::vec::Vec;

use platform::fallible::try_push;

use crate::{
    backend::PioExit,
    exits::{PendingHypercall, PendingMsr},
    vm::Space,
};

/// Most device accesses of one instruction: FXSAVE and XSAVE of AVX state to device memory take 104.
const MAX_ACCESSES: usize = 256;

/// One access to a device, of at most 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceAccess {
    pub(crate) space: Space,
    pub(crate) write: bool,
    /// Port or guest-physical address.
    pub(crate) at: u64,
    pub(crate) len: u8,
    /// What was written, or read; little-endian.
    pub(crate) data: u64,
}

impl DeviceAccess {
    fn same_place(&self, other: &Self) -> bool {
        (self.space, self.write, self.at, self.len) == (other.space, other.write, other.at, other.len)
    }
}

/// Several iterations of REP INS or REP OUTS, whose data are in the data page that the client shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bulk {
    pub(crate) write: bool,
    pub(crate) port: u16,
    /// Bytes of an element.
    pub(crate) size: u8,
    pub(crate) count: u32,
}

/// A port access outside of the emulator, with the instruction that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PendingPio {
    pub(crate) exit: PioExit,
    /// Linear address of the instruction: the client may have moved the vCPU elsewhere meanwhile.
    pub(crate) at: u64,
}

/// What the next KVM_RUN has to finish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Completion {
    /// Nothing.
    #[default]
    Nothing,
    /// IN or OUT.
    Pio(PendingPio),
    /// The device access of an emulated instruction.
    Access,
    /// A hypercall that the client carries out.
    Hypercall(PendingHypercall),
    /// RDMSR or WRMSR.
    Msr(PendingMsr),
}

/// Too many accesses, or no memory to note them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogFull;

/// The instruction that is being executed, and what it wants of the client.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    completion: Completion,
    /// Accesses made, in order.
    log: Vec<DeviceAccess>,
    /// The next access to be answered from the log.
    cursor: usize,
    /// Linear address of the instruction.
    at: u64,
    /// Entries of `log` from here on are writes that the client has not got yet.
    outgoing: usize,
    /// The read that waits for the client.
    read: Option<DeviceAccess>,
    /// Iterations of string I/O that the client carries out at once.
    bulk: Option<Bulk>,
    /// The data page holds what the client has read for `bulk`.
    bulk_read: bool,
    /// The instruction is to be executed again when all this is done.
    unfinished: bool,
}

impl Transaction {
    /// An execution of the instruction at linear address `at` begins.
    pub(crate) fn begin(&mut self, at: u64) {
        if self.at != at || !self.unfinished {
            self.clear();
        }
        self.at = at;
        self.cursor = 0;
        self.read = None;
    }

    fn clear(&mut self) {
        self.log.clear();
        (self.cursor, self.outgoing) = (0, 0);
        (self.read, self.unfinished) = (None, false);
        (self.bulk, self.bulk_read) = (None, false);
    }

    /// The state was replaced from outside: what was pending belongs to another life of the vCPU.
    pub(crate) fn abandon(&mut self) {
        self.clear();
        self.completion = Completion::Nothing;
    }

    /// The answer of an access that was made already; None if it has to be made.
    pub(crate) fn replay(&mut self, access: &DeviceAccess) -> Option<u64> {
        let logged = *self.log.get(self.cursor)?;
        if logged.same_place(access) {
            self.cursor += 1;
            return Some(logged.data);
        }
        // Another instruction than the first time (the guest changed it): what is left answers nothing.
        self.log.truncate(self.cursor.max(self.outgoing.min(self.log.len())));
        self.outgoing = self.outgoing.min(self.log.len());
        None
    }

    /// How many accesses this execution has made so far.
    pub(crate) fn made(&self) -> usize {
        self.cursor
    }

    /// An access was made by a device inside the hypervisor.
    pub(crate) fn record(&mut self, access: DeviceAccess) -> Result<(), LogFull> {
        debug_assert!(!self.has_outgoing());
        self.push(access)?;
        self.outgoing = self.log.len();
        Ok(())
    }

    /// A write goes to the client later.
    pub(crate) fn post(&mut self, access: DeviceAccess) -> Result<(), LogFull> {
        self.push(access)
    }

    fn push(&mut self, access: DeviceAccess) -> Result<(), LogFull> {
        if self.log.len() >= MAX_ACCESSES {
            return Err(LogFull);
        }
        try_push(&mut self.log, access).map_err(|_| LogFull)?;
        self.cursor = self.log.len();
        Ok(())
    }

    /// Whether the client has writes to carry out before the next access is made.
    pub(crate) fn has_outgoing(&self) -> bool {
        self.outgoing < self.log.len()
    }

    /// Whether nothing has been spoken to a device yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.log.is_empty()
    }

    /// The client is to carry these iterations out. If it is to read, the instruction is executed again then.
    pub(crate) fn set_bulk(&mut self, bulk: Bulk) {
        self.bulk = Some(bulk);
    }

    /// The iterations that the client has to carry out.
    pub(crate) fn bulk_for_client(&self) -> Option<Bulk> {
        self.bulk.filter(|_| !self.bulk_read)
    }

    /// The client has carried the iterations out. True if the instruction has to be executed again, to take what was
    /// read.
    pub(crate) fn bulk_done(&mut self) -> bool {
        match self.bulk {
            Some(bulk) if !bulk.write && self.unfinished => {
                self.bulk_read = true;
                true
            }
            _ => {
                self.clear();
                false
            }
        }
    }

    /// The elements that the client has read for this port, once.
    pub(crate) fn take_bulk(&mut self, port: u16, size: u8) -> Option<u32> {
        let bulk = self.bulk.take_if(|_| self.bulk_read)?;
        self.bulk_read = false;
        (bulk.port == port && bulk.size == size).then_some(bulk.count)
    }

    /// The instruction waits for the client to read this.
    pub(crate) fn wait_for(&mut self, read: DeviceAccess) {
        self.read = Some(read);
    }

    /// The instruction stopped: it is executed again.
    pub(crate) fn stopped(&mut self) {
        self.unfinished = true;
    }

    /// Whether an instruction that is to be executed again has spoken to devices.
    pub(crate) fn is_half_done(&self) -> bool {
        self.unfinished && (!self.log.is_empty() || self.bulk_read)
    }

    /// The instruction is done, or has faulted. Writes may still have to go out.
    pub(crate) fn finished(&mut self) {
        self.unfinished = false;
        if !self.has_outgoing() && self.bulk.is_none_or(|bulk| !bulk.write) {
            self.clear();
        }
    }

    /// What the client has to do now: the oldest write, else the read.
    pub(crate) fn next_for_client(&self) -> Option<DeviceAccess> {
        self.log.get(self.outgoing).copied().or(self.read)
    }

    /// The client has done it; `data` is what it read. True if the instruction has to be executed again.
    pub(crate) fn done_by_client(&mut self, data: u64) -> Result<bool, LogFull> {
        if self.has_outgoing() {
            self.outgoing += 1;
        } else if let Some(read) = self.read.take() {
            self.push(DeviceAccess { data, ..read })?;
            self.outgoing = self.log.len();
        }
        if self.next_for_client().is_none() && !self.unfinished {
            self.clear();
        }
        Ok(self.unfinished)
    }

    /// KVM_RUN returns to the client; the next one finishes this.
    pub(crate) fn set_completion(&mut self, completion: Completion) {
        self.completion = completion;
    }

    pub(crate) fn take_completion(&mut self) -> Completion {
        core::mem::take(&mut self.completion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn read(at: u64) -> DeviceAccess {
        DeviceAccess { space: Space::Mmio, write: false, at, len: 4, data: 0 }
    }

    const fn write(at: u64, data: u64) -> DeviceAccess {
        DeviceAccess { space: Space::Mmio, write: true, at, len: 4, data }
    }

    #[test]
    fn reads_are_answered_from_the_log_when_the_instruction_is_repeated() {
        let mut tx = Transaction::default();
        tx.begin(0x1000);
        assert_eq!(tx.replay(&read(8)), None);
        tx.wait_for(read(8));
        tx.stopped();
        assert_eq!(tx.next_for_client(), Some(read(8)));
        assert_eq!(tx.done_by_client(77), Ok(true));
        tx.begin(0x1000);
        assert_eq!(tx.replay(&read(8)), Some(77));
        assert_eq!(tx.replay(&read(12)), None);
        tx.wait_for(read(12));
        tx.stopped();
        assert_eq!(tx.done_by_client(78), Ok(true));
        tx.begin(0x1000);
        assert_eq!((tx.replay(&read(8)), tx.replay(&read(12))), (Some(77), Some(78)));
        tx.finished();
        assert_eq!(tx.next_for_client(), None);
    }

    #[test]
    fn writes_go_out_in_order_after_the_instruction_is_done() {
        let mut tx = Transaction::default();
        tx.begin(1);
        tx.post(write(0, 1)).unwrap();
        tx.post(write(8, 2)).unwrap();
        tx.finished();
        assert_eq!(tx.next_for_client(), Some(write(0, 1)));
        assert_eq!(tx.done_by_client(0), Ok(false));
        assert_eq!(tx.next_for_client(), Some(write(8, 2)));
        assert_eq!(tx.done_by_client(0), Ok(false));
        assert_eq!(tx.next_for_client(), None);
    }

    #[test]
    fn a_read_behind_a_write_waits_for_it() {
        let mut tx = Transaction::default();
        tx.begin(1);
        tx.post(write(0, 1)).unwrap();
        assert!(tx.has_outgoing());
        tx.stopped();
        assert_eq!(tx.next_for_client(), Some(write(0, 1)));
        assert_eq!(tx.done_by_client(0), Ok(true));
        tx.begin(1);
        assert_eq!(tx.replay(&write(0, 1)), Some(1));
        assert!(!tx.has_outgoing());
        tx.wait_for(read(4));
        tx.stopped();
        assert_eq!(tx.next_for_client(), Some(read(4)));
        assert_eq!(tx.done_by_client(5), Ok(true));
        tx.begin(1);
        assert_eq!((tx.replay(&write(0, 1)), tx.replay(&read(4))), (Some(1), Some(5)));
    }

    #[test]
    fn another_instruction_gets_no_old_answers() {
        let mut tx = Transaction::default();
        tx.begin(1);
        tx.wait_for(read(8));
        tx.stopped();
        tx.done_by_client(9).unwrap();
        tx.begin(2);
        assert_eq!(tx.replay(&read(8)), None);
        tx.begin(1);
        assert_eq!(tx.replay(&read(8)), None);
    }

    #[test]
    fn the_log_is_bounded() {
        let mut tx = Transaction::default();
        tx.begin(1);
        let posted = (0..1000).take_while(|i| tx.post(write(*i, 0)).is_ok()).count();
        assert_eq!(posted, MAX_ACCESSES);
    }
}
