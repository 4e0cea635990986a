//! A host and a processor for tests: they note what is asked of them, and "running the guest" is a function of the test's.
//! All of it belongs to the calling thread.
use std::{
    boxed::Box,
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    sync::atomic::AtomicU32,
    vec,
    vec::Vec,
};

use hv::backend::{Backend, BackendVcpu, Env, Exit};
use mmu::{AddressSpace, shadow::Root};
use platform::{
    Atomic, BadAddress, HostFrame, Hva, Level, MaySleep, OutOfMemory, Platform, TimerCallback,
    hardware::{FpuArea, Frames, GuestFpu, Hardware, Mitigations, Processors},
    table::CheckedTablePage,
    testing::{NoEventFd, NoPages, Test, TestLock, TestMemory, TestTimer, TestWaiter},
};
use x86::Fpu;

use crate::{Amd, AmdVcpu, Options, exit::code, instructions::Instructions, vmcb::Vmcb};

/// What was done to the processor, or asked of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    IrqsOff,
    IrqsOn,
    FpuLoad,
    FpuPut,
    FpuReady,
    FpuRestore,
    FpuSave,
    GuestBegins,
    GuestEnded,
    MachineCheck,
    WriteMsr(u32, u64),
    SetXcr0(u64),
    DebugAddresses([u64; 4]),
    ClearBuffers,
    Clgi,
    Stgi,
    Run { fill_rsb: bool },
}

type Guest = Box<dyn FnOnce(&mut Vmcb)>;

/// What the processor and the host answer.
pub(crate) struct Script {
    pub(crate) cpuid: BTreeMap<u32, [u32; 4]>,
    pub(crate) svm_features: u32,
    pub(crate) msrs: BTreeMap<u32, u64>,
    pub(crate) xcr0: u64,
    pub(crate) cpu: usize,
    pub(crate) must_leave: bool,
    pub(crate) mitigations: Mitigations,
    guest: Option<Guest>,
    steps: Vec<Step>,
}

