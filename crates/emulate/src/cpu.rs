//! The processor as the emulator sees it.
use platform::Word;
use x86::{CpuState, Exception, Features};

use crate::{Op, Res, Stop};

/// In whose name memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The program's: rights follow the current privilege level, and EFLAGS.AC lifts SMAP.
    Program,
    /// The processor's own, whatever the current privilege level: descriptor tables, TSS, the stack of an inner
    /// level. SMAP is not lifted.
    System,
    /// As user code at any privilege level (pushes to an outer-level stack).
    User,
}

/// Translations that an instruction made stale on this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// One page of the current address space, by linear address (INVLPG).
    Page(u64),
    /// Everything of all PCIDs except global pages.
    NonGlobal,
    /// Everything, global pages too (CR0.PG, CR4.PGE/PAE/..., EFER.NXE changed).
    All,
    /// CR3 was loaded: non-global translations of the new PCID unless `keep` (bit 63 of the operand).
    Cr3 {
        /// Translations tagged with the new PCID may stay.
        keep: bool,
    },
    /// INVPCID of one page in the address space `pcid`.
    PcidPage {
        /// Process-context identifier.
        pcid: u16,
        /// Linear address.
        linear: u64,
    },
    /// INVPCID of a whole address space.
    Pcid(u16),
    /// Only what is derived from mode and privilege (CPL, WP, SMAP, SMEP, AC) changed.
    Rights,
}

/// What is about to change CR0, CR3 or CR4, and with them how addresses are translated, or to make the processor look at its tables
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranslationChange {
    /// INVLPG of the page of a linear address.
    Page(u64),
    /// MOV to one of them, or LMSW.
    Instruction,
    /// A task switch, for whatever reason.
    Task,
}

/// Instructions that the processor leaves to whoever runs it. The emulator has made the architectural checks
/// (privilege, #UD) already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intercept {
    /// HLT.
    Hlt,
    /// CPUID.
    Cpuid,
    /// RDMSR of ECX.
    Rdmsr,
    /// WRMSR of ECX.
    Wrmsr,
    /// RDPMC of ECX.
    Rdpmc,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// PAUSE.
    Pause,
    /// MONITOR.
    Monitor,
    /// MWAIT.
    Mwait,
    /// WBINVD or INVD.
    Wbinvd,
    /// RSM.
    Rsm,
    /// MOV to CR8 of this value.
    WriteCr8(u64),
    /// MOV from CR8.
    ReadCr8,
}

/// The window through which the emulator reaches a processor, its memory and its devices.
///
/// Addresses are linear. An access that fails returns the guest's fault, or [`Stop::EXIT`] after the implementation
/// has noted what it needs; a fault's page address (or DR6 bits) goes to [`Cpu::set_payload`].
pub trait Cpu: Sized {
    /// The registers.
    fn state(&self) -> &CpuState;
    /// The registers, to be changed.
    fn state_mut(&mut self) -> &mut CpuState;
    /// What the guest's CPUID offers.
    fn features(&self) -> Features;

    /// Reads a word that may cross a page.
    fn load<T: Word>(&mut self, linear: u64, access: Access) -> Res<T>;
    /// Writes a word that may cross a page; either all of it or nothing is written when the second page faults.
    fn store<T: Word>(&mut self, linear: u64, value: T, access: Access) -> Res;
    /// Reads a word that the same instruction will write: faults as a write does.
    fn load_for_write<T: Word>(&mut self, linear: u64, access: Access) -> Res<T>;
    /// The locked read-modify-write of LOCK-prefixed instructions and XCHG: writes `new` if the word is `old`,
    /// and returns what it was.
    fn compare_exchange<T: Word>(&mut self, linear: u64, old: T, new: T, access: Access) -> Res<T>;
    /// Checks that `bytes` at `linear` could be written, without doing it.
    fn probe_write(&mut self, linear: u64, bytes: u64, access: Access) -> Res;
    /// Checks that the byte at `linear` could be read. The default reads it; an implementation with devices should only
    /// translate.
    fn probe_read(&mut self, linear: u64, access: Access) -> Res {
        self.load::<u8>(linear, access).map(|_| ())
    }
    /// Copies instruction bytes from `linear`, at most to the end of its page; returns how many (at least one).
    fn fetch(&mut self, linear: u64, buf: &mut [u8]) -> Res<usize>;

