//! Device memory by every operand shape in 32-bit and 64-bit code (rows A07, C09): real mode has its own in `mmio`.
use crate::{
    Device,
    guest::{
        Machine, Mode, cr4,
        layout::{DATA, RAM_END},
        live::Registers,
    },
    runner::{Case, case},
    vm::Exit,
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("moves-of-every-size", "A07 C09", moves),
    case("moves-with-extension", "A07 C09", extension),
    case("arithmetic-with-a-device-operand", "A07 C09", arithmetic),
    case("read-modify-write-of-every-size", "A07 C09", read_modify_write),
    case("locked-instructions", "A07 C09", locked),
    case("compare-and-exchange-wide", "A07 C09", wide),
    case("bit-instructions", "A07 C09", bits),
    case("push-pop-call-and-jump-through-a-device", "A07 C09", stack_and_flow),
    case("string-instructions", "A07 C09", strings),
    case("sse-moves", "A07 C06 C09", sse),
    case("mmx-moves-and-the-x87-control-word", "A07 C06 C09", mmx),
    case("segment-prefixes-and-addressing", "A07 C09", addressing),
];

/// The device: EDI points at it.
const AT: u64 = RAM_END + 0x100;
/// What it holds at the start.
const HELD: [u8; 16] = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 0x0f];
const RAX: u64 = 0x0102_0304_0506_0708;

/// What an instruction leaves: RAX, the device's first 16 bytes, bytes read and written.
struct Row {
    code: &'static [u8],
    rax: u64,
    held: &'static [u8],
    read: u32,
    written: u32,
}

const fn row(code: &'static [u8], rax: u64, held: &'static [u8], read: u32, written: u32) -> Row {
    Row { code, rax, held, read, written }
}

/// Runs each row on its own, with RAX, and RCX and RDX as given.
fn rows(device: &Device, mode: Mode, rcx: u64, rdx: u64, rows: &[Row]) {
    let mut m = Machine::new(mode);
    m.cr4 |= cr4::OSFXSR;
    if mode == Mode::LONG {
        m.map(AT & !0xfff, AT & !0xfff | x86::paging::P | x86::paging::W);
    }
    let at: Vec<u64> = rows.iter().map(|row| m.bytes(&[row.code, &[0xf4]].concat())).collect();
    let live = m.start(device);
    let mask = if mode == Mode::LONG { !0 } else { 0xffff_ffff };
    for (row, at) in rows.iter().zip(at) {
        let mut registers = Registers::with(AT, &HELD);
        let rax = RAX & mask;
        live.vcpu.edit_regs(|r| {
            (r.rip, r.rsp, r.rdi, r.rsi, r.rflags) = (at, 0x8000, AT, AT + 4, 2);
            (r.rax, r.rcx, r.rdx, r.rbx) = (rax, rcx, rdx, DATA);
        });
        let what = format!("{mode:?}, {:02x?}", row.code);
        assert_eq!(live.serve(&mut registers), Exit::Hlt, "{what}");
        assert_eq!(live.events(), [], "{what}");
        assert_eq!(live.vcpu.regs().rax, row.rax & mask, "{what}");
        let mut held = HELD;
        held[..row.held.len()].copy_from_slice(row.held);
        assert_eq!(registers.bytes(AT, 16), held, "{what}");
        assert_eq!(registers.traffic(), (row.read, row.written), "{what}");
    }
}

const BOTH: [Mode; 2] = [Mode::Protected, Mode::LONG];
const UPPER: u64 = 0x0102_0304_0000_0000;
/// RAX after a write to EAX: 64-bit code clears the upper half.
const fn eax(value: u32) -> u64 {
    value as u64
}

