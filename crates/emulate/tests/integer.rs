//! What the comparison with the processor cannot reach: real and virtual-8086 mode, restarts, races, privileges, features,
//! and the fetching of instructions.
use emulate::{
    Cpu, DecodeError, Flush, Res, Stop, decode, fetch_decode, step,
    testing::{Kind, Page, TestCpu},
};
use x86::{Attr, Cr4, Features, Mode, Vector, flags};

const CODE: u64 = 0x100;

/// A processor in `mode` with `code` at 0x100 and 64 KiB of memory.
fn machine(mode: Mode, cpl: u8, code: &[u8]) -> TestCpu {
    let mut cpu = TestCpu::in_mode(mode, cpl, 0x10000);
    cpu.state.rip = CODE;
    cpu.write(CODE, code);
    cpu
}

fn long(code: &[u8]) -> TestCpu {
    machine(Mode::Long64, 0, code)
}

/// Executes one instruction, and checks that nothing changed if it did not complete.
fn stepped(cpu: &mut TestCpu) -> Res {
    let before = cpu.state.clone();
    let result = step(cpu);
    if result.is_err() {
        assert_eq!((before.gpr, before.rip), (cpu.state.gpr, cpu.state.rip));
        assert_eq!(before.flags.get(), cpu.state.flags.get());
    }
    result
}

fn fault(cpu: &mut TestCpu) -> (u8, Option<u32>) {
    let exception = stepped(cpu).unwrap_err().exception(cpu.payload()).unwrap();
    (exception.vector.0, exception.code)
}

fn decodes(bytes: &[u8], mode: Mode, features: Features) -> Result<u8, DecodeError> {
    decode::<TestCpu>(bytes, mode, features).map(|op| op.len)
}

#[test]
fn only_read_modify_write_of_memory_takes_a_lock() {
    let all = Features::all();
    let legal: [&[u8]; 9] = [
        &[0xf0, 0x01, 0x03],             // add [rbx], eax
        &[0xf0, 0x83, 0x0b, 0x01],       // or dword [rbx], 1
        &[0xf0, 0xff, 0x03],             // inc dword [rbx]
        &[0xf0, 0xf7, 0x13],             // not dword [rbx]
        &[0xf0, 0x0f, 0xab, 0x03],       // bts [rbx], eax
        &[0xf0, 0x0f, 0xba, 0x3b, 0x01], // btc dword [rbx], 1
        &[0xf0, 0x0f, 0xb1, 0x03],       // cmpxchg [rbx], eax
        &[0xf0, 0x0f, 0xc7, 0x0b],       // cmpxchg8b [rbx]
        &[0xf0, 0x87, 0x03],             // xchg [rbx], eax
    ];
    for bytes in legal {
        assert_eq!(decodes(bytes, Mode::Long64, all), Ok(bytes.len() as u8), "{bytes:02x?}");
    }
    let illegal: [&[u8]; 8] = [
        &[0xf0, 0x01, 0xc3],       // add ebx, eax
        &[0xf0, 0x03, 0x03],       // add eax, [rbx]
        &[0xf0, 0x39, 0x03],       // cmp [rbx], eax
        &[0xf0, 0x85, 0x03],       // test [rbx], eax
        &[0xf0, 0x89, 0x03],       // mov [rbx], eax
        &[0xf0, 0x0f, 0xa3, 0x03], // bt [rbx], eax
        &[0xf0, 0xd1, 0x23],       // shl dword [rbx], 1
        &[0xf0, 0x90],             // nop
    ];
    for bytes in illegal {
        assert_eq!(decodes(bytes, Mode::Long64, all), Err(DecodeError::Invalid), "{bytes:02x?}");
    }
}

