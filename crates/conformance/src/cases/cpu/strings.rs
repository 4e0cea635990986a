//! String instructions that fault in the middle: the registers tell how far they came (SDM vol. 2, REP).
use x86::paging::{P, W};

use crate::{
    Device,
    guest::{Machine, Mode, Paging, layout::FRAMES},
    runner::{Case, Target, case},
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("rep-movs-into-a-page-that-is-not-there", "C09 B01", movs_destination),
    case("rep-movs-out-of-a-page-that-is-not-there", "C09 B01", movs_source),
    case("rep-stos-downwards-into-a-page-that-is-not-there", "C09 B01", stos_down),
    case("repe-cmps-and-repne-scas-that-fault", "C09 B01", compare),
    case("rep-movs-into-a-read-only-page", "C09 B01", read_only),
    case("rep-with-no-count-touches-nothing", "C09", no_count),
    case("rep-in-every-address-size", "C09", address_sizes),
    case("an-element-over-the-page-boundary", "C09 B01", straddling),
    case("a-segment-limit-in-the-middle", "C09", segment_limit)
        .fails_below(Target::IN_QEMU, super::exceptions::NO_LIMITS),
];

/// A page at `GVA`, and none behind it or before it.
const GVA: u64 = 0x80_0000;
const SOURCE: u64 = GVA + 0x10_0000;

/// Runs `code` in each format with these registers; it must fault at its second byte group (`offset`), and then go on to
/// its end when the page has come.
fn faulting(
    device: &Device,
    set: impl Fn(&mut Machine),
    code: &[u8],
    (offset, error, cr2): (u64, u32, u64),
    middle: (u64, u64, u64),
    end: (u64, u64, u64),
) {
    for paging in Paging::ALL {
        let mut m = Machine::new(Mode::Paged(paging));
        m.map(GVA, FRAMES | P | W);
        m.map(SOURCE, (FRAMES + 4096) | P | W);
        for gva in [GVA - 4096, GVA + 4096, SOURCE + 4096] {
            m.map(gva, FRAMES + 0x10_0000 + (gva & 0xf_f000));
        }
        (0..1024).for_each(|n| m.image.write32(FRAMES + 4096 + 4 * n, n as u32));
        set(&mut m);
        let at = m.bytes(&[code, &[0xf4]].concat());
        let entry = m.entry(cr2 & !0xfff, 1) as usize;
        let live = m.run(device);
        let event = live.event();
        assert_eq!((event.vector, event.code, event.cr2, event.rip), (14, error, cr2, at + offset), "{paging:?}");
        let regs = live.vcpu.regs();
        assert_eq!((regs.rcx, regs.rsi, regs.rdi), middle, "{paging:?}, in the middle");
        // The page comes (its entry was not present or not writable; the registers are set anew, which flushes).
        live.memory.set_u32(entry, live.memory.u32(entry) | (P | W) as u32);
        live.edit_sregs(|_| {});
        live.clear();
        live.vcpu.edit_regs(|r| (r.rip, r.rsp, r.rflags) = (event.rip, 0x8000, event.rflags));
        live.vcpu.run_to_hlt();
        assert_eq!(live.events(), [], "{paging:?}");
        let regs = live.vcpu.regs();
        assert_eq!((regs.rcx, regs.rsi, regs.rdi), end, "{paging:?}, at the end");
    }
}

fn set(rcx: u64, rsi: u64, rdi: u64) -> impl Fn(&mut Machine) {
    move |m| (m.regs.rcx, m.regs.rsi, m.regs.rdi) = (rcx, rsi, rdi)
}

fn movs_destination(device: &Device) {
    let (from, to) = (SOURCE, GVA + 0xff0);
    let end = (0, from + 32, to + 32);
    faulting(device, set(8, from, to), &[0xf3, 0xa5], (0, 2, GVA + 4096), (4, from + 16, to + 16), end);
    faulting(device, set(32, from, to), &[0xf3, 0xa4], (0, 2, GVA + 4096), (16, from + 16, to + 16), end);
}

fn movs_source(device: &Device) {
    let (from, to) = (SOURCE + 0xff8, GVA);
    faulting(
        device,
        set(4, from, to),
        &[0xf3, 0xa5],
        (0, 0, SOURCE + 4096),
        (2, from + 8, to + 8),
        (0, from + 16, to + 16),
    );
}

