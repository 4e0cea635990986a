//! Accesses and changes of page tables one after the other, each with what it must do, in one piece of guest code.
//!
//! The same script serves 32-bit paging, PAE and long mode: it is written in instructions whose bytes mean the same in
//! 32-bit and 64-bit code. Each access leaves its result, and the exception that it raised, in a slot of
//! [`RESULTS`]; the client compares them when the guest has halted.
use super::{
    handlers::{RECORDS, RESUME},
    layout::{LOG, RESULTS, SCRIPT, STACK, USER_STACK, sel},
    live::Live,
    machine::{Machine, Mode, assemble},
};
use crate::device::Memory;

/// Who makes an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Privilege level 0.
    Kernel,
    /// Privilege level 3.
    User,
}

/// Bytes of a slot: value, count of records, vector, error code, CR2.
const SLOT: u64 = 32;
/// What a slot's value is when an access did not get as far.
const NOTHING: u32 = 0xeeee_eeee;
/// The vector by which user code returns.
const RETURN: u8 = 0x80;

struct Step {
    what: String,
    /// The value, or vector, error code and CR2.
    expected: Result<u32, (u8, u32, Option<u64>)>,
    mask: u32,
    any: bool,
    /// Where the next one begins.
    end: u64,
}

/// A sequence of steps that is being written.
pub struct Script {
    mode: Mode,
    at: u64,
    code: Vec<u8>,
    steps: Vec<Step>,
    read: u64,
    write: u64,
    execute: u64,
}

impl Script {
    /// An empty script for `machine`, whose code begins with it unless the machine has other code.
    pub fn new(machine: &mut Machine) -> Self {
        assert!(machine.mode.bits() >= 32, "scripts are in 32-bit or 64-bit code");
        machine.regs.rip = SCRIPT;
        let mut user = |bytes: &[u8]| machine.user_code(|a| a.db(bytes));
        Self {
            read: user(&[0x8b, 0x07, 0xcd, RETURN]),    // mov eax, [edi]; int 0x80
            write: user(&[0x89, 0x07, 0xcd, RETURN]),   // mov [edi], eax; int 0x80
            execute: user(&[0xff, 0xe7, 0xcd, RETURN]), // jmp edi
            mode: machine.mode,
            at: SCRIPT,
            code: Vec::new(),
            steps: Vec::new(),
        }
    }

    fn long(&self) -> bool {
        self.mode == Mode::LONG
    }

    fn imm32(&mut self, opcode: &[u8], value: u32) {
        self.code.extend(opcode);
        self.code.extend(value.to_le_bytes());
    }

    /// `mov register, value` with the register's number; a full register in 64-bit code.
    fn load(&mut self, register: u8, value: u64) {
        if self.long() {
            self.code.extend([0x48, 0xb8 + register]);
            self.code.extend(value.to_le_bytes());
        } else {
            self.imm32(&[0xb8 + register], value as u32);
        }
    }

    /// `mov eax, [ebx + place]` or the reverse, with EBX = RESULTS.
    fn fetch(&mut self, place: u64) {
        self.imm32(&[0x8b, 0x83], (place as u32).wrapping_sub(RESULTS as u32));
    }

    fn put(&mut self, place: u64) {
        self.imm32(&[0x89, 0x83], (place as u32).wrapping_sub(RESULTS as u32));
    }

    /// Surrounds `body` with what records its outcome.
    fn step(
        &mut self,
        what: String,
        expected: Result<u32, (u8, u32, Option<u64>)>,
        mask: u32,
        body: impl Fn(&mut Self),
    ) {
        let slot = RESULTS + SLOT * self.steps.len() as u64;
        assert!(slot < SCRIPT, "too many steps");
        self.imm32(&[0xbb], RESULTS as u32);
        self.imm32(&[0xc7, 0x83], (RESUME as u32).wrapping_sub(RESULTS as u32));
        let resume = self.code.len();
        self.code.extend([0; 4]);
        body(self);
        let next = (self.at + self.code.len() as u64) as u32;
        self.code[resume..resume + 4].copy_from_slice(&next.to_le_bytes());
        self.put(slot);
        for (from, to) in [(LOG, 4), (RECORDS, 8), (RECORDS + 8, 12), (RECORDS + 56, 16), (RECORDS + 60, 20)] {
            self.fetch(from);
            self.put(slot + to);
        }
        // No records, and no exceptions that anybody expects, until the next step.
        self.imm32(&[0x31, 0xc0, 0x89, 0x83], (LOG as u32).wrapping_sub(RESULTS as u32));
        self.put(RESUME);
        let end = self.at + self.code.len() as u64;
        self.steps.push(Step { what, expected, mask, any: false, end });
    }

    fn access(
        &mut self,
        what: &str,
        level: Level,
        gva: u64,
        value: u32,
        (kernel, user): (&[u8], u64),
        expected: Result<u32, u32>,
    ) {
        let text = format!("{what} {gva:#x} by {level:?}");
        let expected = match expected {
            Err(code) => Err((14, code, Some(gva))),
            Ok(value) => Ok(value),
        };
        self.step(text, expected, !0, |s| {
            s.load(7, gva);
            s.imm32(&[0xb8], value);
            if level == Level::Kernel {
                s.code.extend(kernel);
                return;
            }
            for word in [u64::from(sel::USER_DATA), USER_STACK, 2, u64::from(sel::USER), user] {
                s.imm32(&[0x68], word as u32);
            }
            if s.long() {
                s.code.push(0x48);
            }
            s.code.push(0xcf);
        });
    }

