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

fn main() {
    use iced_x86::code_asm::*;
    let programs: [(&str, fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>); 4] = [
        ("registers", |a| {
            let mut top = a.create_label();
            a.mov(ecx, 20_000_000)?;
            a.set_label(&mut top)?;
            a.lea(rax, ptr(rax + rcx * 4 + 7))?;
            a.add(rdx, rax)?;
            a.xor(rbx, rdx)?;
            a.shr(rax, 3)?;
            a.imul_2(rsi, rbx)?;
            a.sub(rdi, rsi)?;
            a.dec(ecx)?;
            a.jne(top)
        }),
        ("memory", |a| {
            let mut top = a.create_label();
            a.mov(ecx, 20_000_000)?;
            a.mov(esi, 0x1000)?;
            a.set_label(&mut top)?;
            a.mov(rax, qword_ptr(rsi + 8))?;
            a.add(rax, rcx)?;
            a.mov(qword_ptr(rsi + 16), rax)?;
            a.movzx(edx, byte_ptr(rsi + 16))?;
            a.add(dword_ptr(rsi + rdx * 4 + 64), 1)?;
            a.cmp(byte_ptr(rsi + 32), 0)?;
            a.dec(ecx)?;
            a.jne(top)
        }),
        ("branches", |a| {
            let (mut top, mut odd, mut next) = (a.create_label(), a.create_label(), a.create_label());
            a.mov(ecx, 20_000_000)?;
            a.mov(eax, 1)?;
            a.set_label(&mut top)?;
            a.test(eax, 1)?;
            a.jne(odd)?;
            a.shr(eax, 1)?;
            a.jmp(next)?;
            a.set_label(&mut odd)?;
            a.lea(eax, ptr(rax + rax * 2 + 1))?;
            a.set_label(&mut next)?;
            a.cmp(eax, 1000)?;
            a.cmova(eax, ecx)?;
            a.dec(ecx)?;
            a.jne(top)
        }),
        ("calls", |a| {
            let (mut top, mut f, mut end) = (a.create_label(), a.create_label(), a.create_label());
            a.mov(ecx, 10_000_000)?;
            a.set_label(&mut top)?;
            a.call(f)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.jmp(end)?;
            a.set_label(&mut f)?;
            a.push(rbp)?;
            a.mov(rbp, rsp)?;
            a.push(rbx)?;
            a.mov(rbx, rdi)?;
            a.mov(rax, qword_ptr(rbp + 8))?;
            a.pop(rbx)?;
            a.pop(rbp)?;
            a.ret()?;
            a.set_label(&mut end)?;
            a.nop()
        }),
    ];
    for (name, program) in programs {
        let mut a = CodeAssembler::new(64).unwrap();
        program(&mut a).unwrap();
        let code = a.assemble(0).unwrap();
        let (count, seconds) = run(&code);
        println!(
            "{name:10} {:7.1} M instructions/s, {:.2} ns each",
            count as f64 / seconds / 1e6,
            seconds * 1e9 / count as f64
        );
    }
}
