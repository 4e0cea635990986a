//! The MSR filter, and MSR accesses and hypercalls that the client answers.
use abi::*;
use x86::{Exception, Vector, msr};

use crate::{
    Errno,
    backend::{Event, EventKind, Exit},
    testing::{CODE, Machine, host::Mapping},
};

const GP: Event = Event { kind: EventKind::Exception(Exception::with_code(Vector::GP, 0)) };
const NOWHERE: u32 = 0xdead;

fn enable(m: &Machine, cap: u32, value: u64) -> Result<(), Errno> {
    let mut enable = KvmEnableCap { cap, ..KvmEnableCap::default() };
    enable.args[0] = value;
    m.vm_ioctl(KVM_ENABLE_CAP, &mut enable).map(drop)
}

fn access(m: &Machine, index: u32, write: Option<u64>) -> Result<u32, Errno> {
    m.state(|s| {
        (s.rip, s.gpr[1]) = (CODE, index.into());
        let value = write.unwrap_or(0);
        (s.gpr[0], s.gpr[2]) = (value & 0xffff_ffff, value >> 32);
    });
    m.script.take_notes();
    m.script.exit(if write.is_some() { Exit::MsrWrite { len: 2 } } else { Exit::MsrRead { len: 2 } });
    m.run()
}

/// Whether the guest got #GP.
fn refused(m: &Machine, index: u32, write: Option<u64>) -> bool {
    assert_eq!(access(m, index, write), Ok(KVM_EXIT_UNKNOWN));
    m.script.take_injected() == [GP]
}

struct Filter {
    abi: KvmMsrFilter,
    bitmap: Mapping,
}

impl Filter {
    /// `allowed` is a bit for each of the `count` registers from `base` on.
    fn new(flags: u32, access: u32, base: u32, count: u32, allowed: u64) -> Self {
        let bitmap = Mapping::new(4096);
        <crate::testing::host::Client as platform::Memory>::store(platform::Hva(bitmap.at()), allowed).unwrap();
        let mut abi = KvmMsrFilter { flags, ..KvmMsrFilter::default() };
        abi.ranges[3] = KvmMsrFilterRange { flags: access, nmsrs: count, base, pad: 0, bitmap: bitmap.at() };
        Self { abi, bitmap }
    }

    fn set(&mut self, m: &Machine) -> Result<(), Errno> {
        m.vm_ioctl(KVM_X86_SET_MSR_FILTER, &mut self.abi).map(drop)
    }
}

const BOTH: u32 = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;

#[test]
fn a_filter_denies_the_guest_and_not_the_client() {
    let m = Machine::with_irqchip();
    Filter::new(0, KVM_MSR_FILTER_WRITE, msr::STAR, 2, 0b10).set(&m).unwrap();
    assert!(refused(&m, msr::STAR, Some(1)) && !refused(&m, msr::LSTAR, Some(1)));
    assert!(!refused(&m, msr::STAR, None) && !refused(&m, msr::STAR + 2, Some(1)));
    let mut set = KvmMsrs { nmsrs: 1, pad: 0 }.bytes().to_vec();
    set.extend(KvmMsrEntry { index: msr::STAR, reserved: 0, data: 5 }.bytes());
    let cx = crate::testing::cx();
    m.client.with_bytes(&mut set, |arg| m.vcpu.ioctl(KVM_SET_MSRS, arg, &cx)).unwrap();
    assert!(!refused(&m, msr::STAR, None));
    assert_eq!(m.state(|s| s.gpr[0]), 5);
    // By default nothing: what no range names is denied, except the local APIC.
    Filter::new(KVM_MSR_FILTER_DEFAULT_DENY, BOTH, msr::STAR, 1, 1).set(&m).unwrap();
    assert!(refused(&m, msr::LSTAR, None) && !refused(&m, msr::STAR, None));
    enable(&m, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER.into()).unwrap();
    assert_ne!(access(&m, msr::X2APIC_FIRST + 2, None), Ok(KVM_EXIT_X86_RDMSR));
    assert_eq!(access(&m, msr::LSTAR, None), Ok(KVM_EXIT_X86_RDMSR));
    // Everything again.
    Filter::new(0, BOTH, 0, 0, 0).set(&m).unwrap();
    assert!(!refused(&m, msr::LSTAR, None));
}

