//! The walker of the guest's page tables, as the processor's own (SDM vol. 3, chapter 4; APM vol. 2, chapter 5).
//!
//! [`Paging`] is what the control registers say about translation, computed when they change. [`walk`] translates
//! one linear address for one access, with every check and with the accessed and dirty bits set as the processor
//! sets them; [`translate`] only looks. A [`Translation`] carries all rights of the page, so that a TLB can
//! decide later accesses of any kind without another walk.
mod paging;
mod rights;

use platform::Word;
use x86::{exception::pf, paging as bits};

pub use paging::{Paging, PagingMode, load_pdptes, read_pdptes};
pub use rights::{Request, Rights};

use crate::MemoryError;

/// Where paging structures are read from. An implementation marks what it writes in the dirty log.
pub trait TableMemory {
    /// Reads a paging-structure entry, a u32 or u64 at its natural alignment.
    fn load_entry<W: Word>(&self, gpa: u64) -> Result<W, MemoryError>;
    /// Writes `new` if the entry is `old`, as a locked operation, and returns what it was.
    fn exchange_entry<W: Word>(&self, gpa: u64, old: W, new: W) -> Result<W, MemoryError>;
}

/// Why an address has no translation for an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// #PF with this error code.
    Fault(u32),
    /// A paging structure lies where it cannot be read.
    Memory(MemoryError),
    /// Entries kept changing under the walk: the instruction is to be started again.
    Contended,
}

impl From<MemoryError> for WalkError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address of the byte asked for.
    pub gpa: u64,
    /// log2 of the size of the page: 12, 21, 22 or 30; 32 without paging.
    pub page_shift: u32,
    /// What may be done with the page.
    pub rights: Rights,
}

/// How often a walk starts over because an entry changed between its reading and its update.
const ATTEMPTS: u32 = 16;
/// Most levels of tables in any mode.
const LEVELS: usize = 5;

/// An entry that a walk used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Guest-physical address of the entry.
    pub gpa: u64,
    /// Its value, with the accessed and dirty bits that the walk has set.
    pub entry: u64,
}

/// The entries in memory that a walk used, from the top.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trace {
    steps: [Step; LEVELS],
    used: usize,
}

impl Trace {
    /// Most entries of a walk.
    pub const MOST: usize = LEVELS;

    /// The entries.
    pub fn steps(&self) -> &[Step] {
        self.steps.get(..self.used).unwrap_or_default()
    }
}

/// Translates `gva` for an access `request`, and sets accessed and dirty bits if it is allowed.
///
/// Whether the address is canonical is checked before, with #GP or #SS instead of #PF.
#[inline]
pub fn walk<M: TableMemory>(memory: &M, paging: &Paging, gva: u64, request: Request) -> Result<Translation, WalkError> {
    match paging.mode {
        PagingMode::Off => Ok(Translation { gpa: gva & 0xffff_ffff, page_shift: 32, rights: Rights::ALL }),
        PagingMode::Bits32 => walk_tables::<M, u32, true>(memory, paging, gva, request, &mut Trace::default()),
        _ => walk_tables::<M, u64, true>(memory, paging, gva, request, &mut Trace::default()),
    }
}

/// The same as [`walk`], and `trace` tells which entries led to a translation.
pub fn walk_traced<M: TableMemory>(
    memory: &M,
    paging: &Paging,
    gva: u64,
    request: Request,
    trace: &mut Trace,
) -> Result<Translation, WalkError> {
    match paging.mode {
        PagingMode::Off => {
            trace.used = 0;
            walk(memory, paging, gva, request)
        }
        PagingMode::Bits32 => walk_tables::<M, u32, true>(memory, paging, gva, request, trace),
        _ => walk_tables::<M, u64, true>(memory, paging, gva, request, trace),
    }
}

/// Where `gva` leads for a supervisor's read, without any change to the tables. None: nowhere.
pub fn translate<M: TableMemory>(memory: &M, paging: &Paging, gva: u64) -> Option<Translation> {
    let request = Request::READ.lift_smap();
    match paging.mode {
        PagingMode::Off => walk(memory, paging, gva, request),
        PagingMode::Bits32 => walk_tables::<M, u32, false>(memory, paging, gva, request, &mut Trace::default()),
        _ => walk_tables::<M, u64, false>(memory, paging, gva, request, &mut Trace::default()),
    }
    .ok()
}

