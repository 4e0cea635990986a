//! The processor as the emulator's instructions see it.
use emulate::{Access, Cpu, Flush, Intercept, Op, Res, TranslationChange};
use hv::backend::{CrOp, Exit, PioExit};
use mmu::{MemoryError, PhysMem};
use platform::{Hva, Memory, Platform, Word};
use x86::{CpuState, Exception, Features};

use crate::{
    SoftVcpu,
    kept::Physical,
    memory::Want,
    native,
    tlb::{DATA_ENTRIES, Keys, index, key, tag},
};

/// One in so many PAUSEs leaves the guest.
const PAUSES: u32 = 4096;

impl<P: Platform> SoftVcpu<P> {
    #[inline(always)]
    fn fast_keys(&self, access: Access) -> &Keys {
        match access {
            Access::Program => &self.keys.program,
            Access::System => &self.keys.system,
            Access::User => &self.keys.user,
        }
    }

    /// Where `linear` may be read, if that is known and `bytes` bytes there are in one page.
    #[inline(always)]
    fn readable(&self, linear: u64, bytes: u64, access: Access) -> Option<Hva> {
        let key = key(self.fast_keys(access), linear);
        let entry = &self.tlb.data[index(linear, DATA_ENTRIES)];
        let inside = bytes == 1 || linear & 0xfff <= 0x1000 - bytes;
        (entry.read == tag(linear, key) && inside).then(|| Hva(linear.wrapping_add(entry.addend)))
    }

    /// Where `linear` may be written without further ado.
    #[inline(always)]
    fn writable(&self, linear: u64, bytes: u64, access: Access) -> Option<Hva> {
        let key = key(self.fast_keys(access), linear);
        let entry = &self.tlb.data[index(linear, DATA_ENTRIES)];
        let inside = bytes == 1 || linear & 0xfff <= 0x1000 - bytes;
        (entry.write == tag(linear, key) && inside).then(|| Hva(linear.wrapping_add(entry.addend)))
    }

    /// How far the accesses of a bulk operation may go from `linear`.
    #[inline]
    fn room(linear: u64) -> u64 {
        0x1000 - (linear & 0xfff)
    }

    /// Makes `linear` readable or writable for a bulk operation, if that can be done now. A fault is left to the
    /// instruction's own access.
    fn bulk(&mut self, linear: u64, want: Want) -> Option<Hva> {
        let known = |cpu: &Self| match want {
            Want::Write => cpu.writable(linear, 1, Access::Program),
            _ => cpu.readable(linear, 1, Access::Program),
        };
        if let Some(at) = known(self) {
            return Some(at);
        }
        if self.keys.program == crate::vcpu::AccessKeys::NEVER.program {
            return None;
        }
        let payload = self.payload;
        if self.spot(linear, want, Access::Program).is_err() {
            self.payload = payload;
            self.exit = None;
            return None;
        }
        known(self)
    }
}

impl<P: Platform> Cpu for SoftVcpu<P> {
    #[inline(always)]
    fn state(&self) -> &CpuState {
        &self.state
    }

    #[inline(always)]
    fn state_mut(&mut self) -> &mut CpuState {
        &mut self.state
    }

    #[inline]
    fn features(&self) -> Features {
        self.features
    }

    #[inline(always)]
    fn load<T: Word>(&mut self, linear: u64, access: Access) -> Res<T> {
        if let Some(at) = self.readable(linear, T::BYTES, access)
            && let Ok(value) = P::Memory::load(at)
        {
            return Ok(value);
        }
        self.load_slow(linear, access, Want::Read)
    }

    #[inline(always)]
    fn store<T: Word>(&mut self, linear: u64, value: T, access: Access) -> Res {
        if let Some(at) = self.writable(linear, T::BYTES, access)
            && P::Memory::store(at, value).is_ok()
        {
            return Ok(());
        }
        self.store_slow(linear, value, access)
    }

    #[inline(always)]
    fn load_for_write<T: Word>(&mut self, linear: u64, access: Access) -> Res<T> {
        if let Some(at) = self.writable(linear, T::BYTES, access)
            && let Ok(value) = P::Memory::load(at)
        {
            return Ok(value);
        }
        self.load_slow(linear, access, Want::Write)
    }

    #[inline(always)]
    fn compare_exchange<T: Word>(&mut self, linear: u64, old: T, new: T, access: Access) -> Res<T> {
        if let Some(at) = self.writable(linear, T::BYTES, access)
            && let Ok(seen) = P::Memory::compare_exchange(at, old, new)
        {
            return Ok(seen);
        }
        self.exchange_slow(linear, old, new, access)
    }

    fn probe_write(&mut self, linear: u64, bytes: u64, access: Access) -> Res {
        self.probe(linear, bytes, access)
    }

