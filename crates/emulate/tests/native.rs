//! The integer instructions against the processor that runs this test: every encoding that 64-bit mode has, with
//! random operands and flags, executed natively and by the emulator; registers, defined flags, memory and faults
//! must agree.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::{arch::global_asm, ptr};

use emulate::{Cpu, decode, testing::TestCpu};
use iced_x86::{
    Code, Encoder, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind as K, OpKind, Register, RflagsBits,
};
use x86::{Mode, flags};

/// Registers and flags on the way in and out of native code; the layout is known to the assembly below.
#[repr(C)]
#[derive(Clone, Debug)]
struct Context {
    gpr: [u64; 16],
    flags: u64,
    code: u64,
    signal: u64,
}

global_asm!(
    ".pushsection .bss",
    ".balign 8",
    "native_context: .quad 0",
    "native_host_rsp: .quad 0",
    "native_rsp: .quad 0",
    "native_code: .quad 0",
    ".popsection",
    ".global native_enter, native_exit, native_context",
    "native_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + native_host_rsp], rsp",
    "mov [rip + native_context], rdi",
    "mov rax, [rdi + 136]",
    "mov [rip + native_code], rax",
    "push qword ptr [rdi + 128]",
    "popfq",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rsp, [rdi + 32]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "jmp qword ptr [rip + native_code]",
    "native_exit:",
    "mov [rip + native_rsp], rsp",
    "mov rsp, [rip + native_host_rsp]",
    "push rdi",
    "mov rdi, [rip + native_context]",
    "mov [rdi], rax",
    "mov [rdi + 8], rcx",
    "mov [rdi + 16], rdx",
    "mov [rdi + 24], rbx",
    "mov [rdi + 40], rbp",
    "mov [rdi + 48], rsi",
    "mov [rdi + 64], r8",
    "mov [rdi + 72], r9",
    "mov [rdi + 80], r10",
    "mov [rdi + 88], r11",
    "mov [rdi + 96], r12",
    "mov [rdi + 104], r13",
    "mov [rdi + 112], r14",
    "mov [rdi + 120], r15",
    "pop rax",
    "mov [rdi + 56], rax",
    "mov rax, [rip + native_rsp]",
    "mov [rdi + 32], rax",
    "pushfq",
    "pop rax",
    "mov [rdi + 128], rax",
    "cld",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "C" {
    fn native_enter(context: *mut Context);
    fn native_exit();
    static native_context: *mut Context;
}

const DATA: u64 = 0x1000_0000;
const DATA_BYTES: usize = 0x2000;
const CODE: u64 = 0x20_0000_0000;

extern "C" fn on_signal(signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes its own context; `native_context` is set, because only the code page raises signals here.
    unsafe {
        let context = context.cast::<libc::ucontext_t>();
        (*context).uc_mcontext.gregs[libc::REG_RIP as usize] = native_exit as *const () as i64;
        (*native_context).signal = signal as u64;
    }
}

/// Maps the pages for data and code and takes the signals.
fn prepare() {
    // SAFETY: fixed addresses where nothing else lives, and a handler that only touches what it documents.
    unsafe {
        for (at, bytes) in [(DATA, DATA_BYTES), (CODE, 0x1000)] {
            let got = libc::mmap(
                at as *mut _,
                bytes,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            );
            assert_eq!(got as u64, at);
        }
        let stack = libc::mmap(
            ptr::null_mut(),
            0x10000,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        let alternative = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: 0x10000 };
        assert_eq!(libc::sigaltstack(&alternative, ptr::null_mut()), 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP] {
            assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0);
        }
    }
}

