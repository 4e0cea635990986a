//! FPU, XSAVE, XCRs and debug registers.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno, fenced},
    vm::{CODE, RealMode, Vcpu},
};

/// Gives a vCPU all features, and an FPU that is in use: Linux takes what KVM_SET_FPU stores for the initial state until then.
fn prepare(device: &Device, vcpu: &Vcpu) {
    vcpu.support_all(device);
    if device.cap(KVM_CAP_XSAVE) != 0 {
        let mut area: KvmXsave = vcpu.fd.get(KVM_GET_XSAVE).expect("KVM_GET_XSAVE");
        area.region[6] = 0x1f80;
        area.region[128] |= 3;
        vcpu.fd.put(KVM_SET_XSAVE, &area).expect("KVM_SET_XSAVE");
    }
}

fn vcpu(device: &Device) -> Vcpu {
    let vcpu = device.vm().vcpu(0);
    prepare(device, &vcpu);
    vcpu
}

fn some_fpu() -> KvmFpu {
    let mut fpu =
        KvmFpu { fcw: 0x27f, fsw: 0x3800, ftwx: 0x81, last_opcode: 0x123, mxcsr: 0x1fa0, ..KvmFpu::default() };
    (fpu.last_ip, fpu.last_dp) = (0x1122_3344, 0x5566_7788);
    for (n, register) in fpu.fpr.iter_mut().enumerate() {
        register[..10].copy_from_slice(&[n as u8 + 1, 2, 3, 4, 5, 6, 7, 0x88, 9, 0x40]);
    }
    for (n, register) in fpu.xmm.iter_mut().enumerate() {
        *register = [n as u8 ^ 0xa5; 16];
    }
    fpu
}

pub(super) fn fpu(device: &Device) {
    let vcpu = vcpu(device);
    let fpu = some_fpu();
    vcpu.fd.put(KVM_SET_FPU, &fpu).expect("KVM_SET_FPU");
    let back: KvmFpu = vcpu.fd.get(KVM_GET_FPU).expect("KVM_GET_FPU");
    assert_eq!((back.fcw, back.fsw, back.ftwx, back.last_opcode), (fpu.fcw, fpu.fsw, fpu.ftwx, fpu.last_opcode));
    assert_eq!((back.last_ip, back.last_dp), (fpu.last_ip, fpu.last_dp));
    assert_eq!(back.xmm, fpu.xmm);
    assert_eq!(back.fpr, fpu.fpr);
}

pub(super) fn mxcsr(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.stmxcsr(dword_ptr(0x500))?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    prepare(device, vcpu);
    vcpu.edit_sregs(|s| s.cr4 |= 1 << 9);
    // The FPU calls have a field for it that nobody reads; the XSAVE calls set it.
    vcpu.fd.put(KVM_SET_FPU, &KvmFpu { fcw: 0x37f, mxcsr: 0x1fa0, ..KvmFpu::default() }).expect("KVM_SET_FPU");
    assert_eq!(vcpu.fd.get::<KvmFpu>(KVM_GET_FPU).map(|fpu| fpu.mxcsr), Ok(0));
    vcpu.run_to_hlt();
    assert_eq!(machine.memory.u32(0x500), 0x1f80);
    let mut area: KvmXsave = vcpu.fd.get(KVM_GET_XSAVE).expect("KVM_GET_XSAVE");
    assert_eq!(area.region[6], 0x1f80);
    area.region[6] = 0x1fa0;
    area.region[128] |= 3;
    vcpu.fd.put(KVM_SET_XSAVE, &area).expect("KVM_SET_XSAVE");
    vcpu.edit_regs(|r| r.rip = CODE);
    vcpu.run_to_hlt();
    assert_eq!(machine.memory.u32(0x500), 0x1fa0);
}