#[test]
fn instructions_of_absent_features_do_not_exist() {
    let cases: [(&[u8], Features); 12] = [
        (&[0x0f, 0x44, 0xc3], Features::CMOV),
        (&[0x0f, 0xc7, 0x0b], Features::CX8),
        (&[0x48, 0x0f, 0xc7, 0x0b], Features::CX16),
        (&[0x0f, 0x38, 0xf0, 0x03], Features::MOVBE),
        (&[0xf3, 0x0f, 0xb8, 0xc3], Features::POPCNT),
        (&[0xc4, 0xe2, 0x78, 0xf2, 0xc3], Features::BMI1),
        (&[0xc4, 0xe2, 0x7b, 0xf5, 0xc3], Features::BMI2),
        (&[0x66, 0x0f, 0x38, 0xf6, 0xc3], Features::ADX),
        (&[0xf2, 0x0f, 0x38, 0xf1, 0xc3], Features::SSE42),
        (&[0x0f, 0xae, 0x3b], Features::CLFLUSH),
        (&[0x66, 0x0f, 0xae, 0x3b], Features::CLFLUSHOPT),
        (&[0x9f], Features::LAHF64),
    ];
    for (bytes, feature) in cases {
        assert!(decodes(bytes, Mode::Long64, Features::all()).is_ok(), "{bytes:02x?}");
        let without = Features::all().difference(feature);
        assert_eq!(decodes(bytes, Mode::Long64, without), Err(DecodeError::Invalid), "{bytes:02x?}");
    }
    // VEX encodings do not exist in real and virtual-8086 mode.
    for mode in [Mode::Real, Mode::Virtual8086] {
        assert_eq!(decodes(&[0xc4, 0xe2, 0x78, 0xf2, 0xc3], mode, Features::all()), Err(DecodeError::Invalid));
    }
    // LAHF is older than 64-bit mode.
    assert!(decodes(&[0x9f], Mode::Protected32, Features::empty()).is_ok());
}

#[test]
fn counts_of_zeros_are_scans_on_older_processors() {
    for (code, features, expected) in [
        ([0xf3, 0x0f, 0xbc, 0xc3], Features::all(), 32),
        ([0xf3, 0x0f, 0xbc, 0xc3], Features::all().difference(Features::BMI1), 7),
        ([0xf3, 0x0f, 0xbd, 0xc3], Features::all(), 32),
        ([0xf3, 0x0f, 0xbd, 0xc3], Features::all().difference(Features::LZCNT), 7),
    ] {
        let mut cpu = long(&code);
        cpu.features = features;
        cpu.state.gpr[0] = 7;
        stepped(&mut cpu).unwrap();
        assert_eq!(cpu.state.gpr[0], expected, "{code:02x?}");
    }
}

#[test]
fn fetching_stops_at_pages_limits_and_fifteen_bytes() {
    // add rax, imm32 across two pages, of which the second is absent, then there.
    let mut cpu = TestCpu::in_mode(Mode::Long64, 3, 0x2000);
    cpu.state.rip = 0xffd;
    cpu.write(0xffd, &[0x48, 0x05, 1, 0, 0, 0]);
    cpu.pages.insert(1, Page::Absent);
    assert_eq!((fault(&mut cpu).0, cpu.payload), (14, 0x1000));
    cpu.pages.clear();
    stepped(&mut cpu).unwrap();
    assert_eq!((cpu.state.gpr[0], cpu.state.rip), (1, 0x1003));

    // An instruction that ends with the page does not touch the next.
    cpu.pages.insert(1, Page::Absent);
    cpu.state.rip = 0xfff;
    cpu.write(0xfff, &[0x90]);
    stepped(&mut cpu).unwrap();

    // Fifteen bytes are an instruction, sixteen are #GP(0).
    let mut code = [0x66; 16];
    code[14] = 0x90;
    let mut cpu = machine(Mode::Protected32, 0, &code);
    stepped(&mut cpu).unwrap();
    assert_eq!(cpu.state.rip, CODE + 15);
    code[14] = 0x66;
    code[15] = 0x90;
    let mut cpu = machine(Mode::Protected32, 0, &code);
    assert_eq!(fault(&mut cpu), (13, Some(0)));

    // The limit of CS cuts an instruction short.
    let mut cpu = machine(Mode::Protected32, 0, &[0xb8, 1, 0, 0, 0]);
    cpu.state.seg[1].limit = CODE as u32 + 3;
    assert_eq!(fault(&mut cpu), (13, Some(0)));
    cpu.state.seg[1].limit += 1;
    stepped(&mut cpu).unwrap();
    // What follows is outside; RIP is there, and the fault is the next fetch's.
    assert_eq!(fault(&mut cpu), (13, Some(0)));
    assert_eq!(cpu.state.rip, CODE + 5);

    let mut cpu = long(&[0x90]);
    cpu.state.rip = 1 << 47;
    assert_eq!(fetch_decode(&mut cpu).map(|op| op.len), Err(Stop::GP0));
}

