//! KVM_RUN, from top to bottom.
use core::sync::atomic::Ordering::SeqCst;

use abi::*;
use platform::{
    Atomic, MaySleep, Platform,
    wait::{WaitEnd, Waiter},
};
use x86::Exception;

use super::{Inner, LocalApic, MpState, RunPage, Vcpu, VcpuShared, request, shared::InUse};
use crate::{
    Errno, Outcome,
    backend::{Backend, BackendVcpu, Env, FlushTlb, Groups},
    emulation::Completion,
    exits::{self, Inside},
    stats::Counter,
    vm::VmShared,
};

/// What follows after an exit has been handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Look around and enter again.
    Continue,
    /// Return to the client: `kvm_run` says why.
    ToClient,
}

/// What follows what has been done before an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Enter,
    /// Things have changed.
    LookAgain,
    ToClient,
}

impl Before {
    fn after(step: Step) -> Self {
        if step == Step::ToClient { Self::ToClient } else { Self::LookAgain }
    }
}

/// One call of KVM_RUN.
pub(crate) struct Run<'a, B: Backend> {
    pub(crate) inner: &'a mut Inner<B>,
    pub(crate) vm: &'a VmShared<B::Platform>,
    pub(crate) shared: &'a VcpuShared<B::Platform>,
    pub(crate) index: usize,
    pub(crate) page: RunPage<B::Platform>,
    in_use: InUse<'a, B::Platform>,
    /// The client wants to know when it can inject an interrupt.
    pub(super) window: bool,
    /// Exits since the back end's counters were shown.
    exits: u32,
}

/// The back end's counters are shown after so many exits that stay inside, and when KVM_RUN returns.
const COUNT_EVERY: u32 = 64;

/// Tells the platform which thread runs the vCPU, for as long as it lives.
struct Attached<'a, P: Platform>(&'a VcpuShared<P>);

impl<'a, P: Platform> Attached<'a, P> {
    fn new(shared: &'a VcpuShared<P>) -> Self {
        // A signal before this moment shows in immediate_exit, or is still pending.
        shared.requests.fetch_and(!request::SIGNAL, SeqCst);
        shared.waiter.attach(Some(&shared.requests));
        Self(shared)
    }
}

impl<P: Platform> Drop for Attached<'_, P> {
    fn drop(&mut self) {
        self.0.waiter.attach(None);
    }
}

impl<B: Backend> Vcpu<B> {
    /// KVM_RUN.
    #[inline(never)]
    pub(super) fn run(&self, inner: &mut Inner<B>, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let page = self.run_page()?;
        let (vm, shared) = (&**self.vm().shared(), self.shared());
        let _attached = Attached::new(shared);
        let window = page.load::<u8>(KVM_RUN_REQUEST_INTERRUPT_WINDOW_OFFSET)? != 0;
        inner.ran = true;
        shared.stats.count(Counter::Runs);
        let in_use = shared.begin();
        let mut run = Run { inner, vm, shared, index: self.0.index, page, in_use, window, exits: 0 };
        run.inner.cpu.load(&Atomic::at_entry());
        let result = run.until_client(cx);
        run.inner.cpu.put(&Atomic::at_entry());
        run.take_counters();
        run.save()?;
        result.map(|()| Outcome::OK)
    }
}

