//! The task priority by other ways: reports of accesses, and the word in memory of patched guests.
use abi::*;

use crate::{
    Errno,
    backend::{Access, Exit},
    testing::{CODE, Machine},
};

/// mov eax, [0xfee00000 + offset] (0xa1) or the other way round (0xa3) in flat protected mode: the exit.
fn access(m: &Machine, opcode: u8, offset: u32) -> Result<u32, Errno> {
    let at = 0xfee0_0000 + offset;
    let mut code = std::vec![opcode];
    code.extend(at.to_le_bytes());
    m.poke(CODE, &code);
    m.state(|s| {
        s.seg[1].attr.0 |= x86::Attr::DB;
        s.seg[3] = x86::Segment { limit: u32::MAX, ..x86::Segment::real(0, 0) };
        (s.cr0, s.rip, s.gpr[0]) = (s.cr0 | 1, CODE, 0x30);
        s.refresh();
    });
    m.script.exit(Exit::NestedPageFault { gpa: at.into(), access: Access::Write, table_walk: false });
    m.run()
}

fn report(m: &Machine, enabled: u32, flags: u32) -> Result<(), Errno> {
    let mut control = KvmTprAccessCtl { enabled, flags, reserved: [7; 8] };
    let before = control;
    let result = m.ioctl(KVM_TPR_ACCESS_REPORTING, &mut control).map(drop);
    assert_eq!(control, before);
    result
}

#[test]
fn accesses_to_the_register_are_told_with_their_instruction() {
    let m = Machine::with_irqchip();
    assert_ne!(access(&m, 0xa3, 0x80), Ok(KVM_EXIT_TPR_ACCESS));
    assert_eq!(report(&m, 1, 1), Err(Errno::EINVAL));
    report(&m, 1, 0).unwrap();
    for (opcode, write) in [(0xa3, 1), (0xa1, 0)] {
        assert_eq!(access(&m, opcode, 0x80), Ok(KVM_EXIT_TPR_ACCESS));
        let told: KvmRunTprAccess = m.payload();
        assert_eq!((told.rip, told.is_write), (CODE, write));
        // The access is done.
        assert_eq!(m.state(|s| (s.rip, s.gpr[0])), (CODE + 5, 0x30));
        assert_eq!(m.run(), Ok(KVM_EXIT_UNKNOWN));
    }
    assert_ne!(access(&m, 0xa1, 0x20), Ok(KVM_EXIT_TPR_ACCESS));
    report(&m, 0, 0).unwrap();
    assert_ne!(access(&m, 0xa3, 0x80), Ok(KVM_EXIT_TPR_ACCESS));
}

#[test]
fn a_patched_guest_finds_the_local_apic_in_memory() {
    let m = Machine::with_irqchip();
    let set = |vapic_addr| m.ioctl(KVM_SET_VAPIC_ADDR, &mut KvmVapicAddr { vapic_addr }).map(drop);
    assert_eq!(set(0x100_0000), Err(Errno::EINVAL));
    set(0x804).unwrap();
    let mut lapic: KvmLapicState = m.get(KVM_GET_LAPIC);
    // Priority 0x20; vector 0x45 in service, 0x63 requested.
    lapic.regs[0x80] = 0x20;
    lapic.regs[0xf0..0xf4].copy_from_slice(&0x1ffu32.to_le_bytes());
    lapic.regs[0x120] = 1 << 5;
    lapic.regs[0x230] = 1 << 3;
    m.ioctl(KVM_SET_LAPIC, &mut lapic).unwrap();
    m.script.entry(|_, env| {
        use mmu::PhysMem;
        let view = env.memory.view(0).unwrap();
        assert_eq!(view.load::<u32>(0x804), Ok(0x6300_4020));
        view.store(0x804, 0xffu8).unwrap();
        Exit::Pause { len: 1 }
    });
    m.script.entry(|_, env| {
        use mmu::PhysMem;
        assert_eq!(env.memory.view(0).unwrap().load::<u32>(0x804), Ok(0x6300_40ff));
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    assert_eq!(m.get::<KvmLapicState>(KVM_GET_LAPIC).regs[0x80], 0xff);
    assert_eq!(m.get::<KvmSregs>(KVM_GET_SREGS).cr8, 0xf);
    // Taken away again, the word is the guest's.
    set(0).unwrap();
    m.poke(0x804, &[0x11]);
    m.run().unwrap();
    assert_eq!((m.get::<KvmSregs>(KVM_GET_SREGS).cr8, m.peek::<u8>(0x804)), (0xf, 0x11));
    assert_eq!(Machine::new().ioctl(KVM_SET_VAPIC_ADDR, &mut KvmVapicAddr::default()).map(drop), Err(Errno::EINVAL));
}

/// So it is where the processor cannot enter the guest, and its code is executed.
#[test]
fn the_word_is_kept_for_code_that_is_executed() {
    let m = Machine::with_irqchip();
    m.ioctl(KVM_SET_VAPIC_ADDR, &mut KvmVapicAddr { vapic_addr: 0x804 }).unwrap();
    let mut lapic: KvmLapicState = m.get(KVM_GET_LAPIC);
    lapic.regs[0x80] = 0x50;
    m.ioctl(KVM_SET_LAPIC, &mut lapic).unwrap();
    // mov al, [0x804]; mov byte [0x804], 0x20.
    m.poke(CODE, &[0xa0, 0x04, 0x08, 0xc6, 0x06, 0x04, 0x08, 0x20]);
    m.state(|s| (s.rip, s.gpr[0]) = (CODE, 0));
    *m.script.takes.lock().unwrap() = Some(|s| s.rip == CODE + 8);
    m.script.entry(|s, _| {
        assert_eq!(s.gpr[0], 0x50);
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    assert_eq!(m.get::<KvmLapicState>(KVM_GET_LAPIC).regs[0x80], 0x20);
}

/// The local APIC's page while it answers elsewhere: nothing, unless the client wants it to be device memory.
#[test]
fn the_register_page_of_an_apic_that_is_off_is_a_hole() {
    for disabled in [0, KVM_X86_QUIRK_LAPIC_MMIO_HOLE] {
        let m = Machine::with_irqchip();
        let mut cap = KvmEnableCap { cap: KVM_CAP_DISABLE_QUIRKS2, ..KvmEnableCap::default() };
        cap.args[0] = disabled;
        m.client.with_bytes(cap.bytes_mut(), |arg| m.vm.ioctl(KVM_ENABLE_CAP, arg, &crate::testing::cx())).unwrap();
        m.vcpu.with_inner(|inner| inner.set_apic_base(0xfee0_0100, crate::msr::By::Client)).unwrap();
        let exit = access(&m, 0xa1, 0x80);
        if disabled == 0 {
            assert_eq!((exit, m.state(|s| s.gpr[0])), (Ok(KVM_EXIT_UNKNOWN), 0xffff_ffff));
            assert_eq!(access(&m, 0xa3, 0x80), Ok(KVM_EXIT_UNKNOWN));
        } else {
            assert_eq!(exit, Ok(KVM_EXIT_MMIO));
        }
    }
}
