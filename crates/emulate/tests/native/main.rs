//! The integer instructions against the processor that runs this test: every encoding of every mode, with random
//! operands and flags, executed natively and by the emulator. Registers, defined flags, memory, RIP, and faults with
//! error code and address must agree.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod forms;
mod run;

use emulate::{
    Cpu, decode,
    testing::{Random, TestCpu, result_undefined, undefined_flags},
};
use forms::{covered, flow, instruction};
use iced_x86::{Code, Encoder, Instruction, Mnemonic, OpKind, Register};
use run::{CODE, Context, DATA, DATA_BYTES};
use x86::{Attr, Cr0, Features, Mode, Segment, flags};

/// A way to run code natively, and the segments that the emulator gets for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    Long,
    Flat32,
    /// 16-bit code; with the stack in an expand-down segment or a plain one.
    Small16 {
        down: bool,
    },
}

impl Setting {
    fn mode(self) -> Mode {
        match self {
            Self::Long => Mode::Long64,
            Self::Flat32 => Mode::Protected32,
            Self::Small16 { .. } => Mode::Protected16,
        }
    }

    fn bitness(self) -> u32 {
        self.mode().bitness()
    }

    /// Linear address of offset 0 of code and data.
    fn bases(self) -> (u64, u64) {
        if matches!(self, Self::Small16 { .. }) { (CODE, DATA) } else { (0, 0) }
    }

    fn context(self) -> Context {
        let (cs, ds, ss) = match self {
            Self::Long => (run::CS64, run::FLAT, run::FLAT),
            Self::Flat32 => (run::CS32, run::FLAT, run::FLAT),
            Self::Small16 { down } => (run::CS16, run::DS16, if down { run::DOWN16 } else { run::DS16 }),
        };
        Context { cs, ds, ss, ..Context::default() }
    }

    fn cpu(self, data: &[u8]) -> TestCpu {
        let mut cpu = TestCpu::in_mode(self.mode(), 3, 0);
        cpu.base = DATA;
        cpu.memory = data.to_vec();
        cpu.features.set(Features::AMD, host_is_amd());
        cpu.state.cr0 |= Cr0::AM.bits();
        if let Self::Small16 { down } = self {
            let segment = |typ: u16, base, limit| Segment {
                selector: 7,
                attr: Attr(Attr::P | Attr::S | 3 << 5 | typ),
                limit,
                base,
            };
            cpu.state.seg = [segment(3, DATA, DATA_BYTES as u32 - 1); 6];
            cpu.state.seg[1] = segment(11, CODE, run::CODE_BYTES as u32 - 1);
            if down {
                cpu.state.seg[2] = segment(7, DATA, run::DOWN_LIMIT);
            }
        }
        cpu
    }
}

fn registers(setting: Setting, insn: &Instruction, random: &mut Random) -> [u64; 16] {
    let (_, data) = setting.bases();
    let start = if data == DATA { 0 } else { DATA };
    let string = insn.is_string_instruction() || insn.mnemonic() == Mnemonic::Xlatb;
    let mut gpr: [u64; 16] = std::array::from_fn(|_| random.value());
    let addresses: &[usize] = match (setting, string) {
        (Setting::Long, false) => &[3, 4, 5, 13],
        (Setting::Long, true) => &[3, 4, 5, 6, 7],
        (_, false) => &[3, 4, 5, 6],
        (_, true) => &[3, 4, 5, 6, 7],
    };
    let aligns = matches!(insn.mnemonic(), Mnemonic::Cmpxchg16b | Mnemonic::Ret) || flow(insn.mnemonic());
    for &slot in addresses {
        gpr[slot] = start
            + match random.below(16) {
                // At the end of the data, and of its segment.
                0 => 0x2000 - random.below(0x20),
                1 => 0x1000 - random.below(8),
                _ => 0xc00 + random.below(0x400),
            };
        if aligns {
            gpr[slot] &= !15;
        }
    }
    if insn.mnemonic() == Mnemonic::Enter && insn.immediate8_2nd() == 0 {
        gpr[5] = random.value();
    }
    let index = if setting == Setting::Long { 12 } else { 7 };
    if !string {
        gpr[index] = random.below(0x40);
    }
    if matches!(setting, Setting::Small16 { .. }) && random.below(4) == 0 {
        // The upper half of ESP does not count for the stack.
        gpr[4] |= random.bits() << 16 & 0xffff_0000;
    }
    if insn.is_string_instruction() || matches!(insn.mnemonic(), Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne) {
        gpr[1] = random.below(40);
    }
    if setting != Setting::Long {
        gpr.iter_mut().for_each(|r| *r &= 0xffff_ffff);
        gpr[8..].fill(0);
    }
    gpr
}

