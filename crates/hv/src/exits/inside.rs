//! Exits that are done with on the spot. Most exits of a busy guest ask for a register of a device that is in here, or for CPUID:
//! nobody else is needed, and hardly ever is anything due afterwards. While such an exit is handled the vCPU still counts as
//! inside the guest, on the processor that it has, and goes on there. Whatever somebody asks of it meanwhile is in its request word,
//! at which each entry looks.
//!
//! Nothing here may sleep, or reach the client's memory.
use crate::{
    backend::{Backend, Exit, PioExit},
    stats::Counter,
    vcpu::Run,
};

/// What has become of an exit.
pub(crate) enum Inside {
    /// It is done with, and the guest can go on.
    Again,
    /// It is done with, and there is something to look at before the guest goes on.
    Done,
    /// Nothing yet.
    Left(Exit),
    /// A port that is the client's.
    Client(PioExit),
}

impl<B: Backend> Run<'_, B> {
    /// Handles `exit`, if it is one of those, behind an entry with which nothing else was to be done.
    #[inline]
    pub(crate) fn inside(&mut self, exit: Exit) -> Inside {
        let (kind, plain) = match exit {
            Exit::Pio(pio) if pio.is_plain() && pio.len != 0 => match self.port(&pio) {
                Some(value) => {
                    self.pio_done(&pio, value);
                    (Counter::ExitPio, self.skip_len(pio.len))
                }
                None => {
                    self.counted(Counter::ExitPio);
                    return Inside::Client(pio);
                }
            },
            Exit::Cpuid { len } if len != 0 => (Counter::ExitCpuid, self.cpuid_done(len)),
            exit => return Inside::Left(exit),
        };
        self.counted(kind);
        if plain && self.nothing_came() { Inside::Again } else { Inside::Done }
    }

    /// Counts an exit.
    #[inline]
    pub(super) fn counted(&mut self, kind: Counter) {
        self.shared.stats.count(Counter::Exits);
        self.shared.stats.count(kind);
        if kind != Counter::ExitPageFault {
            self.inner.mmu.unprotected = None;
        }
    }

    /// Whether there is still nothing to be delivered. What the request word holds is not looked at here.
    #[inline]
    fn nothing_came(&self) -> bool {
        let lapic = &self.shared.lapic;
        !self.vm.chips.intr() && !lapic.has_events() && !lapic.has_requests()
    }
}
