//! The cache of decoded blocks, and the ways to find a block in it.
//!
//! A [`Block`] is a straight run of guest instructions inside one page, in the form that executes it: today an array
//! of `emulate::Op`s for the interpreter. A translator is a second way to fill and run a block; what finds blocks,
//! links them and keeps them right does not look inside.
//!
//! Blocks are found by guest-physical address and mode ([`Cache::find`]). In front of that stand two shortcuts by linear
//! address: the block's own links to its last two successors, and a direct-mapped array of jumps. Their entries
//! hold a *key* that contains the TLB's key of the address (privilege and address space), the mode and the
//! generation of the jumps; raising the generation ([`Cache::forget_jumps`]) makes all of them miss.
use core::ptr::{self, NonNull};

use emulate::Op;
use platform::OutOfMemory;
use x86::Mode;

use crate::{arena::Arena, code_map::PageRecord, tlb::boxed};

/// The most instructions in a block.
pub const MAX_OPS: usize = 32;
/// The most source bytes of a block.
pub const MAX_BYTES: usize = 192;

const BUCKETS: usize = 1 << 14;
const JUMPS: usize = 1 << 12;
const GENERATION_SHIFT: u32 = 15;
const MODE_SHIFT: u32 = 12;

/// What the run loop does behind a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum After {
    /// Goes on: its end was a jump, or nothing at all.
    Nothing,
    /// Looks whether flags other than status have changed what follows.
    Flags,
    /// Looks at the whole processor: mode, privilege, translations may have changed.
    Everything,
}

/// How big a cache may become.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Instructions in all blocks.
    pub ops: usize,
    /// Blocks.
    pub blocks: usize,
}

/// A run of decoded instructions.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Block<C> {
    /// The first instruction.
    pub ops: NonNull<Op<C>>,
    /// Bytes of `Op`s behind `ops`.
    pub size: u32,
    /// Instructions.
    pub count: u16,
    /// What its last instruction may have changed.
    pub after: After,
    /// Which of the links is replaced next.
    victim: u8,
    /// Linear addresses of the successors.
    next_linear: [u64; 2],
    /// Their keys, 0 for none.
    next_key: [u32; 2],
    next_block: [*mut Block<C>; 2],
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// When `source` was last compared with memory.
    pub verified: u64,
    /// The page's record in the code map.
    pub page: NonNull<PageRecord>,
    /// Copy of the bytes that it was decoded from.
    source: NonNull<u8>,
    /// How many.
    pub bytes: u16,
    /// The mode that it was decoded for.
    pub mode: Mode,
    /// The version of the page that `source` is known to be right in.
    pub version: u32,
    /// Chain of the bucket.
    chain: *mut Block<C>,
}

impl<C> Clone for Block<C> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<C> Copy for Block<C> {}

impl<C> Block<C> {
    /// The bytes that it was decoded from.
    pub fn source(&self) -> &[u8] {
        // SAFETY: `insert` copied this many bytes there, and they stay as long as the block does.
        unsafe { core::slice::from_raw_parts(self.source.as_ptr(), self.bytes as usize) }
    }

    /// The successor at `linear` under `key`, if one was linked.
    #[inline(always)]
    pub fn successor(&self, linear: u64, key: u32) -> Option<NonNull<Block<C>>> {
        if self.next_linear[0] == linear && self.next_key[0] == key {
            return NonNull::new(self.next_block[0]);
        }
        if self.next_linear[1] == linear && self.next_key[1] == key {
            return NonNull::new(self.next_block[1]);
        }
        None
    }

    /// Links a successor.
    pub fn link(&mut self, linear: u64, key: u32, next: NonNull<Block<C>>) {
        let i = (self.victim & 1) as usize;
        self.victim ^= 1;
        self.next_linear[i] = linear;
        self.next_key[i] = key;
        self.next_block[i] = next.as_ptr();
    }
}

struct Jump<C> {
    linear: u64,
    key: u32,
    block: *mut Block<C>,
}

impl<C> Clone for Jump<C> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}
impl<C> Default for Jump<C> {
    fn default() -> Self {
        Self { linear: 0, key: 0, block: ptr::null_mut() }
    }
}

/// A chain of blocks. What the first is can be seen without touching it, and the one that was found last comes first.
struct Bucket<C> {
    first: *mut Block<C>,
    /// Its [`name`].
    name: u64,
}

impl<C> Clone for Bucket<C> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}
impl<C> Default for Bucket<C> {
    fn default() -> Self {
        Self { first: ptr::null_mut(), name: 0 }
    }
}

/// Address (below 1 << 52) and mode of a block in one word.
fn name(gpa: u64, mode: Mode) -> u64 {
    gpa << 3 | mode as u64
}

/// What a new block consists of.
#[derive(Debug)]
pub struct Recipe<'a, C> {
    /// Its instructions.
    pub ops: &'a [Op<C>],
    /// The bytes that they were decoded from.
    pub source: &'a [u8],
    /// Guest-physical address of the first.
    pub gpa: u64,
    /// Mode.
    pub mode: Mode,
    /// See [`Block::after`].
    pub after: After,
    /// The record of the page.
    pub page: NonNull<PageRecord>,
    /// Its version.
    pub version: u32,
    /// When the bytes were read.
    pub verified: u64,
}