    /// How many elements of a repeated string instruction are done before the loop outside may look around: 1 where
    /// each element has to be a transaction of its own.
    const ELEMENTS: u64 = 256;

    /// Copies up to `bytes` bytes, ascending, from `from` to `to`, for REP MOVS with DF clear: as much as can be done
    /// at once without crossing a page of either. 0 means "do it element by element".
    fn copy_forward(&mut self, _from: u64, _to: u64, _bytes: u64) -> u64 {
        0
    }
    /// Writes up to `count` copies of `value`, ascending, within one page, for REP STOS. 0 as in `copy_forward`.
    fn fill_forward<T: Word>(&mut self, _to: u64, _value: T, _count: u64) -> u64 {
        0
    }

    /// Puts aside CR2 (for #PF) or DR6 bits (for #DB) of the fault that is about to be returned.
    fn set_payload(&mut self, payload: u64);
    /// What was put aside.
    fn payload(&self) -> u64;

    /// IN of `size` bytes (1, 2, 4); permission has been checked.
    fn port_in(&mut self, port: u16, size: u8) -> Res<u32>;
    /// OUT.
    fn port_out(&mut self, port: u16, size: u8, value: u32) -> Res;
    /// REP INS: reads up to `count` elements of `size` bytes from a port into memory from `linear` on, ascending. They lie
    /// in one page, in the segment, and permission has been checked. Returns how many were read; 0 means "do it
    /// element by element".
    fn ports_in(&mut self, _port: u16, _size: u8, _linear: u64, _count: u64) -> Res<u64> {
        Ok(0)
    }
    /// REP OUTS, as [`Self::ports_in`].
    fn ports_out(&mut self, _port: u16, _size: u8, _linear: u64, _count: u64) -> Res<u64> {
        Ok(0)
    }
    /// An instruction that the one who runs this processor wants to see. Called with RIP already past it;
    /// `Ok` means that it has been carried out, registers included. The usual answer of a back end is to note
    /// the exit and return [`Stop::EXIT`], which puts RIP back.
    fn intercept(&mut self, what: Intercept, op: &Op<Self>) -> Res;
    /// The guest's time-stamp counter.
    fn tsc(&mut self) -> Res<u64>;
    /// XCR0 bits that XSETBV may set, fixed by the guest's CPUID.
    fn xcr0_supported(&self) -> u64;
    /// Translations became stale.
    fn flush(&mut self, what: Flush);
    /// `what` is about to happen; rights have been checked, and nothing has changed yet. A processor whose tables
    /// somebody else makes of the guest's leaves this to him: it notes the exit and returns [`Stop::EXIT`].
    fn before_translation_change(&mut self, _what: TranslationChange) -> Res {
        Ok(())
    }
    /// Reads the guest-physical 8 bytes at `gpa` for the PDPTEs of PAE paging; fails like a bus read of nothing (all
    /// ones) when no memory is there.
    fn load_physical(&mut self, gpa: u64) -> Res<u64>;
    /// Random bits for RDRAND and RDSEED.
    fn random(&mut self) -> u64;

    /// Bits of a physical address, fixed by the guest's CPUID: what CR3 and PDPTEs may hold.
    fn physical_bits(&self) -> u32 {
        52
    }
    /// IRET was executed: NMIs are no longer blocked. The default is for those who do not block them here.
    fn unblock_nmi(&mut self) {}
    /// An exception that belongs behind the instruction that is about to complete, with RIP as that leaves it: a new
    /// task that was found wanting, the T bit of its TSS. A processor that queues events overrides this and
    /// delivers it before the next instruction; the default delivers at once, and drops what cannot be delivered.
    fn raise_after(&mut self, exception: Exception) {
        let _ = crate::system::event::deliver_exception(self, exception);
    }

    /// An x87, MMX, SSE or AVX instruction whose availability and memory operand have been checked. `memory` is the
    /// linear address of its memory operand. The processor executes it on `state().fpu` and registers.
    /// The default: not here.
    fn vector(&mut self, _op: &Op<Self>, _memory: Option<u64>) -> Res {
        Err(Stop::UD)
    }

    /// Whether the software debugger's view changes what instructions do: DR7 has enabled data breakpoints. The
    /// implementation of load and store watches for them and calls this for nothing; the default is no.
    fn data_breakpoints(&self) -> bool {
        false
    }
}
