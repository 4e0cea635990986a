//! Entering the guest, and what is looked at whenever more than a jump happened.
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use hv::backend::{Env, Exit};
use mmu::shadow::Root;
use platform::Platform;
use x86::{Exception, Shadow, flags};

use crate::SoftVcpu;

/// Every block is compared with memory again after so many instructions.
const COMPARE_EVERY: u64 = 4 << 20;

impl<P: Platform> SoftVcpu<P> {
    pub(crate) fn enter_guest(&mut self, env: &Env<'_, P>) -> Exit {
        self.set_env(Some(env));
        let exit = self.run_guest(env.requests, env.root);
        self.told = !matches!(
            exit,
            Exit::Interrupted
                | Exit::InterruptWindow
                | Exit::NmiWindow
                | Exit::Cpuid { .. }
                | Exit::MsrRead { .. }
                | Exit::MsrWrite { .. }
                | Exit::Cr { .. }
                | Exit::Invlpg { .. }
                | Exit::Pause { .. }
        );
        self.set_env(None);
        self.common.code.leave(self.index);
        exit
    }

    fn run_guest(&mut self, requests: &AtomicU32, root: Root) -> Exit {
        self.exit = None;
        if self.start.is_some() && !self.set_root(root) || self.nested.is_some() && !self.set_nested_root(root) {
            return Exit::FailEntry { reason: 0 };
        }
        self.acknowledge_code();
        if self.told || self.injected.is_some() {
            self.compare_all();
        }
        self.follow_registers();
        self.set_keys();
        // A breakpoint on a port whose access the core has finished meanwhile: a trap, which comes before interrupts.
        if let Some((hits, rip)) = self.hits_outside.take()
            && rip == self.state.rip
            && let Some(exit) = self.debug_trap(hits)
        {
            return exit;
        }
        if let Some(event) = self.injected.take()
            && let Some(exit) = self.deliver(event)
        {
            return exit;
        }
        loop {
            if let Some(exit) = self.attention(requests) {
                return exit;
            }
            let exit = if self.slow { self.step() } else { self.fast(requests) };
            if let Some(exit) = exit {
                return exit;
            }
        }
    }

    /// Looks at everything that the fast loop takes for granted. Some: the guest is to be left.
    fn attention(&mut self, requests: &AtomicU32) -> Option<Exit> {
        if self.common.code.epoch() != self.epoch {
            self.acknowledge_code();
        }
        if self.stats.instructions >= self.compare_at {
            self.compare_all();
        }
        self.follow_registers();
        self.set_keys();
        if let Some(exception) = self.after.take()
            && let Some(exit) = self.deliver_exception(exception)
        {
            return Some(exit);
        }
        if requests.load(Relaxed) != 0 {
            return Some(Exit::Interrupted);
        }
        let state = &mut self.state;
        let interrupts = state.flags.control(flags::IF);
        if self.window_interrupt && interrupts && state.shadow == Shadow::None {
            return Some(Exit::InterruptWindow);
        }
        if self.window_nmi && !self.nmi_blocked && state.shadow == Shadow::None {
            return Some(Exit::NmiWindow);
        }
        let waiting = (self.window_interrupt && interrupts || self.window_nmi) && state.shadow != Shadow::None;
        let trap = state.flags.control(flags::TF);
        self.slow = self.debugged();
        if !self.slow {
            // RF only keeps instruction breakpoints away, and there are none.
            self.state.flags.set_control(flags::RF, 0);
        }
        self.slow |= waiting || trap;
        None
    }

    /// Follows a change of the code map that this vCPU has made itself: nothing is left to do, unless others made one too.
    pub(crate) fn raised(&mut self, epoch: u64) {
        if epoch == self.epoch + 1 {
            self.epoch = epoch;
            self.common.code.acknowledge(self.index, epoch);
        }
    }

    /// Follows a change of the code map by others.
    fn acknowledge_code(&mut self) {
        loop {
            let epoch = self.common.code.epoch();
            if epoch != self.epoch {
                self.epoch = epoch;
                self.tlb.drop_writes();
                self.forget_jumps();
            }
            self.common.code.acknowledge(self.index, epoch);
            if self.common.code.epoch() == epoch {
                return;
            }
        }
    }

    /// From now on each block is compared with memory before it runs.
    fn compare_all(&mut self) {
        self.clock += 1;
        self.entered_at = self.clock;
        self.compare_at = self.stats.instructions + COMPARE_EVERY;
        self.forget_jumps();
    }

    /// Raises #DB behind an instruction, or tells the debugger whose breakpoints `hits` are.
    pub(crate) fn debug_trap(&mut self, hits: u64) -> Option<Exit> {
        if self.debug.hardware.is_some() || self.debug.single_step {
            return Some(Exit::Debug { dr6: x86::debug::DR6_FIXED | hits });
        }
        self.deliver_exception(Exception::debug(hits))
    }
}
