//! Making and re-checking blocks.
use core::ptr::NonNull;

use emulate::{Op, Res, decode};
use hv::backend::Exit;
use iced_x86::{Code, FlowControl};
use platform::{BadAddress, Hva, Memory, Platform};
use x86::{Mode, Seg};

use crate::{
    SoftVcpu,
    cache::{After, Block, MAX_BYTES, MAX_OPS, Recipe},
    code_map::PageRecord,
    tlb::ExecEntry,
    vcpu::jump_page,
};

/// What can be executed at an address.
pub(crate) enum Found<C> {
    /// A block.
    Block(NonNull<Block<C>>),
    /// An instruction that cannot be kept: it crosses a page, is none, or runs over the limit of CS.
    Single,
}

/// What comes after an instruction that ends its block; None for one that does not.
fn end<C>(op: &Op<C>) -> Option<After> {
    use Code::*;
    match op.code.flow_control() {
        FlowControl::Next => {}
        FlowControl::UnconditionalBranch
        | FlowControl::IndirectBranch
        | FlowControl::ConditionalBranch
        | FlowControl::Return
        | FlowControl::Call
        | FlowControl::IndirectCall
            if is_near(op.code) =>
        {
            return Some(After::Nothing);
        }
        _ => return Some(After::Everything),
    }
    match op.code {
        // Clearing IF leaves nothing to look for, and nothing but addresses depends on GS.
        Cli | Swapgs => None,
        // STI and loads of SS hold back interrupts: a block ends behind them, so that the next instruction can be
        // told apart from those behind it.
        Popfw | Popfd | Popfq | Sti | Stac | Clac => Some(After::Flags),
        Popw_SS | Popd_SS | Lss_r16_m1616 | Lss_r32_m1632 | Lss_r64_m1664 => Some(After::Everything),
        Mov_Sreg_rm16 | Mov_Sreg_r32m16 | Mov_Sreg_r64m16 if op.regs[0] == Seg::Ss as u8 => Some(After::Everything),
        Cpuid => Some(After::Everything),
        code if code.is_privileged() => Some(After::Everything),
        _ => None,
    }
}

/// Whether memory at `at` holds `source`, compared in a few words: blocks are short.
fn same<M: Memory>(at: Hva, source: &[u8]) -> Result<bool, BadAddress> {
    let (words, rest) = source.as_chunks::<8>();
    let mut at = at;
    for word in words {
        if M::load::<u64>(at)? != u64::from_le_bytes(*word) {
            return Ok(false);
        }
        at = at.add(8);
    }
    for byte in rest {
        if M::load::<u8>(at)? != *byte {
            return Ok(false);
        }
        at = at.add(1);
    }
    Ok(true)
}

/// [`Block::verified`] of a block that was compared while stores to its page could still go unseen. Each entry into the
/// guest and each translation has a later time, so it is compared again.
const UNSETTLED: u64 = 0;

/// Branches that change nothing but RIP and the stack.
fn is_near(code: Code) -> bool {
    code.is_jmp_short_or_near()
        || code.is_jcc_short_or_near()
        || code.is_jcx_short()
        || code.is_loop()
        || code.is_loopcc()
        || code.is_call_near()
        || code.is_jmp_near_indirect()
        || code.is_call_near_indirect()
        || matches!(
            code,
            Code::Retnw | Code::Retnd | Code::Retnq | Code::Retnw_imm16 | Code::Retnd_imm16 | Code::Retnq_imm16
        )
}

impl<P: Platform> SoftVcpu<P> {
    /// The block at the instruction pointer, the long way: by its guest-physical address.
    #[cold]
    #[inline(never)]
    pub(crate) fn look_up(&mut self, linear: u64) -> Res<Found<Self>> {
        self.stats.lookups += 1;
        if self.state.mode == Mode::Long64 && !x86::paging::canonical(linear, self.state.linear_bits()) {
            return Ok(Found::Single);
        }
        let page = self.fetch_page(linear)?;
        let gpa = page.gpa | linear & 0xfff;
        let mode = self.state.mode;
        let known = self.cache.find(gpa, mode);
        let block = match known {
            Some(block) if self.still_right(block, &page)? => block,
            _ => {
                if let Some(stale) = known {
                    self.cache.unlink(stale);
                }
                match self.build(gpa, &page)? {
                    Some(block) => block,
                    None => return Ok(Found::Single),
                }
            }
        };
        // SAFETY: found or built just now.
        let (bytes, verified) = unsafe { (block.as_ref().bytes as u64, block.as_ref().verified) };
        if self.state.mode != Mode::Long64 {
            let limit = self.state.seg[Seg::Cs as usize].limit as u64;
            // 32 bits of RIP and of the linear address must not wrap inside of a block either.
            let rip = self.state.rip;
            if rip >> 32 != 0 || rip + bytes > limit + 1 || (rip + bytes) >> 32 != 0 {
                return Ok(Found::Single);
            }
        }
        let key = self.jump_keys[(linear >> 63) as usize];
        if key != 0 && verified != UNSETTLED {
            self.cache.remember(linear, key, block);
            let (word, bit) = jump_page(linear);
            self.jump_pages[word] |= bit;
        }
        Ok(Found::Block(block))
    }

