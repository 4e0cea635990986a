//! The slow half of memory access: TLB misses, page crossings, pages with decoded code, data breakpoints.
use emulate::{Access, Res, Stop};
use hv::backend::{Access as Touch, Exit};
use mmu::{Frame, MemoryError, PhysMem, Request, Translation, WalkError, walk, walk::PagingMode};
use platform::{Hva, Memory, Platform, RawLock, Word};
use x86::{Mode, Vector};

use crate::{
    SoftVcpu,
    kept::{Known, Physical},
    tlb::{
        DATA_ENTRIES, DataEntry, EXEC_ENTRIES, ExecEntry, FRAGMENT_SHIFT, INVALID, Keys, SLOW_WRITE, USER, index, key,
        tag,
    },
};

/// What an access needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Read,
    Write,
    Fetch,
}

impl Want {
    fn touch(self) -> Touch {
        match self {
            Self::Read => Touch::Read,
            Self::Write => Touch::Write,
            Self::Fetch => Touch::Fetch,
        }
    }
}

/// Where a byte of the guest is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    pub(crate) hva: Hva,
    /// Its guest-physical address.
    pub(crate) gpa: u64,
    /// A write has to tell the code map.
    holds_code: bool,
}

/// Why the tables have no answer.
pub(crate) enum Miss {
    /// No memory with the wanted right at this guest-physical address.
    NoFrame(u64),
    /// What stopped the walk of the guest's tables.
    Walk(WalkError),
    /// The vCPU is not in the guest.
    Outside,
}

/// What a walk has found, `found` being the frame with its number without aliases. Marks the frame (by `mark`) in the dirty log if it is to
/// be written.
pub(crate) fn known(
    translation: &Translation,
    found: Option<(Frame, u64)>,
    want: Want,
    mark: impl FnOnce(u64),
) -> Result<Known, Miss> {
    let (frame, gfn) =
        found.filter(|(frame, _)| !(frame.read_only && want == Want::Write)).ok_or(Miss::NoFrame(translation.gpa))?;
    if frame.log_dirty && want == Want::Write {
        mark(translation.gpa >> 12);
    }
    Ok(Known {
        hva: frame.hva,
        // Code is known by its frame, whatever alias it is reached through.
        gpa: gfn << 12,
        rights: translation.rights,
        writable: !frame.read_only && (want == Want::Write || !frame.log_dirty),
        shift: translation.page_shift,
    })
}

/// Bytes of a word.
fn bytes_of<T: Word>(value: T) -> [u8; 16] {
    (value.low() as u128 | (value.high() as u128) << 64).to_le_bytes()
}

fn word_of<T: Word>(bytes: [u8; 16]) -> T {
    let value = u128::from_le_bytes(bytes);
    T::from_halves(value as u64, (value >> 64) as u64)
}

/// How many of `bytes` bytes at `linear` are in its page, if not all are.
fn split(linear: u64, bytes: u64) -> Option<u64> {
    let room = 0x1000 - (linear & 0xfff);
    (bytes > room).then_some(room)
}

impl<P: Platform> SoftVcpu<P> {
    fn real_keys(&self, access: Access) -> &Keys {
        match access {
            Access::Program => &self.real_keys.program,
            Access::System => &self.real_keys.system,
            Access::User => &self.real_keys.user,
        }
    }

