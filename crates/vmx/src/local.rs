//! What each processor of the host keeps for its guests, and how it is switched on and off.
use core::pin::Pin;

use hardware::{per_cpu::PerCpu, tags::Tags};
use platform::{
    Atomic, Hardware, MaySleep, OutOfMemory,
    hardware::{Frames, Refusal},
};
use x86::{Cr4, msr};

use crate::{
    detect::{LOCKED, Processor, VMXON_ALLOWED},
    instructions::{HostProcessor, Instructions},
    region::{self, ActiveList, NOWHERE, Node},
    vmcs::Current,
};

/// VPIDs, the host's included.
const VPIDS: u32 = 1 << 16;

/// MSRs of the host that are the same whatever runs on the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMsrs {
    /// TSC_AUX, if there is one.
    pub tsc_aux: Option<u64>,
    /// GS base, which is the kernel's own.
    pub gs_base: u64,
    /// EFER.
    pub efer: u64,
    /// STAR, LSTAR, SFMASK.
    pub syscall: [u64; 3],
    /// SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP.
    pub sysenter: [u64; 3],
}

/// The MSRs of [`HostMsrs::syscall`].
const SYSCALL: [u32; 3] = [msr::STAR, msr::LSTAR, msr::SFMASK];

impl HostMsrs {
    fn read<I: Instructions>(tsc_aux: bool) -> Self {
        // SAFETY: every processor with long mode has these, and TSC_AUX if it is said to.
        let read = |index| unsafe { I::read_msr(index) };
        Self {
            tsc_aux: tsc_aux.then(|| read(msr::TSC_AUX)),
            gs_base: read(msr::GS_BASE),
            efer: read(msr::EFER),
            syscall: SYSCALL.map(read),
            sysenter: [msr::SYSENTER_CS, msr::SYSENTER_ESP, msr::SYSENTER_EIP].map(read),
        }
    }
}

/// What is on a processor.
#[derive(Debug)]
pub struct Resident {
    /// Tags of translations.
    pub tags: Tags,
    /// The vCPU that ran last, 0 for none.
    pub vcpu: u64,
    /// The host's registers.
    pub host: HostProcessor,
    /// Its MSRs.
    pub msrs: HostMsrs,
    /// Control structures that are active here.
    active: ActiveList,
    /// Address of the current one, 0 for none.
    current: u64,
}

impl Resident {
    /// Makes the control structure of `node` the current one of this processor, number `cpu`. None: it is active on another.
    pub fn current<I: Instructions>(&mut self, node: Pin<&Node>, cpu: usize) -> Option<Current<I>> {
        let (at, hpa) = (node.cpu(), node.hpa());
        if at != cpu && at != NOWHERE {
            return None;
        }
        // SAFETY: VMX is on and interrupts are off where a `Resident` can be had, which is here only if `node` is active
        // nowhere or here. Its owner has it released before it goes.
        unsafe {
            if at == NOWHERE {
                I::vmclear(hpa);
                self.active.insert(node, cpu);
            }
            if self.current != hpa {
                I::vmptrld(hpa);
                self.current = hpa;
            }
            Some(Current::new())
        }
    }

    /// Whether the control structure of `node` is the current one of this processor, number `cpu`, and its vCPU, number `vcpu`, was the
    /// last that ran here.
    #[inline]
    pub fn has(&self, node: Pin<&Node>, cpu: usize, vcpu: u64) -> bool {
        node.cpu() == cpu && self.current == node.hpa() && self.vcpu == vcpu
    }

    /// Clears the control structure of `node`, if it is active on this processor, number `cpu`.
    pub fn release<I: Instructions>(&mut self, node: &Node, cpu: usize) {
        if node.cpu() != cpu {
            return;
        }
        // SAFETY: as in `current`; it is in the list of the processor that it names.
        unsafe {
            I::vmclear(node.hpa());
            self.active.remove(node);
        }
        if self.current == node.hpa() {
            self.current = 0;
        }
    }
}

/// One processor.
struct Local<F> {
    /// VMXON's.
    region: F,
    resident: Resident,
}