/// The linear address of the memory operand.
fn operand_address(setting: Setting, insn: &Instruction, gpr: &[u64; 16]) -> u64 {
    let value = |r: Register| if r == Register::None { 0 } else { gpr[r.full_register().number()] };
    let at = value(insn.memory_base())
        .wrapping_add(value(insn.memory_index()).wrapping_mul(insn.memory_index_scale() as u64))
        .wrapping_add(insn.memory_displacement64());
    let at = match insn.memory_base().size() {
        2 => at & 0xffff,
        4 => at & 0xffff_ffff,
        _ => at,
    };
    at.wrapping_add(setting.bases().1)
}

fn memory(setting: Setting, insn: &Instruction, before: &mut Context, random: &mut Random) -> Vec<u8> {
    let words = DATA_BYTES / 8;
    let mut data: Vec<u64> = (0..words).map(|_| random.value()).collect();
    let m = insn.mnemonic();
    if flow(m) {
        // Wherever an address is read, it leads into the page of code.
        let width = setting.bitness() / 8;
        let target = |random: &mut Random| CODE - setting.bases().0 + 0x500 + random.below(0x200);
        for word in &mut data {
            *word = match width {
                8 => target(random),
                4 => target(random) | target(random) << 32,
                _ => (0..4).fold(0, |all, _| all << 16 | target(random)),
            };
        }
        if insn.op0_kind() == OpKind::Register {
            before.gpr[insn.op0_register().full_register().number()] = target(random);
        }
    }
    if matches!(m, Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq) {
        // Not TF, which traps; RF, VM, VIF and VIP are not a program's.
        let allowed = flags::STATUS | flags::DF | flags::AC | flags::ID | flags::IF | flags::IOPL;
        data.iter_mut()
            .for_each(|word| *word = random.bits() & (allowed | allowed << 32 | allowed << 16 & 0xffff_0000));
    }
    if insn.is_string_instruction() && random.below(2) == 0 {
        // Equal strings, mostly.
        let word = u64::from_le_bytes([before.gpr[0] as u8; 8]);
        data.iter_mut().for_each(|slot| *slot = if random.below(16) != 0 { word } else { *slot });
    }
    let data: Vec<u8> = data.into_iter().flat_map(u64::to_le_bytes).collect();
    if matches!(m, Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b)
        && insn.op0_kind() == OpKind::Memory
        && random.below(2) == 0
    {
        // Make it equal.
        let at = operand_address(setting, insn, &before.gpr).wrapping_sub(DATA) as usize;
        if at < DATA_BYTES - 16 {
            let word = |i: usize| u64::from_le_bytes(data[at + i..at + i + 8].try_into().unwrap());
            let (low, high) = if m == Mnemonic::Cmpxchg16b { (word(0), word(8)) } else { (word(0), word(4)) };
            let mask = if setting == Setting::Long && m != Mnemonic::Cmpxchg8b { u64::MAX } else { u32::MAX as u64 };
            (before.gpr[0], before.gpr[2]) = (low & mask, high & mask);
        }
    }
    data
}

fn compare(setting: Setting, insn: &Instruction, bytes: &[u8], at: u64, random: &mut Random) {
    let code = insn.code();
    let mut before = setting.context();
    before.gpr = registers(setting, insn, random);
    let data = memory(setting, insn, &mut before, random);
    before.start = at as u32;
    // AMD's processors read 32 bits for the pointless 16-bit form of MOVSXD, of which they use 16.
    let alignment = if random.below(8) == 0 && code != Code::Movsxd_r16_rm16 { flags::AC } else { 0 };
    before.flags = random.bits() & (flags::STATUS | flags::DF) | alignment | flags::FIXED | flags::IF;

    let mut cpu = setting.cpu(&data);
    cpu.bulk = random.below(2) == 0;
    cpu.state.gpr = before.gpr;
    cpu.state.rip = at;
    cpu.state.flags.set(before.flags);
    let op = decode::<TestCpu>(bytes, setting.mode(), cpu.features())
        .unwrap_or_else(|e| panic!("{setting:?} {code:?} {bytes:02x?}: {e:?}"));
    assert_eq!(op.len as usize, bytes.len(), "{code:?}");
    let ours = op.execute(&mut cpu);

    let mut after = before.clone();
    let memory = run::run(bytes, &mut after, &data);
    let context = || {
        format!("{setting:?} {code:?} {bytes:02x?}\nbefore {before:x?}\nnative {after:x?}\nours {:x?}", cpu.state.gpr)
    };
    let faulted = after.vector != 3;
    // Outside of 64-bit mode the upper halves are nobody's.
    let native = after.gpr.map(|r| if setting == Setting::Long { r } else { r & 0xffff_ffff });
    // A return to where nothing is faults there.
    let fetch_fault = after.vector == 14 && after.rip == cpu.state.rip && ours.is_ok();
    assert_eq!(ours.is_err(), faulted && !fetch_fault, "faults: {ours:?}, {}", context());
    if let Err(stop) = ours {
        let exception = stop.exception(cpu.payload()).unwrap();
        let vector = exception.vector.0 as u64;
        // Which of a misaligned operand and an inaccessible one is reported is the processor's choice.
        let either = alignment != 0 && (vector == 17 || after.vector == 17);
        assert!(vector == after.vector || either, "{stop:?}: {}", context());
        if vector == 14 && after.vector == 14 {
            assert_eq!((exception.code.unwrap() as u64, exception.payload), (after.error, after.cr2), "{}", context());
        }
        assert_eq!(after.rip, cpu.state.rip, "{}", context());
    } else {
        let rip = if fetch_fault { after.rip } else { after.rip - 1 };
        assert_eq!(cpu.state.rip, rip, "RIP: {}", context());
        let cl = before.gpr[1] as u8;
        if result_undefined(insn, cl) {
            return;
        }
        let mask = (flags::STATUS | flags::DF | flags::AC | flags::ID | flags::IOPL) & !undefined_flags(insn, cl);
        let (theirs, mine) = (after.flags & mask, cpu.state.flags.get() & mask);
        assert_eq!(mine, theirs, "flags: ours {mine:x}, native {theirs:x}, of {mask:x}, {}", context());
    }
    // POPA of this processor has loaded what it could when it faults.
    let partial = ours.is_err() && matches!(insn.mnemonic(), Mnemonic::Popa | Mnemonic::Popad);
    assert!(cpu.state.gpr == native || partial, "registers: {}", context());
    // These write in several steps, and where a fault leaves what is below the stack is nobody's business. Intel's processors
    // push before they look where a call goes.
    let steps = matches!(insn.mnemonic(), Mnemonic::Pusha | Mnemonic::Pushad | Mnemonic::Enter)
        || insn.mnemonic() == Mnemonic::Call && after.vector == 13;
    assert!(cpu.memory == memory || ours.is_err() && steps, "memory differs: {}", context());
}

