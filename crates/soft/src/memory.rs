//! The slow half of memory access: TLB misses, page crossings, pages with decoded code, data breakpoints.
use emulate::{Access, Res, Stop};
use hv::backend::{Access as Touch, Exit};
use mmu::{MemoryError, Request, Translation, WalkError, walk};
use platform::{Hva, Memory, Platform, RawLock, Word};
use x86::{Mode, Vector};

use crate::{
    SoftVcpu,
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

    /// The processor's walk.
    fn translate(&mut self, linear: u64, request: Request, want: Want) -> Res<(Translation, mmu::Frame)> {
        let Some(env) = self.env() else { return Err(Stop::EXIT) };
        let Some(view) = env.memory.view(env.reader) else { return Err(Stop::EXIT) };
        let error = match walk(&*view, &self.paging, linear, request) {
            Ok(mut translation) => match view.resolve(translation.gpa >> 12) {
                Some(frame) if !(frame.read_only && want == Want::Write) => {
                    // Code is known by its frame, whatever alias it is reached through.
                    translation.gpa = view.unalias(translation.gpa >> 12) << 12 | translation.gpa & 0xfff;
                    if frame.log_dirty && want == Want::Write {
                        view.mark_dirty(translation.gpa >> 12);
                    }
                    return Ok((translation, frame));
                }
                _ => {
                    drop(view);
                    let exit = Exit::NestedPageFault { gpa: translation.gpa, access: want.touch(), table_walk: false };
                    return Err(self.leave_for(exit));
                }
            },
            Err(error) => error,
        };
        drop(view);
        Err(match error {
            WalkError::Fault(code) => {
                self.payload = linear;
                Stop::fault_code(Vector::PF, code)
            }
            WalkError::Memory(MemoryError::BadAddress(gpa)) => self.leave_for(Exit::BadAddress { gpa }),
            WalkError::Memory(error) => {
                let exit = Exit::NestedPageFault { gpa: error.gpa(), access: Touch::Read, table_walk: true };
                self.leave_for(exit)
            }
            WalkError::Contended => Stop::RESTART,
        })
    }

    /// Translates `linear` and remembers what was found, as far as it holds for everybody who uses the same key.
    #[cold]
    #[inline(never)]
    fn miss(&mut self, linear: u64, want: Want, access: Access) -> Res<Spot> {
        self.stats.data_misses += 1;
        let (translation, frame) = self.translate(linear, self.request(want, access), want)?;
        let page = translation.gpa & !0xfff;
        let holds_code = self.common.code.get(page >> 12).is_some_and(|page| page.holds_code());
        let spot = Spot { hva: frame.hva.add(linear & 0xfff), gpa: translation.gpa, holds_code };

        let key = key(self.real_keys(access), linear);
        let rights = translation.rights;
        let holder =
            |request: Request| rights.allow(if key & USER != 0 { request.user() } else { request }, &self.paging);
        if !holder(Request::READ) {
            // A supervisor's access that SMAP was lifted for: not for everybody.
            return Ok(spot);
        }
        let may_write =
            holder(Request::WRITE) && rights.dirty() && !frame.read_only && (want == Want::Write || !frame.log_dirty);
        let tag = tag(linear, key);
        self.spaces.entered(linear, rights.global());
        let shift = self.spaces.fragment(linear, translation.page_shift, false);
        self.tlb.data[index(linear, DATA_ENTRIES)] = DataEntry {
            read: tag,
            write: if may_write && !holds_code { tag } else { INVALID },
            addend: frame.hva.0.wrapping_sub(linear & !0xfff),
            gpa: page | shift << FRAGMENT_SHIFT | if may_write && holds_code { SLOW_WRITE } else { 0 },
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
        let (translation, frame) = self.translate(linear, request, Want::Fetch)?;
        self.clock += 1;
        self.spaces.entered(linear, translation.rights.global());
        let shift = self.spaces.fragment(linear, translation.page_shift, true);
        let entry = ExecEntry { tag, hva: frame.hva.0, gpa: translation.gpa & !0xfff, stamp: self.clock, shift };
        self.tlb.exec[index(linear, EXEC_ENTRIES)] = entry;
        Ok(entry)
    }
}