fn moves(device: &Device) {
    for mode in BOTH {
        rows(
            device,
            mode,
            0,
            0,
            &[
                row(&[0x8a, 0x07], UPPER | 0x0506_0711, &[], 1, 0),
                row(&[0x8a, 0x67, 1], UPPER | 0x0506_2208, &[], 1, 0), // mov ah, [edi+1]
                row(&[0x66, 0x8b, 0x07], UPPER | 0x0506_2211, &[], 2, 0),
                row(&[0x8b, 0x07], eax(0x4433_2211), &[], 4, 0),
                row(&[0x88, 0x07], RAX, &[8], 0, 1),
                row(&[0x66, 0x89, 0x07], RAX, &[8, 7], 0, 2),
                row(&[0x89, 0x07], RAX, &[8, 7, 6, 5], 0, 4),
                row(&[0xc6, 0x07, 0x9a], RAX, &[0x9a], 0, 1),
                row(&[0xc7, 0x07, 1, 2, 3, 4], RAX, &[1, 2, 3, 4], 0, 4),
                row(&[0x66, 0xc7, 0x07, 1, 2], RAX, &[1, 2], 0, 2),
            ],
        );
    }
    rows(
        device,
        Mode::LONG,
        0,
        0,
        &[
            row(&[0x48, 0x8b, 0x07], 0x8877_6655_4433_2211, &[], 8, 0),
            row(&[0x48, 0x89, 0x07], RAX, &[8, 7, 6, 5, 4, 3, 2, 1], 0, 8),
            row(
                &[0x48, 0xc7, 0x07, 0xfe, 0xff, 0xff, 0xff],
                RAX,
                &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                0,
                8,
            ),
            row(&[0x48, 0x8b, 0x47, 3], 0xbbaa_9988_7766_5544, &[], 8, 0),
            row(&[0x48, 0x0f, 0xc3, 0x07], RAX, &[8, 7, 6, 5, 4, 3, 2, 1], 0, 8), // movnti
        ],
    );
}

fn extension(device: &Device) {
    for mode in BOTH {
        rows(
            device,
            mode,
            0,
            0,
            &[
                row(&[0x0f, 0xb6, 0x07], 0x11, &[], 1, 0),
                row(&[0x0f, 0xb7, 0x47, 7], 0x9988, &[], 2, 0),
                row(&[0x0f, 0xbe, 0x47, 8], eax(0xffff_ff99), &[], 1, 0),
                row(&[0x0f, 0xbf, 0x47, 8], eax(0xffff_aa99), &[], 2, 0),
                row(&[0x66, 0x0f, 0xbe, 0x47, 8], UPPER | 0x0506_ff99, &[], 1, 0),
            ],
        );
    }
    rows(
        device,
        Mode::LONG,
        0,
        0,
        &[
            row(&[0x48, 0x63, 0x47, 4], 0xffff_ffff_8877_6655, &[], 4, 0), // movsxd
            row(&[0x48, 0x0f, 0xbe, 0x47, 8], 0xffff_ffff_ffff_ff99, &[], 1, 0),
            row(&[0x48, 0x0f, 0xb7, 0x47, 8], 0xaa99, &[], 2, 0),
        ],
    );
}

fn arithmetic(device: &Device) {
    for mode in BOTH {
        rows(
            device,
            mode,
            2,
            0,
            &[
                row(&[0x03, 0x07], eax(0x4939_2919), &[], 4, 0), // add eax, [edi]
                row(&[0x2b, 0x07], eax(0xc0d2_e4f7), &[], 4, 0), // sub eax, [edi]
                row(&[0x23, 0x07], eax(0x0402_0200), &[], 4, 0), // and
                row(&[0x0b, 0x07], eax(0x4537_2719), &[], 4, 0), // or
                row(&[0x33, 0x07], eax(0x4135_2519), &[], 4, 0), // xor
                row(&[0x3b, 0x07], RAX, &[], 4, 0),              // cmp
                row(&[0x85, 0x07], RAX, &[], 4, 0),              // test
                row(&[0xf6, 0x07, 0x10], RAX, &[], 1, 0),        // test byte, imm
                row(&[0x80, 0x3f, 0x11, 0x0f, 0x94, 0xc0], UPPER | 0x0506_0701, &[], 1, 0), // cmp byte, 0x11; sete al
                row(&[0x0f, 0xaf, 0x47, 0x0c], eax(0x0506_0708u32.wrapping_mul(0x0fff_eedd)), &[], 4, 0), // imul
                row(&[0x0f, 0x44, 0x07], eax(0x0506_0708), &[], 4, 0), // cmove: read, not taken
                row(&[0x0f, 0x45, 0x07], eax(0x4433_2211), &[], 4, 0), // cmovne
            ],
        );
    }
}

