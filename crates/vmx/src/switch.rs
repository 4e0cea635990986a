//! The crossing: from the host to the guest and back, with interrupts off.
use hardware::{keep::Host, predictions};
use hv::backend::Groups;
use mmu::shadow::Root;
use platform::{Atomic, Hardware, hardware::Watch};
use x86::{Efer, msr};

use crate::{
    backend::Common,
    fields::{
        HOST_CR0, HOST_CS, HOST_EFER, HOST_GDTR_BASE, HOST_GS_BASE, HOST_IDTR_BASE, HOST_SS, HOST_SYSENTER_CS,
        HOST_SYSENTER_EIP, HOST_SYSENTER_ESP, HOST_TR, HOST_TR_BASE, INSTRUCTION_ERROR,
    },
    instructions::{Entry, Forget, Instructions},
    local::Resident,
    vcpu::{Crossed, Guest, lazy},
    vmcs::Current,
};

/// MSR 0x10b, bit 0: flushes the first-level data cache.
const FLUSH_CMD: u32 = 0x10b;
const FLUSH_L1D: u64 = 1;

impl<P: Hardware, I: Instructions> Guest<P, I> {
    /// Runs the guest once, on this processor, number `cpu`. Interrupts are off.
    #[inline]
    pub(crate) fn cross(&mut self, common: &Common<P>, root: Root, settled: bool, cpu: usize, cx: &Atomic) -> Crossed {
        let crossed = common.locals.here(cpu, |resident| {
            let goes_on = settled && self.goes_on(resident, cpu);
            let mut vmcs = if goes_on {
                // SAFETY: it is the current one, and interrupts are off.
                let mut vmcs = unsafe { Current::new() };
                self.write_plain(&mut vmcs);
                vmcs
            } else {
                let Some(mut vmcs) = resident.current::<I>(self.region.node(), cpu) else { return Crossed::Elsewhere };
                self.write(common, root, &mut vmcs);
                self.take_processor(common, resident, cpu, root, &mut vmcs);
                vmcs
            };
            self.fields.host_cr3.put(&mut vmcs, I::cr3());
            self.fields.host_cr4.put(&mut vmcs, I::cr4());
            P::guest_begins(cx);
            let launched = self.region.node().launched();
            // SAFETY: VMX is switched on, which is what `here` has looked at, and the control structure is complete. Whatever is
            // the guest's from here on is the host's again behind `load_host`, but for what `user_mode` keeps.
            let entry = unsafe {
                if !goes_on {
                    self.take_user_mode(common, resident);
                }
                // TSC_AUX is user mode's.
                let host = Host { xcr0: common.processor.offer.xcr0, tsc_aux: None };
                // An ordinary guest has no breakpoints.
                let dr7 = if goes_on { 0 } else { self.asked.dr7(&self.state) };
                let kept = host.load_guest::<I>(&self.state, dr7, || {
                    I::set_debug_addresses(&self.asked.debug_addresses(&self.state));
                });
                let exchanged = self.load_guest(common, resident);
                if common.mitigations.flush_l1d && common.nested {
                    I::write_msr(FLUSH_CMD, FLUSH_L1D);
                }
                if common.mitigations.clear_buffers {
                    I::clear_buffers();
                }
                let entry = I::run(&mut self.state.gpr, launched, &mut self.host_stack, common.mitigations.fill_rsb);
                self.load_host(resident, &exchanged);
                host.load_host::<I>(&mut self.state, kept);
                entry
            };
            P::guest_ended(cx);
            match entry {
                Entry::Refused => Crossed::Refused(vmcs.read(INSTRUCTION_ERROR)),
                Entry::Left => {
                    self.read(common, goes_on, &vmcs);
                    if !launched && !self.left.entry_failed() {
                        self.region.node().set_launched();
                    }
                    if !self.settled {
                        self.serve_host(cx);
                    }
                    Crossed::Left
                }
            }
        });
        crossed.unwrap_or(Crossed::Off)
    }