#[test]
fn filters_that_make_no_sense_are_refused() {
    let m = Machine::new();
    assert_eq!(Filter::new(2, BOTH, 0, 1, 0).set(&m), Err(Errno::EINVAL));
    assert_eq!(Filter::new(0, 4, 0, 1, 0).set(&m), Err(Errno::EINVAL));
    assert_eq!(Filter::new(0, 0, 0, 1, 0).set(&m), Err(Errno::EINVAL));
    assert_eq!(Filter::new(KVM_MSR_FILTER_DEFAULT_DENY, BOTH, 0, 0, 0).set(&m), Err(Errno::EINVAL));
    assert_eq!(Filter::new(0, BOTH, 0, 0x3001, 0).set(&m), Err(Errno::EINVAL));
    assert_eq!(Filter::new(0, BOTH, u32::MAX, 0x3000, 0).set(&m), Ok(()));
    let mut filter = Filter::new(0, BOTH, 0, 1, 0);
    filter.bitmap.unmap();
    assert_eq!(filter.set(&m), Err(Errno::EFAULT));
}

#[test]
fn the_client_answers_what_was_refused() {
    let m = Machine::new();
    assert_eq!(enable(&m, KVM_CAP_X86_USER_SPACE_MSR, 8), Err(Errno::EINVAL));
    enable(&m, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_VALID_MASK.into()).unwrap();
    Filter::new(0, BOTH, msr::STAR, 1, 0).set(&m).unwrap();
    let bad_efer = 1 << 63;
    for (index, write, reason) in [
        (NOWHERE, None, KVM_MSR_EXIT_REASON_UNKNOWN),
        (NOWHERE, Some(0x1_2345_6789), KVM_MSR_EXIT_REASON_UNKNOWN),
        (msr::EFER, Some(bad_efer), KVM_MSR_EXIT_REASON_INVAL),
        (msr::STAR, None, KVM_MSR_EXIT_REASON_FILTER),
        (msr::STAR, Some(7), KVM_MSR_EXIT_REASON_FILTER),
    ] {
        for error in [0u8, 1] {
            let exit = if write.is_some() { KVM_EXIT_X86_WRMSR } else { KVM_EXIT_X86_RDMSR };
            assert_eq!(access(&m, index, write), Ok(exit));
            let mut told: KvmRunMsr = m.payload();
            assert_eq!((told.error, told.reason, told.index, told.data), (0, reason, index, write.unwrap_or(0)));
            assert_eq!(m.state(|s| s.rip), CODE);
            (told.error, told.data) = (error, 0xa_0000_000b);
            m.set_run_field(KVM_RUN_UNION_OFFSET as u64, told);
            m.run().unwrap();
            assert_eq!(m.script.take_injected() == [GP], error != 0);
            let (rip, rax, rdx) = m.state(|s| (s.rip, s.gpr[0], s.gpr[2]));
            assert_eq!(rip, if error == 0 { CODE + 2 } else { CODE });
            if write.is_none() && error == 0 {
                assert_eq!((rax, rdx), (0xb, 0xa));
            }
        }
    }
    // Each reason by itself.
    enable(&m, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_INVAL.into()).unwrap();
    assert!(refused(&m, NOWHERE, None) && refused(&m, msr::STAR, None));
    assert_eq!(access(&m, msr::EFER, Some(bad_efer)), Ok(KVM_EXIT_X86_WRMSR));
}

#[test]
fn the_client_carries_out_the_hypercall_that_it_asked_for() {
    let m = Machine::new();
    let call = |gpa, pages| {
        m.state(|s| (s.rip, s.gpr[0], s.gpr[3], s.gpr[1], s.gpr[2]) = (CODE, 12, gpa, pages, 0x10));
        m.script.exit(Exit::Hypercall { len: 3 });
        m.run()
    };
    assert_eq!((call(0x5000, 2), m.state(|s| s.gpr[0] as i32)), (Ok(KVM_EXIT_UNKNOWN), -1000));
    assert_eq!(enable(&m, KVM_CAP_EXIT_HYPERCALL, 1), Err(Errno::EINVAL));
    enable(&m, KVM_CAP_EXIT_HYPERCALL, KVM_EXIT_HYPERCALL_MAP_GPA_RANGE).unwrap();
    for (gpa, pages) in [(0x5001, 2), (0x5000, 0)] {
        assert_eq!((call(gpa, pages), m.state(|s| s.gpr[0] as i32)), (Ok(KVM_EXIT_UNKNOWN), -22));
    }
    assert_eq!(call(0x5000, 2), Ok(KVM_EXIT_HYPERCALL));
    let mut told: KvmRunHypercall = m.payload();
    assert_eq!((told.nr, told.args, told.flags), (12, [0x5000, 2, 0x10, 0, 0, 0], 0));
    assert_eq!(m.state(|s| s.rip), CODE);
    told.ret = 0xf_0000_0007;
    m.set_run_field(KVM_RUN_UNION_OFFSET as u64, told);
    m.run().unwrap();
    assert_eq!(m.state(|s| (s.rip, s.gpr[0])), (CODE + 3, 7));
}
