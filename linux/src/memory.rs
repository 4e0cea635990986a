//! The client's memory by the kernel's accessors, which fail where there is none, and the hypervisor's own memory that
//! belongs to VMs (bit 63 of the address), which is always there.
use core::{arch::asm, ptr};

use platform::{BadAddress, HostFrame, Hva, MaySleep, Memory, Word};

use crate::glue::{self, Opaque};

/// The accessors.
pub enum ClientMemory {}

/// Bytes that go through the stack at a time where both ends are the client's.
const BOUNCE: usize = 256;

fn is_own(at: Hva) -> bool {
    at.0 >> 63 != 0
}

/// The result of a C accessor.
fn done(error: i32) -> Result<(), BadAddress> {
    if error == 0 { Ok(()) } else { Err(BadAddress) }
}

/// One move of `T` from the hypervisor's own memory, which other processors and the client write meanwhile.
fn load_own<T: Word>(at: u64) -> T {
    macro_rules! load {
        ($mov:literal) => {{
            let value: u64;
            // SAFETY: the memory is there as long as the VM; no reference to it exists.
            unsafe { asm!($mov, at = in(reg) at, value = out(reg) value, options(nostack, preserves_flags, readonly)) };
            value
        }};
    }
    match T::BYTES {
        1 => T::from_low(load!("movzx {value:e}, byte ptr [{at}]")),
        2 => T::from_low(load!("movzx {value:e}, word ptr [{at}]")),
        4 => T::from_low(load!("mov {value:e}, dword ptr [{at}]")),
        8 => T::from_low(load!("mov {value}, qword ptr [{at}]")),
        _ => T::from_halves(load_own::<u64>(at), load_own::<u64>(at.wrapping_add(8))),
    }
}

/// One move of `T` to it.
fn store_own<T: Word>(at: u64, value: T) {
    macro_rules! store {
        ($mov:literal, $class:ident, $type:ty) => {
            // SAFETY: as for loads.
            unsafe {
                asm!($mov, at = in(reg) at, value = in($class) value.low() as $type, options(nostack, preserves_flags));
            }
        };
    }
    match T::BYTES {
        1 => store!("mov byte ptr [{at}], {value}", reg_byte, u8),
        2 => store!("mov word ptr [{at}], {value:x}", reg, u16),
        4 => store!("mov dword ptr [{at}], {value:e}", reg, u32),
        8 => store!("mov qword ptr [{at}], {value}", reg, u64),
        _ => {
            store_own(at, value.low());
            store_own(at.wrapping_add(8), value.high());
        }
    }
}

/// LOCK CMPXCHG of `T` in it; what was there.
fn exchange_own<T: Word>(at: u64, old: T, new: T) -> T {
    macro_rules! exchange {
        ($cmpxchg:literal, $class:ident, $type:ty) => {{
            let was: u64;
            // SAFETY: as for loads.
            unsafe {
                asm!($cmpxchg, at = in(reg) at, new = in($class) new.low() as $type, inout("rax") old.low() => was,
                     options(nostack));
            }
            T::from_low(was)
        }};
    }
    match T::BYTES {
        1 => exchange!("lock cmpxchg byte ptr [{at}], {new}", reg_byte, u8),
        2 => exchange!("lock cmpxchg word ptr [{at}], {new:x}", reg, u16),
        4 => exchange!("lock cmpxchg dword ptr [{at}], {new:e}", reg, u32),
        8 => exchange!("lock cmpxchg qword ptr [{at}], {new}", reg, u64),
        _ => {
            let (low, high);
            // SAFETY: as for loads; RBX, which belongs to the compiler, is back in its place afterwards.
            unsafe {
                asm!("xchg rbx, rsi", "lock cmpxchg16b [rdi]", "mov rbx, rsi", in("rdi") at, inout("rsi") new.low() => _,
                     in("rcx") new.high(), inout("rax") old.low() => low, inout("rdx") old.high() => high,
                     options(nostack));
            }
            T::from_halves(low, high)
        }
    }
}

/// Copies between the hypervisor's own memories.
///
/// # Safety
/// `bytes` at `from` are readable and those at `to` writable memory of the hypervisor's, to which nobody has a reference but
/// the caller.
unsafe fn copy_own(from: u64, to: u64, bytes: usize) {
    // SAFETY: as the caller promises; the ABI keeps DF clear.
    unsafe {
        asm!("rep movsb", inout("rsi") from => _, inout("rdi") to => _, inout("rcx") bytes => _,
             options(nostack, preserves_flags));
    }
}

/// Copies from the client or own memory; how many bytes were copied.
fn take(at: Hva, to: &mut [u8]) -> usize {
    let len = to.len();
    // SAFETY: `to` is valid for writes of its length; the other end is the client's or our own.
    unsafe {
        if is_own(at) {
            copy_own(at.0, to.as_mut_ptr() as u64, len);
            return len;
        }
        len - glue::rekvm_copy_from_client(to.as_mut_ptr(), at.0, len).min(len)
    }
}