    /// Reads a dword: `Ok` with what is there, or `Err` with the page fault's error code.
    pub fn read(&mut self, level: Level, gva: u64, expected: Result<u32, u32>) -> &mut Self {
        self.access("read", level, gva, NOTHING, (&[0x8b, 0x07], self.read), expected);
        self
    }

    /// Writes a dword, with the page fault's error code if it must fault.
    pub fn write(&mut self, level: Level, gva: u64, value: u32, expected: Result<(), u32>) -> &mut Self {
        self.access("write", level, gva, value, (&[0x89, 0x07], self.write), expected.map(|()| value));
        self
    }

    /// Jumps to `gva`, where `int 0x80` must be.
    pub fn execute(&mut self, level: Level, gva: u64, expected: Result<(), u32>) -> &mut Self {
        self.access("execute", level, gva, 0, (&[0xff, 0xe7], self.execute), expected.map(|()| 0));
        self
    }

    /// Jumps to `gva`, where code must come to `int 0x80` with `value` in EAX.
    pub fn executes(&mut self, level: Level, gva: u64, value: u32) -> &mut Self {
        self.access("execute", level, gva, 0, (&[0xff, 0xe7], self.execute), Ok(value));
        self
    }

    /// Writes a dword and does not care whether that faults: a stale translation may.
    pub fn attempt(&mut self, level: Level, gva: u64, value: u32) -> &mut Self {
        self.write(level, gva, value, Ok(()));
        self.steps.last_mut().expect("the step").any = true;
        self
    }

    /// Instructions of the case's own; what they leave in EAX must be `expected` in the bits of `mask`.
    pub fn check(&mut self, what: &str, code: &[u8], mask: u32, expected: u32) -> &mut Self {
        self.step(what.to_owned(), Ok(expected & mask), mask, |s| s.code.extend(code));
        self
    }

    /// Instructions that must raise an exception with this error code.
    pub fn raises(&mut self, what: &str, code: &[u8], vector: u8, error: u32) -> &mut Self {
        self.step(what.to_owned(), Err((vector, error, None)), !0, |s| s.code.extend(code));
        self
    }

    /// Code at `gva` must raise an exception at level 3.
    pub fn user_raises(&mut self, what: &str, gva: u64, vector: u8, error: u32) -> &mut Self {
        self.execute(Level::User, gva, Ok(()));
        let step = self.steps.last_mut().expect("the step");
        (step.what, step.expected) = (what.to_owned(), Err((vector, error, None)));
        self
    }

    /// Reads or writes a dword over a page boundary, which must fault with this code and CR2.
    pub fn crossing(&mut self, level: Level, gva: u64, write: Option<u32>, (code, cr2): (u32, u64)) -> &mut Self {
        match write {
            None => self.read(level, gva, Err(code)),
            Some(value) => self.write(level, gva, value, Err(code)),
        };
        self.steps.last_mut().expect("the step").expected = Err((14, code, Some(cr2)));
        self
    }

    /// Instructions of the case's own, in bytes that suit the mode.
    pub fn raw(&mut self, code: &[u8]) -> &mut Self {
        self.code.extend(code);
        self
    }

