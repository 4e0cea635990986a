//! One instruction at a time: single stepping, breakpoints, and instructions that cannot be kept in a block.
use emulate::{Op, Stop, fetch_decode, op::prefix};
use hv::backend::Exit;
use iced_x86::Code;
use platform::Platform;
use x86::{
    Cr4, Exception, Features, Shadow,
    debug::{self, DR7_ENABLED, Watch},
    flags,
};

use crate::SoftVcpu;

impl<P: Platform> SoftVcpu<P> {
    /// Executes the instruction at RIP, whatever it is. None: look at everything, then go on.
    #[cold]
    #[inline(never)]
    pub(crate) fn single(&mut self) -> Option<Exit> {
        match self.execute_one() {
            Ok(_) => None,
            Err((stop, op)) => self.stopped(stop, op.as_ref()),
        }
    }

    /// Executes the instruction at RIP. On `Err` the registers are as before.
    fn execute_one(&mut self) -> Result<Op<Self>, (Stop, Option<Op<Self>>)> {
        self.stats.steps += 1;
        let op = fetch_decode(self).map_err(|stop| (stop, None))?;
        let op = self.adapt(op);
        let shadow = core::mem::replace(&mut self.state.shadow, Shadow::None);
        if let Err(stop) = op.execute(self) {
            self.state.shadow = shadow;
            return Err((stop, Some(op)));
        }
        self.stats.instructions += 1;
        Ok(op)
    }

    /// Executes the instruction at RIP with breakpoints and traps. None: look at everything, then go on.
    #[inline(never)]
    pub(crate) fn step(&mut self) -> Option<Exit> {
        // AMD's processors take them behind MOV SS too.
        let shadowed = self.state.shadow == Shadow::MovSs && !self.features.contains(Features::AMD);
        if !self.state.flags.control(flags::RF) && !shadowed {
            let hits = self.breakpoints(self.state.linear_rip(), 1, |watch| watch == Watch::Execute);
            if hits != 0 {
                if self.debug.hardware.is_none() {
                    // The handler returns to this instruction, which then runs.
                    self.state.flags.set_control(flags::RF, flags::RF);
                }
                return self.debug_trap(hits);
            }
        }
        let trap = self.state.flags.control(flags::TF);
        let (waiting, rip) = (self.hits, self.state.rip);
        let op = match self.execute_one() {
            Ok(op) => op,
            // Each iteration of a repeated string instruction is followed by its traps.
            Err((Stop::RESTART, Some(op))) if op.prefix & (prefix::REP | prefix::REPNE) != 0 => op,
            Err((stop, op)) => {
                self.hits = 0;
                let exit = self.stopped(stop, op.as_ref());
                if waiting != 0
                    && exit.is_some()
                    && let Some(op) = op
                {
                    // What MOV SS has met is told when the core has executed this instruction.
                    self.hits_outside = Some((waiting, rip.wrapping_add(op.len.into())));
                }
                return exit;
            }
        };
        if !matches!(op.code, Code::Iretw | Code::Iretd | Code::Iretq) {
            self.state.flags.set_control(flags::RF, 0);
        }
        if self.state.shadow == Shadow::MovSs {
            // Traps of this instruction wait for the next one.
            return None;
        }
        // Entering a handler clears the trap flag before the trap is taken.
        let trap = trap && (self.state.flags.control(flags::TF) || !enters_handler(op.code));
        let mut hits = core::mem::take(&mut self.hits);
        if op.code == Code::Int1 && self.debug.hardware.is_none() {
            // Data breakpoints that have waited behind MOV SS are told by the same exception.
            self.state.dr6 |= core::mem::take(&mut hits);
        }
        if trap || self.debug.single_step {
            hits |= debug::DR6_BS;
        }
        if let Some(Exception { payload, .. }) = self.after.take_if(|e| e.vector == x86::Vector::DB) {
            hits |= payload;
        }
        if hits == 0 { None } else { self.debug_trap(hits) }
    }

    /// The debug registers that count: the debugger's, or the guest's.
    fn debug_registers(&self) -> ([u64; 4], u64) {
        self.debug.hardware.unwrap_or((self.state.dr, self.state.dr7))
    }

    /// Whether instructions have to be executed one by one for the sake of breakpoints or a debugger.
    #[inline]
    pub(crate) fn debugged(&self) -> bool {
        self.debug.single_step || self.debug_registers().1 & DR7_ENABLED != 0 || self.hits != 0
    }

    /// Whether a data breakpoint is armed, so that every access has to be looked at.
    #[inline]
    pub(crate) fn watches_data(&self) -> bool {
        let (_, dr7) = self.debug_registers();
        dr7 & DR7_ENABLED != 0
            && (0..4).any(|n| matches!(debug::breakpoint(dr7, n), Some((Watch::Write | Watch::Access, _))))
    }

    /// The breakpoints (bit n for DRn) of a kind that `of` accepts which `bytes` bytes at `address` touch.
    fn breakpoints(&self, address: u64, bytes: u64, of: impl Fn(Watch) -> bool) -> u64 {
        let (dr, dr7) = self.debug_registers();
        if dr7 & DR7_ENABLED == 0 {
            return 0;
        }
        debug::hits(&dr, dr7, address, bytes, of)
    }

    /// Notes data breakpoints that an access touches. They trap behind the instruction.
    pub(crate) fn watch_data(&mut self, linear: u64, bytes: u64, write: bool) {
        self.hits |= self.breakpoints(linear, bytes, |watch| match watch {
            Watch::Access => true,
            Watch::Write => write,
            _ => false,
        });
    }

    /// Notes I/O breakpoints that an access touches. They trap when the core has finished it.
    pub(crate) fn watch_port(&mut self, port: u16, size: u8) {
        if self.state.cr4 & Cr4::DE.bits() != 0 {
            let hits = self.breakpoints(port.into(), size.into(), |watch| watch == Watch::Io);
            // RIP is past the instruction now, and will be there again when the access is done.
            self.hits_outside = (hits != 0).then_some((hits, self.state.rip));
        }
    }
}

/// Instructions that go to a handler and may clear the trap flag on the way.
fn enters_handler(code: Code) -> bool {
    matches!(code, Code::Syscall | Code::Sysenter | Code::Int1 | Code::Int3 | Code::Into | Code::Int_imm8)
}
