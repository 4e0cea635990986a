//! The machine: a VM with memory, processors and devices, loaded and ready to run.

use crate::acpi::{self, AcpiError, Hardware};
use crate::boot::{self, BootError, Entry};
use crate::bus::Bus;
use crate::choose::BackEnd;
use crate::console::Output;
use crate::control::{Control, Ending};
use crate::cpuid::Template;
use crate::devices::serial::{self, Com1};
use crate::devices::{IrqLine, cmos::Cmos, i8042::I8042, pm};
use crate::kvm::{Kvm, KvmError, StatsFd, Vcpu, Vm};
use crate::layout::*;
use crate::memory::{self, GuestRam, MemoryError};
use crate::vcpu_thread::Board;
use crate::virtio::blk::Block;
use crate::virtio::disk::{Disk, DiskConfig, DiskError};
use crate::virtio::mmio::VirtioMmio;
use kvm_bindings::*;
use stats::Source;
use std::path::PathBuf;
use std::sync::Arc;

/// What the user wants to run.
#[derive(Debug, Clone)]
pub struct Config {
    /// bzImage or ELF kernel.
    pub kernel: PathBuf,
    /// Initramfs.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Bytes of RAM.
    pub memory: u64,
    /// Processors.
    pub cpus: u32,
    /// Disks, in order.
    pub disks: Vec<DiskConfig>,
}

