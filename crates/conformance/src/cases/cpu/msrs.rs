//! Model-specific registers that guests of the log's time touch (rows C04, C10), as Linux's KVM answers them.
use abi::KVM_GET_MSR_INDEX_LIST;
use iced_x86::code_asm::*;

use crate::{
    Device,
    guest::{Live, Machine, Mode},
    runner::{Case, Target, case},
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("netbsd-reads-misc-enable", "C04 C10", netbsd),
    case("openbsd-reads-ebl-cr-poweron", "C04 C10", openbsd),
    case("linux-2-6-7-clears-mcg-status", "C04 C10", linux),
    case("solaris-finds-an-fpu-in-cr0", "C04 C11", solaris),
    case("benchmarks-read-intels-registers", "C10", intels),
    case("amds-registers", "C10", amds),
    case("machine-check-banks", "C10", machine_check),
    case("a-register-that-is-not-there", "C10", unknown),
    case("sysenter-registers-keep-what-is-written", "C10", sysenter),
    case("segment-bases-must-be-canonical", "C10", bases)
        .fails_below(Target::IN_QEMU, "QEMU's TCG takes any base (helper_wrmsr in misc_helper.c)"),
    case("efer-refuses-reserved-bits", "C05 C10", efer),
    case("pat-and-mtrr", "C10", pat_mtrr),
    case("apic-base", "C10", apic_base),
    case("the-time-stamp-counter", "C10", tsc),
    case("what-the-client-sets-the-guest-reads", "A10 C10", client_sets),
];

/// A guest that reads and writes registers on the client's behalf.
struct Guest {
    live: Live,
    read: u64,
    write: u64,
}

impl Guest {
    fn new(device: &Device) -> Self {
        let mut m = Machine::new(Mode::LONG);
        let read = m.code(|a| {
            a.rdmsr()?;
            a.hlt()
        });
        let write = m.code(|a| {
            a.wrmsr()?;
            a.hlt()
        });
        Self { live: m.start(device), read, write }
    }

    fn outcome(&self, rip: u64) -> Result<u64, ()> {
        self.live.go(rip);
        match self.live.events()[..] {
            [] => {
                let regs = self.live.vcpu.regs();
                Ok(regs.rdx << 32 | regs.rax & 0xffff_ffff)
            }
            [event] => {
                assert_eq!((event.vector, event.code, event.rip), (13, 0, rip));
                Err(())
            }
            ref other => panic!("{other:x?}"),
        }
    }

    /// RDMSR: `Err` if it is #GP(0).
    fn rdmsr(&self, index: u32) -> Result<u64, ()> {
        self.live.vcpu.edit_regs(|r| r.rcx = index.into());
        self.outcome(self.read)
    }

    /// WRMSR.
    fn wrmsr(&self, index: u32, value: u64) -> Result<(), ()> {
        self.live.vcpu.edit_regs(|r| (r.rcx, r.rax, r.rdx) = (index.into(), value & 0xffff_ffff, value >> 32));
        self.outcome(self.write).map(drop)
    }

    /// Writes and reads back.
    fn keeps(&self, index: u32, value: u64) {
        assert_eq!(self.wrmsr(index, value), Ok(()), "WRMSR of {index:#x}");
        assert_eq!(self.rdmsr(index), Ok(value), "RDMSR of {index:#x}");
        assert_eq!(self.live.vcpu.msr(index), Some(value), "KVM_GET_MSRS of {index:#x}");
    }
}

fn netbsd(device: &Device) {
    let guest = Guest::new(device);
    let value = guest.rdmsr(0x1a0).expect("MISC_ENABLE");
    assert_eq!(guest.wrmsr(0x1a0, value), Ok(()));
}

fn openbsd(device: &Device) {
    let guest = Guest::new(device);
    // p3_get_bus_clock looks at bits 19 and 18.
    assert_eq!(guest.rdmsr(0x2a), Ok(0));
}

fn linux(device: &Device) {
    let guest = Guest::new(device);
    assert_eq!(guest.wrmsr(0x17a, 0), Ok(()));
    assert_eq!(guest.rdmsr(0x17a), Ok(0));
}

fn solaris(device: &Device) {
    // CR0 of a new processor, read by the guest: ET set, EM clear.
    let mut m = Machine::new(Mode::Real);
    m.code(|a| {
        a.mov(eax, cr0)?;
        a.hlt()
    });
    let live = m.start(device);
    let fresh = device.vm().vcpu(0).sregs().cr0;
    live.edit_sregs(|s| s.cr0 = fresh);
    live.vcpu.run_to_hlt();
    assert_eq!(live.vcpu.regs().rax & 0x14, 0x10);
    // And an x87 instruction works.
    let mut m = Machine::new(Mode::Real);
    m.code(|a| {
        a.fninit()?;
        a.fld1()?;
        a.fstp(dword_ptr(0xa000))?;
        a.hlt()
    });
    let live = m.run(device);
    assert_eq!((live.events(), live.memory.u32(0xa000)), (vec![], 0x3f80_0000));
}