/// The walk over tables whose entries are `W`.
#[inline]
fn walk_tables<M: TableMemory, W: Word, const UPDATE: bool>(
    memory: &M,
    paging: &Paging,
    gva: u64,
    request: Request,
    trace: &mut Trace,
) -> Result<Translation, WalkError> {
    for _ in 0..ATTEMPTS {
        if let Some(done) = attempt::<M, W, UPDATE>(memory, paging, gva, request, trace)? {
            return Ok(done);
        }
    }
    Err(WalkError::Contended)
}

/// One walk. None: an entry changed meanwhile.
#[inline]
fn attempt<M: TableMemory, W: Word, const UPDATE: bool>(
    memory: &M,
    paging: &Paging,
    gva: u64,
    request: Request,
    trace: &mut Trace,
) -> Result<Option<Translation>, WalkError> {
    // Index bits a level: 10 of 4-byte entries, 9 of 8-byte ones.
    let index_bits = if W::BYTES == 4 { 10 } else { 9 };
    let code = request.fault_code(paging);
    let Trace { steps, used } = trace;
    *used = 0;
    let mut rights = bits::W | bits::U;
    let mut no_execute = 0;
    let (mut table, mut level) = (paging.root, paging.levels);

    if paging.mode == PagingMode::Pae {
        // The PDPTEs are registers: no rights, no accessed bits, reserved bits checked when they were loaded.
        let pdpte = paging.pdptes[(gva >> 30 & 3) as usize];
        if pdpte & bits::P == 0 {
            return Err(WalkError::Fault(code));
        }
        table = pdpte & paging.frame_mask;
    }

    loop {
        let shift = bits::PAGE_SHIFT + (level - 1) * index_bits;
        let index = gva >> shift & ((1 << index_bits) - 1);
        let gpa = table + index * W::BYTES;
        let entry = memory.load_entry::<W>(gpa)?.low();
        if entry & bits::P == 0 {
            return Err(WalkError::Fault(code));
        }
        let leaf = level == 1 || (entry & bits::PS != 0 && paging.large_pages & 1 << level != 0);
        if entry & paging.reserved(level, leaf) != 0 {
            return Err(WalkError::Fault(code | pf::PRESENT | pf::RSVD));
        }
        rights &= entry;
        no_execute |= entry;
        steps[*used] = Step { gpa, entry };
        *used += 1;
        if !leaf {
            table = entry & paging.frame_mask;
            level -= 1;
            continue;
        }

        let mut rights = Rights::from_bits(rights, no_execute, entry, paging);
        if !rights.allow(request, paging) {
            return Err(WalkError::Fault(code | pf::PRESENT));
        }
        if UPDATE {
            let leaf_bits = if request.is_write() { bits::A | bits::D } else { bits::A };
            for (n, step) in steps[..*used].iter_mut().enumerate() {
                let wanted = if n + 1 == *used { leaf_bits } else { bits::A };
                if step.entry & wanted != wanted && !update::<M, W>(memory, step, wanted)? {
                    return Ok(None);
                }
            }
            rights = rights.with_dirty(request.is_write());
        }
        let mask = (1 << shift) - 1;
        let gpa = paging.leaf_base(entry, shift) | gva & mask;
        return Ok(Some(Translation { gpa, page_shift: shift, rights }));
    }
}

/// Sets `wanted` in an entry unless it changed since it was read; false if it did.
#[cold]
fn update<M: TableMemory, W: Word>(memory: &M, step: &mut Step, wanted: u64) -> Result<bool, WalkError> {
    let old = W::from_low(step.entry);
    match memory.exchange_entry::<W>(step.gpa, old, W::from_low(step.entry | wanted)) {
        Ok(seen) => {
            step.entry |= wanted;
            Ok(seen == old)
        }
        // Tables in ROM: the write goes nowhere, as on the bus of a machine.
        Err(MemoryError::ReadOnly(_)) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