impl Script {
    fn new() -> Self {
        let features = 1 << 26 | 1 << 27 | 1 << 28;
        Self {
            cpuid: BTreeMap::from([
                (0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
                (1, [0, 0, features, 0]),
                (0x8000_0000, [0x8000_000a, 0, 0, 0]),
                (0x8000_0001, [0, 0, 1 << 2, 1 << 27]),
                (0x8000_000a, [1, 16, 0, 0]),
            ]),
            svm_features: 0,
            msrs: BTreeMap::new(),
            xcr0: 7,
            cpu: 0,
            must_leave: false,
            mitigations: Mitigations::default(),
            guest: None,
            steps: Vec::new(),
        }
    }
}

std::thread_local! {
    static SCRIPT: RefCell<Script> = RefCell::new(Script::new());
    /// The control block as the last VMRUN found it.
    static SEEN: Cell<Option<&'static Vmcb>> = const { Cell::new(None) };
}

/// Looks at the script, or changes it.
pub(crate) fn script<R>(f: impl FnOnce(&mut Script) -> R) -> R {
    SCRIPT.with_borrow_mut(f)
}

fn note(step: Step) {
    script(|s| s.steps.push(step));
}

/// What has been noted since the last call.
pub(crate) fn take_steps() -> Vec<Step> {
    script(|s| core::mem::take(&mut s.steps))
}

/// The steps from CLGI to STGI.
pub(crate) fn middle(steps: &[Step]) -> &[Step] {
    let at = |step| steps.iter().position(|s| *s == step).unwrap();
    &steps[at(Step::Clgi)..=at(Step::Stgi)]
}

/// The processor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recorder;

impl Instructions for Recorder {
    fn cpuid(leaf: u32, _sub: u32) -> [u32; 4] {
        script(|s| {
            let mut answer = s.cpuid.get(&leaf).copied().unwrap_or_default();
            if leaf == 0x8000_000a {
                answer[3] |= s.svm_features;
            }
            answer
        })
    }
    unsafe fn read_msr(index: u32) -> u64 {
        script(|s| s.msrs.get(&index).copied().unwrap_or(0))
    }
    unsafe fn write_msr(index: u32, value: u64) {
        script(|s| s.msrs.insert(index, value));
        note(Step::WriteMsr(index, value));
    }
    unsafe fn xcr0() -> u64 {
        script(|s| s.xcr0)
    }
    unsafe fn set_xcr0(value: u64) {
        script(|s| s.xcr0 = value);
        note(Step::SetXcr0(value));
    }
    unsafe fn set_debug_addresses(addresses: &[u64; 4]) {
        note(Step::DebugAddresses(*addresses));
    }
    unsafe fn clear_buffers() {
        note(Step::ClearBuffers);
    }
    unsafe fn clgi() {
        note(Step::Clgi);
    }
    unsafe fn stgi() {
        note(Step::Stgi);
    }
    unsafe fn run(guest: u64, _host: u64, _gpr: &mut [u64; 16], fill_rsb: bool) {
        note(Step::Run { fill_rsb });
        // SAFETY: a control block of a test's vCPU, whose address here is its physical one.
        let vmcb = unsafe { &mut *(guest as *mut Vmcb) };
        // SAFETY: any bytes are a control block.
        let seen = Box::leak(Box::new(unsafe { core::ptr::read(vmcb) }));
        SEEN.set(Some(seen));
        vmcb.control.exit_int_info = 0;
        if let Some(guest) = script(|s| s.guest.take()) {
            guest(vmcb);
        }
    }
}

/// Pages whose physical address is the process's own.
pub(crate) struct TestFrames(*mut Page, usize);

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

// SAFETY: the pages belong to the value.
unsafe impl Send for TestFrames {}
// SAFETY: as above; whoever writes through the pointer says why it may.
unsafe impl Sync for TestFrames {}

impl Frames for TestFrames {
    fn new(count: usize, _below_4g: bool, _cx: &MaySleep) -> Result<Self, OutOfMemory> {
        let pages = vec![Page([0; 4096]); count].into_boxed_slice();
        Ok(Self(Box::into_raw(pages).cast(), count))
    }
    fn hpa(&self) -> u64 {
        self.0 as u64
    }
    fn as_ptr(&self) -> *mut u8 {
        self.0.cast()
    }
}

impl Drop for TestFrames {
    fn drop(&mut self) {
        // SAFETY: made by `new` of a box of so many pages.
        drop(unsafe { Box::from_raw(core::ptr::slice_from_raw_parts_mut(self.0, self.1)) });
    }
}

/// An FPU.
pub(crate) struct TestFpu {
    pub(crate) area: FpuArea,
}

impl GuestFpu for TestFpu {
    fn new(_cx: &MaySleep) -> Result<Self, OutOfMemory> {
        let mut area = [0; size_of::<Fpu>()];
        area[512] = 0;
        Ok(Self { area })
    }
    fn load(&mut self) {
        note(Step::FpuLoad);
    }
    fn put(&mut self) {
        note(Step::FpuPut);
    }
    fn ready(&mut self, _cx: &Atomic) {
        note(Step::FpuReady);
    }
    fn save(&mut self, area: &mut FpuArea) {
        note(Step::FpuSave);
        *area = self.area;
    }
    fn restore(&mut self, area: &FpuArea) -> bool {
        note(Step::FpuRestore);
        self.area = *area;
        true
    }
}

/// The host.
pub(crate) struct TestHost;

impl Platform for TestHost {
    type Memory = TestMemory;
    type Pages = NoPages;
    type EventFd = NoEventFd;
    type RawMutex = TestLock;
    type RawSpin = TestLock;
    type Waiter = TestWaiter;
    type Timer<C: TimerCallback> = TestTimer;
    type TablePage = CheckedTablePage;
    type Pin = ();
    fn pin() {}
    fn now_ns() -> u64 {
        0
    }
    fn wall_clock_ns() -> u64 {
        0
    }
    fn tsc() -> u64 {
        0
    }
    fn tsc_khz() -> u32 {
        1_000_000
    }
    fn random(_: &mut [u8]) {}
    fn signal_pending() -> bool {
        false
    }
    fn relax(_: &MaySleep) {}
    fn host_frame(hva: Hva, write: bool, cx: &MaySleep) -> Result<HostFrame, BadAddress> {
        Test::host_frame(hva, write, cx)
    }
    fn log(_: Level, _: fmt::Arguments<'_>) {}
}

impl Hardware for TestHost {
    type Frames = TestFrames;
    type GuestFpu = TestFpu;
    fn cpu(_cx: &Atomic) -> usize {
        script(|s| s.cpu)
    }
    fn cpus() -> usize {
        3
    }
    fn irqs_off(_cx: &Atomic) {
        note(Step::IrqsOff);
    }
    fn irqs_on(_cx: &Atomic) {
        note(Step::IrqsOn);
    }
    fn must_leave(_cx: &Atomic) -> bool {
        script(|s| s.must_leave)
    }
    fn guest_begins(_cx: &Atomic) {
        note(Step::GuestBegins);
    }
    fn guest_ended(_cx: &Atomic) {
        note(Step::GuestEnded);
    }
    fn machine_check(_cx: &Atomic) {
        note(Step::MachineCheck);
    }
    fn mitigations() -> Mitigations {
        script(|s| s.mitigations)
    }
}

/// A control block of zeros.
pub(crate) fn vmcb() -> Box<Vmcb> {
    // SAFETY: zeros are a control block.
    unsafe { Box::new(core::mem::zeroed()) }
}

/// A vCPU and what the core lends it. Processors 0 and 1 are switched on, 2 is not.
pub(crate) struct Rig {
    amd: Amd<TestHost, Recorder>,
    pub(crate) vcpu: AmdVcpu<TestHost, Recorder>,
    pub(crate) requests: AtomicU32,
    pub(crate) root: Root,
    memory: AddressSpace<TestHost>,
}

impl Rig {
    /// With shadow paging, and a guest in reset state whose FPU is loaded.
    pub(crate) fn new() -> Self {
        Self::with(Options { npt: false })
    }