fn read_modify_write(device: &Device) {
    for mode in BOTH {
        rows(
            device,
            mode,
            4,
            0,
            &[
                row(&[0x00, 0x07], RAX, &[0x19], 1, 1),
                row(&[0x66, 0x01, 0x07], RAX, &[0x19, 0x29], 2, 2),
                row(&[0x01, 0x07], RAX, &[0x19, 0x29, 0x39, 0x49], 4, 4),
                row(&[0x83, 0x2f, 1], RAX, &[0x10], 4, 4), // sub dword, 1
                row(&[0x81, 0x37, 0xff, 0, 0, 0xff], RAX, &[0xee, 0x22, 0x33, 0xbb], 4, 4),
                row(&[0xfe, 0x07], RAX, &[0x12], 1, 1), // inc byte
                row(&[0xf7, 0x17], RAX, &[0xee, 0xdd, 0xcc, 0xbb], 4, 4), // not
                row(&[0xf7, 0x1f], RAX, &[0xef, 0xdd, 0xcc, 0xbb], 4, 4), // neg
                row(&[0xc1, 0x27, 8], RAX, &[0, 0x11, 0x22, 0x33], 4, 4), // shl dword, 8
                row(&[0xd3, 0x0f], RAX, &[0x21, 0x32, 0x43, 0x14], 4, 4), // ror dword, cl
                row(&[0x0f, 0xa4, 0x07, 8], RAX, &[0x05, 0x11, 0x22, 0x33], 4, 4), // shld dword, eax, 8
                row(&[0x87, 0x07], eax(0x4433_2211), &[8, 7, 6, 5], 4, 4), // xchg
                row(&[0x86, 0x07], UPPER | 0x0506_0711, &[8], 1, 1),
                row(&[0x0f, 0xc1, 0x07], eax(0x4433_2211), &[0x19, 0x29, 0x39, 0x49], 4, 4), // xadd
                row(&[0x11, 0x07], RAX, &[0x19, 0x29, 0x39, 0x49], 4, 4),                    // adc with CF clear
            ],
        );
    }
    rows(
        device,
        Mode::LONG,
        0,
        0,
        &[
            row(&[0x48, 0x01, 0x07], RAX, &[0x19, 0x29, 0x39, 0x49, 0x59, 0x69, 0x79, 0x89], 8, 8),
            row(&[0x48, 0x87, 0x07], 0x8877_6655_4433_2211, &[8, 7, 6, 5, 4, 3, 2, 1], 8, 8),
            row(&[0x48, 0xff, 0x0f], RAX, &[0x10], 8, 8),
        ],
    );
}

fn locked(device: &Device) {
    for mode in BOTH {
        rows(
            device,
            mode,
            0x7777_7777,
            0,
            &[
                row(&[0xf0, 0x01, 0x07], RAX, &[0x19, 0x29, 0x39, 0x49], 4, 4),
                row(&[0xf0, 0xff, 0x07], RAX, &[0x12], 4, 4),
                row(&[0xf0, 0x0f, 0xba, 0x2f, 31], RAX, &[0x11, 0x22, 0x33, 0xc4], 4, 4),
                row(&[0xf0, 0x0f, 0xc1, 0x07], eax(0x4433_2211), &[0x19, 0x29, 0x39, 0x49], 4, 4),
                // cmpxchg with another value: EAX gets the device's.
                row(&[0xb8, 0x11, 0x22, 0x33, 0x44, 0xf0, 0x0f, 0xb1, 0x0f], eax(0x4433_2211), &[0x77; 4], 4, 4),
            ],
        );
    }
}

