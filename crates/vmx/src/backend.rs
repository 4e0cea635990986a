//! The back end: what all guests share.
use core::{
    marker::PhantomData,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use hardware::{control::CR0_FREE, native::Native};
use hv::backend::{Backend, Translation};
use platform::{
    Atomic, Hardware, MaySleep, OutOfMemory, Shared,
    hardware::{Mitigations, Processors, Refusal},
};
use x86::{Cr0, Features};

use crate::{IntelVcpu, detect::Processor, instructions::Instructions, local::Locals, permissions::MsrMap};

/// What the operator chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Nested paging where the processor has it; else shadow paging.
    pub ept: bool,
    /// Virtual NMIs where the processor has them.
    pub vnmi: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { ept: true, vnmi: true }
    }
}

/// What all vCPUs share.
pub(crate) struct Common<P: Hardware> {
    pub(crate) processor: Processor,
    pub(crate) nested: bool,
    /// Secondary controls.
    pub(crate) secondary: u32,
    pub(crate) mitigations: Mitigations,
    pub(crate) msr_map: MsrMap<P::Frames>,
    pub(crate) locals: Locals<P::Frames>,
    next_vcpu: AtomicU64,
}

impl<P: Hardware> Common<P> {
    /// Bits of CR0 that the guest changes without an exit. Shadow tables depend on CR0.WP.
    pub(crate) fn cr0_free(&self) -> u64 {
        CR0_FREE | if self.nested { Cr0::WP.bits() } else { 0 }
    }

    /// A number that no other vCPU has, not 0.
    pub(crate) fn number(&self) -> u64 {
        self.next_vcpu.fetch_add(1, Relaxed)
    }
}

/// VT-x on the host `P`; `I` is its processor.
pub struct Intel<P: Hardware, I = Native> {
    common: Shared<Common<P>>,
    instructions: PhantomData<fn() -> I>,
}

impl<P: Hardware, I> Clone for Intel<P, I> {
    fn clone(&self) -> Self {
        Self { common: self.common.clone(), instructions: PhantomData }
    }
}

impl<P: Hardware, I: Instructions> Intel<P, I> {
    /// Looks at the processor, and allocates what each of the host's needs. Nothing is switched on yet.
    pub fn new(options: Options, cx: &MaySleep) -> Result<Self, Refusal> {
        let mut processor = Processor::detect::<I>()?;
        processor.virtual_nmis &= options.vnmi;
        let nested = options.ept && processor.nested_paging;
        let common = Common {
            nested,
            secondary: processor.secondary(nested),
            mitigations: P::mitigations(),
            msr_map: MsrMap::new(processor.below_4g, cx)?,
            locals: Locals::new(P::cpus(), &processor, cx)?,
            next_vcpu: AtomicU64::new(1),
            processor,
        };
        Ok(Self { common: Shared::try_new(common)?, instructions: PhantomData })
    }

    /// Whether guests get nested paging.
    pub fn nested(&self) -> bool {
        self.common.nested
    }
}

impl<P: Hardware, I: Instructions> Processors for Intel<P, I> {
    fn enable(&self, cpu: usize, cx: &Atomic) -> Result<(), Refusal> {
        self.common.locals.enable::<P, I>(cpu, &self.common.processor, cx)
    }

    fn disable(&self, cpu: usize, cx: &Atomic) {
        self.common.locals.disable::<P, I>(cpu, cx);
    }
}

impl<P: Hardware, I: Instructions> Backend for Intel<P, I> {
    type Platform = P;
    type Vcpu = IntelVcpu<P, I>;
    type Vm = ();
    const NAME: &'static str = "VT-x";

    fn translation(&self) -> Translation {
        if self.common.nested { Translation::Nested(mmu::shadow::EntryFormat::Ept) } else { Translation::Shadow }
    }

    fn features(&self) -> Features {
        self.common.processor.offer.features(self.common.nested)
    }

    fn xcr0(&self) -> u64 {
        self.common.processor.offer.guest_xcr0()
    }

    fn fast_strings(&self) -> bool {
        self.common.processor.offer.fast_strings
    }

    fn arch_capabilities(&self) -> u64 {
        self.common.processor.arch_capabilities
    }

    fn create_vm(&self, _cx: &MaySleep) -> Result<(), OutOfMemory> {
        Ok(())
    }

    fn create_vcpu(&self, _vm: &(), _index: usize, cx: &MaySleep) -> Result<IntelVcpu<P, I>, OutOfMemory> {
        IntelVcpu::new(self.common.clone(), cx)
    }
}