    /// Whether the block, found through `page`, still says what memory does. Compares only if something may have
    /// changed since that was last known.
    fn still_right(&mut self, mut block: NonNull<Block<Self>>, page: &ExecEntry) -> Res<bool> {
        // SAFETY: the caller has just found it, and nobody else holds a reference to it.
        let block = unsafe { block.as_mut() };
        // SAFETY: records live as long as the code map, which this vCPU shares.
        let record = unsafe { block.page.as_ref() };
        if block.version == record.version() && block.verified >= self.entered_at.max(page.stamp) {
            return Ok(true);
        }
        self.stats.verified += 1;
        let version = self.mark(record, block.gpa, block.bytes as u64);
        let verified = self.verified_now(record);
        let at = Hva(page.hva).add(block.gpa & 0xfff);
        match same::<P::Memory>(at, block.source()) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(BadAddress) => return Err(self.leave_for(Exit::BadAddress { gpa: block.gpa })),
        }
        block.version = version;
        block.verified = verified;
        Ok(true)
    }

    /// What a block of the marked page that is about to be compared may say of it. While another vCPU can still
    /// write the page unseen, the comparison holds for one run only.
    fn verified_now(&self, record: &PageRecord) -> u64 {
        if self.common.code.settled(record) { self.clock } else { UNSETTLED }
    }

    /// Marks `bytes` bytes at `gpa` as code and returns their version.
    fn mark(&mut self, record: &PageRecord, gpa: u64, bytes: u64) -> u32 {
        let (version, raised) = self.common.code.mark(record, gpa & 0xfff, bytes);
        if raised.is_some() || self.common.code.epoch() != self.epoch {
            // Our own way to write the page unseen; the mark may be another vCPU's that we have not acknowledged.
            self.tlb.drop_writes_of(gpa);
        }
        if let Some(epoch) = raised {
            self.raised(epoch);
        }
        version
    }

    fn read_code(&mut self, gpa: u64, page: &ExecEntry, to: &mut [u8]) -> Res {
        let at = Hva(page.hva).add(gpa & 0xfff);
        P::Memory::copy_from(at, to).map_err(|_| self.leave_for(Exit::BadAddress { gpa }))
    }

    /// The first code of a page goes into the dirty log, as on Linux's KVM: there a page that is fetched from is mapped as the host has
    /// it, and who wrote the code has it writable. Clients count on that (the example in the documentation of kvm-ioctls).
    fn first_code(&self, gpa: u64) {
        let slots = self.start.is_none() && self.nested.is_none();
        if let Some(env) = self.env().filter(|_| slots) {
            env.memory.mark_dirty(env.reader, gpa >> 12);
        }
    }

    /// Decodes the block at `gpa`, in `page`. None: its first instruction cannot be kept.
    #[cold]
    #[inline(never)]
    fn build(&mut self, gpa: u64, page: &ExecEntry) -> Res<Option<NonNull<Block<Self>>>> {
        let common = self.common.clone();
        let Ok(record) = common.code.get_or_make(gpa >> 12) else { return Ok(None) };
        if !record.holds_code() {
            self.first_code(gpa);
        }
        let mode = self.state.mode;
        let offset = gpa & 0xfff;
        let mut bytes = [0; MAX_BYTES];
        let mut again = [0; MAX_BYTES];
        let window = MAX_BYTES.min(0x1000 - offset as usize);
        self.read_code(gpa, page, &mut bytes[..window])?;
        loop {
            let mut ops: [Option<Op<Self>>; MAX_OPS] = [None; MAX_OPS];
            let (mut count, mut used, mut after) = (0, 0, After::Nothing);
            while count < MAX_OPS {
                let Ok(op) = decode::<Self>(&bytes[used..window.min(used + 15)], mode, self.features) else { break };
                let op = self.adapt(op);
                used += op.len as usize;
                let end = end(&op);
                ops[count] = Some(op);
                count += 1;
                if let Some(what) = end {
                    after = what;
                    break;
                }
            }
            let Some(first) = ops[0] else { return Ok(None) };
            let ops = ops.map(|op| op.unwrap_or(first));

            let version = self.mark(record, gpa, used as u64);
            let verified = self.verified_now(record);
            // From here on writes of vCPUs are seen; those before must not have changed what was decoded.
            self.read_code(gpa, page, &mut again[..window])?;
            if again[..used] != bytes[..used] {
                bytes = again;
                if self.env().is_some_and(|env| env.requests.load(core::sync::atomic::Ordering::Relaxed) != 0) {
                    return Err(emulate::Stop::RESTART);
                }
                continue;
            }
            self.stats.blocks += 1;
            let recipe = Recipe {
                ops: &ops[..count],
                source: &bytes[..used],
                gpa,
                mode,
                after,
                page: NonNull::from(record),
                version,
                verified,
            };
            if let Some(block) = self.cache.insert(&recipe) {
                return Ok(Some(block));
            }
            self.stats.cache_flushes += 1;
            self.cache.clear();
            self.forget_jumps();
            return Ok(self.cache.insert(&recipe));
        }
    }
}
