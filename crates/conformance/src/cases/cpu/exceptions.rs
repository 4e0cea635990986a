//! Exceptions of every vector: error code, and whether the saved instruction pointer is the instruction's own (fault) or
//! the next one's (trap) (SDM vol. 3, 6.15).
use iced_x86::code_asm::*;
use x86::paging::{P, W};

use crate::{
    Device,
    cases::mmu::NESTED_AMD,
    guest::{
        Live, Machine, Mode, cr0, cr4,
        layout::{DATA, FRAMES, STUBS, sel},
        segments::{descriptor, flat},
    },
    runner::{Case, Target, case},
};

/// Why what depends on segment limits fails on QEMU.
pub(in crate::cases) const NO_LIMITS: &str =
    "QEMU's TCG does not look at segment limits (gen_lea_v_seg in translate.c adds the base only)";

/// Why a guest in QEMU's nested paging must not leave with EFER.LME set, and CR0.PG and CR4.PAE clear.
pub(in crate::cases) const LOST_PAGING: &str = "an exit hangs the host: do_vmexit of QEMU's TCG (svm_helper.c) restores CR0 before CR4 and \
    EFER, and cpu_x86_update_cr0 drops CR0.PG while the guest's LME is set and PAE clear";

pub(super) const LONG_ERROR: &str =
    "QEMU's TCG puts twice the vector into the error code in long mode (do_interrupt64 in seg_helper.c)";

/// Linux runs real mode as virtual-8086 mode there.
pub(in crate::cases) const INT_IN_V86: &str = "Bochs takes the #GP of INT n in virtual-8086 mode for one that its delivery has \
                                               met (interrupt() sets in_event, then v86_redirect_interrupt() raises it); \
                                               Linux ends for two events at once";

pub(in crate::cases) const CASES: &[Case] = &[
    case("divide-error", "C09", divide),
    case("software-interrupts-are-traps", "C09", software).fails_below(Target::LINUX_RESTRICTED, INT_IN_V86),
    case("into-and-bound", "C09", into_and_bound)
        .restricted("the #OF of INTO returns to INTO: no length of the instruction belongs to it, as to #BP"),
    case("undefined-instructions", "C09", undefined),
    case("no-fpu-when-ts-or-em-is-set", "C06 C09", no_fpu),
    case("x87-exceptions", "C06 C09", x87),
    case("sse-exceptions", "C06 C09", sse)
        .fails_below(Target::IN_QEMU, "QEMU's TCG collects the flags in MXCSR and raises no #XM, masked or not (update_mxcsr_from_sse_status in fpu_helper.c)"),
    case("selectors-that-cannot-be-loaded", "C09", selectors),
    case("a-null-segment-cannot-be-used", "C09", null_segment).fails_below(Target::IN_QEMU, NO_LIMITS),
    case("segment-limits", "C09", limits).fails_below(Target::IN_QEMU, NO_LIMITS),
    case("gates-that-do-not-let-through", "C09", |device| gates(device, Mode::Protected)),
    case("gates-that-do-not-let-through-in-long-mode", "C09", |device| gates(device, Mode::LONG))
        .fails_below(Target::IN_QEMU, LONG_ERROR),
    case("gates-of-level-0-are-not-for-level-3", "C09", |device| gates_of_user(device, &[Mode::LEGACY, Mode::PAE])),
    case("gates-of-level-0-are-not-for-level-3-in-long-mode", "C09", |device| gates_of_user(device, &[Mode::LONG]))
        .fails_below(Target::IN_QEMU, LONG_ERROR),
    case("privileged-instructions-of-level-3", "C09", privileged),
    case("control-registers-refuse-what-is-not-legal", "C05 C09", control),
    case("cr0-has-no-upper-half", "C05 C09", upper_cr0).fails_below(
        Target::LINUX_AMD,
        "QEMU's TCG drops it (cpu_x86_update_cr0 in target/i386/helper.c takes 32 bits)",
    ),
    case("paging-for-long-mode-needs-pae", "C05 C09", paging_without_pae).hangs_below(NESTED_AMD, LOST_PAGING),
    case("alignment-checks-are-for-level-3", "C09", alignment)
        .fails_below(Target::IN_QEMU, "QEMU's TCG translates moves without asking CR0.AM and EFLAGS.AC (translate.c asks for alignment only where SSE and AVX do)"),
    case("instructions-longer-than-15-bytes", "C09", overlong),
    case("an-instruction-over-a-page-that-is-not-there", "B01 C09", fetch_crossing),
];