/// Executes `bytes` natively and returns the data pages afterwards.
fn run_native(bytes: &[u8], context: &mut Context, data: &[u8]) -> Vec<u8> {
    let mut code = bytes.to_vec();
    // jmp qword ptr [rip]
    code.extend([0xff, 0x25, 0, 0, 0, 0]);
    code.extend((native_exit as *const () as u64).to_le_bytes());
    context.code = CODE;
    context.signal = 0;
    // SAFETY: both mappings exist and are large enough; the code returns through `native_exit`, or a signal does.
    unsafe {
        ptr::copy_nonoverlapping(code.as_ptr(), CODE as *mut u8, code.len());
        ptr::copy_nonoverlapping(data.as_ptr(), DATA as *mut u8, data.len());
        native_enter(context);
        std::slice::from_raw_parts(DATA as *const u8, data.len()).to_vec()
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }

    /// Often a value at a boundary.
    fn value(&mut self) -> u64 {
        let r = self.next();
        match self.below(8) {
            0 => [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 63, !0]
                [r as usize % 13],
            1 => r & 0xff,
            2 => r & 0x3f,
            3 => (r as i8) as u64,
            4 => 1 << (r & 63),
            5 => r as u32 as u64,
            _ => r,
        }
    }
}

const BYTES: [Register; 16] = {
    use Register::*;
    [AL, CL, DL, BL, AH, CH, DH, BH, SIL, DIL, R8L, R9L, R13L, R14L, R15L, BPL]
};

fn general(number: u64, size: usize) -> Register {
    let base = match size {
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    base + (number & 15) as u32
}

/// An instruction of the form `code` with random operands, or None if the form has others than general registers,
/// memory and immediates.
fn instruction(code: Code, memory: bool, random: &mut Random) -> Option<Instruction> {
    let info = code.op_code();
    let mut insn = Instruction::new();
    insn.set_code(code);
    for i in 0..info.op_count() {
        let register = |insn: &mut Instruction, r: Register| {
            insn.set_op_kind(i, OpKind::Register);
            insn.set_op_register(i, r);
        };
        let (size, in_memory) = match info.op_kind(i) {
            K::r8_or_mem => (1, memory),
            K::r16_or_mem => (2, memory),
            K::r32_or_mem => (4, memory),
            K::r64_or_mem => (8, memory),
            K::mem => (8, true),
            K::r8_reg | K::r8_opcode => (1, false),
            K::r16_reg | K::r16_opcode | K::r16_reg_mem | K::r16_rm => (2, false),
            K::r32_reg | K::r32_opcode | K::r32_vvvv | K::r32_rm | K::r32_reg_mem => (4, false),
            K::r64_reg | K::r64_opcode | K::r64_vvvv | K::r64_rm | K::r64_reg_mem => (8, false),
            K::al => {
                register(&mut insn, Register::AL);
                continue;
            }
            K::cl => {
                register(&mut insn, Register::CL);
                continue;
            }
            K::ax => {
                register(&mut insn, Register::AX);
                continue;
            }
            K::eax => {
                register(&mut insn, Register::EAX);
                continue;
            }
            K::rax => {
                register(&mut insn, Register::RAX);
                continue;
            }
            K::seg_rSI => {
                insn.set_op_kind(i, if memory { OpKind::MemorySegESI } else { OpKind::MemorySegRSI });
                continue;
            }
            K::es_rDI => {
                insn.set_op_kind(i, if memory { OpKind::MemoryESEDI } else { OpKind::MemoryESRDI });
                continue;
            }
            K::imm8 => {
                insn.set_op_kind(i, OpKind::Immediate8);
                insn.set_immediate8(random.value() as u8);
                continue;
            }
            K::imm8_const_1 => {
                insn.set_op_kind(i, OpKind::Immediate8);
                insn.set_immediate8(1);
                continue;
            }
            K::imm8sex16 => {
                insn.set_op_kind(i, OpKind::Immediate8to16);
                insn.set_immediate8to16(random.value() as i8 as i16);
                continue;
            }
            K::imm8sex32 => {
                insn.set_op_kind(i, OpKind::Immediate8to32);
                insn.set_immediate8to32(random.value() as i8 as i32);
                continue;
            }
            K::imm8sex64 => {
                insn.set_op_kind(i, OpKind::Immediate8to64);
                insn.set_immediate8to64(random.value() as i8 as i64);
                continue;
            }
            K::imm16 => {
                insn.set_op_kind(i, OpKind::Immediate16);
                insn.set_immediate16(random.value() as u16);
                continue;
            }
            K::imm32 => {
                insn.set_op_kind(i, OpKind::Immediate32);
                insn.set_immediate32(random.value() as u32);
                continue;
            }
            K::imm32sex64 => {
                insn.set_op_kind(i, OpKind::Immediate32to64);
                insn.set_immediate32to64(random.value() as i32 as i64);
                continue;
            }
            K::imm64 => {
                insn.set_op_kind(i, OpKind::Immediate64);
                insn.set_immediate64(random.value());
                continue;
            }
            _ => return None,
        };
        if in_memory {
            let at = MemoryOperand::with_base_index_scale_displ_size(
                [Register::RBX, Register::RBP, Register::R13, Register::RSP][random.below(4) as usize],
                [Register::None, Register::None, Register::R12][random.below(3) as usize],
                [1, 2, 4, 8][random.below(4) as usize],
                random.below(0x200) as i64 - 0x100,
                1,
            );
            insn.set_op_kind(i, OpKind::Memory);
            insn.set_memory_base(at.base);
            insn.set_memory_index(at.index);
            insn.set_memory_index_scale(if at.index == Register::None { 1 } else { at.scale });
            insn.set_memory_displacement64(at.displacement as u64);
            insn.set_memory_displ_size(if (-128..128).contains(&at.displacement) { 1 } else { 4 });
        } else if size == 1 {
            let r = BYTES[random.below(16) as usize];
            register(&mut insn, r);
        } else {
            register(&mut insn, general(random.next() >> 20, size));
        }
    }
    Some(insn)
}

/// The mnemonics under test.
fn covered(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        m,
        Add | Or
            | Adc
            | Sbb
            | And
            | Sub
            | Xor
            | Cmp
            | Test
            | Inc
            | Dec
            | Neg
            | Not
            | Mov
            | Movzx
            | Movsx
            | Movsxd
            | Movbe
            | Movnti
            | Bswap
            | Lea
            | Cbw
            | Cwde
            | Cdqe
            | Cwd
            | Cdq
            | Cqo
            | Xchg
            | Xadd
            | Cmpxchg
            | Cmpxchg8b
            | Cmpxchg16b
            | Mul
            | Imul
            | Mulx
            | Div
            | Idiv
            | Adcx
            | Adox
            | Shl
            | Sal
            | Shr
            | Sar
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Shld
            | Shrd
            | Shlx
            | Shrx
            | Sarx
            | Rorx
            | Bt
            | Bts
            | Btr
            | Btc
            | Bsf
            | Bsr
            | Lzcnt
            | Tzcnt
            | Popcnt
            | Andn
            | Blsi
            | Blsr
            | Blsmsk
            | Bextr
            | Bzhi
            | Pdep
            | Pext
            | Crc32
            | Push
            | Pop
            | Leave
            | Pushfq
            | Pushf
            | Clc
            | Stc
            | Cmc
            | Cld
            | Std
            | Lahf
            | Sahf
            | Movsb
            | Movsw
            | Movsd
            | Movsq
            | Stosb
            | Stosw
            | Stosd
            | Stosq
            | Lodsb
            | Lodsw
            | Lodsd
            | Lodsq
            | Cmpsb
            | Cmpsw
            | Cmpsd
            | Cmpsq
            | Scasb
            | Scasw
            | Scasd
            | Scasq
            | Enter
            | Nop
    ) || (Seta..=Sets).contains(&m)
        || (Cmova..=Cmovs).contains(&m)
}