/// The vendors differ in branches with an operand-size prefix in 64-bit mode.
fn host_is_amd() -> bool {
    std::arch::x86_64::__cpuid(0).ecx == u32::from_le_bytes(*b"cAMD")
}

/// Forms that the processor under the test may lack, and those that belong to no mode of it.
fn host_has(code: Code) -> bool {
    use iced_x86::CpuidFeature as F;
    // Xeon Phi's encodings, and those that the first 80486 had, are no part of the architecture.
    let name = format!("{code:?}");
    !name.contains("KNC")
        && !name.contains("486")
        && code.cpuid_features().iter().all(|f| match f {
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

/// Whether `code` exists in the setting's mode and belongs to the families under test.
fn wanted(setting: Setting, code: Code) -> bool {
    let info = code.op_code();
    let in_mode = match (setting.bitness(), host_is_amd()) {
        (64, true) => info.mode64() && info.amd_decoder64(),
        (64, false) => info.mode64() && info.intel_decoder64(),
        (32, _) => info.mode32(),
        _ => info.mode16(),
    };
    let far = code.is_call_far_indirect() || code.is_jmp_far_indirect();
    in_mode && !far && covered(code.mnemonic()) && info.is_instruction() && host_has(code)
}

fn all_forms(setting: Setting) -> u32 {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let trials = number("TRIALS").unwrap_or(12);
    let mut random = Random::new(&[number("SEED").unwrap_or(1)]);
    let at = CODE - setting.bases().0 + 0x400;
    let mut forms = 0;
    for code in Code::values().filter(|&code| wanted(setting, code)) {
        let info = code.op_code();
        for memory in [false, true] {
            let mut tested = false;
            for _ in 0..trials {
                let Some(mut insn) = instruction(code, memory, setting.bitness(), at, &mut random) else { break };
                if flow(code.mnemonic()) && insn.op0_register().full_register() == Register::RSP {
                    // The code's address would be the stack's.
                    continue;
                }
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
                let mut encoder = Encoder::new(setting.bitness());
                // A high byte register does not go with REX, and so on; such choices are dropped.
                if encoder.encode(&insn, at).is_err() {
                    continue;
                }
                compare(setting, &insn, &encoder.take_buffer(), at, &mut random);
                tested = true;
            }
            forms += tested as u32;
        }
    }
    forms
}

#[test]
fn integer_instructions_agree_with_the_processor() {
    let sixteen = run::prepare();
    // A family that is lost from the list would show in the number of register and memory forms.
    let forms = all_forms(Setting::Long);
    assert!(forms > 700, "only {forms} forms in 64-bit mode");
    let forms = all_forms(Setting::Flat32);
    assert!(forms > 500, "only {forms} forms in 32-bit mode");
    if sixteen {
        for down in [false, true] {
            let forms = all_forms(Setting::Small16 { down });
            assert!(forms > 500, "only {forms} forms in 16-bit mode");
        }
    }
}
