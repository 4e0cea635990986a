//! Intel's part of the processor for tests: control structures as tables of fields, and a vCPU on it. "Running the guest" is a
//! function of the test's.
use std::{
    boxed::Box,
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    sync::atomic::AtomicU32,
    vec::Vec,
};

use hv::backend::{Backend, BackendVcpu, Env, Exit, Groups};
use mmu::{AddressSpace, shadow::Root};
use platform::{
    Atomic, MaySleep,
    hardware::{LosesProcessor, Processors},
};

pub(crate) use hardware::testing::{Recorder, Step, TestFrames, TestHost, script, take_steps};
use hardware::testing::{between, note};

use x86::{Cr0, Cr4, Efer};

use crate::{
    Intel, IntelVcpu, Options,
    exit::reason,
    fields::{ENTRY_EVENT, EXIT_LENGTH, EXIT_REASON, Field, Width},
    instructions::{Entry, Forget, HostProcessor, HostThread, Instructions},
    vmcs::Current,
};

/// A step that only Intel's processors know.
pub(crate) const fn vmx(what: &'static str) -> Step {
    Step::Own(what, 0)
}

type Structure = BTreeMap<u32, u64>;
type Guest = Box<dyn FnOnce(&mut Structure) -> Entry>;

/// The processors, as far as a test has them differ.
#[derive(Default)]
struct Intels {
    /// By address.
    structures: BTreeMap<u64, Structure>,
    /// The current one of each processor.
    current: BTreeMap<usize, u64>,
    /// Processors that a structure is active on.
    active: BTreeMap<u64, usize>,
    launched: BTreeSet<u64>,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    thread: HostThread,
    guest: Option<Guest>,
    /// Fields that have been written.
    writes: Vec<u32>,
    /// The structure as the last entry found it, and the general registers.
    seen: Structure,
}

std::thread_local! {
    static INTELS: RefCell<Intels> = RefCell::default();
    static REFUSE_VMXON: Cell<bool> = const { Cell::new(false) };
}

fn intels<R>(f: impl FnOnce(&mut Intels) -> R) -> R {
    INTELS.with_borrow_mut(f)
}

fn here() -> usize {
    script(|s| s.cpu)
}

/// Sets an MSR.
pub(crate) fn set_msr(index: u32, value: u64) {
    script(|s| s.msrs.insert(index, value));
}

/// Sets the host's CR4.
pub(crate) fn cr4(value: u64) {
    intels(|i| i.cr4 = value);
}

/// Sets the host's CR3.
pub(crate) fn cr3(value: u64) {
    intels(|i| i.cr3 = value);
}

/// Sets the thread's registers.
pub(crate) fn thread(thread: HostThread) {
    intels(|i| i.thread = thread);
}

/// A processor of VT-x's first years: no secondary controls, no "true" ones, no EFER in the control structure, no NMI windows.
pub(crate) fn old_processor() {
    for (index, value) in [
        (0x480, 0x0018_1000_0000_0007),
        (0x481, 0x0000_003f_0000_0016),
        (0x482, 0x77b9_fffe_0401_e172),
        (0x483, 0x0003_ffff_0003_6dff),
        (0x484, 0x0000_3fff_0000_11ff),
        (0x485, 0),
    ] {
        set_msr(index, value);
    }
}

/// Fields that have been written since the last call.
pub(crate) fn take_writes() -> Vec<u32> {
    intels(|i| core::mem::take(&mut i.writes))
}

/// Runs `f` with a control structure of zeros.
pub(crate) fn with_vmcs(f: impl FnOnce(&mut Current<Recorder>)) {
    intels(|i| {
        i.structures.insert(0, Structure::new());
        i.current.insert(here(), 0);
    });
    // SAFETY: the processor is none.
    f(&mut unsafe { Current::new() });
}

