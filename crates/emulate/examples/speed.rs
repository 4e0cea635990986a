//! How many guest instructions a second the handlers execute, without a soft TLB and with all code decoded before:
//! `cargo run --release -p rekvm-emulate --example speed`.
use std::collections::HashMap;

use emulate::{Access, Cpu, Flush, Intercept, Op, Res, Stop, decode};
use platform::Word;
use x86::{CpuState, Features, Mode};

/// A processor with memory from linear address 0.
struct Flat {
    state: CpuState,
    memory: Vec<u8>,
    payload: u64,
}

impl Flat {
    #[inline(always)]
    fn at(&self, linear: u64, bytes: u64) -> Res<usize> {
        let at = linear as usize;
        if at < self.memory.len() - bytes as usize { Ok(at) } else { Err(Stop::EXIT) }
    }
}

impl Cpu for Flat {
    #[inline(always)]
    fn state(&self) -> &CpuState {
        &self.state
    }
    #[inline(always)]
    fn state_mut(&mut self) -> &mut CpuState {
        &mut self.state
    }
    fn features(&self) -> Features {
        Features::all()
    }
    #[inline(always)]
    fn load<T: Word>(&mut self, linear: u64, _access: Access) -> Res<T> {
        let at = self.at(linear, 16)?;
        let bytes: [u8; 16] = self.memory[at..at + 16].try_into().unwrap();
        let value = u128::from_le_bytes(bytes);
        Ok(T::from_halves(value as u64, (value >> 64) as u64))
    }
    #[inline(always)]
    fn store<T: Word>(&mut self, linear: u64, value: T, _access: Access) -> Res {
        let at = self.at(linear, 16)?;
        match T::BYTES {
            1 => self.memory[at] = value.low() as u8,
            2 => self.memory[at..at + 2].copy_from_slice(&(value.low() as u16).to_le_bytes()),
            4 => self.memory[at..at + 4].copy_from_slice(&(value.low() as u32).to_le_bytes()),
            _ => self.memory[at..at + 8].copy_from_slice(&value.low().to_le_bytes()),
        }
        Ok(())
    }
    #[inline(always)]
    fn load_for_write<T: Word>(&mut self, linear: u64, access: Access) -> Res<T> {
        self.load(linear, access)
    }
    fn compare_exchange<T: Word>(&mut self, linear: u64, old: T, new: T, access: Access) -> Res<T> {
        let now: T = self.load(linear, access)?;
        if now == old {
            self.store(linear, new, access)?;
        }
        Ok(now)
    }
    fn probe_write(&mut self, _linear: u64, _bytes: u64, _access: Access) -> Res {
        Ok(())
    }
    fn fetch(&mut self, linear: u64, buf: &mut [u8]) -> Res<usize> {
        let at = self.at(linear, 16)?;
        buf.copy_from_slice(&self.memory[at..at + buf.len()]);
        Ok(buf.len())
    }
    fn set_payload(&mut self, payload: u64) {
        self.payload = payload;
    }
    fn payload(&self) -> u64 {
        self.payload
    }
    fn port_in(&mut self, _port: u16, _size: u8) -> Res<u32> {
        Err(Stop::EXIT)
    }
    fn port_out(&mut self, _port: u16, _size: u8, _value: u32) -> Res {
        Err(Stop::EXIT)
    }
    fn intercept(&mut self, _what: Intercept, _op: &Op<Self>) -> Res {
        Err(Stop::EXIT)
    }
    fn tsc(&mut self) -> Res<u64> {
        Err(Stop::EXIT)
    }
    fn xcr0_supported(&self) -> u64 {
        7
    }
    fn flush(&mut self, _what: Flush) {}
    fn load_physical(&mut self, _gpa: u64) -> Res<u64> {
        Err(Stop::EXIT)
    }
    fn random(&mut self) -> u64 {
        4
    }
}

