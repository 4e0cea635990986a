//! A virtual machine: guest-physical memory, interrupt controllers, clock, and its vCPUs.
mod bus;
mod chips;
mod clock;
mod coalesced;
mod enable_cap;
mod ioctl;
mod ioeventfd;
mod irq;
mod irqfd;
mod memory;
mod msr_filter;
mod resample;
mod shadow;
mod vcpus;

use alloc::{boxed::Box, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use mmu::{AddressSpace, OwnedMemory, shadow::Shadow};
use platform::{MaySleep, Mutex, Platform, Shared, lock::rank};

use crate::{
    Errno, Kvm,
    backend::{Backend, Translation},
};
pub(crate) use bus::{Bus, Device, Space};
pub(crate) use chips::{Chips, Irqchip};
pub(crate) use clock::Clock;
pub(crate) use coalesced::Coalesced;
pub(crate) use enable_cap::{DISABLE_EXITS, QUIRKS};
pub(crate) use ioeventfd::Ioeventfds;
use irqfd::Irqfds;
pub(crate) use memory::ADDRESS_SPACES;
use memory::Owned;
pub(crate) use msr_filter::MsrFilter;
pub(crate) use vcpus::{MAX_VCPUS, Vcpus};

/// A virtual machine. It lives until its descriptor and those of its vCPUs and statistics are closed.
pub struct Vm<B: Backend>(Shared<Machine<B>>);

impl<B: Backend> Clone for Vm<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend> core::fmt::Debug for Vm<B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Vm").field("number", &self.number()).finish_non_exhaustive()
    }
}

/// What the descriptors of a VM hold.
struct Machine<B: Backend> {
    kvm: Kvm<B>,
    number: u32,
    backend: B::Vm,
    shared: Shared<VmShared<B::Platform>>,
    /// Held while vCPUs, interrupt controllers or capabilities come into being.
    config: Mutex<B::Platform, ()>,
    /// The memory of 2007's slots. Held while a slot with such memory comes or goes.
    owned: Mutex<B::Platform, Owned<B::Platform>>,
    /// Where it is, for the client's mapping. Nothing is copied to or from a client, and no other lock taken, under it.
    shown: Mutex<B::Platform, Vec<OwnedMemory>>,
    /// Here and not in the shared part, which their watches refer to.
    irqfds: Mutex<B::Platform, Irqfds<B::Platform>>,
}

/// What vCPUs, timers and other threads need of a VM. It refers to nothing that refers back to it, except the PIT's
/// timer, which the end of [`Machine`] takes away.
pub(crate) struct VmShared<P: Platform> {
    pub(crate) memory: AddressSpace<P>,
    /// What a vCPU in system management mode sees instead.
    pub(crate) smram: AddressSpace<P>,
    /// For back ends whose processors walk shadow tables, or nested ones.
    pub(crate) shadow: Option<Shadow<P>>,
    pub(crate) vcpus: Vcpus<P>,
    pub(crate) chips: Box<Chips<P>>,
    pub(crate) bus: Bus,
    pub(crate) ioeventfds: Ioeventfds<P>,
    pub(crate) coalesced: Coalesced<P>,
    pub(crate) msr_filter: MsrFilter<P>,
    pub(crate) clock: Clock,
    pub(crate) settings: Settings,
}

/// What the client has chosen for a VM.
pub(crate) struct Settings {
    /// KVM_SET_BOOT_CPU_ID.
    pub(crate) boot_cpu: AtomicU32,
    /// Nobody made a vCPU yet.
    pub(crate) tss_addr: AtomicU64,
    pub(crate) identity_map_addr: AtomicU64,
    /// KVM_CAP_EXCEPTION_PAYLOAD.
    pub(crate) exception_payload: AtomicBool,
    /// KVM_CAP_X86_USER_SPACE_MSR: `KVM_MSR_EXIT_REASON_*` for which the client answers.
    pub(crate) user_space_msr: AtomicU32,
    /// KVM_CAP_EXIT_HYPERCALL: hypercalls that the client carries out, bit n for number n.
    pub(crate) exit_hypercalls: AtomicU64,
    /// KVM_CAP_X86_TRIPLE_FAULT_EVENT.
    pub(crate) triple_fault_event: AtomicBool,
    /// KVM_CAP_X86_DISABLE_EXITS: what does not exit.
    pub(crate) disabled_exits: AtomicU64,
    /// KVM_CAP_DISABLE_QUIRKS: the quirks that are off.
    pub(crate) disabled_quirks: AtomicU64,
    /// Guest TSC frequency for new vCPUs in kHz; 0 is the host's.
    pub(crate) tsc_khz: AtomicU32,
    /// Shadow pages that the client allows (KVM_SET_NR_MMU_PAGES).
    pub(crate) mmu_pages: AtomicU64,
}