    fn fetch(&mut self, linear: u64, buf: &mut [u8]) -> Res<usize> {
        let page = self.fetch_page(linear)?;
        let len = (Self::room(linear) as usize).min(buf.len());
        let at = Hva(page.hva).add(linear & 0xfff);
        if P::Memory::copy_from(at, &mut buf[..len]).is_err() {
            return Err(self.leave_for(Exit::BadAddress { gpa: page.gpa | linear & 0xfff }));
        }
        Ok(len)
    }

    fn copy_forward(&mut self, from: u64, to: u64, bytes: u64) -> u64 {
        let bytes = bytes.min(Self::room(from)).min(Self::room(to));
        let Some(target) = self.bulk(to, Want::Write) else { return 0 };
        let Some(source) = self.bulk(from, Want::Read) else { return 0 };
        // The two may share an entry of the TLB.
        if self.writable(to, 1, Access::Program) != Some(target) {
            return 0;
        }
        P::Memory::copy_within(source, target, bytes)
    }

    fn fill_forward<T: Word>(&mut self, to: u64, value: T, count: u64) -> u64 {
        let count = count.min(Self::room(to) / T::BYTES);
        match self.bulk(to, Want::Write) {
            Some(target) => P::Memory::fill(target, value, count),
            None => 0,
        }
    }

    #[inline]
    fn set_payload(&mut self, payload: u64) {
        self.payload = payload;
    }

    #[inline]
    fn payload(&self) -> u64 {
        self.payload
    }

    fn port_in(&mut self, port: u16, size: u8) -> Res<u32> {
        Err(self.port(port, size, false))
    }

    fn port_out(&mut self, port: u16, size: u8, _value: u32) -> Res {
        Err(self.port(port, size, true))
    }

    #[cold]
    fn intercept(&mut self, what: Intercept, op: &Op<Self>) -> Res {
        if what == Intercept::Pause {
            // A guest that spins for long waits for another vCPU, which may wait for this thread's processor.
            self.pauses = self.pauses.wrapping_add(1);
            if !self.pauses.is_multiple_of(PAUSES) {
                core::hint::spin_loop();
                return Ok(());
            }
        }
        Err(self.leave_for(Exit::intercepted(what, op.len, op.regs[0] & 15)))
    }

    fn tsc(&mut self) -> Res<u64> {
        let scaled = (P::tsc() as u128 * self.tsc_ratio as u128) >> 48;
        Ok((scaled as u64).wrapping_add(self.tsc_offset))
    }

    fn xcr0_supported(&self) -> u64 {
        self.xcr0
    }

    fn flush(&mut self, what: Flush) {
        self.flush_translations(what);
    }

    fn before_translation_change(&mut self, what: TranslationChange) -> Res {
        if self.start.is_none() {
            return Ok(());
        }
        Err(self.leave_for(match what {
            TranslationChange::Instruction => Exit::Cr { op: CrOp::Other, len: 0 },
            TranslationChange::Task => Exit::TaskSwitch,
            TranslationChange::Page(linear) => Exit::Invlpg { gva: Some(linear), len: 0 },
        }))
    }

    fn load_physical(&mut self, gpa: u64) -> Res<u64> {
        if let Some((_, nested)) = &self.nested {
            return self.load_nested(nested, gpa).map_err(|error| {
                if let Some(kept) = &self.kept {
                    kept.frames.drop_frame(gpa >> 12);
                }
                self.leave_for(match error {
                    MemoryError::BadAddress(gpa) => Exit::BadAddress { gpa },
                    error => self.table_fault(error.gpa()),
                })
            });
        }
        let Some(view) = self.env().and_then(|env| env.memory.view(env.reader)) else { return Ok(u64::MAX) };
        let value = match &self.kept {
            Some(kept) => Physical { view: &view, frames: &kept.frames }.load(gpa),
            None => view.load(gpa),
        };
        Ok(value.unwrap_or(u64::MAX))
    }

    fn random(&mut self) -> u64 {
        let mut bytes = [0; 8];
        P::random(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn physical_bits(&self) -> u32 {
        self.physical_bits
    }

    fn unblock_nmi(&mut self) {
        self.nmi_blocked = false;
    }

    fn raise_after(&mut self, exception: Exception) {
        self.after = Some(exception);
        self.end = 0;
    }

    fn vector(&mut self, op: &Op<Self>, memory: Option<u64>) -> Res {
        native::execute(self, op, memory)
    }

    fn data_breakpoints(&self) -> bool {
        self.watches_data()
    }
}

impl<P: Platform> native::Host for SoftVcpu<P> {
    fn native(&mut self) -> &mut native::Native {
        &mut self.native
    }
}

impl<P: Platform> SoftVcpu<P> {
    /// Leaves for port I/O; the run loop, which knows the instruction, completes the exit.
    #[cold]
    fn port(&mut self, port: u16, size: u8, write: bool) -> emulate::Stop {
        self.watch_port(port, size);
        self.leave_for(Exit::Pio(PioExit { port, size, write, string: false, len: 0 }))
    }
}
