//! For tests of this crate and of others: a processor with flat memory (no paging, no devices, every access recorded, faults
//! where the test wants them), random numbers that find differences, and what of an instruction's result is not defined.
mod random;
mod undefined;

use std::{collections::BTreeMap, vec, vec::Vec};

use platform::Word;
use x86::{Attr, CpuState, Cr0, Cr4, Efer, Features, Mode, Segment, Vector, exception::pf};

pub use random::Random;
pub use undefined::{result_undefined, undefined_flags};

use crate::{Access, Cpu, Flush, Intercept, Op, Res, Stop};

/// What a recorded access was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Cpu::load`].
    Load,
    /// [`Cpu::store`].
    Store,
    /// [`Cpu::load_for_write`].
    LoadForWrite,
    /// [`Cpu::compare_exchange`].
    CompareExchange,
}

/// One access to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// What it was.
    pub kind: Kind,
    /// Linear address.
    pub linear: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// In whose name.
    pub access: Access,
}

/// The rights of a page that is not simply readable and writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Every access is #PF.
    Absent,
    /// Writes are #PF.
    ReadOnly,
}

/// A processor with flat memory: linear addresses from `base` on are bytes of `memory`, all others are #PF.
#[derive(Debug)]
pub struct TestCpu {
    /// Registers.
    pub state: CpuState,
    /// What CPUID offers: everything, without AMD's bit.
    pub features: Features,
    /// Memory.
    pub memory: Vec<u8>,
    /// Linear address of `memory[0]`.
    pub base: u64,
    /// Pages (linear address / 4096) with restricted rights.
    pub pages: BTreeMap<u64, Page>,
    /// Accesses so far, if `record` is set.
    pub touches: Vec<Touch>,
    /// Whether to record accesses.
    pub record: bool,
    /// How many locked operations are to lose their race.
    pub lost_races: u32,
    /// See [`Cpu::payload`].
    pub payload: u64,
    /// What IN returns, by port; absent ports read as ones.
    pub ports: BTreeMap<u16, u32>,
    /// OUTs so far: port, size, value.
    pub outs: Vec<(u16, u8, u32)>,
    /// Intercepted instructions so far.
    pub intercepts: Vec<Intercept>,
    /// Flushes so far.
    pub flushes: Vec<Flush>,
    /// What the next reading of the time-stamp counter returns; each adds one.
    pub tsc: u64,
    /// See [`Cpu::xcr0_supported`].
    pub xcr0_supported: u64,
    /// Vector instructions handed over: their linear memory addresses.
    pub vectors: Vec<Option<u64>>,
    /// Whether bulk copies and fills are offered.
    pub bulk: bool,
}

impl TestCpu {
    /// A processor in reset state with `bytes` bytes of memory from linear address 0.
    pub fn new(bytes: usize) -> Self {
        Self {
            state: CpuState::reset(0x600),
            features: Features::all().difference(Features::AMD),
            memory: vec![0; bytes],
            base: 0,
            pages: BTreeMap::new(),
            touches: Vec::new(),
            record: false,
            lost_races: 0,
            payload: 0,
            ports: BTreeMap::new(),
            outs: Vec::new(),
            intercepts: Vec::new(),
            flushes: Vec::new(),
            tsc: 0,
            xcr0_supported: 7,
            vectors: Vec::new(),
            bulk: false,
        }
    }