/// The machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// cannot open {0}: {1}
    #[error("cannot open {0}: {1}")]
    Open(String, crate::accel::Errno),
    /// {0} speaks version {1} of the ABI; this program needs version 12
    #[error("{0} speaks version {1} of the ABI; this program needs version 12")]
    Version(String, i32),
    /// {0} lacks {1}, which this program needs
    #[error("{0} lacks {1}, which this program needs")]
    Capability(String, &'static str),
    /// {0} processors are asked for; there can be 1 to {1}
    #[error("{0} processors are asked for; there can be 1 to {1}")]
    Cpus(u32, u32),
    /// {0} disks are asked for; there can be up to {VIRTIO_MAX}
    #[error("{0} disks are asked for; there can be up to {VIRTIO_MAX}")]
    Disks(usize),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A file to load.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The hypervisor.
    #[error("the back end refuses: {0}")]
    Kvm(#[from] KvmError),
    /// cannot set up the machine: {0}
    #[error("cannot set up the machine: {0}")]
    Host(#[from] std::io::Error),
}

/// Capabilities without which nothing goes.
const NEEDED: [(u32, &str); 5] = [
    (KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"),
    (KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR"),
    (KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"),
    (KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"),
    (KVM_CAP_PIT2, "KVM_CAP_PIT2"),
];

/// More processors than this are a typing error, whatever the hypervisor allows.
const CPUS_MAX: u32 = 1024;

/// An input of the hypervisor's interrupt controllers.
struct KvmIrq {
    vm: Arc<Vm>,
    gsi: u32,
    control: Arc<Control>,
}

impl IrqLine for KvmIrq {
    fn set(&self, level: bool) {
        if let Err(error) = self.vm.irq_line(self.gsi, level) {
            self.control.end(Ending::Hypervisor(format!("interrupt {}: {error}", self.gsi)));
        }
    }
}

/// Everything of a machine that needs no hypervisor: memory with the guest in it, disks.
/// What is wrong with the user's input shows here.
pub struct Loaded {
    ram: Arc<GuestRam>,
    entry: Entry,
    cpus: u32,
    disks: Vec<Disk>,
}

impl Loaded {
    /// Checks the configuration, loads kernel and initramfs, opens the disks.
    ///
    /// # Errors
    /// [`MachineError`]: one line that names what is wrong.
    pub fn new(config: &Config) -> Result<Self, MachineError> {
        check_cpus(config.cpus, CPUS_MAX)?;
        if config.disks.len() > VIRTIO_MAX {
            return Err(MachineError::Disks(config.disks.len()));
        }
        let ram = Arc::new(memory::allocate(config.memory)?);
        let hardware = Hardware { cpus: config.cpus, virtio: config.disks.len() as u32 };
        let rsdp = acpi::write(&ram, hardware)?;
        let entry = boot::load(&ram, &config.kernel, config.initrd.as_deref(), &config.cmdline, rsdp)?;
        let disks = config.disks.iter().map(Disk::open).collect::<Result<_, DiskError>>()?;
        Ok(Self { ram, entry, cpus: config.cpus, disks })
    }
}

/// A machine that has not started.
pub struct Machine {
    /// The VM.
    pub vm: Arc<Vm>,
    /// What the vCPU threads share.
    pub board: Arc<Board>,
    /// The processors, for their threads.
    pub vcpus: Vec<Vcpu>,
    /// The console.
    pub com1: Arc<Com1<Output>>,
    /// Where statistics come from, or why there are none.
    pub stats: Result<Vec<Source<StatsFd>>, String>,
}

impl Machine {
    /// Builds the VM around a loaded guest.
    ///
    /// # Errors
    /// [`MachineError`]: one line that names what is wrong.
    pub fn build(loaded: Loaded, back_end: &BackEnd, control: &Arc<Control>) -> Result<Self, MachineError> {
        let Loaded { ram, entry, cpus, disks } = loaded;
        let kvm = open(back_end)?;
        check_cpus(cpus, max_cpus(&kvm))?;
        let vm = Arc::new(kvm.create_vm()?);
        if kvm.check_extension(KVM_CAP_SET_IDENTITY_MAP_ADDR) > 0 {
            vm.set_identity_map_addr(IDENTITY_MAP)?;
        }
        vm.set_tss_addr(TSS)?;
        vm.create_irqchip()?;
        vm.create_pit2()?;
        // SAFETY: the threads that run the guest share the board, which keeps `ram` mapped,
        // and the VM's other users cannot run it.
        unsafe { memory::register(&vm, &ram)? };

        let irq = |gsi| -> Arc<dyn IrqLine> { Arc::new(KvmIrq { vm: vm.clone(), gsi, control: control.clone() }) };
        let com1 = Arc::new(Com1::new(irq(COM1_IRQ), Output::new(control.clone()), control.clone()));
        let mut mmio = Bus::default();
        for (n, disk) in (0u32..).zip(disks) {
            let device = VirtioMmio::new(Block::new(disk), ram.clone(), irq(VIRTIO_GSI + n))?;
            mmio.insert(VIRTIO_BASE + u64::from(n) * VIRTIO_SIZE, VIRTIO_SIZE, Arc::new(device));
        }
        let pio = ports(&com1, control);
        let vcpus = processors(&kvm, &vm, cpus, entry)?;
        let stats = if kvm.check_extension(KVM_CAP_BINARY_STATS_FD) > 0 {
            sources(&vm, &vcpus)
        } else {
            Err("the back end has no statistics (KVM_CAP_BINARY_STATS_FD is absent)".to_owned())
        };
        let board = Arc::new(Board { pio, mmio, control: control.clone(), ram });
        Ok(Self { vm, board, vcpus, com1, stats })
    }
}

/// Opens the device and checks that it is what this program needs.
fn open(back_end: &BackEnd) -> Result<Kvm, MachineError> {
    let name = || back_end.path.to_string_lossy().into_owned();
    let kvm = Kvm::open(back_end.sys.clone(), &back_end.path).map_err(|errno| MachineError::Open(name(), errno))?;
    let version = kvm.api_version()?;
    if version != Kvm::API_VERSION {
        return Err(MachineError::Version(name(), version));
    }
    for (capability, text) in NEEDED {
        if kvm.check_extension(capability) <= 0 {
            return Err(MachineError::Capability(name(), text));
        }
    }
    Ok(kvm)
}

/// Port space.
fn ports(com1: &Arc<Com1<Output>>, control: &Arc<Control>) -> Bus {
    let mut pio = Bus::default();
    pio.insert(u64::from(COM1_PORT), serial::LEN, com1.clone());
    pio.insert(u64::from(CMOS_PORT), 2, Arc::new(Cmos::default()));
    pio.insert(u64::from(I8042_PORT), 1, Arc::new(I8042::data_port(control.clone())));
    pio.insert(u64::from(I8042_COMMAND_PORT), 1, Arc::new(I8042::command_port(control.clone())));
    pio.insert(u64::from(PM_PORT), pm::LEN, Arc::new(pm::Pm::new(control.clone())));
    pio
}

/// Most processors a VM may have.
fn max_cpus(kvm: &Kvm) -> u32 {
    let max = match kvm.check_extension(KVM_CAP_MAX_VCPUS) {
        0 => kvm.check_extension(KVM_CAP_NR_VCPUS),
        max => max,
    };
    // The ABI says 4 if nothing else is said.
    u32::try_from(max).ok().filter(|max| *max > 0).unwrap_or(4).min(CPUS_MAX)
}

fn check_cpus(cpus: u32, max: u32) -> Result<(), MachineError> {
    if cpus == 0 || cpus > max { Err(MachineError::Cpus(cpus, max)) } else { Ok(()) }
}

/// Makes the virtual CPUs: the first ready at the kernel's entry, the others waiting.
fn processors(kvm: &Kvm, vm: &Vm, count: u32, entry: Entry) -> Result<Vec<Vcpu>, KvmError> {
    let template = Template::new(kvm)?;
    let vcpu = |id| {
        let vcpu = vm.create_vcpu(id)?;
        vcpu.set_cpuid(&template.processor(id, count))?;
        boot::setup_every_vcpu(&vcpu)?;
        if id == 0 {
            boot::setup_bootstrap_vcpu(&vcpu, entry)?;
        }
        Ok(vcpu)
    };
    (0..count).map(vcpu).collect()
}

fn sources(vm: &Vm, vcpus: &[Vcpu]) -> Result<Vec<Source<StatsFd>>, String> {
    let source = |file: Result<StatsFd, KvmError>| {
        let file = file.map_err(|error| error.to_string())?;
        Source::new(file).map_err(|error| error.to_string())
    };
    std::iter::once(vm.stats_fd()).chain(vcpus.iter().map(Vcpu::stats_fd)).map(source).collect()
}