impl Instructions for Recorder {
    unsafe fn host_processor() -> HostProcessor {
        HostProcessor { cs: 0x10, ss: 0x18, tr: 0x40, tr_base: 0x7000 + here() as u64, ..HostProcessor::default() }
    }
    fn host_thread() -> HostThread {
        intels(|i| i.thread)
    }
    unsafe fn load_host(_processor: &HostProcessor, _thread: &HostThread, ldtr: u16) {
        note(Step::Own("load host", ldtr.into()));
    }
    fn ldtr() -> u16 {
        0
    }
    fn cr2() -> u64 {
        intels(|i| i.cr2)
    }
    unsafe fn set_cr2(value: u64) {
        intels(|i| i.cr2 = value);
        note(Step::Own("cr2", value));
    }
    fn cr3() -> u64 {
        intels(|i| i.cr3)
    }
    fn cr4() -> u64 {
        intels(|i| i.cr4)
    }
    unsafe fn vmxon(_region: u64) -> bool {
        note(vmx("vmxon"));
        !REFUSE_VMXON.get()
    }
    unsafe fn vmxoff() {
        let cpu = here();
        intels(|i| assert!(i.active.values().all(|at| *at != cpu), "a structure is active still"));
        note(vmx("vmxoff"));
    }
    unsafe fn vmclear(region: u64) {
        note(vmx("vmclear"));
        let cpu = here();
        intels(|i| {
            let active = i.active.remove(&region);
            assert!(active.is_none_or(|at| at == cpu), "cleared on the wrong processor");
            i.launched.remove(&region);
            i.structures.entry(region).or_default();
            i.current.retain(|_, current| *current != region);
        });
    }
    unsafe fn vmptrld(region: u64) {
        note(vmx("vmptrld"));
        let cpu = here();
        intels(|i| {
            assert!(i.structures.contains_key(&region), "not cleared before its first use");
            let active = i.active.insert(region, cpu);
            assert!(active.is_none_or(|at| at == cpu), "active on another processor");
            i.current.insert(cpu, region);
        });
    }
    unsafe fn vmread(field: u32) -> u64 {
        let cpu = here();
        intels(|i| {
            let current = i.current.get(&cpu).expect("a current structure");
            i.structures[current].get(&field).copied().unwrap_or(0)
        })
    }
    unsafe fn vmwrite(field: u32, value: u64) {
        let cpu = here();
        intels(|i| {
            let current = i.current.get(&cpu).expect("a current structure");
            i.structures.get_mut(current).unwrap().insert(field, value);
            i.writes.push(field);
        });
    }
    unsafe fn invept(what: Forget) {
        note(Step::Own("invept", if let Forget::One(root) = what { root } else { 0 }));
    }
    unsafe fn invvpid(what: Forget) {
        note(Step::Own("invvpid", if let Forget::One(tag) = what { tag } else { 0 }));
    }
    unsafe fn nmi() {
        note(vmx("nmi"));
    }
    unsafe fn run(_gpr: &mut [u64; 16], launched: bool, _host_stack: &mut u64, fill_rsb: bool) -> Entry {
        note(run(launched, fill_rsb));
        let cpu = here();
        let (region, mut structure, guest) = intels(|i| {
            let region = i.current[&cpu];
            assert_eq!(i.launched.contains(&region), launched, "VMLAUNCH or VMRESUME");
            i.seen = i.structures[&region].clone();
            (region, i.seen.clone(), i.guest.take())
        });
        let entry = guest.map_or(Entry::Left, |guest| guest(&mut structure));
        let failed = get(&structure, EXIT_REASON) & reason::ENTRY_FAILED != 0;
        if entry == Entry::Left && !failed {
            let event = get(&structure, ENTRY_EVENT);
            put(&mut structure, ENTRY_EVENT, event & !(1 << 31));
            intels(|i| i.launched.insert(region));
        }
        intels(|i| i.structures.insert(region, structure));
        entry
    }
}

/// VMLAUNCH or VMRESUME.
pub(crate) const fn run(launched: bool, fill_rsb: bool) -> Step {
    Step::Own(if launched { "vmresume" } else { "vmlaunch" }, fill_rsb as u64)
}