fn wide(device: &Device) {
    // cmpxchg8b: EDX:EAX is what the device holds, ECX:EBX comes there. EBX is DATA.
    let load = &[0xb8, 0x11, 0x22, 0x33, 0x44, 0x0f, 0xc7, 0x0f];
    for mode in BOTH {
        rows(
            device,
            mode,
            0x7777_7777,
            0x8877_6655,
            &[row(load, eax(0x4433_2211), &[0x00, 0xa0, 0, 0, 0x77, 0x77, 0x77, 0x77], 8, 8)],
        );
        rows(device, mode, 0x7777_7777, 0, &[Row { held: &[], written: 8, ..row(load, eax(0x4433_2211), &[], 8, 8) }]);
    }
}

fn bits(device: &Device) {
    for mode in BOTH {
        rows(
            device,
            mode,
            33,
            0,
            &[
                row(&[0x0f, 0xba, 0x27, 4, 0x0f, 0x92, 0xc0], UPPER | 0x0506_0701, &[], 4, 0), // bt [edi], 4; setc al
                row(&[0x0f, 0xa3, 0x0f, 0x0f, 0x92, 0xc0], UPPER | 0x0506_0700, &[], 4, 0),    // bt [edi], ecx: bit 33
                row(&[0x0f, 0xab, 0x0f], RAX, &[0x11, 0x22, 0x33, 0x44, 0x57], 4, 4),          // bts [edi], ecx
                row(&[0x0f, 0xba, 0x37, 0], RAX, &[0x10], 4, 4),                               // btr [edi], 0
                row(&[0x0f, 0xba, 0x3f, 1], RAX, &[0x13], 4, 4),                               // btc [edi], 1
            ],
        );
    }
}

fn stack_and_flow(device: &Device) {
    // push [edi]; pop eax, and back with pop [edi].
    rows(
        device,
        Mode::Protected,
        0,
        0,
        &[row(&[0xff, 0x37, 0x58], 0x4433_2211, &[], 4, 0), row(&[0x50, 0x8f, 0x07], RAX, &[8, 7, 6, 5], 0, 4)],
    );
    rows(
        device,
        Mode::LONG,
        0,
        0,
        &[
            row(&[0xff, 0x37, 0x58], 0x8877_6655_4433_2211, &[], 8, 0),
            row(&[0x50, 0x8f, 0x07], RAX, &[8, 7, 6, 5, 4, 3, 2, 1], 0, 8),
        ],
    );
    // call [edi] and jmp [edi + 8], with addresses in the device.
    for mode in BOTH {
        let mut m = Machine::new(mode);
        if mode == Mode::LONG {
            m.map(AT & !0xfff, AT & !0xfff | x86::paging::P | x86::paging::W);
        }
        let call = m.bytes(&[0xb8, 1, 0, 0, 0, 0xc3]); // mov eax, 1; ret
        let jump = m.bytes(&[0xbb, 2, 0, 0, 0, 0xf4]); // mov ebx, 2; hlt
        m.regs.rip = m.bytes(&[0xff, 0x17, 0xff, 0x67, 8]);
        m.regs.rdi = AT;
        let mut registers = Registers::with(AT, &[call.to_le_bytes(), jump.to_le_bytes()].concat());
        let live = m.start(device);
        assert_eq!(live.serve(&mut registers), Exit::Hlt, "{mode:?}");
        let regs = live.vcpu.regs();
        assert_eq!((regs.rax, regs.rbx, regs.rsp), (1, 2, m.regs.rsp), "{mode:?}");
    }
}

