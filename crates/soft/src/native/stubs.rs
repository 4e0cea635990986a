//! From an instruction to its stub.
use emulate::Op;
use iced_x86::Encoder;
use platform::fallible::try_vec;
use x86::CpuState;

use super::{NativeError, assemble, code::CodeMemory, context::Context, host, light::Conditions};

/// Bytes of code; about 4,000 stubs.
const CODE_SIZE: usize = 512 << 10;
/// Slots of the table, a power of two.
const SLOTS: usize = 8192;
/// Stubs at which all are thrown away.
const LIMIT: usize = SLOTS / 2;

/// The machine code of a stub.
pub(super) type Entry = unsafe extern "sysv64" fn(*mut CpuState, *mut Context);

/// What has to be done around the call of a stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Memory operand before, nothing after.
    Plain,
    /// The result goes to memory.
    Store,
    /// Status flags are the result.
    Flags,
    /// Depends on MXCSR and raises exceptions.
    Float,
    /// The same, and status flags are the result.
    FloatFlags,
    /// The same, and the result goes to memory.
    FloatStore,
    /// x87.
    X87,
    /// x87, and the result goes to memory.
    X87Store,
    /// x87, under the conditions of [`super::light`].
    Light,
    /// The same, and the result goes to memory.
    LightStore,
}

/// A stub that can be called until the next [`Stubs::find`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Stub {
    pub entry: Entry,
    pub kind: Kind,
    /// For the light kinds.
    pub light: Conditions,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// 0: free.
    key: u64,
    stub: Option<Stub>,
}

const FREE: Slot = Slot { key: 0, stub: None };

/// All stubs of a vector unit.
pub(super) struct Stubs {
    slots: Vec<Slot>,
    live: usize,
    flushes: u64,
    memory: CodeMemory,
    encoder: Encoder,
    features: host::Vector,
}

impl std::fmt::Debug for Stubs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stubs").field("live", &self.live).field("flushes", &self.flushes).finish_non_exhaustive()
    }
}

/// Everything of an instruction that its stub depends on. The form is never 0, so that the key is not.
#[inline(always)]
fn key<C>(op: &Op<C>) -> u64 {
    let immediates = if assemble::is_x87(op.code) { 0 } else { op.imm & 0xff | op.imm >> 24 & 0xff00 };
    op.code as u64 | immediates << 16 | (u32::from_le_bytes(op.regs) as u64) << 32
}

/// Set in the keys of all but complete x87 stubs: no instruction has a vector register, or an x87 register, as its
/// fourth operand with this bit clear.
const LIGHT: u64 = 1 << 63;

#[inline(always)]
fn hash(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 51) as usize & (SLOTS - 1)
}

impl Stubs {
    pub fn new() -> Result<Self, NativeError> {
        Ok(Self {
            slots: try_vec(FREE, SLOTS).map_err(|_| NativeError::OutOfMemory)?,
            live: 0,
            flushes: 0,
            memory: CodeMemory::new(CODE_SIZE).map_err(NativeError::Executable)?,
            encoder: Encoder::try_new(64).map_err(|_| NativeError::OutOfMemory)?,
            features: host::Vector::detect(),
        })
    }

    /// Live stubs and complete flushes.
    pub fn statistics(&self) -> (usize, u64) {
        (self.live, self.flushes)
    }

    /// The stub for `op`; None if the host cannot execute it.
    #[inline(always)]
    pub fn find<C>(&mut self, op: &Op<C>) -> Option<Stub> {
        self.look_up(op, key(op))
    }

    /// The stub for the x87 instruction `op` that works under all conditions.
    #[cold]
    pub fn find_complete<C>(&mut self, op: &Op<C>) -> Option<Stub> {
        self.look_up(op, key(op) & !LIGHT)
    }

    #[inline(always)]
    fn look_up<C>(&mut self, op: &Op<C>, key: u64) -> Option<Stub> {
        let mut at = hash(key);
        loop {
            let slot = &self.slots[at];
            if slot.key == key {
                return slot.stub;
            }
            if slot.key == 0 {
                return self.generate(op, key);
            }
            // At most half of the slots are in use: this ends.
            at = (at + 1) & (SLOTS - 1);
        }
    }

    #[cold]
    #[inline(never)]
    fn generate<C>(&mut self, op: &Op<C>, key: u64) -> Option<Stub> {
        if !self.features.has(op.code) {
            return None;
        }
        let (code, kind, light) = assemble::stub(&mut self.encoder, op, key & LIGHT == 0)?;
        if self.live >= LIMIT {
            self.flush();
        }
        let entry = match self.memory.push(&code) {
            Some(entry) => entry,
            None => {
                self.flush();
                self.memory.push(&code)?
            }
        };
        self.encoder.set_buffer(code);
        // SAFETY: `entry` is the start of a stub, which is a function of this type, in memory that lives as long as
        // this table.
        let entry = unsafe { std::mem::transmute::<*mut u8, Entry>(entry.as_ptr()) };
        let stub = Stub { entry, kind, light };
        let mut at = hash(key);
        while self.slots[at].key != 0 {
            at = (at + 1) & (SLOTS - 1);
        }
        self.slots[at] = Slot { key, stub: Some(stub) };
        self.live += 1;
        Some(stub)
    }

    fn flush(&mut self) {
        self.slots.fill(FREE);
        self.memory.clear();
        self.live = 0;
        self.flushes += 1;
    }
}
