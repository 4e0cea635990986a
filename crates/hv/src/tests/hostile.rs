//! A client and a guest that do whatever comes to mind: nothing panics, nothing hangs, and the VM can still be used.
use abi::*;
use proptest::prelude::*;
use std::{vec, vec::Vec};
use x86::{Exception, Vector};

use crate::{
    Outcome,
    backend::{Access, CrOp, Exit, PioExit},
    testing::{Machine, RAM, cx},
};

/// A request on the device, the VM or the vCPU, with bytes or a number as its argument.
fn ioctl(m: &Machine, object: u8, nr: u32, argument: &mut [u8], by_value: bool) {
    let number = u64::from_prefix(argument).unwrap_or(0);
    let call = |arg: u64| match object {
        0 => m.kvm.ioctl(nr, arg, &cx()),
        1 => m.vm.ioctl(nr, arg, &cx()),
        // KVM_RUN is the other test's: here it might sleep.
        _ if nr == KVM_RUN => Ok(Outcome::OK),
        _ => m.vcpu.ioctl(nr, arg, &cx()),
    };
    let _ = if by_value { call(number) } else { m.client.with_bytes(argument, call) };
}

fn exit() -> impl Strategy<Value = Exit> {
    let gpa = prop_oneof![0..2 * RAM, any::<u64>(), 0xfee0_0000u64..0xfee0_1000, 0xfec0_0000u64..0xfec0_0100];
    let len = 0u8..16;
    prop_oneof![
        Just(Exit::Interrupted),
        Just(Exit::Emulate),
        Just(Exit::TaskSwitch),
        len.clone().prop_map(|len| Exit::Cpuid { len }),
        len.clone().prop_map(|len| Exit::MsrRead { len }),
        len.clone().prop_map(|len| Exit::MsrWrite { len }),
        len.clone().prop_map(|len| Exit::Hypercall { len }),
        len.clone().prop_map(|len| Exit::Xsetbv { len }),
        (any::<u16>(), any::<u8>(), any::<bool>(), any::<bool>(), len.clone())
            .prop_map(|(port, size, write, string, len)| Exit::Pio(PioExit { port, size, write, string, len })),
        (any::<u8>(), any::<u64>(), len.clone())
            .prop_map(|(number, value, len)| Exit::Cr { op: CrOp::Write { number, value }, len }),
        (any::<u8>(), len).prop_map(|(gpr, len)| Exit::Cr { op: CrOp::ReadCr8 { gpr }, len }),
        (gpa, any::<bool>(), any::<bool>()).prop_map(|(gpa, write, table_walk)| {
            let access = if write { Access::Write } else { Access::Read };
            Exit::NestedPageFault { gpa, access, table_walk }
        }),
        (0u8..32, any::<u64>()).prop_map(|(v, payload)| Exit::Exception {
            exception: Exception { vector: Vector(v), code: Some(1), payload }
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_ioctls(calls in proptest::collection::vec(
        (0u8..3, 0..KVM_IOCTL_NAMES.len(), proptest::collection::vec(any::<u8>(), 0..600), any::<bool>(), any::<bool>()),
        1..200,
    )) {
        let m = Machine::with_irqchip();
        for (object, which, mut bytes, by_value, small) in calls {
            let nr = KVM_IOCTL_NAMES[which].0;
            bytes.resize(bytes.len().max(ioc_size(nr)).max(64), 0);
            if small {
                // Counts and indices in range, so that what lies behind the first check is reached.
                for word in bytes.chunks_mut(4).take(2) {
                    word[1..].fill(0);
                }
            }
            ioctl(&m, object, nr, &mut bytes, by_value);
        }
        prop_assert!(m.vm.ioctl(KVM_CHECK_EXTENSION, KVM_CAP_IRQCHIP.into(), &cx()).is_ok());
    }

    #[test]
    fn any_guest(
        irqchip in any::<bool>(),
        exits in proptest::collection::vec(exit(), 1..30),
        code in proptest::collection::vec(any::<u8>(), 64),
        gpr in any::<[u64; 16]>(),
        state in any::<[u8; 24]>(),
        page in proptest::collection::vec(any::<u8>(), 320),
    ) {
        let m = if irqchip { Machine::with_irqchip() } else { Machine::new() };
        // HLT would sleep, and nobody would wake it.
        let code: Vec<u8> = code.into_iter().map(|byte| if byte == 0xf4 { 0x90 } else { byte }).collect();
        m.poke(0x1000, &code);
        let mut sregs: KvmSregs = m.get(KVM_GET_SREGS);
        if state[0] & 1 != 0 {
            (sregs.cr0, sregs.cr4, sregs.efer, sregs.cr3) = (0x8000_0011, 0x20, 0xd00, u64::from(state[1]) << 12);
            sregs.cs.l = state[2] & 1;
        }
        let _ = m.ioctl(KVM_SET_SREGS, &mut sregs);
        m.state(|s| {
            for (to, from) in s.gpr.iter_mut().zip(gpr) {
                // Mostly small, so that memory is met.
                *to = from >> (from & 63);
            }
            s.flags.set(u64::from_prefix(&state[8..]).unwrap_or(0) & !x86::flags::VM);
        });
        for exit in exits {
            m.script.exit(exit);
        }
        // An entry for which the script has nothing ends KVM_RUN, so it ends in any case.
        for _ in 0..40 {
            let before: Vec<u8> = page.clone();
            m.set_run_field(KVM_RUN_UNION_OFFSET as u64, <[u8; 256]>::from_prefix(&before).unwrap());
            let _ = m.run();
        }
        prop_assert!(m.ioctl(KVM_GET_VCPU_EVENTS, &mut KvmVcpuEvents::default()).is_ok());
    }
}
