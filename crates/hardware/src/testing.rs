//! A host and a processor for the back ends' tests: they note what is asked of them. All of it belongs to the calling thread.
#![allow(missing_docs)]
use std::{boxed::Box, cell::RefCell, collections::BTreeMap, fmt, vec, vec::Vec};

use platform::{
    Atomic, BadAddress, HostFrame, Hva, Level, MaySleep, OutOfMemory, Platform, TimerCallback,
    hardware::{FpuArea, Frames, GuestFpu, Hardware, LosesProcessor, Mitigations, Watch},
    table::CheckedTablePage,
    testing::{NoEventFd, NoPages, Test, TestLock, TestMemory, TestTimer, TestWaiter},
};
use x86::Fpu;

use crate::Instructions;

/// What was done to the processor, or asked of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    OnCpu(usize),
    ChangeCr4(u64, bool),
    IrqsOff,
    IrqsOn,
    FpuLoad,
    FpuPut,
    FpuRestore,
    FpuSave,
    Watch(bool),
    GuestBegins,
    GuestEnded,
    MachineCheck,
    WriteMsr(u32, u64),
    SetXcr0(u64),
    DebugAddresses([u64; 4]),
    ClearBuffers,
    /// An instruction that only one vendor has, and something about it.
    Own(&'static str, u64),
}

/// What the processor and the host answer. The processor has what the back ends look for.
pub struct Script {
    pub cpuid: BTreeMap<u32, [u32; 4]>,
    pub msrs: BTreeMap<u32, u64>,
    pub xcr0: u64,
    pub cpu: usize,
    pub must_leave: bool,
    pub now: u64,
    pub mitigations: Mitigations,
    steps: Vec<Step>,
}

/// The capability MSRs of a processor with everything (SDM vol. 3, appendix A).
const MSRS: [(u32, u64); 11] = [
    (0x3a, 5),
    (0x480, 0x00d8_1000_0000_0012),
    (0x485, 1 << 30),
    (0x486, 0x8000_0021),
    (0x488, 0x2000),
    (0x48b, 0xffff_ffff_0000_0000),
    (0x48c, 0x0000_0f01_0633_4141),
    (0x48d, 0x0000_007f_0000_0016),
    (0x48e, 0xfff9_fffe_0400_6172),
    (0x48f, 0x007f_ffff_0003_6dfb),
    (0x490, 0x0000_ffff_0000_11fb),
];

impl Script {
    fn new() -> Self {
        let features = 1 << 5 | 1 << 26 | 1 << 27 | 1 << 28;
        Self {
            cpuid: BTreeMap::from([
                (0, [0xd, 0, 0, 0]),
                (1, [0, 0, features, 0]),
                (0x8000_0000, [0x8000_000a, 0, 0, 0]),
                (0x8000_0001, [0, 0, 1 << 2, 1 << 27]),
                (0x8000_000a, [1, 16, 0, 0]),
            ]),
            msrs: BTreeMap::from(MSRS),
            xcr0: 7,
            cpu: 0,
            must_leave: false,
            now: 0,
            mitigations: Mitigations::default(),
            steps: Vec::new(),
        }
    }
}

std::thread_local! {
    static SCRIPT: RefCell<Script> = RefCell::new(Script::new());
}

/// Looks at the script, or changes it.
pub fn script<R>(f: impl FnOnce(&mut Script) -> R) -> R {
    SCRIPT.with_borrow_mut(f)
}

/// Notes a step.
pub fn note(step: Step) {
    script(|s| s.steps.push(step));
}

/// What has been noted since the last call.
pub fn take_steps() -> Vec<Step> {
    script(|s| core::mem::take(&mut s.steps))
}

/// The steps from `first` to `last`.
pub fn between<'a>(steps: &'a [Step], first: &Step, last: &Step) -> &'a [Step] {
    let at = |step| steps.iter().position(|s| s == step).unwrap();
    &steps[at(first)..=at(last)]
}

/// The processor.
#[derive(Debug, PartialEq, Eq)]
pub struct Recorder;

impl Instructions for Recorder {
    fn cpuid(leaf: u32, _sub: u32) -> [u32; 4] {
        script(|s| s.cpuid.get(&leaf).copied().unwrap_or_default())
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
}

/// Pages whose physical address is the process's own.
pub struct TestFrames(*mut Page, usize);

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
pub struct TestFpu {
    pub area: FpuArea,
}

impl GuestFpu for TestFpu {
    fn new(_cx: &MaySleep) -> Result<Self, OutOfMemory> {
        Ok(Self { area: [0; size_of::<Fpu>()] })
    }
    fn load(&mut self) {
        note(Step::FpuLoad);
    }
    fn put(&mut self) {
        note(Step::FpuPut);
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

/// Watches nothing: a test calls who is told.
pub struct TestWatch<L>(L);

impl<L: LosesProcessor> Watch<L> for TestWatch<L> {
    fn new(told: L, _cx: &MaySleep) -> Result<Self, OutOfMemory> {
        Ok(Self(told))
    }
    fn told(&self) -> &L {
        &self.0
    }
    fn begin(&self) {
        note(Step::Watch(true));
    }
    fn end(&self) {
        note(Step::Watch(false));
    }
}

/// The host.
pub struct TestHost;

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
        script(|s| s.now)
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
    fn host_frames_now(hva: Hva, hpas: &mut [u64], cx: &MaySleep) -> usize {
        Test::host_frames_now(hva, hpas, cx)
    }
    fn log(_: Level, _: fmt::Arguments<'_>) {}
}

impl Hardware for TestHost {
    type Frames = TestFrames;
    type GuestFpu = TestFpu;
    type Watch<L: LosesProcessor> = TestWatch<L>;
    fn cpu(_cx: &Atomic) -> usize {
        script(|s| s.cpu)
    }
    fn cpus() -> usize {
        3
    }
    fn on_cpu(cpu: usize, f: &(dyn Fn(&Atomic) + Sync)) {
        note(Step::OnCpu(cpu));
        let here = script(|s| core::mem::replace(&mut s.cpu, cpu));
        f(&Atomic::at_entry());
        script(|s| s.cpu = here);
    }
    fn change_cr4(bits: u64, set: bool, _cx: &Atomic) {
        note(Step::ChangeCr4(bits, set));
    }
    fn irqs_off(_cx: &Atomic) {
        note(Step::IrqsOff);
    }
    fn irqs_on(_cx: &Atomic) {
        note(Step::IrqsOn);
    }
    fn prepare(cx: &Atomic) -> Option<usize> {
        Self::irqs_off(cx);
        if script(|s| s.must_leave) {
            Self::irqs_on(cx);
            return None;
        }
        Some(script(|s| s.cpu))
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