fn intels(device: &Device) {
    let guest = Guest::new(device);
    for (index, name) in
        [(0x00, "P5_MC_ADDR"), (0x01, "P5_MC_TYPE"), (0x17, "PLATFORM_ID"), (0x8b, "UCODE_REV"), (0x198, "PERF_STATUS")]
    {
        assert!(guest.rdmsr(index).is_ok(), "{name}");
    }
    assert_eq!((guest.rdmsr(0x00), guest.rdmsr(0x01), guest.rdmsr(0x17)), (Ok(0), Ok(0), Ok(0)));
    // A microcode update by the guest is ignored.
    assert_eq!(guest.wrmsr(0x79, 0x1234), Ok(()));
}

fn amds(device: &Device) {
    let guest = Guest::new(device);
    assert_eq!(guest.rdmsr(0xc001_0010), Ok(0), "SYSCFG");
    let hwcr = guest.rdmsr(0xc001_0015).expect("HWCR");
    assert_eq!(guest.wrmsr(0xc001_0015, hwcr), Ok(()));
    for ignored in [1 << 3, 1 << 6, 1 << 8] {
        assert_eq!(guest.wrmsr(0xc001_0015, ignored), Ok(()), "HWCR {ignored:#x}");
    }
}

fn machine_check(device: &Device) {
    let guest = Guest::new(device);
    let cap = guest.rdmsr(0x179).expect("MCG_CAP");
    for bank in 0..(cap & 0xff).min(32) as u32 {
        for register in 0..4 {
            assert!(guest.rdmsr(0x400 + 4 * bank + register).is_ok(), "bank {bank}, register {register}");
        }
        assert_eq!(guest.wrmsr(0x400 + 4 * bank, !0), Ok(()), "MC{bank}_CTL");
        assert_eq!(guest.wrmsr(0x401 + 4 * bank, 0), Ok(()), "MC{bank}_STATUS");
        assert_eq!(guest.wrmsr(0x401 + 4 * bank, 1), Err(()), "MC{bank}_STATUS can only be cleared");
    }
}

fn unknown(device: &Device) {
    let guest = Guest::new(device);
    for index in [0x5555_5555, 0xc000_0090, 0x4000_1234] {
        assert_eq!((guest.rdmsr(index), guest.wrmsr(index, 0)), (Err(()), Err(())), "{index:#x}");
        assert_eq!(guest.live.vcpu.msr(index), None, "{index:#x}");
        assert!(!guest.live.vcpu.set_msr(index, 1), "{index:#x}");
    }
}

fn sysenter(device: &Device) {
    let guest = Guest::new(device);
    guest.keeps(0x174, 0x10);
    // AMD's processors keep 32 bits of these.
    guest.keeps(0x175, 0x1234_5678);
    guest.keeps(0x176, 0x8000_0000);
    guest.keeps(0xc000_0081, 0x0023_0010_0000_0000);
    guest.keeps(0xc000_0082, 0xffff_ffff_8123_4567);
    guest.keeps(0xc000_0083, 0x7fff_0000_1111);
    guest.keeps(0xc000_0084, 0x4_7700);
}

fn bases(device: &Device) {
    let guest = Guest::new(device);
    for index in [0xc000_0100, 0xc000_0101, 0xc000_0102, 0xc000_0082, 0xc000_0083] {
        guest.keeps(index, 0xffff_8000_0000_1000);
        guest.keeps(index, 0x7fff_ffff_f000);
        assert_eq!(guest.wrmsr(index, 0x8000_0000_0000), Err(()), "{index:#x}");
        assert_eq!(guest.rdmsr(index), Ok(0x7fff_ffff_f000), "{index:#x}");
    }
    // FS and GS are the segments' own bases.
    assert_eq!(guest.live.vcpu.sregs().fs.base, 0x7fff_ffff_f000);
}

