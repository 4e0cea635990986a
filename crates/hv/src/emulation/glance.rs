//! A glance at the instruction that the processor has left the guest for: its first bytes, without the emulator. That is enough for
//! what most exits are for, where the processor does not tell where the instruction ends.
//!
//! The way to the page that it is on is remembered, with the entries of the guest's tables that it took: as long as each of them
//! is as it was, and so are slots and registers, another walk would end there too.
use mmu::{
    AddressSpace, Paging, PhysMem, Request,
    walk::{Trace, walk_traced},
};
use platform::{Hva, Memory, Platform};
use x86::{Mode, paging::PAGE_SIZE};

use crate::{
    backend::{Backend, BackendVcpu, Groups},
    vcpu::Run,
};

/// What a way depends on, but for the entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct From {
    /// Number of the linear page.
    page: u64,
    /// CR0, CR3, CR4 and EFER.
    registers: [u64; 4],
    /// Of the slots.
    generation: u64,
    smm: bool,
    user: bool,
}

/// The way to the page of the last instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Glance {
    from: From,
    /// Entries: where they are in the client, and what they are.
    steps: [(Hva, u64); Trace::MOST],
    used: usize,
    /// They are of 8 bytes, not of 4.
    wide: bool,
    /// The page in the client; none before the first walk.
    to: Option<Hva>,
}

impl Default for Glance {
    fn default() -> Self {
        Self { from: From::default(), steps: [(Hva(0), 0); Trace::MOST], used: 0, wide: false, to: None }
    }
}

impl Glance {
    /// Walks.
    fn walk<P: Platform>(from: From, space: &AddressSpace<P>, reader: usize, paging: &Paging) -> Option<Self> {
        let view = space.view(reader)?;
        let request = if from.user { Request::FETCH.user() } else { Request::FETCH };
        let mut trace = Trace::default();
        let translation = walk_traced(&view, paging, from.page * PAGE_SIZE, request, &mut trace);
        let hva = |gpa: u64| Some(view.frame(gpa / PAGE_SIZE)?.hva.add(gpa % PAGE_SIZE));
        let wide = paging.mode != mmu::PagingMode::Bits32;
        let mut way = Self { from, used: trace.steps().len(), wide, to: hva(translation.ok()?.gpa), ..Self::default() };
        for (to, step) in way.steps.iter_mut().zip(trace.steps()) {
            *to = (hva(step.gpa)?, step.entry);
        }
        Some(way)
    }

    /// Whether the entries are as they were.
    fn holds<M: Memory>(&self) -> bool {
        self.steps.iter().take(self.used).all(|&(at, entry)| match self.wide {
            true => M::load::<u64>(at) == Ok(entry),
            false => M::load::<u32>(at) == Ok(entry as u32),
        })
    }
}

impl<B: Backend> Run<'_, B> {
    /// The first bytes of the instruction at CS:RIP, which the processor has fetched already; None if they are not easy to come
    /// by.
    pub(crate) fn first_bytes(&mut self) -> Option<[u8; 4]> {
        let inner = &mut *self.inner;
        let state = inner.cpu.registers(Groups::GENERAL.and(Groups::CONTROL));
        if state.pae() {
            // Its page-directory pointers may be in registers or in memory.
            return None;
        }
        let user = state.cpl == 3;
        let registers = [state.cr0, state.cr3, state.cr4, state.efer];
        // Segments take long to fetch, and code has no base in 64-bit mode.
        let at = match state.mode {
            Mode::Long64 => state.linear_rip(),
            _ => inner.cpu.registers(Groups::SEGMENTS).linear_rip(),
        };
        let (page, offset) = (at / PAGE_SIZE, at % PAGE_SIZE);
        if offset > PAGE_SIZE - 4 {
            return None;
        }
        let smm = inner.smm.inside;
        let space = self.vm.space(smm);
        let from = From { page, registers, generation: space.generation(), smm, user };
        if inner.glance.from != from || !inner.glance.holds::<<B::Platform as Platform>::Memory>() {
            let (features, physical_bits) = (inner.features, inner.physical_bits);
            let paging = Paging::new(inner.cpu.registers(Groups::CONTROL), features, physical_bits);
            inner.glance = Glance::walk(from, space, self.index, &paging)?;
        }
        let bytes = <B::Platform as Platform>::Memory::load::<u32>(inner.glance.to?.add(offset));
        bytes.ok().map(u32::to_le_bytes)
    }
}
