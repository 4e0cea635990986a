//! A test case and its outcome, in the form in which they are handed to the child process that executes them natively.
use crate::layout::DATA_BYTES;

/// Everything that an instruction can read or write besides memory.
#[repr(C, align(64))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    /// x87, SSE and AVX state, in XSAVE's standard format.
    pub xsave: [u8; 832],
    /// RAX to R15.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub flags: u64,
    /// Offset in CS.
    pub rip: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub selectors: [u16; 8],
    /// FS.base and GS.base; set after the selectors were loaded if [`Case::bases`] says so.
    pub bases: [u64; 2],
}

impl Default for Registers {
    fn default() -> Self {
        Self { xsave: [0; 832], gpr: [0; 16], flags: 2, rip: 0, selectors: [0; 8], bases: [0; 2] }
    }
}

/// How an instruction ended.
pub mod end {
    /// It completed, and an INT3 or the jump behind it was reached.
    pub const COMPLETED: u64 = 0x100;
    /// The child process did not come back.
    pub const DIED: u64 = 0x101;
    /// The software CPU left for a reason that no user program has.
    pub const LEFT: u64 = 0x102;
}

/// The most bytes that a case puts into the data.
pub const PATCH: usize = 896;

/// One instruction and the state that it starts from.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct Case {
    /// Registers.
    pub before: Registers,
    /// The instruction.
    pub code: [u8; 16],
    /// Its length.
    pub len: u32,
    /// Bits of its code segment.
    pub bits: u32,
    /// Whether an INT3 that is reached means that it completed: not for INT3 itself.
    pub lands: u32,
    /// Whether FS.base and GS.base are set.
    pub bases: u32,
    /// Whether the native side leaves with a trap instead of a jump behind the instruction, which is slower but
    /// leaves RIP wherever the instruction went.
    pub traps: u32,
    /// Where the patch is, from the start of the data.
    pub patch_at: u32,
    /// Its length.
    pub patch_len: u32,
    /// Bytes that replace those of the batch's image.
    pub patch: [u8; PATCH],
}

impl Default for Case {
    fn default() -> Self {
        Self {
            before: Registers::default(),
            code: [0; 16],
            len: 0,
            bits: 64,
            lands: 1,
            bases: 0,
            traps: 0,
            patch_at: 0,
            patch_len: 0,
            patch: [0; PATCH],
        }
    }
}

impl Case {
    /// The instruction's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.code[..self.len as usize]
    }
}

/// Bytes of a piece of memory that is found changed.
pub const PIECE: usize = 32;
/// The most pieces that are reported.
pub const PIECES: usize = 64;

/// What came of a case.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Registers.
    pub after: Registers,
    /// The vector of the exception, or a constant of [`end`].
    pub end: u64,
    /// Error code of the exception, 0 if it has none.
    pub error: u64,
    /// Linear address of a page fault.
    pub cr2: u64,
    /// How many pieces of memory differ from the batch's image.
    pub changed: u64,
    /// Where they are, in pieces.
    pub places: [u16; PIECES],
    /// What is in them.
    pub pieces: [[u8; PIECE]; PIECES],
}

impl Default for Outcome {
    fn default() -> Self {
        Self {
            after: Registers::default(),
            end: end::DIED,
            error: 0,
            cr2: 0,
            changed: 0,
            places: [0; PIECES],
            pieces: [[0; PIECE]; PIECES],
        }
    }
}

/// The most cases that are executed at once.
pub const BATCH: usize = 128;

/// The data of a batch.
#[repr(C, align(4096))]
#[derive(Clone, Debug)]
pub struct Image(pub [u8; DATA_BYTES]);

/// What is shared with the child process.
#[repr(C, align(4096))]
pub struct Shared {
    /// The data that each case starts from.
    pub image: Image,
    /// What to execute.
    pub cases: [Case; BATCH],
    /// What came of it.
    pub outcomes: [Outcome; BATCH],
    /// How many of the cases are to be executed.
    pub count: u64,
    /// How many have been.
    pub done: u64,
}

/// Notes what of the writable `data` differs from `image`, and puts it back.
///
/// # Safety
/// Both pointers are to at least [`crate::layout::WRITABLE`] bytes, aligned to pages, that nobody else uses.
pub unsafe fn collect(data: *mut u8, image: *const u8, outcome: &mut Outcome) {
    let mut changed = 0;
    for line in 0..crate::layout::WRITABLE as usize / 64 {
        // SAFETY: inside of both.
        let (is, was) = unsafe { (data.add(64 * line).cast::<[u64; 8]>(), image.add(64 * line).cast::<[u64; 8]>()) };
        // SAFETY: as above.
        let differs = unsafe { (0..8).fold(0, |all, i| all | ((*is)[i] ^ (*was)[i])) };
        if differs == 0 {
            continue;
        }
        for piece in 2 * line..2 * line + 2 {
            // SAFETY: as above.
            let (is, was) = unsafe {
                (data.add(PIECE * piece).cast::<[u8; PIECE]>(), image.add(PIECE * piece).cast::<[u8; PIECE]>())
            };
            // SAFETY: as above.
            unsafe {
                if *is != *was {
                    if changed < PIECES {
                        outcome.places[changed] = piece as u16;
                        outcome.pieces[changed] = *is;
                    }
                    changed += 1;
                    *is = *was;
                }
            }
        }
    }
    outcome.changed = changed as u64;
}
