//! The back end: what all guests share.
use core::{
    marker::PhantomData,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use hardware::native::Native;
use hv::backend::{Backend, Translation};
use platform::{
    Atomic, Hardware, MaySleep, OutOfMemory, Shared,
    hardware::{Mitigations, Processors, Refusal},
};
use x86::Features;

use crate::{AmdVcpu, detect::Processor, instructions::Instructions, local::Locals, permissions::Permissions};

/// What the operator chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Nested paging where the processor has it; else shadow paging.
    pub npt: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { npt: true }
    }
}

/// What all vCPUs share.
pub(crate) struct Common<P: Hardware> {
    pub(crate) processor: Processor,
    pub(crate) nested: bool,
    pub(crate) mitigations: Mitigations,
    pub(crate) permissions: Permissions<P::Frames>,
    pub(crate) locals: Locals<P::Frames>,
    next_vcpu: AtomicU64,
}

impl<P: Hardware> Common<P> {
    /// A number that no other vCPU has, not 0.
    pub(crate) fn number(&self) -> u64 {
        self.next_vcpu.fetch_add(1, Relaxed)
    }
}

/// AMD-V on the host `P`; `I` is its processor.
pub struct Amd<P: Hardware, I = Native> {
    common: Shared<Common<P>>,
    instructions: PhantomData<fn() -> I>,
}

impl<P: Hardware, I> Clone for Amd<P, I> {
    fn clone(&self) -> Self {
        Self { common: self.common.clone(), instructions: PhantomData }
    }
}

impl<P: Hardware, I: Instructions> Amd<P, I> {
    /// Looks at the processor, and allocates what each of the host's needs. Nothing is switched on yet.
    pub fn new(options: Options, cx: &MaySleep) -> Result<Self, Refusal> {
        let (processor, mitigations) = (Processor::detect::<I>()?, P::mitigations());
        let common = Common {
            nested: options.npt && processor.nested_paging,
            mitigations,
            permissions: Permissions::new(cx)?,
            locals: Locals::new(P::cpus(), processor.asids, cx)?,
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

impl<P: Hardware, I: Instructions> Processors for Amd<P, I> {
    fn enable(&self, cpu: usize, _cx: &Atomic) -> Result<(), Refusal> {
        self.common.locals.enable::<I>(cpu, &self.common.processor)
    }

    fn disable(&self, cpu: usize, _cx: &Atomic) {
        self.common.locals.disable::<I>(cpu);
    }
}

impl<P: Hardware, I: Instructions> Backend for Amd<P, I> {
    type Platform = P;
    type Vcpu = AmdVcpu<P, I>;
    type Vm = ();
    const NAME: &'static str = "AMD-V";

    fn translation(&self) -> Translation {
        if self.common.nested { Translation::Nested(mmu::shadow::EntryFormat::X86) } else { Translation::Shadow }
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

    fn create_vm(&self, _cx: &MaySleep) -> Result<(), OutOfMemory> {
        Ok(())
    }

    fn create_vcpu(&self, _vm: &(), _index: usize, cx: &MaySleep) -> Result<AmdVcpu<P, I>, OutOfMemory> {
        AmdVcpu::new(self.common.clone(), cx)
    }
}