/// Code, how far into it the exception is, its vector and error code, and whether the saved RIP is behind it.
type Row<'a> = (&'a [u8], u64, u8, u32, bool);

const FAULT: bool = false;
const TRAP: bool = true;

/// Runs each row in `mode`.
fn rows(device: &Device, mode: Mode, prepare: impl Fn(&mut Machine), rows: &[Row]) {
    let mut m = Machine::new(mode);
    prepare(&mut m);
    let touch = m.touch();
    m.bytes(&[0xf4]);
    let at: Vec<u64> = rows.iter().map(|row| m.bytes(&[row.0, &[0xf4]].concat())).collect();
    let live = m.start(device);
    if mode != Mode::Real {
        live.go(touch);
    }
    let (regs, sregs) = (live.vcpu.regs(), live.vcpu.sregs());
    for (row, at) in rows.iter().zip(at) {
        live.vcpu.set_regs(&regs);
        let control = (sregs.cr0, sregs.cr4);
        live.edit_sregs(|s| (s.cr0, s.cr4) = control);
        live.go(at);
        check(&live, *row, at);
    }
}

fn check(live: &Live, (code, offset, vector, error, trap): Row, at: u64) {
    let what = format!("{:?}, {code:02x?}", live.mode);
    let events = live.events();
    assert_eq!(events.len(), 1, "{what}: {events:x?}");
    let event = events[0];
    let rip = if trap { at + code.len() as u64 } else { at + offset };
    assert_eq!((event.vector, event.code, event.rip - at), (vector, error, rip - at), "{what}");
}

const BOTH: [Mode; 2] = [Mode::Protected, Mode::LONG];

fn divide(device: &Device) {
    for mode in BOTH {
        rows(
            device,
            mode,
            |_| (),
            &[
                (&[0x31, 0xc9, 0xf7, 0xf1], 2, 0, 0, FAULT), // xor ecx, ecx; div ecx
                (&[0x31, 0xc9, 0xf6, 0xf1], 2, 0, 0, FAULT), // div cl
                (&[0xb9, 1, 0, 0, 0, 0xba, 1, 0, 0, 0, 0xf7, 0xf1], 10, 0, 0, FAULT), // the quotient does not fit
                (&[0xb1, 0xff, 0xb8, 0x80, 0xff, 0, 0, 0xf6, 0xf9], 7, 0, 0, FAULT), // idiv: -128 / -1
            ],
        );
    }
    // Real mode, where the saved address is the instruction's own as well.
    rows(device, Mode::Real, |_| (), &[(&[0x31, 0xc9, 0xf7, 0xf1], 2, 0, 0, FAULT)]);
}

fn software(device: &Device) {
    for mode in [Mode::Real, Mode::Protected, Mode::LONG] {
        rows(
            device,
            mode,
            |_| (),
            &[
                (&[0xcc], 0, 3, 0, TRAP),
                (&[0xcd, 0x03], 0, 3, 0, TRAP),
                (&[0xcd, 0x21], 0, 0x21, 0, TRAP),
                (&[0xcd, 0xff], 0, 0xff, 0, TRAP),
            ],
        );
    }
}

