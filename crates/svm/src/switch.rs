//! The crossing: from the host to the guest and back, with interrupts off.
use hardware::{keep::Host, predictions};
use platform::{Atomic, Hardware};
use x86::debug::{DR7_ENABLED, DR7_FIXED};

use crate::{
    backend::Common,
    breakpoints,
    exit::code,
    instructions::Instructions,
    local::{Resident, TSC_RATIO},
    vcpu::Guest,
    vmcb::{clean, tlb_control},
};

impl<P: Hardware, I: Instructions> Guest<P, I> {
    /// Runs the guest once, on this processor, number `cpu`. Interrupts are off. False: this processor is switched off.
    pub(crate) fn cross(&mut self, common: &Common<P>, cpu: usize, cx: &Atomic) -> bool {
        let crossed = common.locals.here(cpu, |resident| {
            self.take_processor(common, resident, cpu);
            let host = Host { xcr0: common.processor.offer.xcr0, tsc_aux: resident.tsc_aux };
            P::guest_begins(cx);
            // SAFETY: SVM is switched on, which is what `here` has looked at. Whatever is the guest's from here to `stgi` is
            // the host's again by then; the control block intercepts what could reach the host.
            unsafe {
                I::clgi();
                let dr7 = self.block.get().save.dr7;
                let kept = host.load_guest::<I>(&self.state, dr7, || {
                    breakpoints::set::<I>(dr7, &self.asked.debug_addresses(&self.state));
                });
                if common.mitigations.clear_buffers {
                    I::clear_buffers();
                }
                let gpr = &mut self.state.gpr;
                I::run(self.block.hpa(), resident.host_state, gpr, &common.mitigations);
                if self.block.get().save.dr7 & DR7_ENABLED != 0 {
                    I::set_dr7(DR7_FIXED);
                }
                host.load_host::<I>(&mut self.state, kept);
                I::stgi();
            }
            P::guest_ended(cx);
        });
        if crossed.is_none() {
            return false;
        }
        let control = &mut self.block.get_mut().control;
        control.tlb_control = tlb_control::NOTHING;
        control.clean = if common.processor.clean_bits { clean::ALL } else { 0 };
        if control.exit_code == code::MC {
            P::machine_check(cx);
        }
        true
    }

