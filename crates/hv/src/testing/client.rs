//! A client: makes objects, issues ioctls with arguments in its own memory, and reads `kvm_run`.
use abi::*;
use platform::{Hva, MaySleep, Memory};
use std::sync::Arc;
use x86::{Attr, Cr0, Segment};

use super::{
    host::{self, Mapping},
    script::{Script, Scripted},
};
use crate::{
    Errno, Kvm, Outcome, Vcpu, Vm,
    backend::{Backend, BackendVcpu, Groups, Translation},
};

/// Memory for the arguments of ioctls.
pub(crate) struct Client {
    arguments: Mapping,
}

impl Client {
    pub(crate) fn new() -> Self {
        Self { arguments: Mapping::new(64 << 10) }
    }

    /// Calls `ioctl` with `bytes` as its argument, and reads them back.
    pub(crate) fn with_bytes<B: Backend>(
        &self,
        bytes: &mut [u8],
        ioctl: impl FnOnce(u64) -> Result<Outcome<B>, Errno>,
    ) -> Result<Outcome<B>, Errno> {
        let at = Hva(self.arguments.at());
        host::Client::copy_to(at, bytes).unwrap();
        let result = ioctl(at.0);
        host::Client::copy_from(at, bytes).unwrap();
        result
    }
}

/// A VM with one vCPU, 64 KiB of memory at 0 and code in it.
pub(crate) struct Machine {
    pub(crate) client: Client,
    pub(crate) backend: Scripted,
    pub(crate) kvm: Kvm<Scripted>,
    pub(crate) vm: Vm<Scripted>,
    pub(crate) vcpu: Vcpu<Scripted>,
    pub(crate) script: Arc<Script>,
    pub(crate) ram: Mapping,
    pub(crate) run: Mapping,
}

pub(crate) const RAM: u64 = 64 << 10;
/// Where code of tests is.
pub(crate) const CODE: u64 = 0x1000;
/// Of a guest with paging: its page directory, and the page table that maps RAM.
pub(crate) const DIRECTORY: u64 = 0x4000;
pub(crate) const TABLE: u64 = 0x5000;

pub(crate) fn cx() -> MaySleep {
    MaySleep::at_entry()
}

impl Machine {
    /// Without interrupt controllers in the hypervisor.
    pub(crate) fn new() -> Self {
        Self::build(|_| {})
    }

    /// With all of them.
    pub(crate) fn with_irqchip() -> Self {
        Self::build(|vm| drop(vm.ioctl(KVM_CREATE_IRQCHIP, 0, &cx()).unwrap()))
    }

    /// With local APICs only.
    pub(crate) fn split_irqchip() -> Self {
        Self::build(|vm| {
            let mut cap = KvmEnableCap { cap: KVM_CAP_SPLIT_IRQCHIP, ..KvmEnableCap::default() };
            cap.args[0] = 24;
            Client::new().with_bytes(cap.bytes_mut(), |arg| vm.ioctl(KVM_ENABLE_CAP, arg, &cx())).unwrap();
        })
    }

    /// The auditor finds nothing out of order in the tables.
    #[track_caller]
    pub(crate) fn in_order(&self) {
        let report = self.vm.audit_shadow(&cx()).unwrap().unwrap();
        assert!(report.findings.is_empty(), "{report:?}");
    }

    /// On a processor that translates so.
    pub(crate) fn on(translation: Translation) -> Self {
        Self::build_on(Scripted { translation, ..Scripted::default() }, |_| {})
    }

    /// The same in 32-bit code on page tables that map RAM to itself.
    pub(crate) fn paged(translation: Translation) -> Self {
        let m = Self::on(translation);
        m.poke(DIRECTORY, &(TABLE as u32 | 7).to_le_bytes());
        for page in 0..(RAM >> 12) as u32 {
            m.poke(TABLE + u64::from(page) * 4, &(page << 12 | 7).to_le_bytes());
        }
        m.state(|s| {
            let flat = |typ| Segment {
                selector: 8,
                attr: Attr(Attr::P | Attr::S | Attr::DB | Attr::G | typ),
                limit: 0xffff_ffff,
                base: 0,
            };
            s.seg = [flat(3), flat(11), flat(3), flat(3), flat(3), flat(3)];
            s.cr0 = (Cr0::PE | Cr0::PG | Cr0::WP | Cr0::ET).bits();
            s.cr3 = DIRECTORY;
            s.rip = CODE;
            s.refresh();
        });
        m
    }

    fn build(configure: impl FnOnce(&Vm<Scripted>)) -> Self {
        Self::build_on(Scripted::default(), configure)
    }