fn into_and_bound(device: &Device) {
    for mode in [Mode::Real, Mode::Protected] {
        rows(
            device,
            mode,
            |m| m.image.write(DATA, &[2, 0, 0, 0, 5, 0, 0, 0]),
            &[
                (&[0xb0, 0x7f, 0xfe, 0xc0, 0xce], 0, 4, 0, TRAP), // mov al, 127; inc al; into
            ],
        );
    }
    rows(
        device,
        Mode::Protected,
        |m| m.image.write(DATA, &[2, 0, 0, 0, 5, 0, 0, 0]),
        &[
            (&[0xb8, 1, 0, 0, 0, 0x62, 0x05, 0x00, 0xa0, 0, 0], 5, 5, 0, FAULT), // mov eax, 1; bound eax, [DATA]
            (&[0xb8, 6, 0, 0, 0, 0x62, 0x05, 0x00, 0xa0, 0, 0], 5, 5, 0, FAULT),
        ],
    );
}

fn undefined(device: &Device) {
    for mode in BOTH {
        rows(
            device,
            mode,
            |_| (),
            &[
                (&[0x0f, 0x0b], 0, 6, 0, FAULT),       // ud2
                (&[0x0f, 0xb9, 0xc0], 0, 6, 0, FAULT), // ud1
                (&[0xf0, 0x90], 0, 6, 0, FAULT),       // lock nop
                (&[0xf0, 0x01, 0xc0], 0, 6, 0, FAULT), // lock add eax, eax
                (&[0x8c, 0xf8], 0, 6, 0, FAULT),       // mov eax, seventh segment register
                (&[0x8e, 0xc8], 0, 6, 0, FAULT),       // mov cs, eax
                (&[0x0f, 0x22, 0xc8], 0, 6, 0, FAULT), // mov cr1, eax
            ],
        );
    }
    // What 64-bit code has lost.
    rows(
        device,
        Mode::LONG,
        |_| (),
        &[
            (&[0x06], 0, 6, 0, FAULT),
            (&[0x37], 0, 6, 0, FAULT),
            (&[0x60], 0, 6, 0, FAULT),
            (&[0xce], 0, 6, 0, FAULT),
            (&[0xd4, 0x0a], 0, 6, 0, FAULT),
            (&[0x9a, 0, 0, 0, 0, 8, 0], 0, 6, 0, FAULT),
        ],
    );
    rows(
        device,
        Mode::Real,
        |_| (),
        &[
            (&[0x0f, 0x0b], 0, 6, 0, FAULT),
            (&[0x0f, 0x00, 0xd8], 0, 6, 0, FAULT), // ltr ax: not in real mode
            (&[0x63, 0xc0], 0, 6, 0, FAULT),       // arpl
        ],
    );
}

fn no_fpu(device: &Device) {
    for mode in BOTH {
        for bit in [cr0::TS, cr0::EM] {
            rows(
                device,
                mode,
                |m| m.cr0 |= bit,
                &[
                    (&[0xd9, 0xe8], 0, 7, 0, FAULT), // fld1
                    (&[0xdb, 0xe3], 0, 7, 0, FAULT), // fninit
                ],
            );
        }
        // SSE with TS is #NM, with EM #UD; FWAIT only with MP and TS.
        let sse: &[u8] = &[0x0f, 0x57, 0xc0];
        rows(device, mode, |m| (m.cr0, m.cr4) = (m.cr0 | cr0::TS, m.cr4 | cr4::OSFXSR), &[(sse, 0, 7, 0, FAULT)]);
        rows(device, mode, |m| (m.cr0, m.cr4) = (m.cr0 | cr0::EM, m.cr4 | cr4::OSFXSR), &[(sse, 0, 6, 0, FAULT)]);
        rows(device, mode, |_| (), &[(sse, 0, 6, 0, FAULT)]); // without OSFXSR
        rows(device, mode, |m| m.cr0 |= cr0::TS | cr0::MP, &[(&[0x9b], 0, 7, 0, FAULT)]);
    }
}

/// Division by zero is not masked: at [`DATA`] for the x87, behind it for SSE.
fn unmask(m: &mut Machine) {
    m.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT;
    m.image.write(DATA, &[0x3b, 0x03, 0, 0, 0x80, 0x1d, 0, 0]);
}