#[test]
fn addresses_that_are_not_canonical() {
    // mov al, [rbx]; mov al, [rbp+0]; push rax; mov eax, [rbx]
    for (code, register, address, vector) in [
        (&[0x8a, 0x03][..], 3, 1 << 47, 13),
        (&[0x8a, 0x45, 0x00], 5, 1 << 47, 12),
        (&[0x50], 4, (1 << 47) + 8, 12),
        (&[0x8b, 0x03], 3, (1 << 47) - 2, 13),
    ] {
        let mut cpu = long(code);
        cpu.state.gpr[register] = address;
        assert_eq!(fault(&mut cpu), (vector, Some(0)), "{code:02x?}");
    }
    // With 57 bits the same address is only not present.
    let mut cpu = long(&[0x8a, 0x03]);
    cpu.state.cr4 |= Cr4::LA57.bits();
    cpu.state.gpr[3] = 1 << 47;
    assert_eq!(fault(&mut cpu).0, 14);
    // A jump to where no code can be does not happen.
    let mut cpu = long(&[0xff, 0xe0]);
    cpu.state.gpr[0] = 1 << 63;
    assert_eq!(fault(&mut cpu), (13, Some(0)));
}

#[test]
fn real_mode_wraps_and_limits() {
    // mov ax, [0xffff]
    let mut cpu = machine(Mode::Real, 0, &[0xa1, 0xff, 0xff]);
    assert_eq!(fault(&mut cpu), (13, Some(0)));
    // push ax with SP 0 wraps, with SP 1 it would run over the end of the segment.
    let mut cpu = machine(Mode::Real, 0, &[0x50]);
    cpu.state.gpr[4] = 0xabcd_0000;
    stepped(&mut cpu).unwrap();
    assert_eq!(cpu.state.gpr[4], 0xabcd_fffe);
    let mut cpu = machine(Mode::Real, 0, &[0x50]);
    cpu.state.gpr[4] = 1;
    assert_eq!(fault(&mut cpu), (12, Some(0)));
    // A write through CS is allowed in real mode and not in protected mode: mov cs:[bx], al.
    let mut cpu = machine(Mode::Real, 0, &[0x2e, 0x88, 0x07]);
    stepped(&mut cpu).unwrap();
    let mut cpu = machine(Mode::Protected16, 0, &[0x2e, 0x88, 0x07]);
    assert_eq!(fault(&mut cpu), (13, Some(0)));
    // jmp with a 16-bit target wraps within 64 KiB.
    let mut cpu = machine(Mode::Real, 0, &[0xe9, 0x00, 0xf0]);
    stepped(&mut cpu).unwrap();
    assert_eq!(cpu.state.rip, 0xf103);
}

#[test]
fn rep_movs_stops_at_a_fault_and_goes_on() {
    for bulk in [false, true] {
        // rep movsb of 32 bytes, 16 of which go to an absent page.
        let mut cpu = long(&[0xf3, 0xa4]);
        cpu.bulk = bulk;
        (cpu.state.gpr[1], cpu.state.gpr[6], cpu.state.gpr[7]) = (32, 0x3000, 0x4ff0);
        cpu.write(0x3000, &std::array::from_fn::<u8, 32, _>(|i| i as u8 + 1));
        cpu.pages.insert(5, Page::ReadOnly);
        let stop = step(&mut cpu).unwrap_err();
        assert_eq!(stop.exception(cpu.payload).unwrap().vector, Vector::PF);
        assert_eq!(cpu.payload, 0x5000);
        let s = &cpu.state;
        assert_eq!((s.rip, s.gpr[1], s.gpr[6], s.gpr[7]), (CODE, 16, 0x3010, 0x5000));
        cpu.pages.clear();
        step(&mut cpu).unwrap();
        let s = &cpu.state;
        assert_eq!((s.rip, s.gpr[1], s.gpr[6], s.gpr[7]), (CODE + 2, 0, 0x3020, 0x5010));
        assert_eq!(cpu.memory[0x4ff0..0x5010], cpu.memory[0x3000..0x3020]);
    }
}

#[test]
fn a_long_rep_lets_the_loop_look_around() {
    for (bulk, at_least) in [(false, 100), (true, 0x1000)] {
        let mut cpu = long(&[0xf3, 0xaa]);
        cpu.bulk = bulk;
        (cpu.state.gpr[0], cpu.state.gpr[1], cpu.state.gpr[7]) = (0x5a, 0x9000, 0x2000);
        let mut rounds = 0;
        loop {
            let before = cpu.state.gpr[1];
            match step(&mut cpu) {
                Ok(()) => break,
                Err(stop) => assert_eq!(stop, Stop::RESTART),
            }
            rounds += 1;
            assert!(before - cpu.state.gpr[1] >= at_least && cpu.state.rip == CODE);
        }
        assert!(rounds > 1, "{rounds}");
        assert!(cpu.memory[0x2000..0xb000].iter().all(|&b| b == 0x5a) && cpu.memory[0xb000] == 0);
    }
}