impl<B: Backend> Run<'_, B> {
    /// Runs until the client is needed, with the reason in `kvm_run`.
    fn until_client(&mut self, cx: &MaySleep) -> Result<(), Errno> {
        let immediate_exit = self.page.load::<u8>(KVM_RUN_IMMEDIATE_EXIT_OFFSET)? != 0;
        if self.inner.mp == MpState::Uninitialized || self.inner.mp == MpState::InitReceived {
            // A signal from before the thread was attached ends no sleep.
            return self.wait_for_start(immediate_exit || B::Platform::signal_pending(), cx);
        }
        self.take_sync_regs()?;
        if self.inner.apic.is_none() {
            let cr8 = self.page.load::<u64>(KVM_RUN_CR8_OFFSET)?;
            if cr8 > 15 {
                return Err(Errno::EINVAL);
            }
            self.inner.cpu.registers_mut(Groups::SWITCHES).cr8 = cr8;
        }
        if self.complete(cx)? == Step::ToClient {
            return Ok(());
        }
        if immediate_exit || B::Platform::signal_pending() {
            return self.interrupted();
        }
        loop {
            let quiet = self.is_quiet();
            if !quiet {
                match self.before_entry(cx)? {
                    Before::Enter => {}
                    Before::LookAgain => continue,
                    Before::ToClient => return Ok(()),
                }
            }
            let root = self.load_root(cx)?;
            if quiet {
                self.inner.cpu.request_window(false, false);
            } else {
                self.prepare_events();
            }
            self.show_vapic();
            let pin = B::Platform::pin();
            if !self.in_use.enter_guest() {
                drop(pin);
                self.take_back();
                continue;
            }
            if self.root_is_stale() {
                self.in_use.left_guest();
                drop(pin);
                self.take_back();
                continue;
            }
            let memory = self.vm.space(self.inner.smm.inside);
            let env = Env { memory, reader: self.index, requests: &self.shared.requests, root };
            let at_once = quiet && !self.inner.tpr.has_word();
            let end = loop {
                let exit = self.inner.cpu.enter(&env);
                self.exits += 1;
                if !at_once {
                    break Inside::Left(exit);
                }
                match self.inside(exit) {
                    Inside::Again => {}
                    end => break end,
                }
            };
            self.inner.pdptes_set = false;
            self.in_use.left_guest();
            drop(pin);
            if self.exits >= COUNT_EVERY {
                self.exits = 0;
                self.take_counters();
            }
            self.take_vapic();
            self.take_back();
            let step = match end {
                Inside::Left(exit) => exits::handle(self, exit, cx)?,
                Inside::Client(pio) => self.pio_client(pio)?,
                Inside::Again | Inside::Done => Step::Continue,
            };
            if step == Step::ToClient {
                return Ok(());
            }
        }
    }

    /// Whether nothing is to be done or told before the guest is entered: the usual case, which most exits inside come back to.
    /// [`Self::before_entry`] and [`Self::prepare_events`] would find nothing.
    #[inline]
    fn is_quiet(&mut self) -> bool {
        let inner = &mut *self.inner;
        let apic_is = inner.apic.as_ref().is_none_or(LocalApic::is_quiet);
        let nothing_told = !inner.async_pf.is_due() && !inner.tpr.is_due() && !inner.tx.is_half_done() && !self.window;
        let no_event = inner.events.are_none() && !self.vm.chips.intr() && !self.shared.lapic.has_events();
        let runs = inner.mp == MpState::Runnable && !inner.smm.inside && self.shared.requests.load(SeqCst) == 0;
        apic_is && nothing_told && no_event && runs && inner.cpu.can_enter()
    }

    /// What goes before an entry, in the order in which it has to be done.
    #[inline(never)]
    fn before_entry(&mut self, cx: &MaySleep) -> Result<Before, Errno> {
        if self.inner.async_pf.is_due() {
            self.inner.async_pf.tell(self.vm, self.index);
        }
        if self.serve_requests()? == Step::ToClient {
            self.interrupted()?;
        }
        // Nothing may come between the tries of an instruction that has spoken to a device.
        if self.inner.tx.is_half_done() && self.inner.mp == MpState::Runnable {
            self.give_way(cx)?;
            return self.emulate(cx).map(Before::after);
        }
        if self.report_ended()? || self.report_tpr_access()? {
            return Ok(Before::ToClient);
        }
        if core::mem::take(&mut self.inner.events.stepped) && self.inner.debug.single_step {
            return self.stepped().map(|()| Before::ToClient);
        }
        if !self.runnable() {
            if self.in_use.block(cx) == WaitEnd::Signal {
                self.interrupted()?;
            }
            return Ok(Before::LookAgain);
        }
        if self.inner.events.triple_fault {
            self.inner.events.triple_fault = false;
            return self.page.reason(KVM_EXIT_SHUTDOWN).map(|()| Before::ToClient);
        }
        if self.accept_smi()? == Step::ToClient {
            return Ok(Before::ToClient);
        }
        if self.window && self.ready_for_interrupt() {
            self.shared.stats.count(Counter::RequestIrqExits);
            return self.page.reason(KVM_EXIT_IRQ_WINDOW_OPEN).map(|()| Before::ToClient);
        }
        if self.executes_smm() || !self.inner.cpu.can_enter() {
            self.show_vapic();
            let step = self.execute(cx)?;
            self.take_vapic();
            if step == Step::ToClient {
                return Ok(Before::ToClient);
            }
            self.give_way(cx)?;
            return Ok(Before::LookAgain);
        }
        Ok(Before::Enter)
    }

    /// KVM_EXIT_IOAPIC_EOI, if the client's IOAPIC has to hear of the end of an interrupt.
    fn report_ended(&mut self) -> Result<bool, Errno> {
        let Some(vector) = self.inner.apic.as_mut().and_then(|apic| apic.take_ended()) else { return Ok(false) };
        self.page.exit(KVM_EXIT_IOAPIC_EOI, &KvmRunEoi { vector })?;
        Ok(true)
    }

    /// What the last exit left to do: MMIO and PIO that the client has carried out.
    fn complete(&mut self, cx: &MaySleep) -> Result<Step, Errno> {
        match self.inner.tx.take_completion() {
            Completion::Nothing => Ok(Step::Continue),
            Completion::Pio(pio) => self.complete_pio(&pio),
            Completion::Access => self.complete_access(cx),
            Completion::Hypercall(call) => self.complete_hypercall(call),
            Completion::Msr(msr) => self.complete_msr(msr),
        }
    }

    /// Lets the host do what waits for this thread; a signal ends KVM_RUN.
    pub(crate) fn give_way(&mut self, cx: &MaySleep) -> Result<(), Errno> {
        B::Platform::relax(cx);
        // In a kernel nothing but the signal itself tells of it.
        if B::Platform::signal_pending() {
            self.interrupted()?;
        }
        Ok(())
    }

    /// A signal ends KVM_RUN.
    pub(crate) fn interrupted(&mut self) -> Result<(), Errno> {
        self.shared.stats.count(Counter::SignalExits);
        self.page.reason(KVM_EXIT_INTR)?;
        Err(Errno::EINTR)
    }

    /// A processor that waits for INIT and SIPI: answers EAGAIN when it has been started, as Linux does.
    fn wait_for_start(&mut self, at_once: bool, cx: &MaySleep) -> Result<(), Errno> {
        if at_once {
            return self.interrupted();
        }
        loop {
            if self.serve_requests()? == Step::ToClient {
                return self.interrupted();
            }
            self.accept_init_sipi();
            if self.inner.mp == MpState::Runnable {
                return Err(Errno::EAGAIN);
            }
            if self.in_use.block(cx) == WaitEnd::Signal {
                return self.interrupted();
            }
        }
    }

    /// Takes the request bits and acts on them. Nothing of guest memory is held here. `ToClient`: a signal.
    fn serve_requests(&mut self) -> Result<Step, Errno> {
        let bits = self.shared.take_requests();
        if bits == 0 {
            return Ok(Step::Continue);
        }
        if bits & request::TLB_FLUSH_PHYSICAL != 0 {
            self.inner.cpu.flush(FlushTlb::Physical);
            self.shared.stats.count(Counter::TlbFlush);
        }
        if bits & request::TIMER != 0 {
            self.timer_expired();
        }
        if bits & request::CLOCK != 0 {
            self.write_clock();
        }
        if bits & request::UNHALT != 0 {
            self.inner.unhalted = true;
        }
        Ok(if bits & request::SIGNAL != 0 { Step::ToClient } else { Step::Continue })
    }

    fn timer_expired(&mut self) {
        let inner = &mut *self.inner;
        if let Some(apic) = &mut inner.apic
            && apic.timer_expired(&inner.tsc)
        {
            self.shared.stats.count(Counter::TimerExpirations);
        }
    }

    /// Writes kvmclock's structure where the guest wants it.
    pub(crate) fn write_clock(&mut self) {
        self.inner.write_clock(self.vm, self.index);
    }

    /// Whether the vCPU has instructions to execute or events to take; wakes it from HLT.
    fn runnable(&mut self) -> bool {
        self.accept_init_sipi();
        match self.inner.mp {
            MpState::Runnable => true,
            MpState::Halted => {
                let wakes =
                    core::mem::take(&mut self.inner.unhalted) || self.inner.events.occupied() || self.has_event();
                if wakes {
                    self.shared.stats.count(Counter::HaltWakeup);
                    self.inner.mp = MpState::Runnable;
                }
                wakes
            }
            _ => false,
        }
    }

    /// Raises an exception in the guest.
    pub(crate) fn raise(&mut self, exception: Exception) {
        self.shared.stats.count(Counter::ExceptionInjections);
        self.inner.events.raise(exception);
    }

    /// Moves RIP behind the instruction of `len` bytes that an exit has carried out. If the length is not known, it is
    /// found by decoding. True: there is nothing to be told or delivered behind it.
    pub(crate) fn skip(&mut self, len: u8) -> bool {
        let len = if len == 0 { self.instruction_len() } else { len };
        self.skip_len(len)
    }

    /// The same for a length that is known.
    #[inline(always)]
    pub(crate) fn skip_len(&mut self, len: u8) -> bool {
        let state = self.inner.cpu.registers_mut(Groups::PLAIN);
        let (before, next) = (state.rip, state.rip.wrapping_add(u64::from(len)));
        state.rip = next;
        state.shadow = x86::Shadow::None;
        let single_step = state.flags.control(x86::flags::TF);
        state.flags.set_control(x86::flags::RF, 0);
        let stepped = self.inner.debug.single_step;
        self.inner.events.stepped = stepped;
        if single_step {
            self.raise(Exception::debug(x86::debug::DR6_BS));
        }
        if (before ^ next) >> 32 != 0 {
            self.wrap_rip();
        }
        !single_step && !stepped
    }

    /// RIP has gone beyond 4 GiB, which only 64-bit code goes on at.
    #[cold]
    #[inline(never)]
    fn wrap_rip(&mut self) {
        let state = self.inner.cpu.registers_mut(Groups::GENERAL);
        if state.mode != x86::Mode::Long64 {
            state.rip &= 0xffff_ffff;
        }
    }

    /// Shows what the back end has counted.
    fn take_counters(&mut self) {
        let stats = &self.shared.stats;
        self.inner.cpu.counters(|index, value| stats.set_backend(index, value));
    }

    /// Writes what every return to the client shows.
    fn save(&mut self) -> Result<(), Errno> {
        // Without the client's interrupts there is nothing that it would have to wait for.
        let ready = !self.client_interrupts() || self.ready_for_interrupt();
        let state = self.inner.cpu.registers(Groups::PLAIN.and(Groups::SWITCHES));
        let if_flag = state.flags.control(x86::flags::IF);
        let cr8 = self.inner.apic.as_ref().map_or(state.cr8, |apic| apic.lapic.cr8());
        let page = self.page;
        page.store(KVM_RUN_IF_FLAG_OFFSET, u8::from(if_flag))?;
        page.store(KVM_RUN_READY_FOR_INTERRUPT_INJECTION_OFFSET, u8::from(ready))?;
        page.store(KVM_RUN_FLAGS_OFFSET, if self.inner.smm.inside { KVM_RUN_X86_SMM } else { 0 })?;
        page.store(KVM_RUN_CR8_OFFSET, cr8)?;
        page.store(KVM_RUN_APIC_BASE_OFFSET, self.inner.apic_base())?;
        self.show_sync_regs()
    }
}
