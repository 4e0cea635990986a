//! Every accessor on memory that is there, that is not, that is read-only, and that a truncated file took away.
use std::{ptr, sync::Once};

use platform::{BadAddress, Hva, Memory, Word};
use user::ClientMemory as M;

const PAGE: u64 = 4096;

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| user::fault::install().unwrap());
}

/// Two pages, of which `spoil` makes the second one bad.
struct Pages(u64);

impl Pages {
    fn new(fd: i32) -> Self {
        install();
        let flags = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
        // SAFETY: a fresh mapping.
        let at =
            unsafe { libc::mmap(ptr::null_mut(), 2 * PAGE as usize, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Self(at as u64)
    }
    fn second(&self) -> u64 {
        self.0 + PAGE
    }
    fn protect(&self, prot: i32) {
        // SAFETY: our own mapping, to which there are no references.
        assert_eq!(unsafe { libc::mprotect(self.second() as *mut _, PAGE as usize, prot) }, 0);
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which there are no references.
        unsafe { libc::munmap(self.0 as *mut _, 2 * PAGE as usize) };
    }
}

fn words<T: Word + std::fmt::Debug>(value: T, other: T) {
    let p = Pages::new(-1);
    for at in [p.0, p.0 + 48, p.0 + PAGE - T::BYTES] {
        let at = Hva(at);
        M::store(at, value).unwrap();
        assert_eq!(M::load::<T>(at), Ok(value));
        assert_eq!(M::compare_exchange(at, other, other), Ok(value));
        assert_eq!(M::load::<T>(at), Ok(value));
        assert_eq!(M::compare_exchange(at, value, other), Ok(value));
        assert_eq!(M::load::<T>(at), Ok(other));
    }
    let bad = |at: u64| {
        assert_eq!(M::load::<T>(Hva(at)), Err(BadAddress), "{at:#x}");
        no_write::<T>(at, value);
    };
    p.protect(libc::PROT_NONE);
    bad(p.second());
    if T::BYTES > 1 {
        assert_eq!(M::load::<T>(Hva(p.second() - 1)), Err(BadAddress));
    }
    p.protect(libc::PROT_READ);
    assert!(M::load::<T>(Hva(p.second())).is_ok());
    no_write::<T>(p.second(), value);
    for at in [0, 16, u64::MAX - 15, 1 << 63, 0xffff_8000_0000_0000, 0x8000_0000_0000] {
        bad(at);
    }
}

fn no_write<T: Word + std::fmt::Debug>(at: u64, value: T) {
    assert_eq!(M::store(Hva(at), value), Err(BadAddress), "{at:#x}");
    assert_eq!(M::compare_exchange(Hva(at), value, value), Err(BadAddress), "{at:#x}");
    assert_eq!(M::fill(Hva(at), value, 3), 0, "{at:#x}");
}

#[test]
fn every_word_size() {
    words(0x5au8, 0xc3);
    words(0x1234u16, 0xfedc);
    words(0x1234_5678u32, 0xfedc_ba98);
    words(0x1234_5678_9abc_def0u64, 0xfedc_ba98_7654_3210);
    words(0x1111_2222_3333_4444_5555_6666_7777_8888u128, 0x9999_aaaa_bbbb_cccc_dddd_eeee_ffff_0000);
}

#[test]
fn bulk_copies_of_every_length() {
    let p = Pages::new(-1);
    let data: Vec<u8> = (0..300u32).map(|n| (n * 7 + 1) as u8).collect();
    for len in (0..100).chain([255, 300]) {
        for align in 0..9 {
            let at = Hva(p.0 + 64 + align);
            M::copy_to(at, &data[..len]).unwrap();
            let mut back = vec![0; len];
            M::copy_from(at, &mut back).unwrap();
            assert_eq!(back, &data[..len]);
        }
        if len > 0 {
            p.protect(libc::PROT_NONE);
            let at = Hva(p.second() - len as u64 + 1);
            assert_eq!(M::copy_to(at, &data[..len]), Err(BadAddress));
            assert_eq!(M::copy_from(at, &mut vec![0; len]), Err(BadAddress));
            p.protect(libc::PROT_READ | libc::PROT_WRITE);
        }
    }
}

#[test]
fn counts_are_exact() {
    let p = Pages::new(-1);
    p.protect(libc::PROT_NONE);
    for before in [0u64, 1, 7, 64, 129, 1000] {
        assert_eq!(M::fill(Hva(p.second() - before), 0xa5u8, 2000), before);
        assert_eq!(M::fill(Hva(p.second() - before * 2), 0x1234u16, 2000), before);
        assert_eq!(M::fill(Hva(p.second() - before * 4), 0x1234_5678u32, 1000), before);
        assert_eq!(M::fill(Hva(p.second() - before * 4 - 3), 1u32, 1001), before);
        // Target fault, source fault.
        assert_eq!(M::copy_within(Hva(p.0), Hva(p.second() - before), 2000), before);
        assert_eq!(M::copy_within(Hva(p.second() - before), Hva(p.0), 2000), before);
    }
    assert_eq!(M::fill(Hva(p.second() - 256), u64::MAX, 100), 32);
    assert_eq!(M::fill(Hva(p.second() - 256), u128::MAX, 100), 16);
    assert_eq!(M::fill(Hva(p.0), 7u64, 512), 512);
    assert_eq!(M::load::<u64>(Hva(p.second() - 8)), Ok(7));
}

#[test]
fn overlapping_copy_repeats_the_pattern() {
    let p = Pages::new(-1);
    M::copy_to(Hva(p.0), b"abc").unwrap();
    assert_eq!(M::copy_within(Hva(p.0), Hva(p.0 + 3), 300), 300);
    let mut back = [0; 303];
    M::copy_from(Hva(p.0), &mut back).unwrap();
    assert!(back.iter().zip(b"abc".iter().cycle()).all(|(a, b)| a == b));
}

#[test]
fn a_truncated_file_is_a_bad_address() {
    // SAFETY: a fresh memfd, sized below.
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), 0) };
    // SAFETY: our own descriptor.
    assert_eq!(unsafe { libc::ftruncate(fd, 2 * PAGE as i64) }, 0);
    let p = Pages::new(fd);
    M::store(Hva(p.second()), 5u64).unwrap();
    // SAFETY: our own descriptor; nobody has references to the mapping.
    assert_eq!(unsafe { libc::ftruncate(fd, PAGE as i64) }, 0);
    assert_eq!(M::load::<u64>(Hva(p.second())), Err(BadAddress));
    no_write(p.second(), 5u64);
    assert_eq!(M::copy_from(Hva(p.second() - 100), &mut [0; 200]), Err(BadAddress));
    assert_eq!(M::load::<u64>(Hva(p.0)), Ok(0));
    // SAFETY: our own descriptor.
    unsafe { libc::close(fd) };
}

#[test]
fn unmapped_memory_is_a_bad_address() {
    let p = Pages::new(-1);
    // SAFETY: our own mapping. Other tests may map here again, so only what is read is looked at.
    unsafe { libc::munmap(p.second() as *mut _, PAGE as usize) };
    // SAFETY: reserves the place again, without access.
    unsafe {
        libc::mmap(
            p.second() as *mut _,
            PAGE as usize,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert_eq!(M::load::<u32>(Hva(p.second())), Err(BadAddress));
}