/// The flags that `insn` leaves undefined, or that depend on more than the architecture says.
fn undefined(insn: &Instruction, before: &Context) -> u64 {
    let bits = [
        (RflagsBits::OF, flags::OF),
        (RflagsBits::SF, flags::SF),
        (RflagsBits::ZF, flags::ZF),
        (RflagsBits::AF, flags::AF),
        (RflagsBits::CF, flags::CF),
        (RflagsBits::PF, flags::PF),
    ];
    let mut mask = 0;
    for (theirs, ours) in bits {
        if insn.rflags_undefined() & theirs != 0 {
            mask |= ours;
        }
    }
    let last = insn.op_count().wrapping_sub(1);
    let count = match insn.mnemonic() {
        _ if insn.op_count() < 2 => None,
        Mnemonic::Shl
        | Mnemonic::Sal
        | Mnemonic::Shr
        | Mnemonic::Sar
        | Mnemonic::Rol
        | Mnemonic::Ror
        | Mnemonic::Rcl
        | Mnemonic::Rcr
        | Mnemonic::Shld
        | Mnemonic::Shrd => {
            Some(if insn.op_kind(last) == OpKind::Register { before.gpr[1] as u8 } else { insn.immediate8() })
        }
        _ => None,
    };
    if let Some(count) = count {
        let size =
            if insn.op0_kind() == OpKind::Memory { insn.memory_size().size() } else { insn.op0_register().size() };
        let count = count & if size == 8 { 63 } else { 31 };
        let bits = size as u8 * 8;
        if count != 1 {
            mask |= flags::OF;
        }
        let shifts = !matches!(insn.mnemonic(), Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr);
        if shifts {
            mask |= flags::AF;
            if count >= bits && !matches!(insn.mnemonic(), Mnemonic::Sar) {
                mask |= flags::CF;
            }
        }
        if count == 0 {
            return 0;
        }
    }
    mask
}