    /// One in `mode`, with flat segments (real mode: base 0, limit 64 KiB), privilege level `cpl`, RIP 0 and RSP
    /// at 0x800.
    pub fn in_mode(mode: Mode, cpl: u8, bytes: usize) -> Self {
        let mut cpu = Self::new(bytes);
        let s = &mut cpu.state;
        s.rip = 0;
        s.gpr = [0; 16];
        s.gpr[4] = 0x800;
        s.seg = [Segment::real(0, if mode == Mode::Virtual8086 { 3 } else { 0 }); 6];
        if !matches!(mode, Mode::Real) {
            s.cr0 |= Cr0::PE.bits();
        }
        match mode {
            Mode::Real => {}
            Mode::Virtual8086 => s.flags.set(x86::flags::VM | x86::flags::IOPL),
            _ => {
                let big = if mode == Mode::Protected32 { Attr::DB } else { 0 };
                let (big, long) = if mode == Mode::Long64 { (0, Attr::L) } else { (big, 0) };
                let flat = |typ, selector, extra| Segment {
                    selector,
                    attr: Attr(Attr::P | Attr::S | Attr::G | extra | typ).with_dpl(cpl),
                    limit: u32::MAX,
                    base: 0,
                };
                let rpl = cpl as u16;
                let data_big = if mode == Mode::Protected16 { 0 } else { Attr::DB };
                s.seg = [flat(3, 0x18 | rpl, data_big); 6];
                s.seg[1] = flat(11, 0x10 | rpl, big | long);
                if mode == Mode::Long64 {
                    s.cr0 |= Cr0::PG.bits();
                    s.cr4 |= Cr4::PAE.bits();
                    s.efer |= (Efer::LME | Efer::LMA | Efer::SCE | Efer::NXE).bits();
                }
            }
        }
        s.refresh();
        cpu
    }

    /// Puts `bytes` into memory at the linear address `linear`; bytes outside of it are dropped.
    pub fn write(&mut self, linear: u64, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            let at = linear.wrapping_add(i as u64).wrapping_sub(self.base);
            if let Some(slot) = self.memory.get_mut(at as usize) {
                *slot = byte;
            }
        }
    }

    /// The word at the linear address `linear`, without recording; bytes outside of memory read as 0.
    pub fn peek<T: Word>(&self, linear: u64) -> T {
        let mut halves = [0u64; 2];
        for i in 0..T::BYTES {
            let at = linear.wrapping_add(i).wrapping_sub(self.base);
            let byte = self.memory.get(at as usize).copied().unwrap_or(0);
            halves[i as usize / 8] |= (byte as u64) << (i % 8 * 8);
        }
        T::from_halves(halves[0], halves[1])
    }

    fn poke<T: Word>(&mut self, linear: u64, value: T) {
        let halves = [value.low(), value.high()];
        let bytes: Vec<u8> = (0..T::BYTES as usize).map(|i| (halves[i / 8] >> (i % 8 * 8)) as u8).collect();
        self.write(linear, &bytes);
    }

    fn check(&mut self, linear: u64, bytes: u64, write: bool, access: Access) -> Res {
        for i in 0..bytes {
            let at = linear.wrapping_add(i);
            let page = self.pages.get(&(at >> 12));
            let inside = at.wrapping_sub(self.base) < self.memory.len() as u64;
            let code = match page {
                Some(Page::ReadOnly) if write => pf::PRESENT,
                Some(Page::ReadOnly) | None if inside => continue,
                _ => 0,
            };
            let user = access == Access::User || access == Access::Program && self.state.cpl == 3;
            let code = code | if write { pf::WRITE } else { 0 } | if user { pf::USER } else { 0 };
            self.payload = at;
            return Err(Stop::fault_code(Vector::PF, code));
        }
        Ok(())
    }

    fn touch<T: Word>(&mut self, kind: Kind, linear: u64, access: Access) -> Res {
        self.check(linear, T::BYTES, kind != Kind::Load, access)?;
        if self.record {
            self.touches.push(Touch { kind, linear, bytes: T::BYTES, access });
        }
        Ok(())
    }
}