/// All processors that the host can ever have.
pub struct Locals<F>(PerCpu<Local<F>>);

impl<F: Frames> Locals<F> {
    /// For `cpus` processors as `processor`; all switched off.
    pub fn new(cpus: usize, processor: &Processor, cx: &MaySleep) -> Result<Self, OutOfMemory> {
        PerCpu::new(cpus, || {
            let region = F::new(1, processor.below_4g, cx)?;
            region::prepare(&region, processor.revision);
            let resident = Resident {
                tags: Tags::new(VPIDS),
                vcpu: 0,
                host: HostProcessor::default(),
                msrs: HostMsrs::default(),
                active: ActiveList::default(),
                current: 0,
            };
            Ok(Local { region, resident })
        })
        .map(Self)
    }

    /// What is on the processor that runs this, if it is switched on. Interrupts are off.
    #[inline]
    pub fn with<P: Hardware, R>(&self, cx: &Atomic, f: impl FnOnce(&mut Resident, usize) -> R) -> Option<R> {
        self.0.with::<P, _>(cx, |local, cpu| f(&mut local.resident, cpu))
    }

    /// The same, by who knows its number.
    #[inline]
    pub fn here<R>(&self, cpu: usize, f: impl FnOnce(&mut Resident) -> R) -> Option<R> {
        self.0.here(cpu, |local| f(&mut local.resident))
    }

    /// Has the control structure of `node` cleared where it is active, if that is another processor than this, or `here` too.
    /// Interrupts are on, and preemption off unless `here`.
    pub fn recall<P: Hardware, I: Instructions>(&self, node: Pin<&Node>, here: bool) {
        let at = node.cpu();
        if at == NOWHERE || !here && at == P::cpu(&Atomic::at_entry()) {
            return;
        }
        // If that processor is switched off meanwhile, that clears it.
        P::on_cpu(at, &|cx| {
            self.with::<P, _>(cx, |resident, cpu| resident.release::<I>(&node, cpu));
        });
    }

    /// Switches VMX on, on this processor, which is as all others.
    pub fn enable<P: Hardware, I: Instructions>(
        &self,
        cpu: usize,
        processor: &Processor,
        cx: &Atomic,
    ) -> Result<(), Refusal> {
        self.0.enable(cpu, |Local { region, resident }| {
            if I::cr4() & Cr4::VMXE.bits() != 0 {
                return Err(Refusal::AlreadyInUse);
            }
            // SAFETY: the processor has VMX, so it has this register; only once can it be written.
            unsafe {
                let control = I::read_msr(msr::FEATURE_CONTROL);
                if control & LOCKED == 0 {
                    I::write_msr(msr::FEATURE_CONTROL, control | LOCKED | VMXON_ALLOWED);
                } else if control & VMXON_ALLOWED == 0 {
                    return Err(Refusal::DisabledByFirmware);
                }
            }
            P::change_cr4(Cr4::VMXE.bits(), true, cx);
            // SAFETY: CR4 and the feature control allow it, and the region is this processor's own.
            if !unsafe { I::vmxon(region.hpa()) } {
                P::change_cr4(Cr4::VMXE.bits(), false, cx);
                return Err(Refusal::AlreadyInUse);
            }
            // Whatever happened while it was off: nothing that was known of its TLB counts.
            resident.tags.start_over();
            (resident.vcpu, resident.current) = (0, 0);
            // SAFETY: interrupts are off.
            resident.host = unsafe { I::host_processor() };
            resident.msrs = HostMsrs::read::<I>(processor.offer.tsc_aux);
            Ok(())
        })
    }