#[test]
fn overlapping_copies_smear_as_elements_do() {
    for (from, to) in [(0x2000u64, 0x2001u64), (0x2000, 0x2003), (0x2000, 0x2008), (0x2003, 0x2000)] {
        let run = |bulk| {
            let mut cpu = long(&[0xf3, 0x48, 0xa5]);
            cpu.bulk = bulk;
            (cpu.state.gpr[1], cpu.state.gpr[6], cpu.state.gpr[7]) = (20, from, to);
            cpu.write(0x2000, &std::array::from_fn::<u8, 255, _>(|i| (i as u8).wrapping_mul(3)));
            step(&mut cpu).unwrap();
            cpu.memory
        };
        assert!(run(false) == run(true), "{from:#x} to {to:#x}");
    }
}

#[test]
fn a_repeated_string_traps_after_each_element() {
    let mut cpu = long(&[0xf3, 0xa4]);
    cpu.state.flags.set_control(flags::TF, flags::TF);
    cpu.bulk = true;
    (cpu.state.gpr[1], cpu.state.gpr[6], cpu.state.gpr[7]) = (2, 0x3000, 0x4000);
    step(&mut cpu).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.gpr[1]), (CODE, 1));
    step(&mut cpu).unwrap();
    assert_eq!((cpu.state.rip, cpu.state.gpr[1]), (CODE + 2, 0));
}

#[test]
fn string_segments_and_address_sizes() {
    // rep es lodsb is not overridden at the destination: es movsb reads ES and writes ES.
    let mut cpu = machine(Mode::Protected32, 0, &[0x64, 0xa4]);
    cpu.state.seg[4].base = 0x1000;
    (cpu.state.gpr[6], cpu.state.gpr[7]) = (0x10, 0x20);
    cpu.write(0x1010, &[0x77]);
    stepped(&mut cpu).unwrap();
    assert_eq!(cpu.memory[0x20], 0x77);
    // 16-bit addresses wrap SI and DI and keep their upper halves.
    let mut cpu = machine(Mode::Protected32, 0, &[0x67, 0xa4]);
    (cpu.state.gpr[6], cpu.state.gpr[7]) = (0xaaaa_ffff, 0xbbbb_0020);
    stepped(&mut cpu).unwrap();
    assert_eq!((cpu.state.gpr[6], cpu.state.gpr[7]), (0xaaaa_0000, 0xbbbb_0021));
}

#[test]
fn lost_races_are_tried_again_and_then_left_to_the_loop() {
    let mut cpu = long(&[0xf0, 0xff, 0x03]);
    cpu.state.gpr[3] = 0x3000;
    cpu.lost_races = 2;
    stepped(&mut cpu).unwrap();
    // Each lost race complemented the word.
    assert_eq!(cpu.peek::<u32>(0x3000), 1);
    cpu.state.rip = CODE;
    cpu.lost_races = 1000;
    assert_eq!(stepped(&mut cpu), Err(Stop::RESTART));
}

#[test]
fn read_modify_write_faults_as_a_write_and_is_two_accesses() {
    let mut cpu = machine(Mode::Long64, 3, &[0x83, 0x03, 0x01]);
    cpu.state.gpr[3] = 0x3000;
    cpu.pages.insert(3, Page::ReadOnly);
    assert_eq!(fault(&mut cpu), (14, Some(7)));
    cpu.pages.clear();
    cpu.record = true;
    stepped(&mut cpu).unwrap();
    let kinds: Vec<_> = cpu.touches.iter().map(|t| (t.kind, t.bytes)).collect();
    assert_eq!(kinds, [(Kind::LoadForWrite, 4), (Kind::Store, 4)]);
    // A comparison only reads.
    let mut cpu = machine(Mode::Long64, 3, &[0x83, 0x3b, 0x01]);
    cpu.state.gpr[3] = 0x3000;
    cpu.pages.insert(3, Page::ReadOnly);
    stepped(&mut cpu).unwrap();
}