/// A double shift of 16 bits by more leaves even its result undefined.
fn result_undefined(insn: &Instruction, before: &Context) -> bool {
    let double = matches!(insn.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd);
    let word = insn.op1_register().is_gpr16();
    let count = if insn.op2_kind() == OpKind::Register { before.gpr[1] as u8 } else { insn.immediate8() };
    double && word && count & 31 > 16
}

fn compare(code: Code, insn: &Instruction, bytes: &[u8], random: &mut Random) {
    let mut before = Context { gpr: [0; 16], flags: 0, code: 0, signal: 0 };
    for slot in &mut before.gpr {
        *slot = random.value();
    }
    // Registers that address memory point into it.
    for (i, slot) in [3usize, 4, 5, 13, 6, 7].into_iter().enumerate() {
        if i < 4 || insn.is_string_instruction() {
            before.gpr[slot] = DATA + 0x1000 + random.below(0x400);
        }
    }
    before.gpr[12] = random.below(0x40);
    if insn.is_string_instruction() {
        before.gpr[1] = random.below(40);
    }
    let aligned = matches!(code.mnemonic(), Mnemonic::Cmpxchg16b) && random.below(4) != 0;
    let mut data = vec![0; DATA_BYTES];
    for chunk in data.chunks_mut(8) {
        chunk.copy_from_slice(&random.value().to_le_bytes());
    }
    if aligned {
        let at = before.gpr[insn.memory_base().number()];
        let disp = insn.memory_displacement64();
        before.gpr[insn.memory_base().number()] = at.wrapping_sub(at.wrapping_add(disp) & 15);
        before.gpr[12] = 16 * random.below(4);
    }
    if matches!(code.mnemonic(), Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b)
        && insn.op0_kind() == OpKind::Memory
        && random.below(2) == 0
    {
        // Make it equal.
        let index =
            if insn.memory_index() == Register::None { 0 } else { before.gpr[12] * insn.memory_index_scale() as u64 };
        let at = before.gpr[insn.memory_base().number()].wrapping_add(insn.memory_displacement64()).wrapping_add(index);
        let at = (at - DATA) as usize;
        let word = |i: usize| u64::from_le_bytes(data[at + i..at + i + 8].try_into().unwrap());
        if code.mnemonic() == Mnemonic::Cmpxchg8b {
            (before.gpr[0], before.gpr[2]) = (word(0) & 0xffff_ffff, word(4) & 0xffff_ffff);
        } else {
            (before.gpr[0], before.gpr[2]) = (word(0), word(8));
        }
    }
    if insn.is_string_instruction() && random.below(2) == 0 {
        // Equal strings, mostly.
        let word = [before.gpr[0] as u8; 8];
        for chunk in data.chunks_mut(8) {
            if random.below(16) != 0 {
                chunk.copy_from_slice(&word);
            }
        }
    }
    before.flags = random.next() & (flags::STATUS | flags::DF) | flags::FIXED | flags::IF;

    let mut cpu = TestCpu::in_mode(Mode::Long64, 3, 0);
    cpu.base = DATA;
    cpu.memory = data.clone();
    cpu.bulk = random.below(2) == 0;
    cpu.state.gpr = before.gpr;
    cpu.state.rip = CODE;
    cpu.state.flags.set(before.flags);
    let op = decode::<TestCpu>(bytes, Mode::Long64, cpu.features())
        .unwrap_or_else(|e| panic!("{code:?} {bytes:02x?}: {e:?}"));
    assert_eq!(op.len as usize, bytes.len(), "{code:?}");
    let ours = op.execute(&mut cpu);

    let mut after = before.clone();
    let memory = run_native(bytes, &mut after, &data);
    let context = || format!("{code:?} {bytes:02x?}\nbefore {before:x?}\nnative {after:x?}\nours {:x?}", cpu.state.gpr);
    assert_eq!(ours.is_err(), after.signal != 0, "faults: {ours:?}, {}", context());
    if let Err(stop) = ours {
        let vector = stop.exception(0).unwrap().vector.0;
        let expected = match after.signal as i32 {
            libc::SIGFPE => 0,
            libc::SIGSEGV if vector == 14 => 14,
            libc::SIGSEGV | libc::SIGBUS if matches!(vector, 12 | 13) => vector,
            other => panic!("signal {other}, {stop:?}, {}", context()),
        };
        assert_eq!(vector, expected, "{}", context());
    } else if result_undefined(insn, &before) {
        return;
    } else {
        let mask = (flags::STATUS | flags::DF) & !undefined(insn, &before);
        let (native, mine) = (after.flags & mask, cpu.state.flags.get() & mask);
        assert_eq!(mine, native, "flags: ours {mine:x}, native {native:x}, of {mask:x}, {}", context());
        assert_eq!(cpu.state.rip, CODE + bytes.len() as u64);
    }
    assert_eq!(cpu.state.gpr, after.gpr, "{}", context());
    assert!(cpu.memory == memory, "memory differs: {}", context());
}