    /// `bytes` behind `linear`, which wraps at 4 GiB outside of 64-bit mode.
    fn advance(&self, linear: u64, bytes: u64) -> u64 {
        let next = linear.wrapping_add(bytes);
        if self.state.mode == Mode::Long64 { next } else { next as u32 as u64 }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn load_slow<T: Word>(&mut self, linear: u64, access: Access, want: Want) -> Res<T> {
        self.watch_data(linear, T::BYTES, want == Want::Write);
        let first = self.spot(linear, want, access)?;
        let Some(part) = split(linear, T::BYTES) else {
            return P::Memory::load(first.hva).map_err(|_| self.vanished(first));
        };
        let second = self.spot(self.advance(linear, part), want, access)?;
        let mut bytes = [0; 16];
        let (a, b) = bytes[..T::BYTES as usize].split_at_mut(part as usize);
        P::Memory::copy_from(first.hva, a).map_err(|_| self.vanished(first))?;
        P::Memory::copy_from(second.hva, b).map_err(|_| self.vanished(second))?;
        Ok(word_of(bytes))
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn store_slow<T: Word>(&mut self, linear: u64, value: T, access: Access) -> Res {
        self.watch_data(linear, T::BYTES, true);
        let first = self.spot(linear, Want::Write, access)?;
        let Some(part) = split(linear, T::BYTES) else {
            P::Memory::store(first.hva, value).map_err(|_| self.vanished(first))?;
            self.written(linear, first, T::BYTES);
            return Ok(());
        };
        let next = self.advance(linear, part);
        let second = self.spot(next, Want::Write, access)?;
        let bytes = bytes_of(value);
        let (a, b) = bytes[..T::BYTES as usize].split_at(part as usize);
        P::Memory::copy_to(first.hva, a).map_err(|_| self.vanished(first))?;
        self.written(linear, first, part);
        P::Memory::copy_to(second.hva, b).map_err(|_| self.vanished(second))?;
        self.written(next, second, T::BYTES - part);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn exchange_slow<T: Word>(&mut self, linear: u64, old: T, new: T, access: Access) -> Res<T> {
        self.watch_data(linear, T::BYTES, true);
        let first = self.spot(linear, Want::Write, access)?;
        let Some(part) = split(linear, T::BYTES) else {
            let seen = P::Memory::compare_exchange(first.hva, old, new).map_err(|_| self.vanished(first))?;
            self.written(linear, first, T::BYTES);
            return Ok(seen);
        };
        let next = self.advance(linear, part);
        let second = self.spot(next, Want::Write, access)?;
        self.common.split.lock();
        let done = Self::exchange_split(first, second, part, old, new);
        // SAFETY: locked above.
        unsafe { self.common.split.unlock() };
        let seen = done.map_err(|spot| self.vanished(spot))?;
        self.written(linear, first, part);
        self.written(next, second, T::BYTES - part);
        Ok(seen)
    }

    /// A locked operation on two pages: not atomic towards plain accesses of others.
    fn exchange_split<T: Word>(first: Spot, second: Spot, part: u64, old: T, new: T) -> Result<T, Spot> {
        let mut bytes = [0; 16];
        let (a, b) = bytes[..T::BYTES as usize].split_at_mut(part as usize);
        P::Memory::copy_from(first.hva, a).map_err(|_| first)?;
        P::Memory::copy_from(second.hva, b).map_err(|_| second)?;
        let seen = word_of(bytes);
        if seen == old {
            let bytes = bytes_of(new);
            let (a, b) = bytes[..T::BYTES as usize].split_at(part as usize);
            P::Memory::copy_to(first.hva, a).map_err(|_| first)?;
            P::Memory::copy_to(second.hva, b).map_err(|_| second)?;
        }
        Ok(seen)
    }

    pub(crate) fn probe(&mut self, linear: u64, bytes: u64, access: Access) -> Res {
        if bytes == 0 {
            return Ok(());
        }
        let mut at = linear;
        let mut left = bytes;
        loop {
            self.spot(at, Want::Write, access)?;
            match split(at, left) {
                None => return Ok(()),
                Some(part) => {
                    at = self.advance(at, part);
                    left -= part;
                }
            }
        }
    }

    /// The client took away the memory of `spot`.
    #[cold]
    fn vanished(&mut self, spot: Spot) -> Stop {
        self.leave_for(Exit::BadAddress { gpa: spot.gpa })
    }

    /// `bytes` bytes at `linear`, in one page, have been written: perhaps they were code.
    fn written(&mut self, linear: u64, spot: Spot, bytes: u64) {
        if !spot.holds_code {
            return;
        }
        let common = self.common.clone();
        let Some(page) = common.code.get(spot.gpa >> 12) else { return };
        if let Some(epoch) = common.code.written(page, spot.gpa & 0xfff, bytes) {
            self.stats.code_writes += 1;
            self.raised(epoch);
            self.end = 0;
            self.forget_jumps();
        }
        if !page.holds_code() {
            // The next access finds that the page can be written fast again.
            self.tlb.data[index(linear, DATA_ENTRIES)] = DataEntry::default();
        }
    }

    /// Where the byte at `linear` is, for `access`.
    pub(crate) fn spot(&mut self, linear: u64, want: Want, access: Access) -> Res<Spot> {
        let tag = tag(linear, key(self.real_keys(access), linear));
        let entry = &self.tlb.data[index(linear, DATA_ENTRIES)];
        let slow = entry.gpa & SLOW_WRITE != 0;
        if if want == Want::Write { entry.write == tag || slow && entry.read == tag } else { entry.read == tag } {
            return Ok(Spot {
                hva: Hva(linear.wrapping_add(entry.addend)),
                gpa: entry.gpa & !0xfff | linear & 0xfff,
                holds_code: slow,
            });
        }
        self.miss(linear, want, access)
    }

    fn request(&self, want: Want, access: Access) -> Request {
        let request = match want {
            Want::Read => Request::READ,
            Want::Write => Request::WRITE,
            Want::Fetch => Request::FETCH,
        };
        match access {
            Access::Program if self.state.cpl == 3 => request.user(),
            Access::Program if self.state.flags.control(x86::flags::AC) => request.lift_smap(),
            Access::User => request.user(),
            _ => request,
        }
    }

    /// What is known of the page of `linear`, from the tables if need be.
    fn translate(&mut self, linear: u64, request: Request, want: Want, access: Access) -> Res<Known> {
        if let Some(known) = self.recall(linear, request, want) {
            return Ok(known);
        }
        let walked = match (&self.start, &self.nested) {
            (Some(_), _) => self.walk_shadow(linear, request),
            (_, Some((_, nested))) => self.walk_nested(nested, linear, request, want),
            _ => self.walk(linear, request, want),
        };
        let error = match walked {
            Ok(known) => {
                self.keep(linear, want, known);
                return Ok(known);
            }
            Err(error) => error,
        };
        self.forget_failed(linear, &error);
        Err(match error {
            Miss::NoFrame(gpa) => {
                self.leave_for(Exit::NestedPageFault { gpa, access: want.touch(), table_walk: false })
            }
            Miss::Walk(WalkError::Fault(code)) if self.start.is_some() => {
                self.leave_for(Exit::PageFault { gva: linear, code, implicit: access == Access::System })
            }
            Miss::Walk(WalkError::Fault(code)) => {
                self.payload = linear;
                Stop::fault_code(Vector::PF, code)
            }
            Miss::Walk(WalkError::Memory(MemoryError::BadAddress(gpa))) => self.leave_for(Exit::BadAddress { gpa }),
            Miss::Walk(WalkError::Memory(error)) => self.leave_for(self.table_fault(error.gpa())),
            Miss::Walk(WalkError::Contended) => Stop::RESTART,
            Miss::Outside => Stop::EXIT,
        })
    }

    /// The exit for a table of the guest's at `gpa` that cannot be reached.
    pub(crate) fn table_fault(&self, gpa: u64) -> Exit {
        let access = if self.nested.is_some() { Touch::Write } else { Touch::Read };
        Exit::NestedPageFault { gpa, access, table_walk: true }
    }

    /// A failed access drops what the TLB knows of its page (SDM vol. 3, 4.10.4.1 and 30.4.3.1): a guest need not
    /// flush what it has faulted on.
    fn forget_failed(&mut self, linear: u64, error: &Miss) {
        if self.tlb.holds(linear, self.spaces.number(linear)) {
            self.flush_page(linear);
        }
        let pcid = self.pcid();
        if let Some(kept) = &mut self.kept {
            kept.drop_page(linear, pcid);
            match error {
                Miss::NoFrame(gpa) => kept.frames.drop_frame(gpa >> 12),
                Miss::Walk(WalkError::Memory(error)) => kept.frames.drop_frame(error.gpa() >> 12),
                _ => {}
            }
        }
    }

    /// What the adversarial TLB knows of `linear`, if it allows `request`.
    fn recall(&mut self, linear: u64, request: Request, want: Want) -> Option<Known> {
        let known = self.kept.as_ref()?.find(linear, self.pcid(), want == Want::Fetch, |known| {
            let write = want == Want::Write;
            known.rights.allow(request, &self.paging) && !(write && !(known.writable && known.rights.dirty()))
        })?;
        self.stats.recalled += 1;
        Some(known)
    }

    /// Has the adversarial TLB keep a translation. Without paging there are only those of guest-physical memory.
    fn keep(&mut self, linear: u64, want: Want, known: Known) {
        let pcid = self.pcid();
        if let Some(kept) = &mut self.kept
            && self.paging.mode != PagingMode::Off
        {
            kept.keep(linear, pcid, want == Want::Fetch, known);
        }
    }

    /// The processor's walk.
    fn walk(&self, linear: u64, request: Request, want: Want) -> Result<Known, Miss> {
        let env = self.env().ok_or(Miss::Outside)?;
        let view = env.memory.view(env.reader).ok_or(Miss::Outside)?;
        if let Some(kept) = &self.kept {
            let memory = Physical { view: &view, frames: &kept.frames };
            let translation = walk(&memory, &self.paging, linear, request).map_err(Miss::Walk)?;
            return known(&translation, memory.resolve(translation.gpa >> 12), want, |gfn| memory.mark(gfn));
        }
        let translation = walk(&*view, &self.paging, linear, request).map_err(Miss::Walk)?;
        let gfn = translation.gpa >> 12;
        let found = view.resolve(gfn).map(|frame| (frame, view.unalias(gfn)));
        known(&translation, found, want, |gfn| view.mark(gfn))
    }

    /// Translates `linear` and remembers what was found, as far as it holds for everybody who uses the same key.
    #[cold]
    #[inline(never)]
    fn miss(&mut self, linear: u64, want: Want, access: Access) -> Res<Spot> {
        self.stats.data_misses += 1;
        let known = self.translate(linear, self.request(want, access), want, access)?;
        let holds_code = self.common.code.get(known.gpa >> 12).is_some_and(|page| page.holds_code());
        let spot = Spot { hva: known.hva.add(linear & 0xfff), gpa: known.gpa | linear & 0xfff, holds_code };

        let key = key(self.real_keys(access), linear);
        let rights = known.rights;
        let holder =
            |request: Request| rights.allow(if key & USER != 0 { request.user() } else { request }, &self.paging);
        if !holder(Request::READ) {
            // A supervisor's access that SMAP was lifted for: not for everybody.
            return Ok(spot);
        }
        let may_write = holder(Request::WRITE) && rights.dirty() && known.writable;
        let tag = tag(linear, key);
        self.spaces.entered(linear, rights.global());
        let shift = self.spaces.fragment(linear, known.shift, false);
        self.tlb.data[index(linear, DATA_ENTRIES)] = DataEntry {
            read: tag,
            write: if may_write && !holds_code { tag } else { INVALID },
            addend: known.hva.0.wrapping_sub(linear & !0xfff),
            gpa: known.gpa | shift << FRAGMENT_SHIFT | if may_write && holds_code { SLOW_WRITE } else { 0 },
        };
        Ok(spot)
    }

    /// The page that instructions at `linear` are fetched from.
    #[inline]
    pub(crate) fn fetch_page(&mut self, linear: u64) -> Res<ExecEntry> {
        let tag = tag(linear, key(&self.exec_keys, linear));
        let entry = self.tlb.exec[index(linear, EXEC_ENTRIES)];
        if entry.tag == tag { Ok(entry) } else { self.fetch_miss(linear, tag) }
    }

    #[cold]
    fn fetch_miss(&mut self, linear: u64, tag: u64) -> Res<ExecEntry> {
        self.stats.fetch_misses += 1;
        let request = if self.state.cpl == 3 { Request::FETCH.user() } else { Request::FETCH };
        let known = self.translate(linear, request, Want::Fetch, Access::Program)?;
        self.clock += 1;
        self.spaces.entered(linear, known.rights.global());
        let shift = self.spaces.fragment(linear, known.shift, true);
        let entry = ExecEntry { tag, hva: known.hva.0, gpa: known.gpa, stamp: self.clock, shift };
        self.tlb.exec[index(linear, EXEC_ENTRIES)] = entry;
        Ok(entry)
    }
}
