//! A guest processor: what its descriptor holds, and the state that the thread inside its ioctl owns.
mod apic;
mod async_pf;
mod clock;
mod debug;
mod device_attr;
mod events;
mod fpu;
mod inject;
mod ioctl;
mod mmu;
mod mp_state;
mod msr;
mod nested_state;
mod para_2007;
mod regs;
pub mod request;
mod run;
mod run_page;
mod shared;
mod smm;
mod state_ioctl;
mod sync_regs;
mod tpr;
mod vcpu_events;

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use platform::{Hva, MaySleep, Mutex, Platform, Shared, fallible::try_box, lock::rank};
use x86::Features;

use crate::{
    Errno, Vm,
    backend::{Backend, BackendVcpu, Groups, GuestDebug},
    cpuid::Cpuid,
    emulation::{Glance, Transaction},
    msr::Msrs,
    vm::VmShared,
};
pub(crate) use apic::LocalApic;
use async_pf::AsyncPf;
pub(crate) use clock::{PvClock, Rate, Tsc};
pub(crate) use debug::KNOWN as GUEST_DEBUG;
pub(crate) use events::Events;
pub(crate) use mmu::{VcpuMmu, reread_pdptes};
pub(crate) use mp_state::MpState;
pub(crate) use msr::MAX_MSRS;
#[cfg(test)]
pub(crate) use msr::is_active as is_active_msr;
pub(crate) use nested_state::SIZE as NESTED_STATE_SIZE;
pub(crate) use run::{Run, Step};
pub(crate) use run_page::{PIO_DATA, RunPage};
pub(crate) use shared::VcpuShared;
pub(crate) use smm::Smm;
pub(crate) use tpr::{Tpr, TprAccess};

/// A guest processor. It keeps its VM alive.
pub struct Vcpu<B: Backend>(Shared<Processor<B>>);

impl<B: Backend> Clone for Vcpu<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend> core::fmt::Debug for Vcpu<B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Vcpu").field("id", &self.id()).finish_non_exhaustive()
    }
}

struct Processor<B: Backend> {
    /// Dropped before the VM, whose parts it uses.
    inner: Mutex<B::Platform, Box<Inner<B>>>,
    vm: Vm<B>,
    index: usize,
    /// Address of the shared pages; 0 until packaging has said it.
    run_pages: AtomicU64,
    signal_mask: AtomicU64,
    has_signal_mask: AtomicBool,
}

impl<B: Backend> Drop for Processor<B> {
    fn drop(&mut self) {
        let vm = self.vm.shared();
        if let Some(shadow) = &vm.shadow {
            vm.fulfil(shadow, shadow.unload_root(self.index));
        }
    }
}

/// What only the thread inside an ioctl of this vCPU reaches.
pub(crate) struct Inner<B: Backend> {
    pub(crate) cpu: B::Vcpu,
    pub(crate) events: Events,
    pub(crate) tx: Transaction,
    /// The way to the instructions that the guest exits for.
    pub(crate) glance: Glance,
    pub(crate) mmu: VcpuMmu<B::Platform>,
    pub(crate) cpuid: Cpuid,
    /// What the table offers, within what the back end can do.
    pub(crate) features: Features,
    pub(crate) xcr0: u64,
    pub(crate) physical_bits: u32,
    pub(crate) msrs: Box<Msrs>,
    pub(crate) apic: Option<LocalApic<B::Platform>>,
    /// IA32_APIC_BASE without a local APIC in the hypervisor.
    pub(crate) apic_base: u64,
    pub(crate) mp: MpState,
    pub(crate) smm: Smm,
    pub(crate) debug: GuestDebug,
    pub(crate) tsc: Tsc,
    pub(crate) pv: PvClock,
    pub(crate) async_pf: AsyncPf,
    /// Task priority register by other ways than the register: exits and shared memory.
    pub(crate) tpr: Tpr,
    /// KVM_HC_KICK_CPU came while the vCPU was not halted: the next HLT ends at once.
    pub(crate) unhalted: bool,
    /// The page of 2007's hypercalls that the guest has announced.
    pub(crate) para_2007: Option<u64>,
    /// The page-directory pointers are those that the client has set, and the guest has not run since.
    pub(crate) pdptes_set: bool,
    /// KVM_RUN has been called: CPUID is fixed.
    pub(crate) ran: bool,
}

impl<B: Backend> Vcpu<B> {
    /// Pages of 4 KiB that a vCPU shares with its client: `kvm_run`, PIO data, ring of coalesced MMIO.
    pub const RUN_PAGES: u64 = 3;

    /// KVM_CREATE_VCPU, without making it known.
    pub(crate) fn create(vm: &Vm<B>, index: usize, cx: &MaySleep) -> Result<Self, Errno> {
        let mut inner = Inner::create(vm, index, cx)?;
        inner.reset();
        inner.set_cpuid(Cpuid::default(), vm.kvm().backend());
        let Inner { tsc, cpu, .. } = &mut *inner;
        tsc.apply::<B>(cpu);
        let inner = Mutex::<B::Platform, _>::new(rank::VCPU, inner)?;
        Ok(Self(Shared::try_new(Processor {
            inner,
            vm: vm.clone(),
            index,
            run_pages: AtomicU64::new(0),
            signal_mask: AtomicU64::new(0),
            has_signal_mask: AtomicBool::new(false),
        })?))
    }