impl<B: Backend> Vm<B> {
    /// KVM_CREATE_VM.
    pub(crate) fn create(kvm: &Kvm<B>, number: u32, cx: &MaySleep) -> Result<Self, Errno> {
        let shared = Shared::try_new(VmShared {
            memory: AddressSpace::new(MAX_VCPUS, cx)?,
            smram: AddressSpace::new(MAX_VCPUS, cx)?,
            shadow: match kvm.backend().translation() {
                Translation::Slots => None,
                Translation::Shadow => Some(Shadow::new(MAX_VCPUS, cx)?),
                Translation::Nested(format) => Some(Shadow::nested(MAX_VCPUS, format, cx)?),
            },
            vcpus: Vcpus::new(B::COUNTERS.len())?,
            chips: Chips::new()?,
            bus: Bus::default(),
            ioeventfds: Ioeventfds::new()?,
            coalesced: Coalesced::new(cx)?,
            msr_filter: MsrFilter::new()?,
            clock: Clock::new::<B::Platform>(),
            settings: Settings {
                boot_cpu: AtomicU32::new(0),
                tss_addr: AtomicU64::new(0),
                identity_map_addr: AtomicU64::new(0xfffb_c000),
                exception_payload: AtomicBool::new(false),
                user_space_msr: AtomicU32::new(0),
                exit_hypercalls: AtomicU64::new(0),
                triple_fault_event: AtomicBool::new(false),
                disabled_exits: AtomicU64::new(0),
                disabled_quirks: AtomicU64::new(0),
                tsc_khz: AtomicU32::new(0),
                mmu_pages: AtomicU64::new(0),
            },
        })?;
        let config = Mutex::<B::Platform, _>::new(rank::VM, ())?;
        let owned = Mutex::<B::Platform, _>::new(rank::OWNED, Owned::default())?;
        let shown = Mutex::<B::Platform, _>::new(rank::SHOWN, Vec::new())?;
        let irqfds = Mutex::<B::Platform, _>::new(rank::EVENTFDS, Irqfds::default())?;
        let backend = kvm.backend().create_vm(cx)?;
        Ok(Self(Shared::try_new(Machine { kvm: kvm.clone(), number, backend, shared, config, owned, shown, irqfds })?))
    }

    /// The device it was made by.
    pub fn kvm(&self) -> &Kvm<B> {
        &self.0.kvm
    }

    /// Its number among the VMs of the device, from 1 on: what statistics call it.
    pub fn number(&self) -> u32 {
        self.0.number
    }

    /// The numbers of its vCPUs.
    pub fn vcpu_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.vcpus().iter().map(|v| v.id())
    }

    pub(crate) fn vcpus(&self) -> &Vcpus<B::Platform> {
        &self.0.shared.vcpus
    }

    pub(crate) fn shared(&self) -> &Shared<VmShared<B::Platform>> {
        &self.0.shared
    }

    pub(crate) fn backend(&self) -> &B::Vm {
        &self.0.backend
    }
}

impl<B: Backend> Drop for Machine<B> {
    fn drop(&mut self) {
        self.shared.chips.destroy_pit();
        self.kvm.forget_vm(self.number);
    }
}

impl<P: Platform> VmShared<P> {
    /// The frequency that a guest's TSC has unless its vCPU says otherwise, in kHz.
    pub(crate) fn tsc_khz(&self) -> u32 {
        match self.settings.tsc_khz.load(SeqCst) {
            0 => P::tsc_khz(),
            khz => khz,
        }
    }

    /// Whether the client wants no exit for this (KVM_CAP_X86_DISABLE_EXITS).
    pub(crate) fn exit_disabled(&self, exit: u64) -> bool {
        self.settings.disabled_exits.load(SeqCst) & exit != 0
    }

    /// Guest-physical memory, as a vCPU sees it that is in system management mode or not.
    pub(crate) fn space(&self, smm: bool) -> &AddressSpace<P> {
        if smm { &self.smram } else { &self.memory }
    }

    /// Whether the client switched a quirk off (KVM_CAP_DISABLE_QUIRKS).
    pub(crate) fn quirk_disabled(&self, quirk: u64) -> bool {
        self.settings.disabled_quirks.load(SeqCst) & quirk != 0
    }

    pub(crate) fn is_boot_cpu(&self, id: u32) -> bool {
        self.settings.boot_cpu.load(SeqCst) == id
    }
}