fn efer(device: &Device) {
    let guest = Guest::new(device);
    let now = guest.rdmsr(0xc000_0080).expect("EFER");
    for wrong in [1 << 1, 1 << 9, 1 << 20, 1 << 63] {
        assert_eq!(guest.wrmsr(0xc000_0080, now | wrong), Err(()), "EFER {wrong:#x}");
    }
    // LMA is the processor's: a write does not change it. LME cannot change while paging is on.
    assert_eq!(guest.wrmsr(0xc000_0080, now & !(1 << 10)), Ok(()));
    assert_eq!(guest.rdmsr(0xc000_0080), Ok(now));
    assert_eq!(guest.wrmsr(0xc000_0080, now & !(1 << 8)), Err(()));
    guest.keeps(0xc000_0080, now & !1);
}

fn pat_mtrr(device: &Device) {
    let guest = Guest::new(device);
    assert_eq!(guest.rdmsr(0x277), Ok(0x0007_0406_0007_0406), "PAT after reset");
    guest.keeps(0x277, 0x0007_0401_0007_0401);
    for wrong in [2, 3 << 8, 8 << 56] {
        assert_eq!(guest.wrmsr(0x277, wrong), Err(()), "PAT {wrong:#x}");
    }
    let cap = guest.rdmsr(0xfe).expect("MTRRcap");
    assert_ne!(cap & 0xff, 0);
    guest.keeps(0x250, 0x0606_0606_0606_0606);
    guest.keeps(0x2ff, 0xc06);
    guest.keeps(0x200, 0x8000_0006);
    guest.keeps(0x201, 0xf_8000_0800);
    assert_eq!(guest.wrmsr(0x250, 2), Err(()), "a memory type that does not exist");
    assert_eq!(guest.wrmsr(0xfe, cap), Err(()), "MTRRcap is read-only");
}

fn apic_base(device: &Device) {
    let vm = device.vm();
    vm.irqchip();
    let mut m = Machine::new(Mode::LONG);
    m.code(|a| {
        a.mov(ecx, 0x1bu32)?;
        a.rdmsr()?;
        a.hlt()
    });
    let live = m.start_in(device, vm);
    // HLT does not leave with a local APIC: look at the sregs and at the register through the interface.
    assert_eq!(live.vcpu.msr(0x1b), Some(0xfee0_0900));
    assert_eq!(live.vcpu.sregs().apic_base, 0xfee0_0900);
    assert!(!live.vcpu.set_msr(0x1b, 0xfee0_0901), "a reserved bit");
    assert!(live.vcpu.set_msr(0x1b, 0xfee0_0100), "disabled");
    assert_eq!(live.vcpu.sregs().apic_base, 0xfee0_0100);
}

fn tsc(device: &Device) {
    let mut m = Machine::new(Mode::LONG);
    m.code(|a| {
        a.mov(ecx, 0x10u32)?;
        a.mov(eax, 0x1000u32)?;
        a.mov(edx, 0x55u32)?;
        a.wrmsr()?;
        a.rdtsc()?;
        a.mov(esi, edx)?;
        a.mov(edi, eax)?;
        a.rdmsr()?;
        a.hlt()
    });
    let regs = m.run(device).vcpu.regs();
    let (by_rdtsc, by_rdmsr) = (regs.rsi << 32 | regs.rdi, regs.rdx << 32 | regs.rax);
    let set = 0x55_0000_1000;
    assert!((set..set + (1 << 40)).contains(&by_rdtsc), "{by_rdtsc:#x}");
    assert!(by_rdtsc <= by_rdmsr, "{by_rdtsc:#x}, then {by_rdmsr:#x}");
}

/// The list of registers holds only what can be read and set.
fn client_sets(device: &Device) {
    let guest = Guest::new(device);
    let mut bytes = vec![0; 4 + 4 * 512];
    bytes[..4].copy_from_slice(&512u32.to_le_bytes());
    device.fd.buffer(KVM_GET_MSR_INDEX_LIST, &mut bytes).expect("KVM_GET_MSR_INDEX_LIST");
    let word = |n: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[4 * n + i]));
    let count = word(0) as usize;
    let list: Vec<u32> = (1..=count).map(word).collect();
    for wanted in [0x10, 0x174, 0x175, 0x176, 0xc000_0081, 0xc000_0082, 0xc000_0084, 0xc000_0102] {
        assert!(list.contains(&wanted), "{wanted:#x} is not in the list");
    }
    for index in list {
        assert!(guest.live.vcpu.msr(index).is_some(), "{index:#x} is in the list and cannot be read");
    }
    for (index, value) in [(0x174, 0x33), (0xc000_0102, 0x1234_5000), (0x277, 0x0007_0406_0007_0401)] {
        assert!(guest.live.vcpu.set_msr(index, value), "{index:#x}");
        assert_eq!(guest.rdmsr(index), Ok(value), "{index:#x}");
    }
}