    fn build_on(backend: Scripted, configure: impl FnOnce(&Vm<Scripted>)) -> Self {
        let kvm = Kvm::new(backend.clone(), &cx()).unwrap();
        let Outcome::NewVm(vm) = kvm.ioctl(KVM_CREATE_VM, 0, &cx()).unwrap() else { panic!("no VM") };
        configure(&vm);
        let (client, ram) = (Client::new(), Mapping::new(RAM as usize));
        let (vcpu, run) = Self::new_vcpu(&vm, 0);
        let machine = Self { client, kvm, vm, vcpu, script: backend.script(0), backend, ram, run };
        machine.set_slot(0, 0, RAM, machine.ram.at()).unwrap();
        machine.use_supported_cpuid(&machine.vcpu);
        machine.state(|s| {
            s.seg[1] = x86::Segment::real(0, 0);
            s.rip = CODE;
            s.refresh();
        });
        machine
    }

    pub(crate) fn new_vcpu(vm: &Vm<Scripted>, id: u64) -> (Vcpu<Scripted>, Mapping) {
        let Outcome::NewVcpu(vcpu) = vm.ioctl(KVM_CREATE_VCPU, id, &cx()).unwrap() else { panic!("no vCPU") };
        let run = Mapping::new(3 * 4096);
        vcpu.set_run_pages(Hva(run.at()));
        (vcpu, run)
    }

    pub(crate) fn use_supported_cpuid(&self, vcpu: &Vcpu<Scripted>) {
        let mut table = std::vec![0; 8 + 100 * size_of::<KvmCpuidEntry2>()];
        table[0] = 100;
        self.client.with_bytes(&mut table, |arg| self.kvm.ioctl(KVM_GET_SUPPORTED_CPUID, arg, &cx())).unwrap();
        self.client.with_bytes(&mut table, |arg| vcpu.ioctl(KVM_SET_CPUID2, arg, &cx())).unwrap();
    }

    pub(crate) fn set_slot(&self, slot: u32, gpa: u64, size: u64, hva: u64) -> Result<Outcome<Scripted>, Errno> {
        let mut region =
            KvmUserspaceMemoryRegion { slot, flags: 0, guest_phys_addr: gpa, memory_size: size, userspace_addr: hva };
        self.vm_ioctl(KVM_SET_USER_MEMORY_REGION, &mut region)
    }

    /// A VM ioctl with a structure.
    pub(crate) fn vm_ioctl<T: Pod>(&self, nr: u32, arg: &mut T) -> Result<Outcome<Scripted>, Errno> {
        self.client.with_bytes(arg.bytes_mut(), |arg| self.vm.ioctl(nr, arg, &cx()))
    }

    /// A vCPU ioctl with a structure.
    pub(crate) fn ioctl<T: Pod>(&self, nr: u32, arg: &mut T) -> Result<Outcome<Scripted>, Errno> {
        self.client.with_bytes(arg.bytes_mut(), |arg| self.vcpu.ioctl(nr, arg, &cx()))
    }

    /// A structure that a vCPU ioctl fills.
    pub(crate) fn get<T: Pod>(&self, nr: u32) -> T {
        let mut value = T::zeroed();
        self.ioctl(nr, &mut value).unwrap();
        value
    }

    /// Changes the registers directly.
    pub(crate) fn state<R>(&self, f: impl FnOnce(&mut x86::CpuState) -> R) -> R {
        self.vcpu.with_inner(|inner| f(inner.cpu.registers_mut(Groups::ALL)))
    }

    /// Writes guest memory.
    pub(crate) fn poke(&self, gpa: u64, bytes: &[u8]) {
        host::Client::copy_to(Hva(self.ram.at() + gpa), bytes).unwrap();
    }

    pub(crate) fn peek<T: Pod>(&self, gpa: u64) -> T {
        let mut value = T::zeroed();
        host::Client::copy_from(Hva(self.ram.at() + gpa), value.bytes_mut()).unwrap();
        value
    }

    /// KVM_RUN: the exit reason.
    pub(crate) fn run(&self) -> Result<u32, Errno> {
        self.vcpu.ioctl(KVM_RUN, 0, &cx())?;
        Ok(self.run_field(KVM_RUN_EXIT_REASON_OFFSET as u64))
    }

    pub(crate) fn run_field<T: Pod>(&self, offset: u64) -> T {
        let mut value = T::zeroed();
        host::Client::copy_from(Hva(self.run.at() + offset), value.bytes_mut()).unwrap();
        value
    }

    pub(crate) fn set_run_field<T: Pod>(&self, offset: u64, value: T) {
        host::Client::copy_to(Hva(self.run.at() + offset), value.bytes()).unwrap();
    }

    /// The exit's payload.
    pub(crate) fn payload<T: Pod>(&self) -> T {
        self.run_field(KVM_RUN_UNION_OFFSET as u64)
    }

    /// What the client read for a KVM_EXIT_MMIO.
    pub(crate) fn answer_mmio(&self, data: u64) {
        self.set_run_field(KVM_RUN_UNION_OFFSET as u64 + 8, data);
    }
}