fn x87(device: &Device) {
    for mode in BOTH {
        // fninit; mov edi, DATA; fldcw [edi]; fld1; fldz; fdivp; fwait: the exception waits for the next instruction.
        let code = [0xdb, 0xe3, 0xbf, 0x00, 0xa0, 0, 0, 0xd9, 0x2f, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0x9b];
        rows(device, mode, unmask, &[(&code, code.len() as u64 - 1, 16, 0, FAULT)]);
    }
}

fn sse(device: &Device) {
    for mode in BOTH {
        // mov edi, DATA; ldmxcsr [edi+4]; mov eax, 1; cvtsi2ss xmm0, eax; xorps xmm1, xmm1; divss xmm0, xmm1
        let code = [
            0xbf, 0x00, 0xa0, 0, 0, 0x0f, 0xae, 0x57, 4, 0xb8, 1, 0, 0, 0, 0xf3, 0x0f, 0x2a, 0xc0, 0x0f, 0x57, 0xc9,
            0xf3, 0x0f, 0x5e, 0xc1,
        ];
        rows(device, mode, unmask, &[(&code, 21, 19, 0, FAULT)]);
        let without = |m: &mut Machine| {
            unmask(m);
            m.cr4 &= !cr4::OSXMMEXCPT;
        };
        rows(device, mode, without, &[(&code, 21, 6, 0, FAULT)]);
    }
}

/// mov eax, selector; mov segment register, eax
fn load(selector: u16, modrm: u8) -> Vec<u8> {
    let [low, high] = selector.to_le_bytes();
    vec![0xb8, low, high, 0, 0, 0x8e, modrm]
}

const DS: u8 = 0xd8;
const SS: u8 = 0xd0;
const FS: u8 = 0xe0;

fn selectors(device: &Device) {
    for mode in BOTH {
        let free = sel::FREE;
        let prepare = |m: &mut Machine| {
            m.descriptor(free, flat::DATA & !(1 << 47)); // not present
            m.descriptor(free + 8, descriptor(0, 0xfffff, 0x99, 0xc)); // code that cannot be read
            m.descriptor(free + 16, descriptor(0, 0xfffff, 0x91, 0xc)); // data that cannot be written
            m.descriptor(free + 24, descriptor(0, 0xfff, 0x89, 0)); // a task-state segment
        };
        let (present, code) = (u32::from(free), u32::from(free) + 8);
        let all = [
            (load(0x1000, DS), 13, 0x1000), // beyond the table
            (load(0x1003, DS), 13, 0x1000), // with a level: the code has no level in it
            (load(free, DS), 11, present),
            (load(free, FS), 11, present),
            (load(free, SS), 12, present),
            (load(free + 8, DS), 13, code),
            (load(free + 16, SS), 13, code + 8),
            (load(free + 24, FS), 13, code + 16),
            (load(sel::CODE, SS), 13, u32::from(sel::CODE)),
            (load(sel::DATA | 3, SS), 13, u32::from(sel::DATA)),
            (load(sel::USER_DATA, SS), 13, u32::from(sel::USER_DATA) & !3),
            (load(0x74, DS), 13, 0x74), // no local table: TI is in the code
        ];
        let all: Vec<Row> = all.iter().map(|(code, vector, error)| (&code[..], 5, *vector, *error, FAULT)).collect();
        rows(device, mode, prepare, &all);
    }
    // Null is no stack outside 64-bit code.
    rows(device, Mode::Protected, |_| (), &[(&load(0, SS), 5, 13, 0, FAULT), (&load(3, SS), 5, 13, 0, FAULT)]);
}

fn null_segment(device: &Device) {
    // A null data segment can be loaded, but not used: mov eax, [0] with DS null.
    let null = [&load(0, DS)[..], &[0xa1, 0, 0, 0, 0]].concat();
    rows(device, Mode::Protected, |_| (), &[(&null, 7, 13, 0, FAULT)]);
}