/// A field of a structure.
pub(crate) fn get<W: Width>(structure: &Structure, field: Field<W>) -> W::Value {
    W::value(structure.get(&field.encoding()).copied().unwrap_or(0))
}

/// Sets a field.
pub(crate) fn put<W: Width>(structure: &mut Structure, field: Field<W>, value: W::Value) {
    structure.insert(field.encoding(), W::raw(value));
}

/// The steps while the guest's registers are loaded.
pub(crate) fn middle(steps: &[Step]) -> &[Step] {
    between(steps, &Step::GuestBegins, &Step::GuestEnded)
}

/// A vCPU and what the core lends it. Processors 0 and 1 are switched on, 2 is not.
pub(crate) struct Rig {
    pub(crate) intel: Intel<TestHost, Recorder>,
    pub(crate) vcpu: IntelVcpu<TestHost, Recorder>,
    pub(crate) requests: AtomicU32,
    pub(crate) root: Root,
    memory: AddressSpace<TestHost>,
}

impl Rig {
    /// With nested paging if the processor can, and a guest in reset state whose FPU is loaded.
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let cx = Atomic::at_entry();
        let intel = Intel::new(options, &MaySleep::at_entry()).unwrap();
        for cpu in 0..2 {
            script(|s| s.cpu = cpu);
            intel.enable(cpu, &cx).unwrap();
        }
        script(|s| s.cpu = 0);
        Self::of(intel)
    }

    fn of(intel: Intel<TestHost, Recorder>) -> Self {
        let vcpu = intel.create_vcpu(&(), 0, &MaySleep::at_entry()).unwrap();
        let memory = AddressSpace::new(1, &MaySleep::at_entry()).unwrap();
        let mut rig = Self { intel, vcpu, requests: AtomicU32::new(0), root: Root { hpa: 0x7000, levels: 4 }, memory };
        rig.vcpu.load(&Atomic::at_entry());
        take_steps();
        rig
    }

    /// Another vCPU.
    pub(crate) fn another(&self) -> Self {
        Self::of(self.intel.clone())
    }

    /// What the guest does at the next entry.
    pub(crate) fn guest(&mut self, guest: impl FnOnce(&mut Structure) + 'static) {
        self.entry(|structure| {
            guest(structure);
            Entry::Left
        });
    }

    /// What the processor does at the next entry.
    pub(crate) fn entry(&mut self, guest: impl FnOnce(&mut Structure) -> Entry + 'static) {
        intels(|i| i.guest = Some(Box::new(guest)));
    }

    /// Enters the guest.
    pub(crate) fn run(&mut self) -> Exit {
        let env = Env { memory: &self.memory, reader: 0, requests: &self.requests, root: self.root };
        self.vcpu.enter(&env)
    }

    /// The thread loses its processor.
    pub(crate) fn loses_processor(&self) {
        self.vcpu.user_mode().loses_processor(&Atomic::at_entry());
    }

    /// Enters a guest that executes HLT.
    pub(crate) fn halt(&mut self) {
        self.guest(|s| {
            put(s, EXIT_REASON, reason::HLT);
            put(s, EXIT_LENGTH, 0);
        });
        assert_eq!(self.run(), Exit::Hlt { len: 0 });
    }

    /// A field as the last entry found it.
    pub(crate) fn seen<W: Width>(&self, field: Field<W>) -> W::Value {
        intels(|i| get(&i.seen, field))
    }
}

/// A guest in long mode that uses SYSCALL.
pub(crate) fn long_mode(rig: &mut Rig) {
    let state = rig.vcpu.registers_mut(Groups::ALL);
    state.cr0 |= (Cr0::PE | Cr0::PG).bits();
    state.cr4 |= (Cr4::PAE | Cr4::OSXSAVE).bits();
    state.efer = (Efer::LME | Efer::LMA | Efer::SCE).bits();
    (state.star, state.lstar, state.sfmask, state.kernel_gs_base) = (1, 2, 0, 4);
    (state.xcr0, state.tsc_aux) = (3, 5);
    (state.dr, state.dr7) = ([1, 2, 3, 4], 0x401);
}