#[test]
fn pops_fault_without_moving_the_stack() {
    // pop qword [rsp+8]: the address is formed with RSP already moved.
    let mut cpu = long(&[0x8f, 0x44, 0x24, 0x08]);
    cpu.write(0x800, &0x1122u64.to_le_bytes());
    stepped(&mut cpu).unwrap();
    assert_eq!((cpu.peek::<u64>(0x810), cpu.state.gpr[4]), (0x1122, 0x808));
    let mut cpu = long(&[0x8f, 0x03]);
    cpu.state.gpr[3] = 0x3000;
    cpu.pages.insert(3, Page::ReadOnly);
    assert_eq!(fault(&mut cpu).0, 14);
}

#[test]
fn flags_that_a_program_may_pop() {
    let wanted = flags::IF | flags::IOPL | flags::AC | flags::ID | flags::NT | flags::VM | flags::VIF;
    for (cpl, iopl, expected) in [
        (0, 0, flags::IF | flags::IOPL | flags::AC | flags::ID | flags::NT),
        (3, 0, flags::AC | flags::ID | flags::NT),
        (3, 3, flags::IF | flags::IOPL | flags::AC | flags::ID | flags::NT),
    ] {
        let mut cpu = machine(Mode::Long64, cpl, &[0x9d]);
        cpu.state.flags.set(iopl << 12);
        cpu.write(0x800, &wanted.to_le_bytes());
        stepped(&mut cpu).unwrap();
        assert_eq!(cpu.state.flags.get(), expected | flags::FIXED, "CPL {cpl}, IOPL {iopl}");
        // AC lifts SMAP, so that rights have to be looked at again.
        assert_eq!(cpu.flushes, [Flush::Rights]);
    }
}

#[test]
fn flags_in_virtual_8086_mode() {
    let run = |code: &[u8], iopl: u64, vme: bool, image: u64, more: u64| {
        let mut cpu = machine(Mode::Virtual8086, 3, code);
        cpu.state.flags.set(flags::VM | iopl << 12 | more);
        if vme {
            cpu.state.cr4 |= Cr4::VME.bits();
        }
        cpu.write(0x800, &image.to_le_bytes());
        let result = step(&mut cpu);
        (result, cpu)
    };
    // pushf and popf with IOPL 3 are the program's own; below it they fault unless VME serves them.
    assert!(run(&[0x9c], 3, false, 0, 0).0.is_ok());
    assert_eq!(run(&[0x9c], 0, false, 0, 0).0, Err(Stop::GP0));
    assert_eq!(run(&[0x9d], 0, false, 0, 0).0, Err(Stop::GP0));
    assert_eq!(run(&[0x66, 0x9d], 0, true, 0, 0).0, Err(Stop::GP0));
    let (result, cpu) = run(&[0x9c], 0, true, 0, flags::VIF);
    assert!(result.is_ok());
    // VIF shows as IF, and IOPL as 3.
    assert_eq!(cpu.peek::<u16>(0x7fe) as u64, flags::IF | flags::IOPL | flags::FIXED);
    let (result, cpu) = run(&[0x9d], 0, true, flags::IF, 0);
    assert!(result.is_ok() && cpu.state.flags.control(flags::VIF) && !cpu.state.flags.control(flags::IF));
    // A pending virtual interrupt, or the trap flag, is for the monitor.
    assert_eq!(run(&[0x9d], 0, true, flags::IF, flags::VIP).0, Err(Stop::GP0));
    assert_eq!(run(&[0x9d], 0, true, flags::TF, 0).0, Err(Stop::GP0));
}

#[test]
fn segments_of_a_program() {
    // mov [ebx], al through a read-only DS, a null DS and a short one; mov [ebp], al through a short SS.
    let mut cpu = machine(Mode::Protected32, 3, &[0x88, 0x03]);
    cpu.state.seg[3].attr = cpu.state.seg[3].attr.with_type(1);
    assert_eq!(fault(&mut cpu), (13, Some(0)));
    let mut cpu = machine(Mode::Protected32, 3, &[0x88, 0x03]);
    cpu.state.seg[3].attr.0 |= Attr::UNUSABLE;
    assert_eq!(fault(&mut cpu), (13, Some(0)));
    let mut cpu = machine(Mode::Protected32, 3, &[0x88, 0x45, 0x00]);
    cpu.state.gpr[5] = 0x1000;
    cpu.state.seg[2].limit = 0xfff;
    assert_eq!(fault(&mut cpu), (12, Some(0)));
    // In 64-bit mode none of it counts, but the base of FS does: mov al, fs:[rbx].
    let mut cpu = machine(Mode::Long64, 3, &[0x64, 0x8a, 0x03]);
    cpu.state.seg[4].attr.0 |= Attr::UNUSABLE;
    cpu.state.seg[4].base = 0x1000;
    cpu.write(0x1000, &[9]);
    stepped(&mut cpu).unwrap();
    assert_eq!(cpu.state.gpr[0], 9);
}