fn limits(device: &Device) {
    let prepare = |m: &mut Machine| {
        m.descriptor(sel::FREE, descriptor(0xa000, 0xf, 0x93, 4));
        m.descriptor(sel::FREE + 8, descriptor(0xa000, 0xf, 0x97, 4)); // expands down: 16 to 4 G
        m.descriptor(sel::FREE + 16, descriptor(0xa000, 0xf, 0x91, 4)); // read only
    };
    let with = |selector: u16, code: &[u8]| [&load(selector, FS)[..], code].concat();
    rows(
        device,
        Mode::Protected,
        prepare,
        &[
            (&with(sel::FREE, &[0x64, 0xa0, 0x10, 0, 0, 0]), 7, 13, 0, FAULT), // mov al, fs:[16]
            (&with(sel::FREE, &[0x64, 0xa1, 0x0d, 0, 0, 0]), 7, 13, 0, FAULT), // mov eax, fs:[13]: its last byte
            (&with(sel::FREE, &[0x64, 0xa1, 0xfe, 0xff, 0xff, 0xff]), 7, 13, 0, FAULT), // over the end of 4 GiB
            (&with(sel::FREE + 8, &[0x64, 0xa1, 0x0d, 0, 0, 0]), 7, 13, 0, FAULT),
            (&with(sel::FREE + 8, &[0x64, 0xa1, 0x0f, 0, 0, 0]), 7, 13, 0, FAULT),
            (&with(sel::FREE + 16, &[0x64, 0xa2, 0, 0, 0, 0]), 7, 13, 0, FAULT), // mov fs:[0], al
            (&[0x2e, 0xa2, 0, 0, 0, 0], 0, 13, 0, FAULT),                        // mov cs:[0], al
        ],
    );
    // The stack's limit, with what is on the stack beyond it.
    let mut m = Machine::new(Mode::Protected);
    m.descriptor(sel::FREE, descriptor(0, 0xf, 0x93, 4));
    let at = m.code(|a| {
        a.mov(eax, u32::from(sel::FREE))?;
        a.mov(ss, eax)?;
        a.pop(ebx)?; // ESP is far beyond the limit
        a.hlt()
    });
    let live = m.start(device);
    // #SS cannot be delivered on that stack: neither can #DF.
    assert_eq!(live.vcpu.run(), crate::vm::Exit::Shutdown, "the code at {at:#x}");
}

fn gates(device: &Device, mode: Mode) {
    let code = |m: &Machine| if m.mode == Mode::LONG { sel::CODE } else { sel::CODE32 };
    let prepare = |m: &mut Machine| {
        let code = code(m);
        m.gate(0x30, code, STUBS, 0x0e, 0); // not present
        m.gate(0x31, code, STUBS, 0x92, 0); // no gate at all: a data segment
        m.gate(0x32, sel::DATA, STUBS, 0x8e, 0); // to data
        m.gate(0x33, 0, STUBS, 0x8e, 0); // to nowhere
        m.gate(0x34, 0x1000, STUBS, 0x8e, 0); // beyond the GDT
        m.descriptor(sel::FREE, flat::CODE32 & !(1 << 47));
        m.gate(0x35, sel::FREE, STUBS, 0x8e, 0); // to code that is not present
    };
    rows(
        device,
        mode,
        prepare,
        &[
            (&[0xcd, 0x30], 0, 11, 0x30 * 8 + 2, FAULT),
            (&[0xcd, 0x31], 0, 13, 0x31 * 8 + 2, FAULT),
            (&[0xcd, 0x32], 0, 13, sel::DATA.into(), FAULT),
            (&[0xcd, 0x33], 0, 13, 0, FAULT),
            (&[0xcd, 0x34], 0, 13, 0x1000, FAULT),
        ],
    );
    if mode == Mode::Protected {
        rows(device, mode, prepare, &[(&[0xcd, 0x35], 0, 11, sel::FREE.into(), FAULT)]);
    }
    // Beyond the table's limit: lidt of a copy with a limit of vector 0x7f.
    let limit = if mode == Mode::LONG { 0x80 * 16 - 1 } else { 0x80 * 8 - 1_u16 };
    let lidt = |m: &mut Machine| {
        m.image.write(DATA, &limit.to_le_bytes());
        m.image.write(DATA + 2, &0x2000_u64.to_le_bytes());
    };
    // mov edi, DATA; lidt [edi]; int 0x80
    let code = [0xbf, 0x00, 0xa0, 0, 0, 0x0f, 0x01, 0x1f, 0xcd, 0x80];
    rows(device, mode, lidt, &[(&code, 8, 13, 0x80 * 8 + 2, FAULT)]);
}