    pub(crate) fn with(options: Options) -> Self {
        let cx = Atomic::at_entry();
        let amd = Amd::new(options, &MaySleep::at_entry()).unwrap();
        for cpu in 0..2 {
            script(|s| s.msrs.clear());
            amd.enable(cpu, &cx).unwrap();
        }
        Self::of(amd)
    }

    fn of(amd: Amd<TestHost, Recorder>) -> Self {
        let vcpu = amd.create_vcpu(&(), 0, &MaySleep::at_entry()).unwrap();
        let memory = AddressSpace::new(1, &MaySleep::at_entry()).unwrap();
        let root = Root { hpa: 0x7000, levels: 3 };
        let mut rig = Self { amd, vcpu, requests: AtomicU32::new(0), root, memory };
        // The first entry loads the FPU.
        rig.vcpu.registers_mut(hv::backend::Groups::FPU);
        rig.exit_with(|vmcb| vmcb.control.exit_code = code::INTR);
        script(|s| s.must_leave = true);
        assert_eq!(rig.run(), Exit::Interrupted);
        script(|s| s.must_leave = false);
        take_steps();
        rig
    }

    /// Another vCPU.
    pub(crate) fn another(&self) -> Self {
        Self::of(self.amd.clone())
    }

    /// What the guest does at the next entry.
    pub(crate) fn exit_with(&mut self, guest: impl FnOnce(&mut Vmcb) + 'static) {
        script(|s| s.guest = Some(Box::new(guest)));
    }

    /// Enters the guest.
    pub(crate) fn run(&mut self) -> Exit {
        let env = Env { memory: &self.memory, reader: 0, requests: &self.requests, root: self.root };
        self.vcpu.enter(&env)
    }

    /// Enters a guest that executes HLT.
    pub(crate) fn enter(&mut self, expected: Exit) {
        self.exit_with(|vmcb| vmcb.control.exit_code = code::HLT);
        assert_eq!(self.run(), expected);
    }

    /// The control block as the last VMRUN found it.
    pub(crate) fn seen(&self) -> &'static Vmcb {
        SEEN.get().unwrap()
    }
}