    /// Switches it off. Control structures that were active here can be used elsewhere afterwards.
    pub fn disable<P: Hardware, I: Instructions>(&self, cpu: usize, cx: &Atomic) {
        self.0.disable(cpu, |Local { resident, .. }| {
            // SAFETY: what is in the list is there, and each turn takes one out.
            while let Some(node) = unsafe { resident.active.any() } {
                resident.release::<I>(node, cpu);
            }
            // SAFETY: `enable` has switched it on, no guest runs, and nothing is active any more.
            unsafe { I::vmxoff() };
            P::change_cr4(Cr4::VMXE.bits(), false, cx);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        region::Region,
        testing::{Recorder, Step, TestFrames, TestHost, cr4, script, set_msr, take_steps, vmx},
    };

    const VMXE: u64 = 1 << 13;

    fn locals() -> Locals<TestFrames> {
        Locals::new(2, &Processor::default(), &MaySleep::at_entry()).unwrap()
    }

    fn enable(locals: &Locals<TestFrames>, cpu: usize) -> Result<(), Refusal> {
        script(|s| s.cpu = cpu);
        locals.enable::<TestHost, Recorder>(cpu, &Processor::default(), &Atomic::at_entry())
    }

    #[test]
    fn vmx_goes_on_and_off() {
        let (locals, cx) = (locals(), Atomic::at_entry());
        assert!(locals.with::<TestHost, _>(&cx, |_, _| ()).is_none());
        enable(&locals, 0).unwrap();
        assert_eq!(take_steps(), [Step::ChangeCr4(VMXE, true), vmx("vmxon")]);
        assert_eq!(locals.with::<TestHost, _>(&cx, |_, cpu| cpu), Some(0));
        locals.disable::<TestHost, Recorder>(0, &cx);
        assert_eq!(take_steps(), [vmx("vmxoff"), Step::ChangeCr4(VMXE, false)]);
        // Once is enough.
        locals.disable::<TestHost, Recorder>(0, &cx);
        assert!(take_steps().is_empty() && locals.with::<TestHost, _>(&cx, |_, _| ()).is_none());
    }

    #[test]
    fn a_processor_in_use_is_left_alone() {
        cr4(VMXE);
        assert_eq!(enable(&locals(), 0), Err(Refusal::AlreadyInUse));
        assert!(take_steps().is_empty());
    }

    #[test]
    fn a_register_that_nobody_has_locked_is_locked_with_vmx_allowed() {
        set_msr(msr::FEATURE_CONTROL, 0);
        enable(&locals(), 0).unwrap();
        assert_eq!(take_steps()[0], Step::WriteMsr(msr::FEATURE_CONTROL, 5));
        set_msr(msr::FEATURE_CONTROL, 1);
        assert_eq!(enable(&locals(), 1), Err(Refusal::DisabledByFirmware));
    }

    #[test]
    fn a_structure_moves_only_after_it_was_cleared() {
        let (locals, cx) = (locals(), Atomic::at_entry());
        let region = Region::<TestFrames>::new(1, false, &MaySleep::at_entry()).unwrap();
        enable(&locals, 0).unwrap();
        enable(&locals, 1).unwrap();
        let load = |cpu| {
            script(|s| s.cpu = cpu);
            locals.with::<TestHost, _>(&cx, |r, cpu| r.current::<Recorder>(region.node(), cpu).is_some()).unwrap()
        };
        take_steps();
        assert!(load(0));
        assert_eq!(take_steps(), [vmx("vmclear"), vmx("vmptrld")]);
        assert!(load(0));
        assert!(take_steps().is_empty());
        assert!(!load(1));
        locals.recall::<TestHost, Recorder>(region.node(), false);
        assert_eq!(take_steps(), [Step::OnCpu(0), vmx("vmclear")]);
        assert!(load(1));
        // The other processor goes.
        locals.disable::<TestHost, Recorder>(1, &cx);
        assert_eq!(region.node().cpu(), NOWHERE);
        assert!(load(0));
        locals.recall::<TestHost, Recorder>(region.node(), false);
        assert_eq!(region.node().cpu(), 0);
        locals.recall::<TestHost, Recorder>(region.node(), true);
        assert_eq!(region.node().cpu(), NOWHERE);
    }

    #[test]
    fn a_processor_that_nobody_counted_is_refused() {
        assert_eq!(enable(&locals(), 2), Err(Refusal::NotThere));
    }
}