/// Code for level 3 that must raise an exception at its first byte.
fn user_rows(device: &Device, mode: Mode, prepare: impl Fn(&mut Machine), rows: &[(&[u8], u8, u32)]) {
    let mut m = Machine::new(mode);
    prepare(&mut m);
    let at: Vec<u64> = rows.iter().map(|row| m.user_code(|a| a.db(row.0))).collect();
    let start = crate::cases::modes::to_user(&mut m);
    let touch = m.touch();
    m.bytes(&[0xf4]);
    let live = m.start(device);
    live.go(touch);
    for ((code, vector, error), at) in rows.iter().zip(at) {
        live.vcpu.edit_regs(|regs| regs.rbp = at);
        live.clear();
        live.go(start);
        let event = live.event();
        assert_eq!(
            (event.vector, event.code, event.rip, event.cs),
            (*vector, *error, at, sel::USER),
            "{mode:?}, {code:02x?}"
        );
        assert_eq!((event.rsp, event.ss), (crate::guest::layout::USER_STACK, sel::USER_DATA), "{mode:?}");
    }
}

fn privileged(device: &Device) {
    for mode in [Mode::LEGACY, Mode::PAE, Mode::LONG] {
        user_rows(
            device,
            mode,
            |_| (),
            &[
                (&[0xf4], 13, 0),             // hlt
                (&[0xfa], 13, 0),             // cli
                (&[0xfb], 13, 0),             // sti
                (&[0xe4, 0x10], 13, 0),       // in al, 0x10
                (&[0xee], 13, 0),             // out dx, al
                (&[0x0f, 0x20, 0xc0], 13, 0), // mov eax, cr0
                (&[0x0f, 0x22, 0xd8], 13, 0), // mov cr3, eax
                (&[0x0f, 0x21, 0xf8], 13, 0), // mov eax, dr7
                (&[0x0f, 0x06], 13, 0),       // clts
                (&[0x0f, 0x08], 13, 0),       // invd
                (&[0x0f, 0x09], 13, 0),       // wbinvd
                (&[0x0f, 0x30], 13, 0),       // wrmsr
                (&[0x0f, 0x32], 13, 0),       // rdmsr
                (&[0x0f, 0x00, 0xd8], 13, 0), // ltr ax
                (&[0x0f, 0x01, 0xf0], 13, 0), // lmsw ax
                (&[0x8e, 0xd0], 13, 0),       // mov ss, eax with a null selector of level 0
            ],
        );
    }
}

fn gates_of_user(device: &Device, modes: &[Mode]) {
    for mode in modes {
        user_rows(device, *mode, |_| (), &[(&[0xcd, 0x21], 13, 0x21 * 8 + 2), (&[0xcd, 0x0e], 13, 0x0e * 8 + 2)]);
    }
}

/// mov ecx, EFER; rdmsr; bts eax, 8; wrmsr
const SET_LME: [u8; 13] = [0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x0f, 0xba, 0xe8, 8, 0x0f, 0x30];

/// CR0.PG without CR4.PAE while EFER.LME is set.
fn paging_without_pae(device: &Device) {
    let paging = [&SET_LME[..], &[0x0f, 0x20, 0xc0, 0x0f, 0xba, 0xe8, 31, 0x0f, 0x22, 0xc0]].concat();
    rows(device, Mode::Protected, |_| (), &[(&paging, 20, 13, 0, FAULT)]);
}

