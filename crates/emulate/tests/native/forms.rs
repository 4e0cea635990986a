//! Random instructions of a given form.
use emulate::testing::Random;
use iced_x86::{Code, Instruction, Mnemonic, OpCodeOperandKind as K, OpKind, Register};

fn register(random: &mut Random, size: usize, bitness: u32) -> Register {
    let count = if bitness == 64 { 16 } else { 8 };
    let number = random.below(count) as u32;
    match size {
        // AL to BH, and in 64-bit mode also SPL to R15L.
        1 => Register::AL + random.below(if bitness == 64 { 20 } else { 8 }) as u32,
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

/// The registers that memory operands have as base; their values point into the data. The index is R12 or EDI/DI.
fn memory(insn: &mut Instruction, bitness: u32, random: &mut Random) {
    use Register::*;
    let displacement = random.below(0x200) as i64 - 0x100;
    let word = bitness == 16 && random.below(4) != 0 || bitness == 32 && random.below(32) == 0;
    let (base, index, scale) = if word {
        let (base, index) = random.of(&[(BX, DI), (BP, DI), (BX, None), (BP, None), (SI, None)]);
        (base, index, 1)
    } else if bitness == 64 && random.below(8) != 0 {
        (random.of(&[RBX, RBP, R13, RSP]), random.of(&[None, None, R12]), random.of(&[1, 2, 4, 8]))
    } else if bitness == 64 {
        (random.of(&[EBX, EBP, R13D, ESP]), random.of(&[None, None, R12D]), random.of(&[1, 2, 4, 8]))
    } else {
        (random.of(&[EBX, EBP, ESP]), random.of(&[None, None, EDI]), random.of(&[1, 2, 4, 8]))
    };
    insn.set_memory_base(base);
    insn.set_memory_index(index);
    insn.set_memory_index_scale(if index == None { 1 } else { scale });
    insn.set_memory_displacement64(displacement as u64);
    let small = (-128..128).contains(&displacement);
    insn.set_memory_displ_size(if small {
        1
    } else if word {
        2
    } else if bitness == 64 && base.is_gpr64() {
        8
    } else {
        4
    });
}

/// An instruction of the form `code` with random operands, or None if the form has others than general registers,
/// memory, immediates and near targets. `code_at` is where it will stand.
pub fn instruction(
    code: Code,
    in_memory: bool,
    bitness: u32,
    code_at: u64,
    random: &mut Random,
) -> Option<Instruction> {
    let info = code.op_code();
    let mut insn = Instruction::new();
    insn.set_code(code);
    let mut immediates = 0;
    for i in 0..info.op_count() {
        let fixed = match info.op_kind(i) {
            K::al => Some(Register::AL),
            K::cl => Some(Register::CL),
            K::ax => Some(Register::AX),
            K::eax => Some(Register::EAX),
            K::rax => Some(Register::RAX),
            K::dx => Some(Register::DX),
            _ => None,
        };
        if let Some(r) = fixed {
            insn.set_op_kind(i, OpKind::Register);
            insn.set_op_register(i, r);
            continue;
        }
        let (size, is_memory) = match info.op_kind(i) {
            K::r8_or_mem => (1, in_memory),
            K::r16_or_mem => (2, in_memory),
            K::r32_or_mem => (4, in_memory),
            K::r64_or_mem => (8, in_memory),
            K::mem | K::mem_offs => (8, true),
            K::r8_reg | K::r8_opcode => (1, false),
            K::r16_reg | K::r16_opcode | K::r16_reg_mem | K::r16_rm => (2, false),
            K::r32_reg | K::r32_opcode | K::r32_vvvv | K::r32_rm | K::r32_reg_mem => (4, false),
            K::r64_reg | K::r64_opcode | K::r64_vvvv | K::r64_rm | K::r64_reg_mem => (8, false),
            kind => {
                other(&mut insn, i, kind, in_memory, bitness, code_at, immediates, random)?;
                immediates += 1;
                continue;
            }
        };
        if !is_memory {
            let r = register(random, size, bitness);
            insn.set_op_kind(i, OpKind::Register);
            insn.set_op_register(i, r);
        } else {
            insn.set_op_kind(i, OpKind::Memory);
            memory(&mut insn, bitness, random);
            if info.op_kind(i) == K::mem_offs {
                insn.set_memory_base(Register::None);
                insn.set_memory_index(Register::None);
                insn.set_memory_index_scale(1);
                let at = if bitness == 16 { 0x400 } else { super::run::DATA + 0x400 };
                insn.set_memory_displacement64(at + random.below(0x100));
                insn.set_memory_displ_size(bitness / 8);
            }
        }
    }
    Some(insn)
}

#[allow(clippy::too_many_arguments)]
fn other(
    insn: &mut Instruction,
    i: u32,
    kind: K,
    alternative: bool,
    bitness: u32,
    code_at: u64,
    immediates: u32,
    random: &mut Random,
) -> Option<()> {
    let value = random.value();
    // Targets stay in the page of code, on both sides of the instruction but not on it: it would loop.
    let target = random.of(&[code_at - 0x60, code_at + 0x20]) + random.below(0x40);
    match kind {
        K::seg_rSI => {
            insn.set_op_kind(
                i,
                match (bitness, alternative) {
                    (64, false) => OpKind::MemorySegRSI,
                    (16, false) => OpKind::MemorySegSI,
                    _ => OpKind::MemorySegESI,
                },
            );
        }
        K::es_rDI => {
            insn.set_op_kind(
                i,
                match (bitness, alternative) {
                    (64, false) => OpKind::MemoryESRDI,
                    (16, false) => OpKind::MemoryESDI,
                    _ => OpKind::MemoryESEDI,
                },
            );
        }
        K::imm8 if immediates == 1 && insn.mnemonic() == Mnemonic::Enter => {
            insn.set_op_kind(i, OpKind::Immediate8_2nd);
            insn.set_immediate8_2nd(value as u8 & 7);
        }
        K::imm8 => {
            insn.set_op_kind(i, OpKind::Immediate8);
            insn.set_immediate8(value as u8);
        }
        K::imm8_const_1 => {
            insn.set_op_kind(i, OpKind::Immediate8);
            insn.set_immediate8(1);
        }
        K::imm8sex16 => {
            insn.set_op_kind(i, OpKind::Immediate8to16);
            insn.set_immediate8to16(value as i8 as i16);
        }
        K::imm8sex32 => {
            insn.set_op_kind(i, OpKind::Immediate8to32);
            insn.set_immediate8to32(value as i8 as i32);
        }
        K::imm8sex64 => {
            insn.set_op_kind(i, OpKind::Immediate8to64);
            insn.set_immediate8to64(value as i8 as i64);
        }
        K::imm16 => {
            insn.set_op_kind(i, OpKind::Immediate16);
            insn.set_immediate16(value as u16);
        }
        K::imm32 => {
            insn.set_op_kind(i, OpKind::Immediate32);
            insn.set_immediate32(value as u32);
        }
        K::imm32sex64 => {
            insn.set_op_kind(i, OpKind::Immediate32to64);
            insn.set_immediate32to64(value as i32 as i64);
        }
        K::imm64 => {
            insn.set_op_kind(i, OpKind::Immediate64);
            insn.set_immediate64(value);
        }
        K::br16_1 | K::br16_2 => {
            insn.set_op_kind(i, OpKind::NearBranch16);
            insn.set_near_branch16(target as u16);
        }
        K::br32_1 | K::br32_4 => {
            insn.set_op_kind(i, OpKind::NearBranch32);
            insn.set_near_branch32(target as u32);
        }
        K::br64_1 | K::br64_4 => {
            insn.set_op_kind(i, OpKind::NearBranch64);
            insn.set_near_branch64(target);
        }
        _ => return None,
    }
    Some(())
}

/// The mnemonics under test.
pub fn covered(m: Mnemonic) -> bool {
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
            | Clc
            | Stc
            | Cmc
            | Cld
            | Std
            | Lahf
            | Sahf
            | Salc
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
            | Xlatb
    ) || stack_or_decimal(m)
        || flow(m)
        || (Seta..=Sets).contains(&m)
        || (Cmova..=Cmovs).contains(&m)
}

fn stack_or_decimal(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        m,
        Pusha
            | Pushad
            | Popa
            | Popad
            | Pushf
            | Pushfd
            | Pushfq
            | Popf
            | Popfd
            | Popfq
            | Daa
            | Das
            | Aaa
            | Aas
            | Aam
            | Aad
            | Bound
    )
}

/// Near jumps, calls and returns.
pub fn flow(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(m, Jmp | Call | Ret | Loop | Loope | Loopne | Jcxz | Jecxz | Jrcxz) || conditional(m)
}

fn conditional(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(m, Ja | Jae | Jb | Jbe | Je | Jg | Jge | Jl | Jle | Jne | Jno | Jnp | Jns | Jo | Jp | Js)
}