/// Copies to the client or own memory; how many bytes were copied.
fn give(at: Hva, from: &[u8]) -> usize {
    let len = from.len();
    // SAFETY: as above.
    unsafe {
        if is_own(at) {
            copy_own(from.as_ptr() as u64, at.0, len);
            return len;
        }
        len - glue::rekvm_copy_to_client(at.0, from.as_ptr(), len).min(len)
    }
}

macro_rules! load_client {
    ($at:expr, $load:ident, $type:ty) => {{
        let mut value: $type = 0;
        // SAFETY: reads of the client's memory have no effect on ours.
        done(unsafe { glue::$load($at, &mut value) })?;
        u64::from(value)
    }};
}

/// One load of `T`, whose width says which function does it.
macro_rules! load_word {
    ($at:expr, $load8:ident, $load16:ident, $load32:ident, $load64:ident) => {{
        if is_own($at) {
            return Ok(load_own($at.0));
        }
        let at = $at.0;
        Ok(match T::BYTES {
            1 => T::from_low(load_client!(at, $load8, u8)),
            2 => T::from_low(load_client!(at, $load16, u16)),
            4 => T::from_low(load_client!(at, $load32, u32)),
            8 => T::from_low(load_client!(at, $load64, u64)),
            _ => {
                let low = load_client!(at, $load64, u64);
                T::from_halves(low, load_client!(at.wrapping_add(8), $load64, u64))
            }
        })
    }};
}

macro_rules! exchange_client {
    ($at:expr, $old:expr, $new:expr, $exchange:ident, $type:ty) => {{
        let mut was = $old as $type;
        // SAFETY: writes of the client's memory have no effect on ours.
        done(unsafe { glue::$exchange($at, &mut was, $new as $type) })?;
        u64::from(was)
    }};
}

impl Memory for ClientMemory {
    fn load<T: Word>(at: Hva) -> Result<T, BadAddress> {
        load_word!(at, rekvm_load8, rekvm_load16, rekvm_load32, rekvm_load64)
    }

    fn load_atomic<T: Word>(at: Hva) -> Result<T, BadAddress> {
        load_word!(at, rekvm_load8_atomic, rekvm_load16_atomic, rekvm_load32_atomic, rekvm_load64_atomic)
    }

    fn store<T: Word>(at: Hva, value: T) -> Result<(), BadAddress> {
        if is_own(at) {
            store_own(at.0, value);
            return Ok(());
        }
        let (at, low) = (at.0, value.low());
        // SAFETY: writes of the client's memory have no effect on ours.
        done(unsafe {
            match T::BYTES {
                1 => glue::rekvm_store8(at, low as u8),
                2 => glue::rekvm_store16(at, low as u16),
                4 => glue::rekvm_store32(at, low as u32),
                8 => glue::rekvm_store64(at, low),
                _ => match glue::rekvm_store64(at, low) {
                    0 => glue::rekvm_store64(at.wrapping_add(8), value.high()),
                    error => error,
                },
            }
        })
    }

    fn compare_exchange<T: Word>(at: Hva, old: T, new: T) -> Result<T, BadAddress> {
        if T::BYTES == 16 && !at.0.is_multiple_of(16) {
            return Err(BadAddress);
        }
        if is_own(at) {
            return Ok(exchange_own(at.0, old, new));
        }
        let (at, low, new_low) = (at.0, old.low(), new.low());
        Ok(match T::BYTES {
            1 => T::from_low(exchange_client!(at, low, new_low, rekvm_cmpxchg8, u8)),
            2 => T::from_low(exchange_client!(at, low, new_low, rekvm_cmpxchg16, u16)),
            4 => T::from_low(exchange_client!(at, low, new_low, rekvm_cmpxchg32, u32)),
            8 => T::from_low(exchange_client!(at, low, new_low, rekvm_cmpxchg64, u64)),
            _ => {
                let mut words = [low, old.high(), new_low, new.high()];
                // SAFETY: writes of the client's memory have no effect on ours.
                done(unsafe { glue::rekvm_cmpxchg128(at, &mut words) })?;
                T::from_halves(words[0], words[1])
            }
        })
    }

    fn copy_from(at: Hva, to: &mut [u8]) -> Result<(), BadAddress> {
        if take(at, to) == to.len() { Ok(()) } else { Err(BadAddress) }
    }

    fn copy_to(at: Hva, from: &[u8]) -> Result<(), BadAddress> {
        if give(at, from) == from.len() { Ok(()) } else { Err(BadAddress) }
    }