fn control(device: &Device) {
    for mode in BOTH {
        let mut all: Vec<(Vec<u8>, u64)> = Vec::new();
        let mut add = |value: u32, register: u8| {
            let mut code = vec![0xb8];
            code.extend(value.to_le_bytes());
            code.extend([0x0f, 0x22, 0xc0 + 8 * register]);
            all.push((code, 5));
        };
        add(0x2000_0011, 0); // NW without CD
        if mode == Mode::LONG {
            add(0x8000_0010, 0); // PG without PE
            add(0x11, 4); // no PAE in long mode
        } else {
            add(0x8000_0010, 0);
        }
        add(0x8000_0020, 4); // a reserved bit
        let rows_: Vec<Row> = all.iter().map(|(code, offset)| (&code[..], *offset, 13, 0, FAULT)).collect();
        rows(device, mode, |_| (), &rows_);
    }
    // EFER.LME while paging is on.
    rows(device, Mode::LEGACY, |_| (), &[(&SET_LME, 11, 13, 0, FAULT)]);
    // 64-bit CR4 has a reserved upper half; CR8 has four bits.
    let tpr = [0xb8, 0x10, 0, 0, 0, 0x44, 0x0f, 0x22, 0xc0];
    rows(device, Mode::LONG, |_| (), &[(&upper_half(4), 10, 13, 0, FAULT), (&tpr, 5, 13, 0, FAULT)]);
}

/// MOV of something with bit 32 to a control register.
const fn upper_half(register: u8) -> [u8; 13] {
    [0x48, 0xb8, 0x33, 0, 0, 0x80, 1, 0, 0, 0, 0x0f, 0x22, 0xc0 + 8 * register]
}

fn upper_cr0(device: &Device) {
    rows(device, Mode::LONG, |_| (), &[(&upper_half(0), 10, 13, 0, FAULT)]);
}

fn alignment(device: &Device) {
    for mode in [Mode::LEGACY, Mode::LONG] {
        let mut m = Machine::new(mode);
        m.cr0 |= cr0::AM;
        // With AC set level 3 faults, level 0 does not: mov eax, [DATA + 1].
        let load = [0xbf, 0x01, 0xa0, 0, 0, 0x8b, 0x07];
        let code: &[u8] = &[0x9c, 0x81, 0x0c, 0x24, 0, 0, 4, 0, 0x9d]; // pushf; or dword [esp], AC; popf
        let user = m.user_code(|a| a.db(code).and_then(|()| a.db(&load)).and_then(|()| a.db(&[0xcd, 0x80])));
        let start = crate::cases::modes::to_user(&mut m);
        let kernel = m.bytes(&[code, &load, &[0xf4]].concat());
        let live = m.start(device);
        live.vcpu.edit_regs(|regs| regs.rbp = user);
        live.go(start);
        let event = live.event();
        assert_eq!((event.vector, event.code, event.rip), (17, 0, user + 14), "{mode:?}");
        live.go(kernel);
        assert_eq!(live.events(), [], "{mode:?}");
    }
}

fn overlong(device: &Device) {
    for mode in BOTH {
        // 14 and 15 prefixes before a NOP: 15 and 16 bytes.
        let long = [&[0x66; 15][..], &[0x90]].concat();
        rows(device, mode, |_| (), &[(&long, 0, 13, 0, FAULT)]);
        let mut m = Machine::new(mode);
        m.bytes(&[&[0x66; 14][..], &[0x90, 0xf4]].concat());
        assert_eq!(m.run(device).events(), [], "{mode:?}: 15 bytes are allowed");
    }
}

fn fetch_crossing(device: &Device) {
    for mode in [Mode::LEGACY, Mode::PAE, Mode::LONG] {
        let mut m = Machine::new(mode);
        m.map(0x80_0000, FRAMES | P | W);
        // mov eax, imm32 with its last two bytes in the next page.
        m.image.write(FRAMES + 0xffd, &[0xb8, 1, 2]);
        m.code(|a| {
            a.mov(edi, 0x80_0ffdu32)?;
            if mode == Mode::LONG { a.jmp(rdi) } else { a.jmp(edi) }
        });
        let event = m.run(device).event();
        let fetch = if mode == Mode::LEGACY { 0 } else { 16 };
        assert_eq!((event.vector, event.code, event.cr2, event.rip), (14, fetch, 0x80_1000, 0x80_0ffd), "{mode:?}");
    }
}