    /// Its VM.
    pub fn vm(&self) -> &Vm<B> {
        &self.0.vm
    }

    /// The number that KVM_CREATE_VCPU was given.
    pub fn id(&self) -> u32 {
        self.0.index as u32
    }

    /// Says where the [`Self::RUN_PAGES`] zeroed pages are, through which `P::Memory` reaches what the client maps from
    /// the vCPU's descriptor. They stay there while the vCPU lives. Called once, before the descriptor exists; until
    /// then KVM_RUN answers EFAULT.
    pub fn set_run_pages(&self, at: Hva) {
        self.0.run_pages.store(at.0, SeqCst);
    }

    /// The request word (see [`request`]).
    pub fn requests(&self) -> &AtomicU32 {
        &self.shared().requests
    }

    /// Where its thread sleeps.
    pub fn waiter(&self) -> &<B::Platform as Platform>::Waiter {
        &self.shared().waiter
    }

    /// The signal set of KVM_SET_SIGNAL_MASK (bit n - 1 for signal n): signals to be blocked while KVM_RUN runs. None:
    /// the thread's own mask stays. Packaging switches masks around the ioctl KVM_RUN.
    pub fn signal_mask(&self) -> Option<u64> {
        self.0.has_signal_mask.load(SeqCst).then(|| self.0.signal_mask.load(SeqCst))
    }

    /// The state, for tests that look behind the ioctls.
    #[cfg(test)]
    pub(crate) fn with_inner<R>(&self, f: impl FnOnce(&mut Inner<B>) -> R) -> R {
        f(&mut self.0.inner.lock())
    }

    fn set_signal_mask(&self, mask: Option<u64>) {
        if let Some(mask) = mask {
            self.0.signal_mask.store(mask, SeqCst);
        }
        self.0.has_signal_mask.store(mask.is_some(), SeqCst);
    }

    fn shared(&self) -> &VcpuShared<B::Platform> {
        self.0.vm.shared().vcpu(self.0.index)
    }

    fn run_page(&self) -> Result<RunPage<B::Platform>, Errno> {
        match self.0.run_pages.load(SeqCst) {
            0 => Err(Errno::EFAULT),
            at => Ok(RunPage::new(Hva(at))),
        }
    }
}

impl<P: Platform> VmShared<P> {
    /// The shared part of a vCPU that exists.
    pub(crate) fn vcpu(&self, index: usize) -> &VcpuShared<P> {
        self.vcpus.place(index)
    }
}

impl<B: Backend> Inner<B> {
    /// The state of a new vCPU. In a frame of its own, and moved to the heap at once: a kernel's stack is small.
    #[inline(never)]
    fn create(vm: &Vm<B>, index: usize, cx: &MaySleep) -> Result<Box<Self>, Errno> {
        let shared = vm.shared();
        let backend = vm.kvm().backend();
        let boot = shared.is_boot_cpu(index as u32);
        let apic = if vm.has_lapic() { Some(LocalApic::new(shared, index, boot)?) } else { None };
        let waits = apic.is_some() && !boot;
        let rate = Rate::new::<B::Platform>(shared.tsc_khz()).unwrap_or_else(Rate::host::<B::Platform>);
        let cpu = backend.create_vcpu(vm.backend(), index, cx)?;
        let inner = Self {
            cpu,
            events: Events::default(),
            tx: Transaction::default(),
            glance: Glance::default(),
            mmu: VcpuMmu::default(),
            cpuid: Cpuid::default(),
            features: Features::empty(),
            xcr0: 1,
            physical_bits: 36,
            msrs: Msrs::boxed(backend.arch_capabilities())?,
            apic,
            apic_base: irqchip::lapic::APIC_BASE_DEFAULT
                | irqchip::lapic::APIC_BASE_ENABLE
                | if boot { irqchip::lapic::APIC_BASE_BSP } else { 0 },
            mp: if waits { MpState::Uninitialized } else { MpState::Runnable },
            smm: Smm::default(),
            debug: GuestDebug::default(),
            tsc: Tsc::new(shared.clock.tsc_offset(rate), rate),
            pv: PvClock::default(),
            async_pf: AsyncPf::default(),
            tpr: Tpr::default(),
            unhalted: false,
            pdptes_set: false,
            para_2007: None,
            ran: false,
        };
        Ok(try_box(inner)?)
    }

    /// KVM_SET_CPUID2: the table, and what follows from it.
    pub(crate) fn set_cpuid(&mut self, cpuid: Cpuid, backend: &B) {
        self.features = cpuid.features() & (backend.features() | Features::AMD);
        self.xcr0 = cpuid.xcr0() & (backend.xcr0() | 1);
        self.physical_bits = cpuid.physical_bits();
        self.cpu.set_features(self.features, self.xcr0, self.physical_bits);
        if let Some(apic) = &mut self.apic {
            apic.configure(&cpuid);
        }
        if !self.ran && self.mp != MpState::Halted {
            // RDX shows the signature after reset; a client that sets registers does so later.
            let state = self.cpu.registers_mut(Groups::GENERAL);
            if state.rip == 0xfff0 {
                state.gpr[2] = u64::from(cpuid.signature());
            }
        }
        self.cpuid = cpuid;
    }

    /// IA32_APIC_BASE.
    pub(crate) fn apic_base(&self) -> u64 {
        self.apic.as_ref().map_or(self.apic_base, |apic| apic.lapic.apic_base())
    }
}
