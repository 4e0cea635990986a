//! Random guests: tables of any format in a few frames, accesses through them, and everything that happens beside them,
//! chosen by bytes. A fuzzer's input is such bytes.
use abi::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use x86::{
    CpuState, Cr0, Cr4, Efer,
    paging::{A, D, G, NX, P, PS, U, W},
};

use super::{Access, End, Machine};

/// Frames of the first slot, in which all tables are.
const FRAMES: u64 = 32;
/// Where the client keeps the slots' memory.
const CLIENT: u64 = 0x5000_0000_0000;
/// The second slot, logged or read-only or elsewhere at times.
const OTHER_FRAMES: u64 = 16;
const CPUS: usize = 2;

/// Bytes that choose; zeros when they are used up.
pub(super) struct Choices<'a>(core::slice::Iter<'a, u8>);

impl<'a> Choices<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self(data.iter())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    pub(super) fn byte(&mut self) -> u64 {
        self.0.next().copied().unwrap_or(0).into()
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        (self.byte() | self.byte() << 8) % limit
    }

    /// One time in so many.
    pub(super) fn one_in(&mut self, times: u64) -> bool {
        self.byte() % times == times - 1
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.byte() as usize % of.len()]
    }

    /// A frame that mostly exists.
    fn frame(&mut self) -> u64 {
        match self.byte() % 16 {
            0 => FRAMES + self.below(64),
            1 => 0x100 + self.below(OTHER_FRAMES),
            2 => self.below(1 << 20),
            _ => self.below(FRAMES),
        }
    }

    /// An entry of a table that mostly leads somewhere.
    fn entry(&mut self) -> u64 {
        if self.one_in(8) {
            return if self.one_in(2) { 0 } else { u64::from_le_bytes(core::array::from_fn(|_| self.byte() as u8)) };
        }
        let mut entry = self.frame() << 12 | P | W | U;
        for (bit, times) in [(W, 4), (U, 4), (P, 16)] {
            if self.one_in(times) {
                entry &= !bit;
            }
        }
        for (bit, times) in [(A, 2), (D, 2), (PS, 8), (G, 8), (NX, 8), (1 << 9, 4), (1 << 52, 16)] {
            if self.one_in(times) {
                entry |= bit;
            }
        }
        entry
    }

    /// An offset in a table that addresses use.
    fn offset(&mut self) -> u64 {
        let index = self.pick(&[0, 1, 2, 3, 256, 510, 511]);
        (index * 8 + if self.one_in(4) { self.below(8) } else { 0 }).min(0xff8)
    }

    fn address(&mut self, long: bool) -> u64 {
        let index = |choices: &mut Self| choices.pick(&[0u64, 1, 2, 3, 256, 510, 511]);
        let (a, b, c, d) = (index(self), index(self), index(self), index(self));
        let offset = if self.one_in(4) { self.below(0x1000) } else { self.offset() };
        let address = a << 39 | b << 30 | c << 21 | d << 12 | offset;
        if long {
            (address << 16) as i64 as u64 >> 16 | if address >> 47 & 1 != 0 { 0xffff << 48 } else { 0 }
        } else {
            address & 0xffff_ffff
        }
    }

    /// Puts a processor into some mode.
    fn registers(&mut self, state: &mut CpuState) {
        let kind = self.byte() % 8;
        let (mut cr0, mut cr4, mut efer) = (Cr0::PE.bits(), 0, 0);
        let on = Cr0::PG.bits();
        match kind {
            0 => {}
            1 | 2 => cr0 |= on,
            3 | 4 => (cr0, cr4) = (cr0 | on, Cr4::PAE.bits()),
            _ => (cr0, cr4, efer) = (cr0 | on, Cr4::PAE.bits(), (Efer::LME | Efer::LMA).bits()),
        }
        if !self.one_in(3) {
            cr0 |= Cr0::WP.bits();
        }
        for (bit, times) in [(Cr4::PSE, 2), (Cr4::SMEP, 3), (Cr4::SMAP, 3), (Cr4::PGE, 2)] {
            if self.one_in(times) {
                cr4 |= bit.bits();
            }
        }
        if kind > 2 && !self.one_in(4) {
            efer |= Efer::NXE.bits();
        }
        (state.cr0, state.cr4, state.efer) = (cr0, cr4, efer);
        state.cr3 = if self.one_in(16) { self.frame() << 12 } else { self.below(4) << 12 };
        state.pdptr = core::array::from_fn(|_| if self.one_in(6) { 0 } else { self.frame() << 12 | P });
        state.refresh();
    }
}