#[test]
fn hints_and_reserved_nops_do_nothing() {
    let codes: [&[u8]; 7] = [
        &[0xf3, 0x0f, 0x1e, 0xfa],       // endbr64
        &[0xf3, 0x48, 0x0f, 0x1e, 0xc8], // rdsspq rax
        &[0x0f, 0x1f, 0x03],             // nop [rbx], rbx not canonical
        &[0x0f, 0x18, 0x0b],             // prefetcht0 [rbx]
        &[0x0f, 0x0d, 0x0b],             // prefetchw [rbx]
        &[0x0f, 0xae, 0xe8],             // lfence
        &[0x0f, 0xae, 0xf0],             // mfence
    ];
    for code in codes {
        let mut cpu = long(code);
        cpu.state.gpr[3] = 1 << 63;
        let before = cpu.state.gpr;
        stepped(&mut cpu).unwrap();
        assert_eq!((cpu.state.gpr, cpu.state.rip), (before, CODE + code.len() as u64), "{code:02x?}");
    }
    // CLFLUSH is checked as a read.
    let mut cpu = long(&[0x0f, 0xae, 0x3b]);
    cpu.state.gpr[3] = 0x20000;
    assert_eq!(fault(&mut cpu).0, 14);
}

#[test]
fn amd_prefetches_no_registers_and_reads_32_bits_for_movsxd() {
    let prefetch = &[0x0f, 0x0d, 0xc1];
    let amd = Features::all();
    let intel = amd.difference(Features::AMD);
    assert_eq!(decodes(prefetch, Mode::Long64, intel), Ok(3));
    assert_eq!(decodes(prefetch, Mode::Long64, amd), Err(DecodeError::Invalid));
    assert_eq!(decodes(&[0x0f, 0x0d, 0x09], Mode::Long64, amd), Ok(3));
    // movsxd ax, [rbx], at the end of memory.
    for (features, result) in [(intel, Ok(())), (amd, Err(14))] {
        let mut cpu = long(&[0x66, 0x63, 0x03]);
        cpu.features = features;
        cpu.state.gpr[3] = cpu.memory.len() as u64 - 2;
        cpu.write(cpu.state.gpr[3], &0x8001u16.to_le_bytes());
        let stepped = stepped(&mut cpu).map_err(|stop| stop.exception(0).map_or(0, |e| e.vector.0));
        assert_eq!(stepped, result);
        if result.is_ok() {
            assert_eq!(cpu.state.gpr[0] & 0xffff, 0x8001);
        }
    }
}

/// SDM vol. 2, DAA and DAS: the last value that needs no correction of the high digit, and the first that does.
#[test]
fn decimal_adjustment_begins_above_99() {
    const DAA: u8 = 0x27;
    const DAS: u8 = 0x2f;
    for (opcode, before, after, cf) in [
        (DAA, 0x99, 0x99, false),
        (DAA, 0x9a, 0x00, true),
        (DAA, 0xa0, 0x00, true),
        (DAS, 0x99, 0x99, false),
        (DAS, 0x9a, 0x34, true),
        (DAS, 0xa0, 0x40, true),
    ] {
        let mut cpu = machine(Mode::Protected32, 0, &[opcode]);
        cpu.state.gpr[0] = before;
        cpu.state.flags.set(0);
        stepped(&mut cpu).unwrap();
        assert_eq!((cpu.state.gpr[0], cpu.state.flags.get() & flags::CF != 0), (after, cf), "{opcode:x} {before:x}");
    }
}

#[test]
fn only_rex_w_makes_operands_wide() {
    for (bytes, size) in [
        (&[0x0f, 0x01, 0xe0][..], 4), // smsw eax
        (&[0x40, 0x0f, 0x01, 0xe0], 4),
        (&[0x47, 0x0f, 0x01, 0xe0], 4),
        (&[0x48, 0x0f, 0x01, 0xe0], 8),
        (&[0x66, 0x0f, 0x01, 0xe0], 2),
        (&[0x66, 0x40, 0x0f, 0x01, 0xe0], 2),
        (&[0x66, 0x4f, 0x0f, 0x01, 0xe0], 8),
    ] {
        let op = decode::<TestCpu>(bytes, Mode::Long64, Features::all()).unwrap();
        assert_eq!(op.operand_size, size, "{bytes:x?}");
    }
}