    fn copy_within(from: Hva, to: Hva, bytes: u64) -> u64 {
        let mut bounce = [0; BOUNCE];
        // What is copied ahead of itself is read again: no more at a time than the distance.
        let distance = to.0.wrapping_sub(from.0);
        let step = if distance == 0 { BOUNCE as u64 } else { distance.min(BOUNCE as u64) };
        let mut copied = 0;
        while copied < bytes {
            let want = step.min(bytes - copied) as usize;
            let Some(buffer) = bounce.get_mut(..want) else { break };
            let got = take(from.add(copied), buffer);
            let put = give(to.add(copied), buffer.get(..got).unwrap_or_default());
            copied += put as u64;
            if put < want {
                break;
            }
        }
        copied
    }

    fn fill<T: Word>(at: Hva, value: T, count: u64) -> u64 {
        (0..count).find(|n| Self::store(at.add(n * T::BYTES), value).is_err()).unwrap_or(count)
    }
}

/// A reference to a page of the client's, given back at once: what stays valid is up to the MMU notifier.
struct Page(*mut Opaque);

impl Page {
    fn new(page: *mut Opaque) -> Option<Self> {
        if page.is_null() { None } else { Some(Self(page)) }
    }

    fn hpa(&self) -> u64 {
        // SAFETY: a page with a reference.
        unsafe { glue::rekvm_page_hpa(self.0) }
    }

    /// What is behind `at`, where this page is.
    fn frame(&self, at: u64, writable: bool, there: bool) -> HostFrame {
        // SAFETY: a page with a reference.
        let large = unsafe { glue::rekvm_page_is_compound(self.0) } && glue::rekvm_client_page_is_large(at);
        HostFrame { hpa: self.hpa(), writable, shift: if large { LARGE_SHIFT } else { PAGE_SHIFT }, there }
    }

    /// Whether this page, which the client can write, may be given to the guest to be written although nobody has asked for that.
    /// Only anonymous memory, which may count as changed before it is.
    fn may_be_written(&self) -> bool {
        // SAFETY: a page with a reference.
        unsafe {
            let anonymous = glue::rekvm_page_is_anonymous(self.0);
            if anonymous {
                glue::rekvm_page_dirty(self.0);
            }
            anonymous
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the reference is ours.
        unsafe { glue::rekvm_put_page(self.0) };
    }
}

/// The host's page behind `hva`.
pub fn host_frame(hva: Hva, write: bool, _cx: &MaySleep) -> Result<HostFrame, BadAddress> {
    let at = hva.0 & !0xfff;
    if is_own(hva) {
        return Ok(HostFrame {
            // SAFETY: the memory is there as long as the VM that owns it.
            hpa: unsafe { glue::rekvm_vmalloc_hpa(at) },
            writable: true,
            shift: PAGE_SHIFT,
            there: true,
        });
    }
    // A page that can be written as it is: then the guest's first write need not ask.
    if let Some(page) = Page::new(glue::rekvm_client_page_now(at, true)) {
        return Ok(page.frame(at, write || page.may_be_written(), true));
    }
    let page = if write { None } else { Page::new(glue::rekvm_client_page_now(at, false)) };
    if let Some(page) = page.or_else(|| Page::new(glue::rekvm_client_page(at, write))) {
        return Ok(page.frame(at, write, false));
    }
    let (mut hpa, mut writable) = (0, false);
    // The place in the client's tables may change a few times before it stays.
    for _ in 0..4 {
        match glue::rekvm_client_frame(at, write, &mut hpa, &mut writable) {
            0 if writable || !write => return Ok(HostFrame { hpa, writable, shift: PAGE_SHIFT, there: false }),
            0 | AGAIN => {}
            _ => break,
        }
    }
    Err(BadAddress)
}

/// Most pages that [`host_frames_now`] looks up at once.
const AT_ONCE: usize = 8;

/// See `Platform::host_frames_now`.
pub fn host_frames_now(hva: Hva, hpas: &mut [u64], _cx: &MaySleep) -> usize {
    if is_own(hva) {
        return 0;
    }
    let mut pages = [ptr::null_mut(); AT_ONCE];
    let count = hpas.len().min(AT_ONCE);
    // SAFETY: there is room for so many.
    let there = unsafe { glue::rekvm_client_pages_now(hva.0 & !0xfff, count as i32, pages.as_mut_ptr()) };
    let mut good = 0;
    let mut all_are = true;
    for page in pages.into_iter().take(usize::try_from(there).unwrap_or(0)).filter_map(Page::new) {
        // The rest is not used, and must not count as changed.
        all_are = all_are && page.may_be_written();
        if all_are && let Some(hpa) = hpas.get_mut(good) {
            *hpa = page.hpa();
            good += 1;
        }
    }
    good
}

/// A page for itself.
const PAGE_SHIFT: u32 = 12;
/// A page of 2 MiB or more.
const LARGE_SHIFT: u32 = 21;

/// EAGAIN, negative.
const AGAIN: i32 = -11;