    /// Instructions of the case's own.
    pub fn code(
        &mut self,
        write: impl FnOnce(&mut iced_x86::code_asm::CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) -> &mut Self {
        let at = self.at + self.code.len() as u64;
        let (bytes, _) = assemble(self.mode.bits(), at, |a| write(a).map(|()| []));
        self.raw(&bytes)
    }

    /// Writes `bytes` (1, 2, 4 or, in long mode, 8) at `gva` by one MOV.
    pub fn poke(&mut self, gva: u64, bytes: &[u8]) -> &mut Self {
        self.load(6, gva);
        match bytes.len() {
            1 => self.code.extend([0xc6, 0x06]),
            2 => self.code.extend([0x66, 0xc7, 0x06]),
            4 => self.code.extend([0xc7, 0x06]),
            _ => {
                assert!(self.long() && bytes.len() == 8, "MOV of {} bytes", bytes.len());
                self.load(0, u64::from_le_bytes(std::array::from_fn(|i| bytes[i])));
                self.code.extend([0x48, 0x89, 0x06]);
                return self;
            }
        }
        self.code.extend(bytes);
        self
    }

    /// Writes a paging entry in the format's width, through the identity mapping: with one MOV, or for PAE the upper
    /// half first.
    pub fn entry(&mut self, entry: u64, value: u64) -> &mut Self {
        let bytes = value.to_le_bytes();
        match self.mode {
            Mode::LEGACY => self.poke(entry, &bytes[..4]),
            Mode::LONG => self.poke(entry, &bytes),
            _ => self.poke(entry + 4, &bytes[4..]).poke(entry, &bytes[..4]),
        }
    }

    /// The lower half of a paging entry must be `expected` in the bits of `mask`.
    pub fn entry_is(&mut self, entry: u64, mask: u64, expected: u64) -> &mut Self {
        let what = format!("entry {entry:#x}");
        self.step(what, Ok((expected & mask) as u32), mask as u32, |s| {
            s.load(7, entry);
            s.code.extend([0x8b, 0x07]);
        });
        self
    }

    /// Not present, and what was there is forgotten.
    pub fn unmap(&mut self, entry: u64, gva: u64) -> &mut Self {
        self.poke(entry, &[0; 4]).invlpg(gva)
    }

    /// INVLPG.
    pub fn invlpg(&mut self, gva: u64) -> &mut Self {
        self.load(7, gva);
        self.raw(&[0x0f, 0x01, 0x3f])
    }

    /// Loads CR3.
    pub fn cr3(&mut self, value: u64) -> &mut Self {
        self.load(0, value);
        self.raw(&[0x0f, 0x22, 0xd8])
    }

    /// WRMSR.
    pub fn wrmsr(&mut self, index: u32, value: u64) -> &mut Self {
        self.imm32(&[0xb9], index);
        self.imm32(&[0xb8], value as u32);
        self.imm32(&[0xba], (value >> 32) as u32);
        self.raw(&[0x0f, 0x30])
    }

    /// Clears and sets bits of CR0 or CR4.
    pub fn control(&mut self, register: u8, clear: u64, set: u64) -> &mut Self {
        assert!(matches!(register, 0 | 4), "CR{register}");
        self.raw(&[0x0f, 0x20, 0xc0 + 8 * register]);
        self.imm32(&[0x25], !(clear as u32));
        self.imm32(&[0x0d], set as u32);
        if self.long() && register == 0 {
            self.raw(&[0x89, 0xc0]); // CR0's upper half is 0
        }
        self.raw(&[0x0f, 0x22, 0xc0 + 8 * register])
    }

    /// Makes the machine, runs the script to its end and compares.
    pub fn run(self, machine: Machine, device: &crate::Device) -> Live {
        let live = machine.start(device);
        live.script(self);
        live
    }

    /// Puts the script into a guest's memory.
    pub(super) fn install(&mut self, memory: &Memory) {
        self.code.push(0xf4); // hlt
        assert!(self.at + self.code.len() as u64 <= super::layout::LOW_END, "too much code");
        memory.write(self.at as usize, &self.code);
        for slot in (RESULTS..SCRIPT).step_by(SLOT as usize) {
            memory.set_u32(slot as usize, NOTHING);
        }
        memory.set_u64(LOG as usize, 0);
    }

    /// Compares what the steps left with what was expected.
    pub(super) fn verify(&self, live: &Live) {
        let memory = &live.memory;
        // An exception between the steps stops the guest.
        let whole = live.vcpu.regs().rip == self.at + self.code.len() as u64;
        let stopped = if whole { None } else { live.events().first().copied() };
        let done = |step: &&Step| stopped.is_none_or(|event| step.end <= event.rip);
        for (i, step) in self.steps.iter().take_while(done).enumerate() {
            let slot = (RESULTS + SLOT * i as u64) as usize;
            let word = |at| memory.u32(slot + at);
            let (value, cr2) = (word(0) & step.mask, memory.u64(slot + 16));
            let seen = match (word(4), word(8)) {
                (0, _) => Ok(value),
                (1, vector) if vector == u32::from(RETURN) => Err((RETURN, 0, None)),
                (1, vector) => Err((vector as u8, word(12), (vector == 14).then_some(cr2))),
                (n, _) => panic!("{:?}, step {i}, {}: {n} exceptions, one at most was expected", self.mode, step.what),
            };
            let right = match (&step.expected, &seen) {
                _ if step.any => true,
                // User code returns by an interrupt.
                (Ok(expected), Ok(_) | Err((RETURN, ..))) => *expected == value,
                (Err(expected), Err(seen)) => {
                    expected.0 == seen.0 && expected.1 == seen.1 && (expected.2.is_none() || expected.2 == seen.2)
                }
                _ => false,
            };
            assert!(
                right,
                "{:?}, step {i}, {}: expected {}, got {}",
                self.mode,
                step.what,
                text(&step.expected),
                if seen.as_ref().is_err_and(|e| e.0 != RETURN) { text(&seen) } else { format!("{value:#x}") }
            );
        }
        let at = live.vcpu.regs().rip;
        assert!(whole, "{:?}: the script stopped between its steps, at {at:#x}: {stopped:x?}", self.mode);
    }

    /// The address that the script starts at, and the stack that it wants.
    pub(super) fn start(&self) -> (u64, u64) {
        (self.at, STACK)
    }
}

fn text(outcome: &Result<u32, (u8, u32, Option<u64>)>) -> String {
    match outcome {
        Ok(value) => format!("{value:#x}"),
        Err((vector, code, Some(cr2))) => format!("exception {vector} with code {code:#x} and CR2 {cr2:#x}"),
        Err((vector, code, None)) => format!("exception {vector} with code {code:#x}"),
    }
}
