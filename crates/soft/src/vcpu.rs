//! One processor: what it keeps, and the calls of the core apart from entering the guest.
use core::ptr::NonNull;

use emulate::{Flush, Handler};
use hv::backend::{BackendVcpu, Env, Event, Exit, FlushTlb, Groups, GuestDebug};
use mmu::{Paging, shadow::Root};
use platform::{Atomic, OutOfMemory, Platform, Shared, fallible::try_box};
use x86::{CpuState, Cr0, Cr4, Efer, Exception, Features, Mode, flags};

use crate::{
    Options, PagingKind, SoftVm, Stats, TlbKind,
    cache::{Cache, Limits},
    kept::{self, Kept},
    native::Native,
    shadow::Start,
    tlb::{Keys, NEVER, Spaces, Tlb, USER},
    vm::Common,
};

/// The first two vCPUs of a VM have room for the code of a kernel and a few programs; the many of a large VM less, so
/// that they do not add up to more than their guest.
const LARGE: Limits = Limits { ops: 160 << 10, blocks: 24 << 10 };
const SMALL: Limits = Limits { ops: 48 << 10, blocks: 8 << 10 };
const LARGE_VCPUS: usize = 2;

/// Registers that translation depends on, apart from CR3 and the PDPTEs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    cr0: u64,
    cr4: u64,
    efer: u64,
}

impl Context {
    fn of(state: &CpuState) -> Self {
        let cr4 = Cr4::PSE | Cr4::PAE | Cr4::PGE | Cr4::LA57 | Cr4::PCIDE | Cr4::SMEP | Cr4::SMAP | Cr4::PKE;
        Self {
            cr0: state.cr0 & (Cr0::PE | Cr0::PG | Cr0::WP).bits(),
            cr4: state.cr4 & cr4.bits(),
            efer: state.efer & (Efer::LMA | Efer::NXE).bits(),
        }
    }
}

/// The keys of each way to access memory. While data breakpoints are armed the ones that the fast path uses
/// are [`NEVER`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct AccessKeys {
    pub(crate) program: Keys,
    pub(crate) system: Keys,
    pub(crate) user: Keys,
}

impl AccessKeys {
    pub(crate) const NEVER: Self = Self { program: [NEVER; 2], system: [NEVER; 2], user: [NEVER; 2] };
}

/// A guest processor executed in software.
#[repr(C)]
pub struct SoftVcpu<P: Platform> {
    pub(crate) state: CpuState,
    /// What the fast path of data accesses looks entries up with.
    pub(crate) keys: AccessKeys,
    pub(crate) tlb: Tlb,
    /// Keys of jumps, for the two halves of the address space.
    pub(crate) jump_keys: [u32; 2],
    /// Address behind the last `Op` of the block that is being executed; 0 makes it end behind the current one.
    pub(crate) end: usize,
    /// CR2 or DR6 bits of the exception that is being raised.
    pub(crate) payload: u64,
    pub(crate) cache: Cache<Self>,
    /// The keys as they are, data breakpoints or not.
    pub(crate) real_keys: AccessKeys,
    /// Keys of instruction fetches.
    pub(crate) exec_keys: Keys,
    pub(crate) spaces: Spaces,
    /// The adversarial TLB's translations.
    pub(crate) kept: Option<Box<Kept>>,
    pub(crate) paging: Paging,
    /// Shadow paging: the tables of the last stay in the guest.
    pub(crate) start: Option<Start>,
    /// Nested paging: the root of the last stay in the guest, and how its tables are walked.
    pub(crate) nested: Option<(Root, Paging)>,
    pub(crate) context: Context,
    pub(crate) cr3: u64,
    pub(crate) pdptr: [u64; 4],
    /// `tlb.wipes` when the jumps were last forgotten.
    pub(crate) wipes: u64,
    /// Linear pages that jumps were remembered in, hashed: a page whose bit is clear needs no forgetting.
    pub(crate) jump_pages: [u64; 64],
    /// Counts entries and fetch translations; blocks remember when they were last compared.
    pub(crate) clock: u64,
    /// Blocks compared before this are compared again.
    pub(crate) entered_at: u64,
    /// `stats.instructions` at which everything is compared again.
    pub(crate) compare_at: u64,
    /// The code map's epoch that was last acknowledged.
    pub(crate) epoch: u64,
    /// Why the current instruction leaves the guest.
    pub(crate) exit: Option<Exit>,
    /// What the core lends while it is in `enter`; None outside.
    env: Option<NonNull<Env<'static, P>>>,
    pub(crate) common: Shared<Common<P>>,
    pub(crate) index: usize,
    pub(crate) features: Features,
    pub(crate) xcr0: u64,
    pub(crate) physical_bits: u32,
    pub(crate) tsc_offset: u64,
    pub(crate) tsc_ratio: u64,
    pub(crate) debug: GuestDebug,
    /// To be delivered at the next entry.
    pub(crate) injected: Option<Event>,
    /// Whose delivery was cut short.
    pub(crate) unfinished: Option<Event>,
    pub(crate) window_interrupt: bool,
    pub(crate) window_nmi: bool,
    pub(crate) nmi_blocked: bool,
    /// B0 to B3: data and I/O breakpoints that the current instruction has hit.
    pub(crate) hits: u64,
    /// I/O breakpoints of an instruction that the core finishes, or data breakpoints that have waited for it, and where it ends.
    pub(crate) hits_outside: Option<(u64, u64)>,
    /// An exception that belongs behind the instruction that was just executed.
    pub(crate) after: Option<Exception>,
    /// Since it was last in the guest, the guest or its client may have come to know of something that others wrote.
    pub(crate) told: bool,
    /// Counts PAUSE.
    pub(crate) pauses: u32,
    /// What the emulator executes INT3 with.
    pub(crate) int3: Option<Handler<Self>>,
    pub(crate) native: Native,
    /// Each instruction is to be looked at: debugging, single step, a shadow that holds back a window.
    pub(crate) slow: bool,
    pub(crate) stats: Stats,
}