fn stos_down(device: &Device) {
    // std; rep stosd, from the page's third dword downwards.
    let to = GVA + 8;
    faulting(device, set(5, 0, to), &[0xfd, 0xf3, 0xab], (1, 2, GVA - 4), (2, 0, GVA - 4), (0, 0, to - 20));
}

fn compare(device: &Device) {
    // repe cmpsd of a page with itself; the second page is zero, as the first one's end is made.
    let at = GVA + 0xff0;
    let end = (0, at + 32, at + 32);
    faulting(device, set(8, at, at), &[0xf3, 0xa7], (0, 0, GVA + 4096), (4, at + 16, at + 16), end);
    // mov al, 7; repne scasb
    faulting(device, set(32, 5, at), &[0xb0, 7, 0xf2, 0xae], (2, 0, GVA + 4096), (16, 5, at + 16), (0, 5, at + 32));
}

fn read_only(device: &Device) {
    let (from, to) = (SOURCE, GVA + 0xff8);
    let prepare = |m: &mut Machine| {
        set(4, from, to)(m);
        m.change(GVA + 4096, 1, 0, P);
    };
    faulting(device, prepare, &[0xf3, 0xa5], (0, 3, GVA + 4096), (2, from + 8, to + 8), (0, from + 16, to + 16));
}

fn no_count(device: &Device) {
    for mode in [Mode::LEGACY, Mode::LONG] {
        let mut m = Machine::new(mode);
        set(0, 0x7000_0000, 0x7100_0000)(&mut m);
        m.bytes(&[0xf3, 0xa4, 0xf3, 0xab, 0xf3, 0xac, 0xf2, 0xae, 0xf3, 0xa7, 0xf4]);
        let live = m.run(device);
        let regs = live.vcpu.regs();
        assert_eq!((live.events(), regs.rcx, regs.rsi, regs.rdi), (vec![], 0, 0x7000_0000, 0x7100_0000), "{mode:?}");
    }
}

/// With the address-size prefix the count and the pointers are those of that size.
fn address_sizes(device: &Device) {
    let mut m = Machine::new(Mode::LONG);
    let high = 0x1_0000_0000;
    set(high + 2, high + 0xa100, high + 0xa200)(&mut m);
    m.image.write(0xa100, &[1, 2, 3, 4]);
    m.bytes(&[0xf3, 0x67, 0xa4, 0xf4]);
    let live = m.run(device);
    let regs = live.vcpu.regs();
    assert_eq!((live.events(), live.memory.read(0xa200, 4)), (vec![], vec![1, 2, 0, 0]));
    assert_eq!((regs.rcx, regs.rsi, regs.rdi), (0, 0xa102, 0xa202), "writes of 32 bits clear the upper half");
    // 16-bit addresses in 32-bit code: DI wraps, the upper half of EDI stays.
    let mut m = Machine::new(Mode::Protected);
    set(0x5_0003, 0, 0x5_fffe)(&mut m);
    m.regs.rax = 0x5a;
    m.bytes(&[0xf3, 0x67, 0xaa, 0xf4]);
    let live = m.run(device);
    let regs = live.vcpu.regs();
    assert_eq!((regs.rcx, regs.rdi), (0x5_0000, 0x5_0001));
    assert_eq!((live.memory.read(0xfffe, 2), live.memory.u8(0)), (vec![0x5a; 2], 0x5a));
}

/// The element that does not fit is not begun.
fn straddling(device: &Device) {
    let (from, to) = (SOURCE, GVA + 0xff6);
    faulting(
        device,
        set(4, from, to),
        &[0xf3, 0xa5],
        (0, 2, GVA + 4096),
        (2, from + 8, to + 8),
        (0, from + 16, to + 16),
    );
}

fn segment_limit(device: &Device) {
    use crate::guest::{layout::sel, segments::descriptor};
    let mut m = Machine::new(Mode::Protected);
    m.descriptor(sel::FREE, descriptor(0xa000, 0xf, 0x93, 4));
    set(8, 0xa100, 0)(&mut m);
    m.regs.rax = sel::FREE.into();
    let at = m.bytes(&[0x8e, 0xc0, 0xf3, 0xa5, 0xf4]); // mov es, eax; rep movsd
    let live = m.run(device);
    let (event, regs) = (live.event(), live.vcpu.regs());
    assert_eq!((event.vector, event.code, event.rip), (13, 0, at + 2));
    assert_eq!((regs.rcx, regs.rsi, regs.rdi), (4, 0xa110, 16));
}