    /// Makes this vCPU the one whose translations, predictions and control block are on the processor.
    fn take_processor(&mut self, common: &Common<P>, resident: &mut Resident, cpu: usize) {
        let moved = core::mem::replace(&mut self.last_cpu, cpu) != cpu;
        let ratio = self.tsc_ratio();
        let control = &mut self.block.get_mut().control;
        if predictions::take_over::<I>(&mut resident.vcpu, self.number, &common.mitigations) || moved {
            control.clean = 0;
        }
        let flush = core::mem::take(&mut self.flush);
        let current = !moved && resident.asids.is_current(self.asid);
        if current && flush && common.processor.flush_by_asid {
            control.tlb_control = tlb_control::THIS_ASID;
        } else if !current || flush {
            let (asid, all) = resident.asids.give();
            self.asid = asid;
            control.asid = asid.number;
            control.clean &= !clean::ASID;
            control.tlb_control = if all { tlb_control::EVERYTHING } else { tlb_control::NOTHING };
        }
        if common.processor.tsc_ratio && resident.tsc_ratio != ratio {
            resident.tsc_ratio = ratio;
            // SAFETY: the register exists; it only concerns guests.
            unsafe { I::write_msr(TSC_RATIO, ratio) };
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::*;
    use hv::backend::{BackendVcpu, Exit, FlushTlb, Groups, GuestDebug};
    use platform::hardware::Mitigations;
    use x86::{Cr4, msr};

    use super::*;
    use Step::*;

    #[test]
    fn the_steps_of_a_plain_entry() {
        let mut rig = Rig::new();
        rig.enter(Exit::Hlt { len: 0 });
        assert_eq!(take_steps(), [IrqsOff, GuestBegins, CLGI, run(&Mitigations::default()), STGI, GuestEnded, IrqsOn]);
    }

    #[test]
    fn a_request_that_came_late_keeps_the_guest_out() {
        let mut rig = Rig::new();
        rig.requests.store(1, core::sync::atomic::Ordering::SeqCst);
        assert_eq!(rig.run(), Exit::Interrupted);
        assert_eq!(take_steps(), [IrqsOff, IrqsOn]);
        rig.requests.store(0, core::sync::atomic::Ordering::SeqCst);
        script(|s| s.must_leave = true);
        assert_eq!(rig.run(), Exit::Interrupted);
        assert_eq!(take_steps(), [IrqsOff, IrqsOn]);
    }

    #[test]
    fn every_measure_has_its_place() {
        let all =
            Mitigations { ibpb: true, fill_rsb: true, clear_buffers: true, flush_l1d: false, untrain_returns: true };
        script(|s| s.mitigations = all);
        let mut rig = Rig::new();
        let mut other = rig.another();
        rig.enter(Exit::Hlt { len: 0 });
        let run = [CLGI, ClearBuffers, run(&all), STGI];
        // Nobody was there before.
        assert_eq!(middle(&take_steps()), run);
        rig.enter(Exit::Hlt { len: 0 });
        assert_eq!(middle(&take_steps()), run);
        other.enter(Exit::Hlt { len: 0 });
        let steps = take_steps();
        let barrier = steps.iter().position(|s| *s == WriteMsr(msr::PRED_CMD, 1)).unwrap();
        assert!(barrier < steps.iter().position(|s| *s == CLGI).unwrap(), "{steps:?}");
        rig.enter(Exit::Hlt { len: 0 });
        assert!(take_steps().contains(&WriteMsr(msr::PRED_CMD, 1)));
    }

    #[test]
    fn registers_that_vmrun_leaves_are_the_hosts_outside() {
        let mut rig = Rig::new();
        {
            let state = rig.vcpu.registers_mut(Groups::ALL);
            state.cr4 |= Cr4::OSXSAVE.bits();
            (state.xcr0, state.tsc_aux) = (3, 5);
            (state.dr, state.dr7) = ([1, 2, 3, 4], 0x401);
        }
        rig.enter(Exit::Hlt { len: 0 });
        assert_eq!(
            middle(&take_steps()),
            [
                CLGI,
                DebugAddresses([1, 2, 3, 4]),
                set_dr7(0x401),
                SetXcr0(3),
                WriteMsr(msr::TSC_AUX, 5),
                run(&Mitigations::default()),
                set_dr7(DR7_FIXED),
                WriteMsr(msr::TSC_AUX, 0),
                SetXcr0(7),
                STGI
            ]
        );
    }

    #[test]
    fn a_guest_that_changes_xcr0_unseen_changes_nothing_of_the_hosts() {
        let mut rig = Rig::new();
        {
            let state = rig.vcpu.registers_mut(Groups::CONTROL);
            state.cr4 |= Cr4::OSXSAVE.bits();
            state.xcr0 = 7;
        }
        rig.exit_with(|vmcb| {
            script(|s| s.xcr0 = 3);
            vmcb.control.exit_code = code::HLT;
        });
        rig.run();
        assert!(take_steps().contains(&SetXcr0(7)));
        assert_eq!((rig.vcpu.registers(Groups::CONTROL).xcr0, script(|s| s.xcr0)), (3, 7));
    }

    #[test]
    fn the_clients_breakpoints_replace_the_guests() {
        let mut rig = Rig::new();
        rig.vcpu.set_debug(GuestDebug { hardware: Some(([9, 8, 7, 6], 0x402)), ..GuestDebug::default() });
        rig.enter(Exit::Hlt { len: 0 });
        let around = [set_dr7(0x402), run(&Mitigations::default()), set_dr7(DR7_FIXED)];
        let steps = take_steps();
        assert!(steps.contains(&DebugAddresses([9, 8, 7, 6])) && steps.windows(3).any(|steps| steps == around));
        assert_eq!(rig.seen().save.dr7, 0x402);
    }

    #[test]
    fn identifiers_change_with_flushes_and_processors() {
        let mut rig = Rig::new();
        rig.enter(Exit::Hlt { len: 0 });
        assert_eq!((rig.seen().control.asid, rig.seen().control.tlb_control), (1, tlb_control::EVERYTHING));
        rig.enter(Exit::Hlt { len: 0 });
        assert_eq!((rig.seen().control.asid, rig.seen().control.tlb_control), (1, tlb_control::NOTHING));
        // No flushes by ASID: a new one.
        rig.vcpu.flush(FlushTlb::Physical);
        rig.enter(Exit::Hlt { len: 0 });
        assert_eq!((rig.seen().control.asid, rig.seen().control.tlb_control), (2, tlb_control::NOTHING));
        script(|s| s.cpu = 1);
        rig.enter(Exit::Hlt { len: 0 });
        assert_eq!((rig.seen().control.asid, rig.seen().control.tlb_control), (1, tlb_control::EVERYTHING));
        script(|s| s.cpu = 0);
        rig.enter(Exit::Hlt { len: 0 });
        assert_eq!((rig.seen().control.asid, rig.seen().control.tlb_control), (3, tlb_control::NOTHING));
    }

    #[test]
    fn a_processor_that_can_flushes_one_address_space() {
        svm_features(1 << 6);
        let mut rig = Rig::new();
        rig.enter(Exit::Hlt { len: 0 });
        rig.vcpu.flush(FlushTlb::Page(0x1000));
        rig.enter(Exit::Hlt { len: 0 });
        assert_eq!((rig.seen().control.asid, rig.seen().control.tlb_control), (1, tlb_control::THIS_ASID));
        rig.enter(Exit::Hlt { len: 0 });
        assert_eq!(rig.seen().control.tlb_control, tlb_control::NOTHING);
    }

    #[test]
    fn the_cache_of_the_control_block_is_used_only_where_it_is() {
        svm_features(1 << 5);
        let mut rig = Rig::new();
        let mut other = rig.another();
        rig.enter(Exit::Hlt { len: 0 });
        assert_eq!(rig.seen().control.clean, 0);
        rig.enter(Exit::Hlt { len: 0 });
        assert_eq!(rig.seen().control.clean, clean::ALL);
        rig.vcpu.registers_mut(Groups::CONTROL).cr2 = 0x1000;
        rig.enter(Exit::Hlt { len: 0 });
        assert_eq!(rig.seen().control.clean, clean::ALL & !clean::CR2);
        other.enter(Exit::Hlt { len: 0 });
        rig.enter(Exit::Hlt { len: 0 });
        assert_eq!(rig.seen().control.clean & !clean::ASID, 0);
    }

    #[test]
    fn a_machine_check_is_the_hosts() {
        let mut rig = Rig::new();
        rig.exit_with(|vmcb| vmcb.control.exit_code = code::MC);
        assert_eq!(rig.run(), Exit::Interrupted);
        let steps = take_steps();
        assert_eq!(&steps[steps.len() - 3..], [GuestEnded, MachineCheck, IrqsOn]);
    }

    #[test]
    fn a_processor_that_was_switched_off_runs_nothing() {
        let mut rig = Rig::new();
        script(|s| s.cpu = 2);
        assert_eq!(rig.run(), Exit::FailEntry { reason: 0 });
        assert!(!take_steps().contains(&CLGI));
    }
}
