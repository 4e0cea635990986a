//! What the core has asked of a guest processor: it stands until the next entry, or until the core asks otherwise.
use hv::backend::{Event, GuestDebug};
use x86::{CpuState, debug};

/// The ratio of time-stamp counters that means "as the host's".
pub const UNSCALED: u64 = 1 << 48;

/// The guest's time-stamp counter: the host's times `ratio` >> 48, and `offset`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Tsc {
    pub offset: u64,
    pub ratio: u64,
}

impl Default for Tsc {
    fn default() -> Self {
        Self { offset: 0, ratio: UNSCALED }
    }
}

/// What the core waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Window {
    pub interrupt: bool,
    pub nmi: bool,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Asked {
    /// See [`Tsc`].
    pub tsc: Tsc,
    /// The client's debugger.
    pub debug: GuestDebug,
    /// For the next entry.
    pub injected: Option<Event>,
    /// Whose delivery the last exit cut short.
    pub unfinished: Option<Event>,
    /// See [`Window`].
    pub window: Window,
    /// NMIs wait for IRET.
    pub nmi_blocked: bool,
}

impl Asked {
    /// The event that did not get in, or was cut short: the core injects it again.
    pub fn take_unfinished(&mut self) -> Option<Event> {
        if self.unfinished.is_none() && self.injected.is_none() {
            return None;
        }
        self.unfinished.take().or_else(|| self.injected.take())
    }

    /// DR0 to DR3 while the guest runs.
    pub fn debug_addresses(&self, state: &CpuState) -> [u64; 4] {
        self.debug.hardware.map_or(state.dr, |(addresses, _)| addresses)
    }

    /// DR7 while the guest runs.
    pub fn dr7(&self, state: &CpuState) -> u64 {
        self.debug.hardware.map_or(state.dr7, |(_, dr7)| dr7) | debug::DR7_FIXED
    }

    /// Whether a debug exception of the guest's is its client's debugger's.
    pub fn is_debugged(&self) -> bool {
        self.debug.single_step || self.debug.hardware.is_some()
    }
}
