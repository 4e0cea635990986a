//! Fetching and decoding at CS:RIP, and executing one instruction.
use x86::{Mode, Seg};

use crate::{Cpu, DecodeError, Op, Res, Stop, address, decode};

/// The longest instruction.
pub const MAX_LEN: usize = 15;

/// Fetches and decodes the instruction at CS:RIP. Bytes behind the end of a page are fetched only if the
/// instruction goes on there.
pub fn fetch_decode<C: Cpu>(cpu: &mut C) -> Res<Op<C>> {
    let mut bytes = [0; MAX_LEN];
    let mut have = 0;
    loop {
        have += fetch_more(cpu, have as u64, &mut bytes[have..])?;
        match decode(&bytes[..have], cpu.state().mode, cpu.features()) {
            Ok(op) => return Ok(op),
            Err(DecodeError::More) if have < MAX_LEN => {}
            Err(DecodeError::Invalid) => return Err(Stop::UD),
            Err(DecodeError::More | DecodeError::TooLong) => return Err(Stop::GP0),
        }
    }
}

/// Fetches at least one byte at CS:(RIP + `at`), checked against the limit of CS.
fn fetch_more<C: Cpu>(cpu: &mut C, at: u64, buf: &mut [u8]) -> Res<usize> {
    let state = cpu.state();
    let cs = &state.seg[Seg::Cs as usize];
    let (linear, room) = if state.mode == Mode::Long64 {
        let linear = state.rip.wrapping_add(at);
        if !address::is_canonical(state, linear, 1) {
            return Err(Stop::GP0);
        }
        (linear, u64::MAX)
    } else {
        let offset = state.rip.wrapping_add(at) as u32;
        if offset > cs.limit {
            return Err(Stop::GP0);
        }
        (cs.base.wrapping_add(offset as u64) as u32 as u64, (cs.limit - offset) as u64 + 1)
    };
    let len = room.min(buf.len() as u64) as usize;
    let got = cpu.fetch(linear, &mut buf[..len])?;
    if got == 0 { Err(Stop::RESTART) } else { Ok(got.min(len)) }
}

/// Fetches, decodes and executes one instruction. On `Err` the registers are as before.
pub fn step<C: Cpu>(cpu: &mut C) -> Res {
    let op = fetch_decode(cpu)?;
    op.execute(cpu)
}

impl<C: Cpu> Op<C> {
    /// Executes this instruction, which is the one at CS:RIP: advances RIP, and puts it back on `Err`.
    #[inline(always)]
    pub fn execute(&self, cpu: &mut C) -> Res {
        let state = cpu.state_mut();
        let start = state.rip;
        state.rip = self.next_rip(start);
        let result = (self.run)(cpu, self);
        if result.is_err() {
            cpu.state_mut().rip = start;
        }
        result
    }

    /// The address of the instruction behind this one if this one is at `rip`. Outside of 64-bit mode only 32 bits count;
    /// 16-bit code that runs over the end of its segment is caught by the next fetch.
    #[inline(always)]
    pub fn next_rip(&self, rip: u64) -> u64 {
        let next = rip.wrapping_add(self.len as u64);
        if self.mode == Mode::Long64 { next } else { next as u32 as u64 }
    }
}