/// The blocks of one vCPU. A pointer to a block is good until [`Cache::clear`].
pub struct Cache<C> {
    ops: Arena<Op<C>>,
    source: Arena<u8>,
    blocks: Arena<Block<C>>,
    buckets: Box<[Bucket<C>; BUCKETS]>,
    jumps: Box<[Jump<C>; JUMPS]>,
    generation: u32,
}

// SAFETY: the cache owns what its pointers point to, except the page records, which are shared between threads by
// design and outlive it in the vCPU that owns both.
unsafe impl<C> Send for Cache<C> {}

impl<C> core::fmt::Debug for Cache<C> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Cache").field("blocks", &self.blocks.used()).field("ops", &self.ops.used()).finish()
    }
}

impl<C> Cache<C> {
    /// An empty cache.
    pub fn new(limits: Limits) -> Result<Self, OutOfMemory> {
        Ok(Self {
            ops: Arena::new(limits.ops)?,
            source: Arena::new(limits.ops * 4)?,
            blocks: Arena::new(limits.blocks)?,
            buckets: boxed()?,
            jumps: boxed()?,
            generation: 1,
        })
    }

    /// Forgets every block. No pointer to one may be used afterwards.
    pub fn clear(&mut self) {
        self.forget_jumps();
        self.buckets.fill(Bucket::default());
        self.ops.clear();
        self.source.clear();
        self.blocks.clear();
    }

    /// Makes all links and jumps miss.
    pub fn forget_jumps(&mut self) {
        self.generation += 1;
        if self.generation == 1 << (32 - GENERATION_SHIFT) {
            self.generation = 1;
            self.jumps.fill(Jump::default());
            self.buckets.fill(Bucket::default());
            // Links are inside the blocks: with the numbers starting over, they have to go.
            self.ops.clear();
            self.source.clear();
            self.blocks.clear();
        }
    }

    /// The key of jumps to addresses with the TLB key `tlb_key` (below 1 << 12) in `mode`. Never 0.
    #[inline]
    pub fn key(&self, tlb_key: u64, mode: Mode) -> u32 {
        self.generation << GENERATION_SHIFT | (mode as u32) << MODE_SHIFT | tlb_key as u32
    }

    #[inline(always)]
    fn jump_index(linear: u64) -> usize {
        (linear ^ linear >> 11) as usize & (JUMPS - 1)
    }

    /// The block at `linear` under `key`, if a jump was made there before.
    #[inline(always)]
    pub fn jump(&self, linear: u64, key: u32) -> Option<NonNull<Block<C>>> {
        let jump = &self.jumps[Self::jump_index(linear)];
        if jump.linear == linear && jump.key == key { NonNull::new(jump.block) } else { None }
    }

    /// Remembers a jump.
    pub fn remember(&mut self, linear: u64, key: u32, block: NonNull<Block<C>>) {
        self.jumps[Self::jump_index(linear)] = Jump { linear, key, block: block.as_ptr() };
    }

    fn bucket(name: u64) -> usize {
        (name.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50) as usize & (BUCKETS - 1)
    }

    /// The newest block at `gpa` for `mode`.
    pub fn find(&mut self, gpa: u64, mode: Mode) -> Option<NonNull<Block<C>>> {
        let name = name(gpa, mode);
        let bucket = &mut self.buckets[Self::bucket(name)];
        let first = NonNull::new(bucket.first)?;
        if bucket.name == name {
            return Some(first);
        }
        let mut before = first;
        loop {
            // SAFETY: chains lead through blocks that were inserted since the last clear, and no reference to one is
            // held while another is changed.
            unsafe {
                let mut found = NonNull::new(before.as_ref().chain)?;
                if found.as_ref().gpa == gpa && found.as_ref().mode == mode {
                    before.as_mut().chain = found.as_ref().chain;
                    found.as_mut().chain = bucket.first;
                    *bucket = Bucket { first: found.as_ptr(), name };
                    return Some(found);
                }
                before = found;
            }
        }
    }

    /// Takes the block that [`Cache::find`] has just found out of its chain. Its memory stays until the cache is cleared.
    pub fn unlink(&mut self, block: NonNull<Block<C>>) {
        // SAFETY: the caller's pointer and those in chains are to blocks inserted since the last clear.
        unsafe {
            let bucket = &mut self.buckets[Self::bucket(name(block.as_ref().gpa, block.as_ref().mode))];
            if bucket.first == block.as_ptr() {
                bucket.first = block.as_ref().chain;
                bucket.name = NonNull::new(bucket.first).map_or(0, |next| name(next.as_ref().gpa, next.as_ref().mode));
            }
        }
    }

    /// Adds a block. None if the cache is full.
    pub fn insert(&mut self, recipe: &Recipe<'_, C>) -> Option<NonNull<Block<C>>> {
        let ops = self.ops.push(recipe.ops)?;
        let source = self.source.push(recipe.source)?;
        let name = name(recipe.gpa, recipe.mode);
        let bucket = &mut self.buckets[Self::bucket(name)];
        let block = self.blocks.push(&[Block {
            ops,
            size: size_of_val(recipe.ops) as u32,
            count: recipe.ops.len() as u16,
            after: recipe.after,
            victim: 0,
            next_linear: [0; 2],
            next_key: [0; 2],
            next_block: [ptr::null_mut(); 2],
            gpa: recipe.gpa,
            verified: recipe.verified,
            page: recipe.page,
            source,
            bytes: recipe.source.len() as u16,
            mode: recipe.mode,
            version: recipe.version,
            chain: bucket.first,
        }])?;
        *bucket = Bucket { first: block.as_ptr(), name };
        Some(block)
    }
}