impl Cpu for TestCpu {
    #[inline(always)]
    fn state(&self) -> &CpuState {
        &self.state
    }
    #[inline(always)]
    fn state_mut(&mut self) -> &mut CpuState {
        &mut self.state
    }
    fn features(&self) -> Features {
        self.features
    }
    fn load<T: Word>(&mut self, linear: u64, access: Access) -> Res<T> {
        self.touch::<T>(Kind::Load, linear, access)?;
        Ok(self.peek(linear))
    }
    fn store<T: Word>(&mut self, linear: u64, value: T, access: Access) -> Res {
        self.touch::<T>(Kind::Store, linear, access)?;
        self.poke(linear, value);
        Ok(())
    }
    fn load_for_write<T: Word>(&mut self, linear: u64, access: Access) -> Res<T> {
        self.touch::<T>(Kind::LoadForWrite, linear, access)?;
        Ok(self.peek(linear))
    }
    fn compare_exchange<T: Word>(&mut self, linear: u64, old: T, new: T, access: Access) -> Res<T> {
        self.touch::<T>(Kind::CompareExchange, linear, access)?;
        let now: T = self.peek(linear);
        if self.lost_races > 0 {
            self.lost_races -= 1;
            let other = T::from_halves(!now.low(), now.high());
            self.poke(linear, other);
            return Ok(other);
        }
        if now == old {
            self.poke(linear, new);
        }
        Ok(now)
    }
    fn probe_write(&mut self, linear: u64, bytes: u64, access: Access) -> Res {
        self.check(linear, bytes, true, access)
    }
    fn fetch(&mut self, linear: u64, buf: &mut [u8]) -> Res<usize> {
        self.check(linear, 1, false, Access::Program)?;
        let room = (4096 - (linear & 4095)) as usize;
        let len = room.min(buf.len());
        for (i, byte) in buf[..len].iter_mut().enumerate() {
            *byte = self.peek(linear + i as u64);
        }
        Ok(len)
    }
    fn copy_forward(&mut self, from: u64, to: u64, bytes: u64) -> u64 {
        let bytes = bytes.min(4096 - (from & 4095)).min(4096 - (to & 4095));
        if !self.bulk
            || self.check(from, bytes, false, Access::Program).is_err()
            || self.check(to, bytes, true, Access::Program).is_err()
        {
            return 0;
        }
        for i in 0..bytes {
            let byte: u8 = self.peek(from + i);
            self.write(to + i, &[byte]);
        }
        bytes
    }
    fn fill_forward<T: Word>(&mut self, to: u64, value: T, count: u64) -> u64 {
        let count = count.min((4096 - (to & 4095)) / T::BYTES);
        if !self.bulk || self.check(to, count * T::BYTES, true, Access::Program).is_err() {
            return 0;
        }
        for i in 0..count {
            self.poke(to + i * T::BYTES, value);
        }
        count
    }
    fn set_payload(&mut self, payload: u64) {
        self.payload = payload;
    }
    fn payload(&self) -> u64 {
        self.payload
    }
    fn port_in(&mut self, port: u16, size: u8) -> Res<u32> {
        let value = self.ports.get(&port).copied().unwrap_or(u32::MAX);
        Ok(if size == 4 { value } else { value & ((1 << (8 * size)) - 1) })
    }
    fn port_out(&mut self, port: u16, size: u8, value: u32) -> Res {
        self.outs.push((port, size, value));
        Ok(())
    }
    fn ports_in(&mut self, port: u16, size: u8, linear: u64, count: u64) -> Res<u64> {
        if !self.bulk {
            return Ok(0);
        }
        self.check(linear, count * size as u64, true, Access::Program)?;
        for i in 0..count {
            let value = self.port_in(port, size)?.to_le_bytes();
            self.write(linear + i * size as u64, &value[..size as usize]);
        }
        Ok(count)
    }
    fn ports_out(&mut self, port: u16, size: u8, linear: u64, count: u64) -> Res<u64> {
        if !self.bulk {
            return Ok(0);
        }
        self.check(linear, count * size as u64, false, Access::Program)?;
        for i in 0..count {
            let value: u32 = self.peek(linear + i * size as u64);
            self.port_out(port, size, value & (u32::MAX >> (32 - 8 * size)))?;
        }
        Ok(count)
    }
    fn intercept(&mut self, what: Intercept, _op: &Op<Self>) -> Res {
        self.intercepts.push(what);
        Ok(())
    }
    fn tsc(&mut self) -> Res<u64> {
        self.tsc += 1;
        Ok(self.tsc - 1)
    }
    fn xcr0_supported(&self) -> u64 {
        self.xcr0_supported
    }
    fn flush(&mut self, what: Flush) {
        self.flushes.push(what);
    }
    fn load_physical(&mut self, gpa: u64) -> Res<u64> {
        if gpa.wrapping_sub(self.base) < self.memory.len() as u64 { Ok(self.peek(gpa)) } else { Ok(u64::MAX) }
    }
    fn random(&mut self) -> u64 {
        self.tsc = self.tsc.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.tsc
    }
    fn vector(&mut self, _op: &Op<Self>, memory: Option<u64>) -> Res {
        self.vectors.push(memory);
        Ok(())
    }
}