    /// Loads what only user mode uses.
    ///
    /// # Safety
    /// Interrupts are off, on the thread that runs the vCPU.
    #[inline(never)]
    unsafe fn take_user_mode(&mut self, common: &Common<P>, resident: &Resident) {
        let long = self.registers.long_mode();
        let user_mode = self.user_mode.told();
        // SAFETY: by the caller's promise.
        unsafe {
            if self.stale.any(Groups::MSRS) && !user_mode.is_loaded(long) {
                self.state.kernel_gs_base = user_mode.kernel_gs_base();
                self.stale = self.stale.without(Groups::MSRS);
            }
            user_mode.take(&self.state, resident, &self.thread, long);
            self.lazy = lazy(common.nested, user_mode.is_loaded(true));
        }
    }

    /// Makes this vCPU the one whose translations and predictions are on the processor, and the host's state in the control
    /// structure this processor's and this thread's.
    #[inline(never)]
    fn take_processor(
        &mut self,
        common: &Common<P>,
        resident: &mut Resident,
        cpu: usize,
        root: Root,
        vmcs: &mut Current<I>,
    ) {
        // A processor that was switched off in between is another one.
        let moved = core::mem::replace(&mut self.last_cpu, cpu) != cpu || resident.vcpu == 0;
        if moved {
            write_host(vmcs, resident, common.processor.switches_efer);
        }
        self.fields.host_fs_base.put(vmcs, self.thread.fs_base);
        predictions::take_over::<I>(&mut resident.vcpu, self.number, &common.mitigations);
        self.forget_translations(common, resident, moved, root, vmcs);
    }

    /// Without tags the processor forgets translations of linear addresses by itself, with each entry and exit.
    fn forget_translations(
        &mut self,
        common: &Common<P>,
        resident: &mut Resident,
        moved: bool,
        root: Root,
        vmcs: &mut Current<I>,
    ) {
        let processor = &common.processor;
        let flush = core::mem::take(&mut self.flush);
        if processor.tagged {
            let current = !moved && resident.tags.is_current(self.tag);
            if !current || flush.linear && !processor.flush_one_tag {
                let (tag, all) = resident.tags.give();
                self.tag = tag;
                self.fields.vpid.put(vmcs, tag.number as u16);
                if all {
                    // SAFETY: the processor has tags, and this kind.
                    unsafe { I::invvpid(Forget::All) };
                }
            } else if flush.linear {
                // SAFETY: as above, and it has this kind too.
                unsafe { I::invvpid(Forget::One(self.tag.number.into())) };
            }
        }
        if common.nested && (moved || flush.physical) {
            let what = if processor.flush_one_root { Forget::One(self.ept_pointer(common, root)) } else { Forget::All };
            // SAFETY: the processor has EPT, and this kind.
            unsafe { I::invept(what) };
        }
    }

    /// Loads what neither the processor nor `hardware::keep` does, where it differs from the host's. Answers what is to be put
    /// back.
    ///
    /// # Safety
    /// Interrupts are off until [`Self::load_host`].
    #[inline]
    unsafe fn load_guest(&mut self, common: &Common<P>, resident: &Resident) -> Exchanged {
        let mut exchanged = Exchanged::default();
        // SAFETY: these registers exist; the values were checked when the guest wrote them. EFER only changes in what the host
        // does not use meanwhile.
        unsafe {
            if self.state.cr2 != I::cr2() {
                I::set_cr2(self.state.cr2);
            }
            // Each time: what profiles the host changes it by an interrupt.
            exchanged.debugctl = I::read_msr(msr::DEBUGCTL);
            if !common.processor.switches_efer {
                let sce = Efer::SCE.bits();
                if (resident.msrs.efer ^ self.registers.efer) & sce != 0 {
                    exchanged.efer = true;
                    I::write_msr(msr::EFER, resident.msrs.efer & !sce | self.registers.efer & sce);
                }
            }
        }
        exchanged
    }

    /// Puts the host's registers back, and takes the guest's.
    ///
    /// # Safety
    /// Called once behind [`Self::load_guest`], with what that has answered; the processor has loaded what the control structure
    /// has of the host.
    unsafe fn load_host(&mut self, resident: &Resident, exchanged: &Exchanged) {
        // SAFETY: the host's own values.
        unsafe {
            self.state.cr2 = I::cr2();
            if exchanged.efer {
                I::write_msr(msr::EFER, resident.msrs.efer);
            }
            // The exit has cleared it.
            if exchanged.debugctl != 0 {
                I::write_msr(msr::DEBUGCTL, exchanged.debugctl);
            }
        }
    }