/// Processor time of this process, which others on the machine do not change much.
fn processor_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Runs `code` at address 0 until it halts; returns how many instructions that took and how long.
fn run(code: &[u8]) -> (u64, f64) {
    let mut state = CpuState::reset(0);
    state.rip = 0;
    state.mode = Mode::Long64;
    state.gpr[4] = 0x8000;
    let mut memory = vec![0; 1 << 20];
    memory[..code.len()].copy_from_slice(code);
    let mut cpu = Flat { state, memory, payload: 0 };
    let mut blocks: HashMap<u64, Vec<Op<Flat>>> = HashMap::new();
    let mut direct: Vec<*const Vec<Op<Flat>>> = vec![std::ptr::null(); code.len() + 16];
    let mut count = 0;
    let start = processor_seconds();
    'blocks: loop {
        let rip = cpu.state.rip;
        if rip as usize == code.len() {
            return (count, processor_seconds() - start);
        }
        if direct[rip as usize].is_null() {
            let mut ops = Vec::new();
            let mut at = rip as usize;
            while at < code.len() {
                let op = decode::<Flat>(&cpu.memory[at..at + 15], Mode::Long64, Features::all()).unwrap();
                at += op.len as usize;
                ops.push(op);
                if op.code.flow_control() != iced_x86::FlowControl::Next {
                    break;
                }
            }
            direct[rip as usize] = blocks.entry(rip).or_insert(ops);
        }
        // SAFETY: vectors of the map are neither changed nor dropped after they were put there.
        let ops = unsafe { &*direct[rip as usize] };
        count += ops.len() as u64;
        for op in ops {
            if let Err(stop) = op.execute(&mut cpu) {
                if stop == Stop::RESTART {
                    continue 'blocks;
                }
                panic!("{stop:?} at {:#x}", cpu.state.rip);
            }
        }
    }
}

/// Loops of ten or twenty million rounds.
const PROGRAMS: [(&str, &[u8]); 4] = [
    (
        // mov ecx, 20000000; 1: lea rax, [rax+rcx*4+7]; add rdx, rax; xor rbx, rdx; shr rax, 3; imul rsi, rbx;
        // sub rdi, rsi; dec ecx; jne 1b
        "registers",
        &[
            0xb9, 0x00, 0x2d, 0x31, 0x01, 0x48, 0x8d, 0x44, 0x88, 0x07, 0x48, 0x01, 0xc2, 0x48, 0x31, 0xd3, 0x48, 0xc1,
            0xe8, 0x03, 0x48, 0x0f, 0xaf, 0xf3, 0x48, 0x29, 0xf7, 0xff, 0xc9, 0x75, 0xe6,
        ],
    ),
    (
        // mov ecx, 20000000; mov esi, 0x1000; 1: mov rax, [rsi+8]; add rax, rcx; mov [rsi+16], rax;
        // movzx edx, byte [rsi+16]; add dword [rsi+rdx*4+64], 1; cmp byte [rsi+32], 0; dec ecx; jne 1b
        "memory",
        &[
            0xb9, 0x00, 0x2d, 0x31, 0x01, 0xbe, 0x00, 0x10, 0x00, 0x00, 0x48, 0x8b, 0x46, 0x08, 0x48, 0x01, 0xc8, 0x48,
            0x89, 0x46, 0x10, 0x0f, 0xb6, 0x56, 0x10, 0x83, 0x44, 0x96, 0x40, 0x01, 0x80, 0x7e, 0x20, 0x00, 0xff, 0xc9,
            0x75, 0xe4,
        ],
    ),
    (
        // mov ecx, 20000000; mov eax, 1; 1: test eax, 1; jne 2f; shr eax, 1; jmp 3f; 2: lea eax, [rax+rax*2+1];
        // 3: cmp eax, 1000; cmova eax, ecx; dec ecx; jne 1b
        "branches",
        &[
            0xb9, 0x00, 0x2d, 0x31, 0x01, 0xb8, 0x01, 0x00, 0x00, 0x00, 0xa9, 0x01, 0x00, 0x00, 0x00, 0x75, 0x04, 0xd1,
            0xe8, 0xeb, 0x04, 0x8d, 0x44, 0x40, 0x01, 0x3d, 0xe8, 0x03, 0x00, 0x00, 0x0f, 0x47, 0xc1, 0xff, 0xc9, 0x75,
            0xe5,
        ],
    ),
    (
        // mov ecx, 10000000; 1: call 2f; dec ecx; jne 1b; jmp 3f; 2: push rbp; mov rbp, rsp; push rbx; mov rbx, rdi;
        // mov rax, [rbp+8]; pop rbx; pop rbp; ret; 3: nop
        "calls",
        &[
            0xb9, 0x80, 0x96, 0x98, 0x00, 0xe8, 0x06, 0x00, 0x00, 0x00, 0xff, 0xc9, 0x75, 0xf7, 0xeb, 0x0f, 0x55, 0x48,
            0x89, 0xe5, 0x53, 0x48, 0x89, 0xfb, 0x48, 0x8b, 0x45, 0x08, 0x5b, 0x5d, 0xc3, 0x90,
        ],
    ),
];

fn main() {
    for (name, code) in PROGRAMS {
        let (count, seconds) = run(code);
        let (millions, nanoseconds) = (count as f64 / seconds / 1e6, seconds * 1e9 / count as f64);
        println!("{name:10} {millions:7.1} M instructions/s, {nanoseconds:.2} ns each");
    }
}