/// What happens beside the guest.
fn host(machine: &mut Machine, choices: &mut Choices<'_>, logged: &mut bool) {
    let page = |choices: &mut Choices<'_>| {
        let other = choices.one_in(3);
        CLIENT + ((if other { 0x100 + choices.below(OTHER_FRAMES) } else { choices.below(FRAMES) }) << 12)
    };
    match choices.byte() % 12 {
        0..=2 => {
            let (at, count) = (page(choices), 1 + choices.below(8));
            machine.invalidate(at, count);
        }
        3 | 4 => {
            let (at, count) = (page(choices), 1 + choices.below(8));
            machine.invalidate_in_fault(at, count);
        }
        5 => {
            machine.take_young(page(choices), 4);
        }
        6 => {
            *logged = !*logged;
            machine.set_slot(0, if *logged { KVM_MEM_LOG_DIRTY_PAGES } else { 0 }, 0, FRAMES, CLIENT);
        }
        7 => {
            machine.get_dirty_log(0);
        }
        8 => {
            // Another slot, of another kind each time.
            machine.set_slot(1, 0, 0, 0, 0);
            let flags = choices.pick(&[0, KVM_MEM_READONLY, KVM_MEM_LOG_DIRTY_PAGES]);
            let gfn = choices.pick(&[0x100, FRAMES, 0x200]);
            machine.set_slot(1, flags, gfn << 12, OTHER_FRAMES, CLIENT + (0x100 << 12));
        }
        9 => machine.set_limit(choices.pick(&[0, 64, 70, 100, 1000])),
        10 => drop(machine.shrink(choices.below(20) as usize)),
        _ => {
            machine.unprotect(choices.frame() << 12);
        }
    }
}

/// What a guest does behind a write to a table: it flushes every processor, one, a page of one, or none yet.
fn guest_flushes(machine: &mut Machine, choices: &mut Choices<'_>, index: usize, gva: u64) {
    match choices.byte() % 8 {
        0..=3 => machine.guest_flush(),
        4 => machine.guest_flush_of(choices.byte() as usize % CPUS),
        5 | 6 => {
            machine.guest_flush_page(index, gva);
            machine.access(index, Access { user: choices.one_in(2), ..Access::read(gva) });
        }
        _ => {}
    }
}

/// Runs the operations that `data` stands for. Panics if anything is not as it should be.
pub fn run(data: &[u8]) {
    let mut choices = Choices::new(data);
    let mut machine = Machine::new(CPUS);
    let mut logged = false;
    machine.set_slot(0, 0, 0, FRAMES, CLIENT);
    machine.set_slot(1, 0, 0x100 << 12, OTHER_FRAMES, CLIENT + (0x100 << 12));
    for _ in 0..64 {
        let (gfn, offset, entry) = (choices.below(FRAMES), choices.offset() & !7, choices.entry());
        machine.put(gfn << 12 | offset, entry);
    }
    for cpu in 0..CPUS {
        machine.set_registers(cpu, |state| choices.registers(state));
    }
    while !choices.is_empty() {
        let cpu = choices.byte() as usize % CPUS;
        match choices.byte() % 16 {
            0 | 1 => host(&mut machine, &mut choices, &mut logged),
            2 => machine.set_registers(cpu, |state| choices.registers(state)),
            3..=5 => {
                // The hypervisor writes a table, in whole, in part or across entries.
                let (gfn, offset, entry) = (choices.below(FRAMES), choices.offset(), choices.entry());
                let bytes = entry.to_le_bytes();
                let len = if choices.one_in(4) { choices.pick(&[1, 2, 4]) } else { 8 };
                machine.write(gfn << 12 | offset, &bytes[..len]);
                machine.guest_flush();
            }
            _ => {
                let long = machine.paging(cpu).mode == crate::PagingMode::Long4;
                let gva = choices.address(long);
                let write = if choices.one_in(2) { Some(choices.entry()) } else { None };
                let fetch = write.is_none() && choices.one_in(4);
                let access = Access { gva, write, fetch, user: choices.one_in(2), ac: choices.one_in(3) };
                let end = machine.access(cpu, access);
                if write.is_some() && matches!(end, End::Done(_)) {
                    // It may have been a table.
                    guest_flushes(&mut machine, &mut choices, cpu, gva);
                } else if matches!(end, End::Done(_)) && choices.one_in(2) {
                    let entry = choices.entry();
                    machine.write_entry(cpu, gva, entry);
                    guest_flushes(&mut machine, &mut choices, cpu, gva);
                }
            }
        }
        machine.check();
    }
}