    /// What ended the guest's stay, and is the host's to handle.
    fn serve_host(&self, cx: &Atomic) {
        if self.left.is_nmi() {
            // SAFETY: interrupts are off, and the exit has blocked NMIs.
            unsafe { I::nmi() };
        }
        if self.left.is_machine_check() {
            P::machine_check(cx);
        }
    }
}

/// What the guest had to itself.
#[derive(Debug, Default)]
struct Exchanged {
    efer: bool,
    /// The host's value, which the exit clears.
    debugctl: u64,
}

/// The host's registers that are the same whatever runs on this processor.
fn write_host<I: Instructions>(vmcs: &mut Current<I>, resident: &Resident, efer: bool) {
    let (host, msrs) = (&resident.host, &resident.msrs);
    vmcs.write(HOST_CR0, host.cr0);
    vmcs.write(HOST_CS, host.cs);
    vmcs.write(HOST_SS, host.ss);
    vmcs.write(HOST_TR, host.tr);
    vmcs.write(HOST_TR_BASE, host.tr_base);
    vmcs.write(HOST_GDTR_BASE, host.gdt_base);
    vmcs.write(HOST_IDTR_BASE, host.idt_base);
    vmcs.write(HOST_GS_BASE, msrs.gs_base);
    let [cs, esp, eip] = msrs.sysenter;
    vmcs.write(HOST_SYSENTER_CS, cs as u32);
    vmcs.write(HOST_SYSENTER_ESP, esp);
    vmcs.write(HOST_SYSENTER_EIP, eip);
    if efer {
        vmcs.write(HOST_EFER, msrs.efer);
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::*;
    use hv::backend::{BackendVcpu, Exit, FlushTlb, Groups, GuestDebug};
    use platform::hardware::Mitigations;
    use std::vec::Vec;
    use x86::{Efer, msr};

    use super::*;
    use Step::{DebugAddresses, GuestBegins, GuestEnded, IrqsOff, IrqsOn, MachineCheck, WriteMsr};

    const LOAD_HOST: Step = Step::Own("load host", 0);

    fn flushes() -> Vec<Step> {
        take_steps().into_iter().filter(|s| matches!(s, Step::Own("invept" | "invvpid", _))).collect()
    }

    #[test]
    fn the_steps_of_a_plain_entry() {
        let mut rig = Rig::new();
        rig.halt();
        take_steps();
        rig.halt();
        assert_eq!(take_steps(), [IrqsOff, GuestBegins, run(true, false), GuestEnded, IrqsOn]);
    }

    #[test]
    fn a_request_that_came_late_keeps_the_guest_out() {
        let mut rig = Rig::new();
        rig.halt();
        take_steps();
        script(|s| s.must_leave = true);
        assert_eq!(rig.run(), Exit::Interrupted);
        assert_eq!(take_steps(), [IrqsOff, IrqsOn]);
    }

    #[test]
    fn every_measure_has_its_place() {
        script(|s| {
            s.mitigations = Mitigations {
                ibpb: true,
                fill_rsb: true,
                clear_buffers: true,
                flush_l1d: true,
                ..Mitigations::default()
            }
        });
        let mut rig = Rig::new();
        let mut other = rig.another();
        rig.halt();
        take_steps();
        rig.halt();
        let measured = [GuestBegins, WriteMsr(FLUSH_CMD, 1), Step::ClearBuffers, run(true, true), GuestEnded];
        assert_eq!(middle(&take_steps()), measured);
        other.halt();
        let steps = take_steps();
        let barrier = steps.iter().position(|s| *s == WriteMsr(msr::PRED_CMD, 1)).unwrap();
        assert!(barrier < steps.iter().position(|s| *s == GuestBegins).unwrap(), "{steps:?}");
    }

    #[test]
    fn efer_is_written_only_where_the_processor_does_not_and_it_differs() {
        old_processor();
        set_msr(msr::EFER, (Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE).bits());
        let mut rig = Rig::with(crate::Options { ept: false, ..Default::default() });
        long_mode(&mut rig);
        rig.halt();
        let efer = |steps: Vec<Step>| steps.into_iter().filter(|s| matches!(s, WriteMsr(msr::EFER, _))).count();
        assert_eq!(efer(take_steps()), 0);
        rig.vcpu.registers_mut(Groups::CONTROL).efer &= !Efer::SCE.bits();
        rig.halt();
        assert_eq!(efer(take_steps()), 2);
    }

    #[test]
    fn segments_and_branch_tracing_of_the_thread_come_back() {
        set_msr(msr::DEBUGCTL, 1);
        thread(crate::instructions::HostThread { selectors: [0, 0, 0, 0x63], fs_base: 0x77, kernel_gs_base: 6 });
        let mut rig = Rig::new();
        rig.halt();
        let steps = take_steps();
        assert_eq!(rig.seen(crate::fields::HOST_FS_BASE), 0x77);
        let after = steps.iter().position(|s| *s == run(false, false)).unwrap();
        assert_eq!(steps[after + 1], WriteMsr(msr::DEBUGCTL, 1));
        rig.loses_processor();
        assert_eq!(take_steps(), [LOAD_HOST, WriteMsr(msr::KERNEL_GS_BASE, 6)]);
    }

    #[test]
    fn the_hosts_page_tables_are_followed() {
        let mut rig = Rig::new();
        for value in [0x1000, 0x2000] {
            cr3(value);
            rig.halt();
            assert_eq!(rig.seen(crate::fields::HOST_CR3), value);
        }
    }

    #[test]
    fn the_clients_breakpoints_replace_the_guests() {
        let mut rig = Rig::new();
        rig.vcpu.set_debug(GuestDebug { hardware: Some(([9, 8, 7, 6], 0x402)), ..GuestDebug::default() });
        rig.halt();
        assert!(take_steps().contains(&DebugAddresses([9, 8, 7, 6])));
        assert_eq!(rig.seen(crate::fields::GUEST_DR7), 0x402);
    }

    #[test]
    fn translations_are_forgotten_when_they_are_to_be() {
        let root = 0x7000 | 0x5e;
        let (ept, tag) = (Step::Own("invept", root), |n| Step::Own("invvpid", n));
        let mut rig = Rig::new();
        rig.halt();
        assert_eq!(flushes(), [tag(0), ept.clone()]);
        assert_eq!(rig.seen(crate::fields::VPID), 1);
        rig.halt();
        assert!(flushes().is_empty());
        rig.vcpu.flush(FlushTlb::Current);
        rig.halt();
        assert_eq!(flushes(), [tag(1)]);
        rig.vcpu.flush(FlushTlb::Physical);
        rig.halt();
        assert_eq!(flushes(), [tag(1), ept.clone()]);
        // What it left on this processor may be old when it comes back.
        for cpu in [1, 0] {
            script(|s| s.cpu = cpu);
            rig.halt();
            assert!(flushes().contains(&ept), "{cpu}");
        }
        assert_eq!(rig.seen(crate::fields::VPID), 2);
    }

    #[test]
    fn a_processor_without_tags_forgets_by_itself() {
        old_processor();
        let mut rig = Rig::with(crate::Options { ept: false, ..Default::default() });
        rig.vcpu.flush(FlushTlb::All);
        rig.halt();
        assert!(flushes().is_empty());
    }

    #[test]
    fn nmis_and_machine_checks_are_the_hosts() {
        let event = |event: u32| {
            move |s: &mut std::collections::BTreeMap<u32, u64>| {
                put(s, crate::fields::EXIT_REASON, 0);
                put(s, crate::fields::EXIT_EVENT, event);
            }
        };
        let mut rig = Rig::new();
        rig.guest(event(0x8000_0202));
        assert_eq!(rig.run(), Exit::Interrupted);
        let steps = take_steps();
        assert_eq!(steps[steps.len() - 3..], [GuestEnded, vmx("nmi"), IrqsOn]);
        rig.guest(event(0x8000_0312));
        assert_eq!(rig.run(), Exit::Interrupted);
        let steps = take_steps();
        assert_eq!(steps[steps.len() - 3..], [GuestEnded, MachineCheck, IrqsOn]);
    }
}
