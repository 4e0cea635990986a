//! What each processor of the host keeps for its guests, and how it is switched on and off.
use hardware::{per_cpu::PerCpu, tags::Tags};
use platform::{
    MaySleep, OutOfMemory,
    hardware::{Frames, Refusal},
};
use x86::{Efer, msr};

use crate::{detect::Processor, instructions::Instructions};

/// The ratio of time-stamp counters (APM vol. 2, 15.30.5): 8 bits, and 32 behind the point.
pub const TSC_RATIO: u32 = 0xc000_0104;
/// The same rate.
pub const SAME_RATE: u64 = 1 << 32;

/// What is on a processor.
#[derive(Debug)]
pub struct Resident {
    /// Address-space identifiers.
    pub asids: Tags,
    /// The vCPU that ran last, 0 for none. The processor may have parts of its control block in a cache.
    pub vcpu: u64,
    /// The ratio of time-stamp counters in force.
    pub tsc_ratio: u64,
    /// The host's TSC_AUX, if there is one.
    pub tsc_aux: Option<u64>,
    /// Host-physical address of the page for the host's segment state and system-call registers.
    pub host_state: u64,
}

/// One processor.
struct Local<F> {
    /// Where VMRUN keeps the host's state.
    save_area: F,
    /// Named by [`Resident::host_state`].
    _host_state: F,
    resident: Resident,
}

/// All processors that the host can ever have.
pub struct Locals<F>(PerCpu<Local<F>>);

impl<F: Frames> Locals<F> {
    /// For `cpus` processors with `asids` identifiers each; all switched off.
    pub fn new(cpus: usize, asids: u32, cx: &MaySleep) -> Result<Self, OutOfMemory> {
        PerCpu::new(cpus, || {
            let (save_area, host_state) = (F::new(1, false, cx)?, F::new(1, false, cx)?);
            let resident = Resident {
                asids: Tags::new(asids),
                vcpu: 0,
                tsc_ratio: SAME_RATE,
                tsc_aux: None,
                host_state: host_state.hpa(),
            };
            Ok(Local { save_area, _host_state: host_state, resident })
        })
        .map(Self)
    }

    /// What is on the processor that runs this, number `cpu`, if it is switched on. Interrupts are off.
    #[inline]
    pub fn here<R>(&self, cpu: usize, f: impl FnOnce(&mut Resident) -> R) -> Option<R> {
        self.0.here(cpu, |local| f(&mut local.resident))
    }

    /// Switches SVM on, on this processor, which is as all others.
    pub fn enable<I: Instructions>(&self, cpu: usize, processor: &Processor) -> Result<(), Refusal> {
        self.0.enable(cpu, |Local { save_area, resident, .. }| {
            // SAFETY: the processor has SVM, so it has these registers, and nobody else uses them: SVME was clear.
            unsafe {
                let efer = I::read_msr(msr::EFER);
                if efer & Efer::SVME.bits() != 0 {
                    return Err(Refusal::AlreadyInUse);
                }
                I::write_msr(msr::EFER, efer | Efer::SVME.bits());
                I::write_msr(msr::VM_HSAVE_PA, save_area.hpa());
                if processor.tsc_ratio {
                    I::write_msr(TSC_RATIO, SAME_RATE);
                }
                resident.tsc_aux = processor.offer.tsc_aux.then(|| I::read_msr(msr::TSC_AUX));
            }
            // Whatever happened while it was off: nothing that was known of its TLB and caches counts.
            resident.asids.start_over();
            resident.vcpu = 0;
            resident.tsc_ratio = SAME_RATE;
            Ok(())
        })
    }

    /// Switches it off.
    pub fn disable<I: Instructions>(&self, cpu: usize) {
        // SAFETY: `enable` has set both, and no guest runs.
        self.0.disable(cpu, |_| unsafe {
            I::write_msr(msr::VM_HSAVE_PA, 0);
            let efer = I::read_msr(msr::EFER);
            I::write_msr(msr::EFER, efer & !Efer::SVME.bits());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Recorder, Step, TestFrames, script, take_steps};

    fn locals() -> Locals<TestFrames> {
        Locals::new(2, 16, &MaySleep::at_entry()).unwrap()
    }

    #[test]
    fn svm_goes_on_and_off() {
        let locals = locals();
        assert!(locals.here(0, |_| ()).is_none());
        locals.enable::<Recorder>(0, &Processor::default()).unwrap();
        let svme = Efer::SVME.bits();
        let save_area = locals.0.here(0, |local| local.save_area.hpa()).unwrap();
        assert_eq!(take_steps(), [Step::WriteMsr(msr::EFER, svme), Step::WriteMsr(msr::VM_HSAVE_PA, save_area)]);
        assert_eq!(locals.here(0, |_| ()), Some(()));
        locals.disable::<Recorder>(0);
        assert_eq!(take_steps(), [Step::WriteMsr(msr::VM_HSAVE_PA, 0), Step::WriteMsr(msr::EFER, 0)]);
        // Once is enough.
        locals.disable::<Recorder>(0);
        assert!(take_steps().is_empty() && locals.here(0, |_| ()).is_none());
    }

    #[test]
    fn a_processor_in_use_is_left_alone() {
        script(|s| s.msrs.insert(msr::EFER, Efer::SVME.bits()));
        assert_eq!(locals().enable::<Recorder>(0, &Processor::default()), Err(Refusal::AlreadyInUse));
        assert!(take_steps().is_empty());
    }

    #[test]
    fn identifiers_from_before_do_not_count_after_a_restart() {
        let locals = locals();
        locals.enable::<Recorder>(0, &Processor::default()).unwrap();
        let (asid, _) = locals.here(0, |resident| resident.asids.give()).unwrap();
        locals.disable::<Recorder>(0);
        locals.enable::<Recorder>(0, &Processor::default()).unwrap();
        let given = locals.here(0, |resident| {
            let (_, flush) = resident.asids.give();
            (flush, resident.asids.is_current(asid), resident.vcpu)
        });
        assert_eq!(given, Some((true, false, 0)));
    }

    #[test]
    fn a_processor_that_nobody_counted_is_refused() {
        assert_eq!(locals().enable::<Recorder>(2, &Processor::default()), Err(Refusal::NotThere));
    }
}