// SAFETY: `env` is Some only while `enter` runs on one thread; everything else is Send.
unsafe impl<P: Platform> Send for SoftVcpu<P> {}

impl<P: Platform> core::fmt::Debug for SoftVcpu<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SoftVcpu")
            .field("index", &self.index)
            .field("state", &self.state)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl<P: Platform> SoftVcpu<P> {
    pub(crate) fn new(
        vm: &SoftVm<P>,
        index: usize,
        features: Features,
        xcr0: u64,
        options: Options,
    ) -> Result<Self, OutOfMemory> {
        vm.0.code.add_vcpu(index)?;
        // The core sets the signature in EDX when it knows it.
        let state = CpuState::reset(0);
        let spaces = Spaces::default();
        let physical_bits = 40;
        let kept = match options.tlb {
            TlbKind::Normal => None,
            TlbKind::Adversarial => Some(try_box(Kept::new(kept::LIMIT))?),
        };
        Ok(Self {
            keys: AccessKeys::NEVER,
            tlb: Tlb::new()?,
            jump_keys: [0; 2],
            end: 0,
            payload: 0,
            cache: Cache::new(if index < LARGE_VCPUS { LARGE } else { SMALL })?,
            real_keys: AccessKeys::NEVER,
            exec_keys: spaces.keys(0),
            spaces,
            kept,
            paging: Paging::new(&state, features, physical_bits),
            start: (options.paging == PagingKind::Shadow).then_some(Start::NONE),
            nested: (options.paging == PagingKind::Nested)
                .then(|| (Root::NONE, Paging::new(&state, features, physical_bits))),
            context: Context::of(&state),
            cr3: state.cr3,
            pdptr: state.pdptr,
            wipes: 0,
            jump_pages: [0; 64],
            clock: 0,
            entered_at: 0,
            compare_at: 0,
            epoch: 0,
            exit: None,
            env: None,
            common: vm.0.clone(),
            index,
            features,
            xcr0,
            physical_bits,
            tsc_offset: 0,
            tsc_ratio: 1 << 48,
            debug: GuestDebug::default(),
            injected: None,
            unfinished: None,
            window_interrupt: false,
            window_nmi: false,
            nmi_blocked: false,
            hits: 0,
            hits_outside: None,
            after: None,
            told: true,
            pauses: 0,
            int3: None,
            native: Native::new().map_err(|_| OutOfMemory)?,
            slow: false,
            stats: Stats::default(),
            state,
        })
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// What the core lends.
    ///
    /// Only reached from within `enter`; elsewhere, where nobody calls it, it is None.
    #[inline]
    pub(crate) fn env(&self) -> Option<&Env<'_, P>> {
        // SAFETY: `enter` sets the pointer from a reference that outlives it, and takes it away before it returns.
        self.env.map(|env| unsafe { env.cast::<Env<'_, P>>().as_ref() })
    }

    pub(crate) fn set_env(&mut self, env: Option<&Env<'_, P>>) {
        self.env = env.map(|env| NonNull::from(env).cast());
    }

    /// Notes `exit` as the reason to leave, and stops the instruction.
    #[cold]
    pub(crate) fn leave_for(&mut self, exit: Exit) -> emulate::Stop {
        self.exit = Some(exit);
        emulate::Stop::EXIT
    }

    /// Forgets the shortcuts to blocks.
    pub(crate) fn forget_jumps(&mut self) {
        self.cache.forget_jumps();
        self.jump_pages = [0; 64];
        self.set_jump_keys();
    }

    /// Follows a change of the registers that translation depends on, whoever made it.
    pub(crate) fn follow_registers(&mut self) {
        if Context::of(&self.state) != self.context || self.pdptr != self.state.pdptr {
            self.spaces.flush_all(self.pcid(), &mut self.tlb);
        } else if self.cr3 != self.state.cr3 {
            self.spaces.switch(self.pcid(), false, &mut self.tlb);
        } else {
            return;
        }
        self.stats.tlb_flushes += 1;
        self.follow_paging();
    }

    fn follow_paging(&mut self) {
        self.context = Context::of(&self.state);
        self.cr3 = self.state.cr3;
        self.pdptr = self.state.pdptr;
        self.refresh_paging();
        self.set_keys();
    }

    /// Derives how tables are walked from the registers.
    pub(crate) fn refresh_paging(&mut self) {
        let guest = Paging::new(&self.state, self.features, self.physical_bits);
        self.paging = self.start.map_or(guest, |start| start.paging(&guest));
    }

    pub(crate) fn pcid(&self) -> u16 {
        if self.state.cr4 & Cr4::PCIDE.bits() != 0 { (self.state.cr3 & 0xfff) as u16 } else { 0 }
    }

    /// Derives the keys from privilege, address space and debugging.
    pub(crate) fn set_keys(&mut self) {
        let (user, system) = (self.spaces.keys(USER), self.spaces.keys(0));
        self.exec_keys = if self.state.cpl == 3 { user } else { system };
        self.real_keys = AccessKeys { program: self.program_keys(user, system), system, user };
        self.keys = if self.watches_data() { AccessKeys::NEVER } else { self.real_keys };
        if self.tlb.wipes != self.wipes {
            self.wipes = self.tlb.wipes;
            self.cache.forget_jumps();
            self.jump_pages = [0; 64];
        }
        self.set_jump_keys();
    }

    /// The program's own keys.
    #[inline]
    fn program_keys(&self, user: Keys, system: Keys) -> Keys {
        if self.state.cpl == 3 {
            user
        } else if self.paging.smap && self.state.flags.control(flags::AC) {
            // A supervisor that may touch user pages mostly does so in the lower half, and never needs more than
            // the user's translations there.
            [user[0], system[1]]
        } else {
            system
        }
    }

    /// Follows a change of flags in the fast loop. True: that is not enough.
    #[inline]
    pub(crate) fn follow_flags(&mut self) -> bool {
        if self.state.flags.control(flags::TF) || self.window_interrupt || self.window_nmi {
            return true;
        }
        let program = self.program_keys(self.real_keys.user, self.real_keys.system);
        self.real_keys.program = program;
        self.keys.program = program;
        false
    }

    fn set_jump_keys(&mut self) {
        // Where the limit of CS has to be checked for each block, every jump takes the long way.
        let checked = self.state.mode != Mode::Long64 && self.state.seg[1].limit != u32::MAX;
        let mode = self.state.mode;
        let [low, high] = self.exec_keys;
        self.jump_keys = if checked { [0; 2] } else { [self.cache.key(low, mode), self.cache.key(high, mode)] };
    }

    /// Forgets one page, as INVLPG does.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        self.stats.tlb_flushes += 1;
        let large = self.spaces.flush_page(linear, &mut self.tlb);
        let (word, bit) = jump_page(linear);
        if large || self.jump_pages[word] & bit != 0 {
            self.forget_jumps();
        }
    }

    /// Carries out a flush that an instruction or the core asked for.
    pub(crate) fn flush_translations(&mut self, what: Flush) {
        let pcid = self.pcid();
        if let Some(kept) = &mut self.kept {
            kept.flush(what, pcid);
        }
        self.flush_arrays(what);
    }

    /// Does so in the arrays, which may forget too much.
    fn flush_arrays(&mut self, what: Flush) {
        let (pcid, tlb) = (self.pcid(), &mut self.tlb);
        match what {
            Flush::Rights if Context::of(&self.state) == self.context => return self.set_keys(),
            Flush::Page(linear) => return self.flush_page(linear),
            Flush::PcidPage { pcid, linear } if pcid == self.spaces.pcid() => return self.flush_page(linear),
            Flush::PcidPage { pcid, .. } | Flush::Pcid(pcid) => self.spaces.flush_pcid(pcid, tlb),
            Flush::NonGlobal => self.spaces.flush_local(tlb),
            Flush::Cr3 { keep } => self.spaces.switch(pcid, keep, tlb),
            Flush::All | Flush::Rights => self.spaces.flush_all(pcid, tlb),
        }
        self.stats.tlb_flushes += 1;
        self.follow_paging();
    }
}

/// Where in `jump_pages` the page of `linear` is.
pub(crate) fn jump_page(linear: u64) -> (usize, u64) {
    let hash = (linear >> 12 ^ linear >> 24) as usize;
    (hash >> 6 & 63, 1 << (hash & 63))
}

impl<P: Platform> BackendVcpu<P> for SoftVcpu<P> {
    type Vectors = Native;

    fn registers(&mut self, _need: Groups) -> &CpuState {
        &self.state
    }

    fn registers_mut(&mut self, _change: Groups) -> &mut CpuState {
        &mut self.state
    }

    fn registers_and_vectors(&mut self, _change: Groups) -> (&mut CpuState, Option<&mut Native>) {
        (&mut self.state, Some(&mut self.native))
    }

    fn set_features(&mut self, features: Features, xcr0: u64, physical_bits: u32) {
        self.features = features;
        self.xcr0 = xcr0;
        self.physical_bits = physical_bits.clamp(32, 52);
        self.cache.clear();
        self.flush_arrays(Flush::All);
    }

    fn set_tsc(&mut self, offset: u64, ratio: u64) {
        self.tsc_offset = offset;
        self.tsc_ratio = ratio;
    }

    fn set_debug(&mut self, debug: GuestDebug) {
        self.debug = debug;
    }

    fn inject(&mut self, event: Event) {
        self.injected = Some(event);
    }

    fn take_unfinished_event(&mut self) -> Option<Event> {
        self.unfinished.take().or_else(|| self.injected.take())
    }

    fn request_window(&mut self, interrupt: bool, nmi: bool) {
        self.window_interrupt = interrupt;
        self.window_nmi = nmi;
    }

    fn nmi_blocked(&self) -> bool {
        self.nmi_blocked
    }

    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.nmi_blocked = blocked;
    }

    fn flush(&mut self, what: FlushTlb) {
        match what {
            FlushTlb::All | FlushTlb::Physical => {
                if let Some(kept) = &self.kept {
                    kept.frames.clear();
                }
                self.flush_translations(Flush::All);
            }
            FlushTlb::Current => self.flush_translations(Flush::Cr3 { keep: false }),
            FlushTlb::Page(linear) => self.flush_translations(Flush::Page(linear)),
        }
    }

    fn counters(&self, each: impl FnMut(usize, u64)) {
        let mut each = each;
        for (index, value) in self.stats.values().into_iter().enumerate() {
            each(index, value);
        }
    }

    fn load(&mut self, _cx: &Atomic) {
        // The client has run, and may have written code.
        self.told = true;
    }

    fn put(&mut self, _cx: &Atomic) {}

    fn enter(&mut self, env: &Env<'_, P>) -> Exit {
        self.enter_guest(env)
    }
}
