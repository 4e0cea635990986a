//! The core's emulation: a back end that cannot run a single instruction, so that the core has to emulate each.
use std::{
    convert::Infallible,
    sync::{Mutex, OnceLock, PoisonError},
};

use abi::*;
use hv::{
    Kvm, Outcome, Vcpu, Vm,
    backend::{Access, Backend, BackendVcpu, Env, Event, Exit, FlushTlb, Groups, GuestDebug, PioExit, Translation},
};
use platform::{Atomic, Hva, MaySleep, OutOfMemory};
use soft::Soft;
use user::User;
use x86::{CpuState, Features};

use super::machine::{Machine, PHYSICAL_BITS, RAM, Why};
use crate::{invariants, memory::Pages};

/// Instructions to emulate.
const INSTRUCTIONS: u32 = 16;
/// Returns of KVM_RUN to allow them.
const RUNS: u32 = 64;

const CX: MaySleep = MaySleep::at_entry();

/// The back end.
struct Helpless;

struct HelplessVcpu {
    state: CpuState,
    why: Why,
    left: u32,
    nmi_blocked: bool,
}

impl Backend for Helpless {
    type Platform = User;
    type Vcpu = HelplessVcpu;
    type Vm = ();
    const NAME: &'static str = "none";

    fn translation(&self) -> Translation {
        Translation::Slots
    }
    fn features(&self) -> Features {
        static SOFT: OnceLock<Features> = OnceLock::new();
        *SOFT.get_or_init(|| Soft::<User>::new().features())
    }
    fn xcr0(&self) -> u64 {
        7
    }
    fn create_vm(&self, _cx: &MaySleep) -> Result<(), OutOfMemory> {
        Ok(())
    }
    fn create_vcpu(&self, _vm: &(), _index: usize, _cx: &MaySleep) -> Result<HelplessVcpu, OutOfMemory> {
        Ok(HelplessVcpu { state: CpuState::reset(0), why: Why::Emulate, left: 0, nmi_blocked: false })
    }
}

/// What the next entry of the vCPU loads first.
static START: Mutex<Option<(CpuState, Why)>> = Mutex::new(None);

impl BackendVcpu<User> for HelplessVcpu {
    // Vector instructions then end in an internal error, as on hardware.
    type Vectors = Infallible;

    fn registers(&mut self, _need: Groups) -> &CpuState {
        &self.state
    }
    fn registers_mut(&mut self, _change: Groups) -> &mut CpuState {
        &mut self.state
    }
    fn registers_and_vectors(&mut self, _change: Groups) -> (&mut CpuState, Option<&mut Infallible>) {
        (&mut self.state, None)
    }
    fn set_features(&mut self, _features: Features, _xcr0: u64, _physical_bits: u32) {}
    fn set_tsc(&mut self, _offset: u64, _ratio: u64) {}
    fn set_debug(&mut self, _debug: GuestDebug) {}
    fn inject(&mut self, _event: Event) {}
    fn take_unfinished_event(&mut self) -> Option<Event> {
        None
    }
    fn request_window(&mut self, _interrupt: bool, _nmi: bool) {}
    fn nmi_blocked(&self) -> bool {
        self.nmi_blocked
    }
    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.nmi_blocked = blocked;
    }
    fn flush(&mut self, _what: FlushTlb) {}
    fn load(&mut self, _cx: &Atomic) {}
    fn put(&mut self, _cx: &Atomic) {}
    fn enter(&mut self, _env: &Env<'_, User>) -> Exit {
        if let Some((state, why)) = START.lock().unwrap_or_else(PoisonError::into_inner).take() {
            (self.state, self.why, self.left) = (state, why, INSTRUCTIONS);
        } else {
            invariants::check(&self.state, PHYSICAL_BITS);
        }
        if self.left == 0 {
            return Exit::Unknown { reason: 0 };
        }
        self.left -= 1;
        match std::mem::replace(&mut self.why, Why::Emulate) {
            Why::Emulate => Exit::Emulate,
            Why::Fault(gpa) => {
                let access = if gpa & 1 == 0 { Access::Read } else { Access::Write };
                Exit::NestedPageFault { gpa, access, table_walk: gpa & 2 != 0 }
            }
            Why::TaskSwitch => Exit::TaskSwitch,
            Why::Xsetbv => Exit::Xsetbv { len: 3 },
            Why::StringPio(port) => {
                Exit::Pio(PioExit { port, size: 1, write: port & 1 != 0, string: true, len: (port & 15) as u8 })
            }
        }
    }
}

fn number(outcome: Result<Outcome<Helpless>, hv::Errno>) -> i32 {
    match outcome {
        Ok(Outcome::Value(value)) => value,
        other => panic!("{other:?}"),
    }
}

/// The device, and the CPUID that it supports.
fn device() -> &'static (Kvm<Helpless>, Vec<u8>) {
    static DEVICE: OnceLock<(Kvm<Helpless>, Vec<u8>)> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let kvm = Kvm::new(Helpless, &CX).expect("no device");
        let mut cpuid = vec![0; 8 + 128 * size_of::<KvmCpuidEntry2>()];
        cpuid[0] = 128;
        number(kvm.ioctl(KVM_GET_SUPPORTED_CPUID, cpuid.as_mut_ptr() as u64, &CX));
        (kvm, cpuid)
    })
}

fn slot(vm: &Vm<Helpless>, slot: u32, flags: u32, gpa: u64, bytes: u64, hva: u64) {
    let region =
        KvmUserspaceMemoryRegion { slot, flags, guest_phys_addr: gpa, memory_size: bytes, userspace_addr: hva };
    number(vm.ioctl(KVM_SET_USER_MEMORY_REGION, (&raw const region) as u64, &CX));
}

/// Runs the machine, answering its device accesses.
pub(super) fn run(machine: &Machine) {
    let (kvm, cpuid) = device();
    let Ok(Outcome::NewVm(vm)) = kvm.ioctl(KVM_CREATE_VM, 0, &CX) else { panic!("no VM") };
    slot(&vm, 0, 0, 0, RAM, machine.memory_at());
    slot(&vm, 1, KVM_MEM_READONLY, RAM, 0x1000, machine.memory_at() + RAM);
    slot(&vm, 2, 0, RAM + 0x1000, 0x1000, machine.memory_at() + RAM + 0x1000);
    let Ok(Outcome::NewVcpu(vcpu)) = vm.ioctl(KVM_CREATE_VCPU, 0, &CX) else { panic!("no vCPU") };
    let pages = Pages::new(Vcpu::<Helpless>::RUN_PAGES * 4096, 0);
    vcpu.set_run_pages(Hva(pages.at()));
    number(vcpu.ioctl(KVM_SET_CPUID2, cpuid.as_ptr() as u64, &CX));
    *START.lock().unwrap_or_else(PoisonError::into_inner) = Some((machine.state.clone(), machine.why));
    for _ in 0..RUNS {
        if vcpu.ioctl(KVM_RUN, 0, &CX).is_err() {
            break;
        }
        let mut reason = [0; 4];
        pages.read(KVM_RUN_EXIT_REASON_OFFSET as u64, &mut reason);
        match u32::from_le_bytes(reason) {
            KVM_EXIT_MMIO => pages.write64(KVM_RUN_UNION_OFFSET as u64 + 8, machine.device),
            KVM_EXIT_IO => pages.write64(4096, machine.device),
            KVM_EXIT_UNKNOWN | KVM_EXIT_SHUTDOWN | KVM_EXIT_INTERNAL_ERROR => break,
            _ => {}
        }
    }
    *START.lock().unwrap_or_else(PoisonError::into_inner) = None;
}