pub(super) fn fpu_in_guest(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.fstp(qword_ptr(0x500))?;
        a.fnstcw(word_ptr(0x508))?;
        a.movdqu(xmmword_ptr(0x510), xmm3)?;
        a.pxor(xmm3, xmm3)?;
        a.fld1()?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    prepare(device, vcpu);
    vcpu.edit_sregs(|s| s.cr4 |= 1 << 9);
    let mut fpu = KvmFpu { fcw: 0x37f, mxcsr: 0x1f80, ftwx: 1, ..KvmFpu::default() };
    // 2.5 on top of the stack.
    fpu.fpr[0][..10].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0xa0, 0x00, 0x40]);
    fpu.xmm[3] = *b"sixteen bytes !!";
    vcpu.fd.put(KVM_SET_FPU, &fpu).expect("KVM_SET_FPU");
    vcpu.run_to_hlt();
    assert_eq!(f64::from_bits(machine.memory.u64(0x500)), 2.5);
    assert_eq!(machine.memory.u16(0x508), 0x37f);
    assert_eq!(machine.memory.read(0x510, 16), b"sixteen bytes !!");
    let fpu: KvmFpu = vcpu.fd.get(KVM_GET_FPU).expect("KVM_GET_FPU");
    assert_eq!(fpu.xmm[3], [0; 16]);
    // 1.0, in the register that the stack's top names: the one that the pop left.
    assert_eq!(fpu.fpr[0][..10], [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
}

pub(super) fn xsave(device: &Device) {
    let vcpu = vcpu(device);
    let mut area: KvmXsave = vcpu.fd.get(KVM_GET_XSAVE).expect("KVM_GET_XSAVE");
    // Legacy region: XMM0 at byte 160; XSTATE_BV at byte 512.
    area.region[40..44].copy_from_slice(&[1, 2, 3, 4]);
    area.region[128] |= 3;
    vcpu.fd.put(KVM_SET_XSAVE, &area).expect("KVM_SET_XSAVE");
    let back: KvmXsave = vcpu.fd.get(KVM_GET_XSAVE).expect("KVM_GET_XSAVE");
    assert_eq!(back.region[40..44], [1, 2, 3, 4]);
}

pub(super) fn xsave_and_fpu(device: &Device) {
    let vcpu = vcpu(device);
    let fpu = some_fpu();
    vcpu.fd.put(KVM_SET_FPU, &fpu).expect("KVM_SET_FPU");
    let mut area: KvmXsave = vcpu.fd.get(KVM_GET_XSAVE).expect("KVM_GET_XSAVE");
    assert_eq!(area.region[0], u32::from(fpu.fcw) | u32::from(fpu.fsw) << 16);
    let bytes = area.region.map(u32::to_le_bytes).concat();
    for n in 0..8 {
        assert_eq!(bytes[32 + 16 * n..][..10], fpu.fpr[n][..10], "ST{n}");
        assert_eq!(bytes[160 + 16 * n..][..16], fpu.xmm[n], "XMM{n}");
    }
    area.region[40] = 0x1234_5678;
    vcpu.fd.put(KVM_SET_XSAVE, &area).expect("KVM_SET_XSAVE");
    let fpu: KvmFpu = vcpu.fd.get(KVM_GET_FPU).expect("KVM_GET_FPU");
    assert_eq!(fpu.xmm[0][..4], 0x1234_5678u32.to_le_bytes());
}

pub(super) fn impossible_xsave(device: &Device) {
    let vcpu = vcpu(device);
    let good: KvmXsave = vcpu.fd.get(KVM_GET_XSAVE).expect("KVM_GET_XSAVE");
    for (what, word, value) in
        [("components that are not supported", 129, 1u32 << 31), ("reserved bits of MXCSR", 6, 0xffff_ffff)]
    {
        let mut area = good;
        area.region[128] |= 3;
        area.region[word] = value;
        assert_eq!(vcpu.fd.put(KVM_SET_XSAVE, &area), Err(Errno::EINVAL), "{what}");
    }
    assert_eq!(vcpu.fd.get::<KvmXsave>(KVM_GET_XSAVE), Ok(good));
}

pub(super) fn xsave2(device: &Device) {
    let vm = device.vm();
    let vcpu = vm.vcpu(0);
    vcpu.support_all(device);
    let bytes = vm.fd.number(KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2.into()).expect("a size") as usize;
    assert!(bytes >= size_of::<KvmXsave>(), "{bytes} bytes");
    // Exactly so many are written.
    let (address, area) = fenced(&vec![0x5a; bytes]);
    assert_eq!(vcpu.fd.at(KVM_GET_XSAVE2, address), Ok(0));
    let short: KvmXsave = vcpu.fd.get(KVM_GET_XSAVE).expect("KVM_GET_XSAVE");
    assert_eq!(area.read(0, 4096), short.bytes());
}

pub(super) fn xcrs(device: &Device) {
    let vcpu = vcpu(device);
    let all: KvmXcrs = vcpu.fd.get(KVM_GET_XCRS).expect("KVM_GET_XCRS");
    assert_eq!((all.nr_xcrs, all.flags, all.xcrs[0].xcr, all.xcrs[0].value), (1, 0, 0, 1));
    let set = |value: u64, nr_xcrs: u32, flags: u32| {
        let mut xcrs = KvmXcrs { nr_xcrs, flags, ..KvmXcrs::default() };
        xcrs.xcrs[0] = KvmXcr { xcr: 0, reserved: 0, value };
        vcpu.fd.put(KVM_SET_XCRS, &xcrs)
    };
    assert_eq!(set(3, 1, 0), Ok(0));
    assert_eq!(vcpu.fd.get::<KvmXcrs>(KVM_GET_XCRS).map(|x| x.xcrs[0].value), Ok(3));
    // x87 cannot be off; AVX needs SSE; no such bit; flags; more registers than there is room for.
    for (value, nr, flags) in [(2, 1, 0), (5, 1, 0), (1 << 62 | 1, 1, 0), (3, 1, 1), (3, 17, 0)] {
        assert_eq!(set(value, nr, flags), Err(Errno::EINVAL), "XCR0 {value:#x}, {nr} registers, flags {flags}");
    }
    assert_eq!(vcpu.fd.get::<KvmXcrs>(KVM_GET_XCRS).map(|x| x.xcrs[0].value), Ok(3));
}

pub(super) fn debugregs(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.mov(eax, dr2)?;
        a.mov(ebx, dr7)?;
        a.mov(ecx, 0x4321)?;
        a.mov(dr3, ecx)?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    let fresh: KvmDebugregs = vcpu.fd.get(KVM_GET_DEBUGREGS).expect("KVM_GET_DEBUGREGS");
    assert_eq!((fresh.db, fresh.dr6, fresh.dr7), ([0; 4], 0xffff_0ff0, 0x400));
    // Breakpoints that are far from what the guest does, and enabled.
    let set = KvmDebugregs { db: [0x9000, 0xa000, 0xb000, 0xc000], dr6: 0xffff_0ff1, dr7: 0x4aa, ..fresh };
    vcpu.fd.put(KVM_SET_DEBUGREGS, &set).expect("KVM_SET_DEBUGREGS");
    assert_eq!(vcpu.fd.get::<KvmDebugregs>(KVM_GET_DEBUGREGS), Ok(set));
    vcpu.run_to_hlt();
    let (regs, after) = (vcpu.regs(), vcpu.fd.get::<KvmDebugregs>(KVM_GET_DEBUGREGS).expect("KVM_GET_DEBUGREGS"));
    assert_eq!((regs.rax, regs.rbx), (0xb000, 0x4aa));
    assert_eq!(after.db, [0x9000, 0xa000, 0xb000, 0x4321]);
}

pub(super) fn impossible_debugregs(device: &Device) {
    let vcpu = vcpu(device);
    let good: KvmDebugregs = vcpu.fd.get(KVM_GET_DEBUGREGS).expect("KVM_GET_DEBUGREGS");
    for (what, bad) in [
        ("flags", KvmDebugregs { flags: 1, ..good }),
        ("upper half of DR6", KvmDebugregs { dr6: good.dr6 | 1 << 32, ..good }),
        ("upper half of DR7", KvmDebugregs { dr7: good.dr7 | 1 << 32, ..good }),
    ] {
        assert_eq!(vcpu.fd.put(KVM_SET_DEBUGREGS, &bad), Err(Errno::EINVAL), "{what}");
    }
    assert_eq!(vcpu.fd.get::<KvmDebugregs>(KVM_GET_DEBUGREGS), Ok(good));
}