fn strings(device: &Device) {
    for mode in BOTH {
        rows(
            device,
            mode,
            3,
            0,
            &[
                row(&[0xa5], RAX, &[0x55, 0x66, 0x77, 0x88], 4, 4), // movsd, device to device
                row(&[0x66, 0xab], RAX, &[8, 7], 0, 2),             // stosw
                row(&[0xf3, 0xaa], RAX, &[8, 8, 8], 0, 3),          // rep stosb
                row(&[0xac], UPPER | 0x0506_0755, &[], 1, 0),       // lodsb
                row(&[0xb0, 0x33, 0xf2, 0xae, 0x88, 0xc8], UPPER | 0x0506_0700, &[], 3, 0), // repne scasb finds it: CL = 0
                row(&[0xa7, 0x0f, 0x94, 0xc0], UPPER | 0x0506_0700, &[], 8, 0),             // cmpsd; sete al
            ],
        );
    }
    rows(
        device,
        Mode::LONG,
        1,
        0,
        &[
            row(&[0x48, 0xab], RAX, &[8, 7, 6, 5, 4, 3, 2, 1], 0, 8),
            row(&[0x48, 0xa5], RAX, &[0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc], 8, 8),
        ],
    );
}

fn sse(device: &Device) {
    for mode in BOTH {
        rows(
            device,
            mode,
            0,
            0,
            &[
                // movups xmm1, [edi]; movd eax, xmm1
                row(&[0x0f, 0x10, 0x0f, 0x66, 0x0f, 0x7e, 0xc8], eax(0x4433_2211), &[], 16, 0),
                // movaps and movdqa
                row(&[0x0f, 0x28, 0x0f, 0x66, 0x0f, 0x7e, 0xc8], eax(0x4433_2211), &[], 16, 0),
                row(&[0x66, 0x0f, 0x6f, 0x0f, 0x66, 0x0f, 0x7e, 0xc8], eax(0x4433_2211), &[], 16, 0),
                // movups xmm1, [edi]; psrldq xmm1, 8; movdqu [edi], xmm1
                row(
                    &[0x0f, 0x10, 0x0f, 0x66, 0x0f, 0x73, 0xd9, 8, 0xf3, 0x0f, 0x7f, 0x0f],
                    RAX,
                    &[0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 0x0f, 0, 0, 0, 0, 0, 0, 0, 0],
                    16,
                    16,
                ),
            ],
        );
    }
}

/// Other x87 instructions and AVX are not for a device: Linux ends KVM_RUN with an internal error.
fn mmx(device: &Device) {
    for mode in BOTH {
        rows(
            device,
            mode,
            0,
            0,
            &[
                // fninit; fnstcw [edi]
                row(&[0xdb, 0xe3, 0xd9, 0x3f], RAX, &[0x7f, 0x03], 0, 2),
                // movq mm0, [edi]; movd eax, mm0; emms
                row(&[0x0f, 0x6f, 0x07, 0x0f, 0x7e, 0xc0, 0x0f, 0x77], eax(0x4433_2211), &[], 8, 0),
            ],
        );
    }
}

fn addressing(device: &Device) {
    for mode in BOTH {
        let mut m = Machine::new(mode);
        if mode == Mode::LONG {
            m.map(AT & !0xfff, AT & !0xfff | x86::paging::P | x86::paging::W);
        }
        // mov eax, fs:[edi + ecx*4 + 4], with a base of 0x10 in FS.
        m.bytes(&[0x64, 0x8b, 0x44, 0x8f, 4, 0xf4]);
        (m.regs.rdi, m.regs.rcx) = (AT - 0x20, 3);
        let live = m.start(device);
        live.edit_sregs(|s| s.fs.base = 0x10);
        let mut registers = Registers::with(AT, &HELD);
        assert_eq!(live.serve(&mut registers), Exit::Hlt);
        assert_eq!((live.vcpu.regs().rax, registers.accesses), (0x4433_2211, vec![(false, AT, 4)]), "{mode:?}");
    }
}