/// Forms that the processor under the test may lack.
fn host_has(code: Code) -> bool {
    use iced_x86::CpuidFeature as F;
    code.cpuid_features().iter().all(|f| match f {
        F::ADX => is_x86_feature_detected!("adx"),
        F::BMI1 => is_x86_feature_detected!("bmi1"),
        F::BMI2 => is_x86_feature_detected!("bmi2"),
        F::LZCNT => is_x86_feature_detected!("lzcnt"),
        F::MOVBE => is_x86_feature_detected!("movbe"),
        F::POPCNT => is_x86_feature_detected!("popcnt"),
        F::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        F::CMPXCHG16B => is_x86_feature_detected!("cmpxchg16b"),
        F::AVX512F | F::XOP | F::TBM => false,
        _ => true,
    })
}

#[test]
fn integer_instructions_agree_with_the_processor() {
    prepare();
    let trials: u32 = std::env::var("TRIALS").ok().and_then(|v| v.parse().ok()).unwrap_or(60);
    let mut random = Random(std::env::var("SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(0x1234_5678_9abc_def1));
    let mut forms = 0;
    for code in Code::values() {
        let info = code.op_code();
        // Xeon Phi's encodings are no part of the architecture.
        let foreign = format!("{code:?}").contains("KNC");
        if foreign || !covered(code.mnemonic()) || !info.is_instruction() || !info.mode64() || !host_has(code) {
            continue;
        }
        for memory in [false, true] {
            let mut tested = false;
            for _ in 0..trials {
                let Some(mut insn) = instruction(code, memory, &mut random) else { break };
                if insn.is_string_instruction() && info.can_use_rep_prefix() {
                    match random.below(3) {
                        0 => insn.set_has_rep_prefix(true),
                        1 if info.can_use_repne_prefix() => insn.set_has_repne_prefix(true),
                        _ => {}
                    }
                }
                if info.can_use_lock_prefix() && insn.op0_kind() == OpKind::Memory && random.below(2) == 0 {
                    insn.set_has_lock_prefix(true);
                }
                let mut encoder = Encoder::new(64);
                // A high byte register does not go with REX; such choices are dropped.
                if encoder.encode(&insn, CODE).is_err() {
                    continue;
                }
                let bytes = encoder.take_buffer();
                compare(code, &insn, &bytes, &mut random);
                tested = true;
            }
            forms += tested as u32;
        }
    }
    // Memory and register forms of everything in the list: a lost family would show here.
    assert!(forms > 700, "only {forms} forms were tested");
}
