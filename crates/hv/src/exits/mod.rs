//! Exits: why the guest stopped, and what is done about it, once for every back end.
mod control;
mod cpuid;
mod debug;
mod halt;
mod hypercall;
mod inside;
mod memory;
mod msr;
mod page_fault;
mod pio;
mod rdpmc;

pub(crate) use hypercall::PendingHypercall;
pub(crate) use inside::Inside;
pub(crate) use msr::PendingMsr;

use abi::*;
use platform::{MaySleep, Platform};

use crate::{
    Errno,
    backend::{Backend, Exit},
    stats::Counter,
    vcpu::{Run, Step},
};

/// Handles an exit.
pub(crate) fn handle<B: Backend>(run: &mut Run<'_, B>, exit: Exit, cx: &MaySleep) -> Result<Step, Errno> {
    run.counted(counter(&exit));
    match exit {
        Exit::Interrupted => {
            run.give_way(cx)?;
            Ok(Step::Continue)
        }
        Exit::InterruptWindow | Exit::NmiWindow => Ok(Step::Continue),
        Exit::Hlt { len } => run.hlt(len),
        Exit::Pause { len } => {
            run.skip(len);
            if !run.vm.exit_disabled(KVM_X86_DISABLE_EXITS_PAUSE) {
                B::Platform::relax(cx);
            }
            Ok(Step::Continue)
        }
        Exit::Cpuid { len } => run.cpuid(len),
        Exit::MsrRead { len } => run.rdmsr(len),
        Exit::MsrWrite { len } => run.wrmsr(len),
        Exit::Rdpmc { len } => run.rdpmc(len),
        Exit::Hypercall { len } => run.hypercall(len),
        // Guest memory is write-back and coherent; there is nothing to flush.
        Exit::CacheFlush { len } => {
            run.skip(len);
            Ok(Step::Continue)
        }
        Exit::MonitorMwait { len, .. } => run.monitor_mwait(len),
        Exit::TaskSwitch | Exit::Delivery if let Some(event) = run.inner.events.injected => run.deliver(event),
        Exit::Delivery => Ok(Step::Continue),
        Exit::Xsetbv { .. } | Exit::TaskSwitch | Exit::Emulate => run.emulate(cx),
        Exit::Rsm => run.rsm(),
        Exit::Pio(pio) => run.pio(pio, cx),
        Exit::Cr { op, len } => run.control(op, len, cx),
        Exit::Invlpg { gva, len } => run.invlpg(gva, len, cx),
        Exit::NestedPageFault { gpa, access, .. } => run.nested_page_fault(gpa, access, cx),
        Exit::PageFault { gva, code, implicit } => run.page_fault(gva, code, implicit, cx),
        Exit::Exception { exception } => run.exception(exception, cx),
        Exit::Debug { dr6 } => run.debug(dr6),
        Exit::Shutdown => {
            run.page.reason(KVM_EXIT_SHUTDOWN)?;
            Ok(Step::ToClient)
        }
        Exit::BadAddress { .. } => Err(Errno::EFAULT),
        Exit::FailEntry { reason } => {
            let payload = KvmRunFailEntry { hardware_entry_failure_reason: reason, ..KvmRunFailEntry::default() };
            run.page.exit(KVM_EXIT_FAIL_ENTRY, &payload)?;
            Ok(Step::ToClient)
        }
        Exit::Unknown { reason } => {
            run.page.exit(KVM_EXIT_UNKNOWN, &KvmRunHw { hardware_exit_reason: reason })?;
            Ok(Step::ToClient)
        }
    }
}

/// Handles what the emulator left to the run loop. An instruction that needs the emulator again cannot be executed.
pub(crate) fn intercepted<B: Backend>(run: &mut Run<'_, B>, exit: Exit, cx: &MaySleep) -> Result<Step, Errno> {
    match exit {
        Exit::Emulate | Exit::Xsetbv { .. } | Exit::TaskSwitch | Exit::Cr { op: crate::backend::CrOp::Other, .. } => {
            run.emulation_failed()
        }
        exit => handle(run, exit, cx),
    }
}

fn counter(exit: &Exit) -> Counter {
    match exit {
        Exit::Interrupted => Counter::ExitInterrupted,
        Exit::InterruptWindow => Counter::ExitInterruptWindow,
        Exit::NmiWindow => Counter::ExitNmiWindow,
        Exit::Hlt { .. } => Counter::ExitHlt,
        Exit::Pause { .. } => Counter::ExitPause,
        Exit::Cpuid { .. } => Counter::ExitCpuid,
        Exit::MsrRead { .. } => Counter::ExitMsrRead,
        Exit::MsrWrite { .. } => Counter::ExitMsrWrite,
        Exit::Hypercall { .. } => Counter::ExitHypercall,
        Exit::Pio(_) => Counter::ExitPio,
        Exit::Cr { .. } => Counter::ExitCr,
        Exit::Invlpg { .. } => Counter::ExitInvlpg,
        Exit::NestedPageFault { .. } | Exit::PageFault { .. } => Counter::ExitPageFault,
        Exit::Emulate => Counter::ExitEmulate,
        Exit::Exception { .. } | Exit::Debug { .. } => Counter::ExitException,
        _ => Counter::ExitOther,
    }
}

impl<B: Backend> Run<'_, B> {
    /// #GP(0).
    pub(crate) fn refuse(&mut self) -> Result<Step, Errno> {
        self.raise(x86::Exception::with_code(x86::Vector::GP, 0));
        Ok(Step::Continue)
    }

    /// #UD.
    pub(crate) fn undefined(&mut self) -> Result<Step, Errno> {
        self.raise(x86::Exception::plain(x86::Vector::UD));
        Ok(Step::Continue)
    }

    /// An exit that nobody asked for.
    pub(crate) fn unexpected(&mut self, reason: u64) -> Result<Step, Errno> {
        let mut data = [0; 16];
        data[0] = reason;
        let payload = KvmRunInternal { suberror: KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, ndata: 1, data };
        self.page.exit(KVM_EXIT_INTERNAL_ERROR, &payload)?;
        Ok(Step::ToClient)
    }
}
