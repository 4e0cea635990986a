//! AMD's part of the processor for tests, and a vCPU on it: "running the guest" is a function of the test's.
use std::{boxed::Box, cell::Cell, sync::atomic::AtomicU32};

use hv::backend::{Backend, BackendVcpu, Env, Exit};
use mmu::{AddressSpace, shadow::Root};
use platform::{
    Atomic, MaySleep,
    hardware::{Mitigations, Processors},
};

pub(crate) use hardware::testing::{Recorder, Step, TestFrames, TestHost, script, take_steps};
use hardware::testing::{between, note};

use crate::{Amd, AmdVcpu, Options, exit::code, instructions::Instructions, vmcb::Vmcb};

pub(crate) const CLGI: Step = Step::Own("clgi", 0);
pub(crate) const STGI: Step = Step::Own("stgi", 0);

/// MOV to DR7.
pub(crate) const fn set_dr7(value: u64) -> Step {
    Step::Own("dr7", value)
}

/// VMRUN.
pub(crate) const fn run(mitigations: &Mitigations) -> Step {
    Step::Own("vmrun", mitigations.fill_rsb as u64 | (mitigations.untrain_returns as u64) << 1)
}

type Guest = Box<dyn FnOnce(&mut Vmcb)>;

std::thread_local! {
    static GUEST: Cell<Option<Guest>> = const { Cell::new(None) };
    /// The control block as the last VMRUN found it.
    static SEEN: Cell<Option<&'static Vmcb>> = const { Cell::new(None) };
}

/// Gives the processor more of the features of leaf 0x8000_000a.
pub(crate) fn svm_features(bits: u32) {
    script(|s| s.cpuid.get_mut(&0x8000_000a).unwrap()[3] |= bits);
}

/// The steps from CLGI to STGI.
pub(crate) fn middle(steps: &[Step]) -> &[Step] {
    between(steps, &CLGI, &STGI)
}

impl Instructions for Recorder {
    unsafe fn clgi() {
        note(CLGI);
    }
    unsafe fn stgi() {
        note(STGI);
    }
    unsafe fn set_dr7(value: u64) {
        note(set_dr7(value));
    }
    unsafe fn run(guest: u64, _host: u64, _gpr: &mut [u64; 16], mitigations: &Mitigations) {
        note(run(mitigations));
        // SAFETY: a control block of a test's vCPU, whose address here is its physical one.
        let vmcb = unsafe { &mut *(guest as *mut Vmcb) };
        // SAFETY: any bytes are a control block.
        let seen = Box::leak(Box::new(unsafe { core::ptr::read(vmcb) }));
        SEEN.set(Some(seen));
        vmcb.control.exit_int_info = 0;
        if let Some(guest) = GUEST.take() {
            guest(vmcb);
        }
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
        GUEST.set(Some(Box::new(guest)));
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
