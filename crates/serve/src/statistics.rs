//! `rekvm stat` of clients: a thread of each process that opens the device tells whoever asks.
//!
//! Its descriptors are its own (CLOSE_RANGE_UNSHARE): the client neither finds nor closes them, and children of the client's do
//! not keep its socket. So its calls are made by number: the C library's `close` may be ours, and would take the numbers for the
//! client's.
use std::{
    ffi::CString,
    mem::offset_of,
    os::unix::ffi::OsStrExt,
    ptr,
    sync::atomic::{AtomicI32, AtomicPtr, Ordering},
    thread,
    time::Duration,
};

use libc::sockaddr_un;
use stats::{Group, Source, Teller};
use user::{device, signals, sys};

/// Who reads nothing is given up after this time.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many may wait.
const WAITING: usize = 16;
/// Formatting a snapshot takes less.
const STACK: usize = 256 << 10;

/// The socket of a process.
struct Place {
    process: i32,
    path: CString,
}

/// The latest one; never freed.
static PLACE: AtomicPtr<Place> = AtomicPtr::new(ptr::null_mut());

/// Starts the thread of this process, unless it has one. Statistics are no reason to refuse a client, so nobody hears of a failure.
pub(crate) fn start(back_end: &str) {
    static LAST: AtomicI32 = AtomicI32::new(0);
    let process = sys::process_id();
    if LAST.swap(process, Ordering::Relaxed) == process {
        return;
    }
    let Ok(path) = stats::socket::place() else { return };
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return };
    let place: &Place = Box::leak(Box::new(Place { process, path }));
    PLACE.store(ptr::from_ref(place).cast_mut(), Ordering::Release);
    let teller = Teller::new(back_end.to_owned(), look);
    // The new thread inherits the mask: signals of the client are none of its business.
    let blocked = signals::block_all();
    let tell = move || {
        let _ = serve(place, || teller.tell());
    };
    drop(thread::Builder::new().name("rekvm-stat".into()).stack_size(STACK).spawn(tell));
    drop(blocked);
}

/// The process ends: takes its socket away. Touches no variable of the thread.
pub fn end() {
    // SAFETY: null, or leaked above.
    let place = unsafe { PLACE.load(Ordering::Acquire).as_ref() };
    if let Some(place) = place.filter(|place| place.process == sys::process_id()) {
        // SAFETY: the path is a C string.
        unsafe { sys::raw(libc::SYS_unlink, [place.path.as_ptr().addr(), 0, 0, 0, 0, 0]) };
    }
}

/// The numbers as they are now.
fn look() -> Result<Vec<Group>, String> {
    let files = device::statistics();
    if files.is_empty() {
        return Err("it has made no virtual machine".to_owned());
    }
    let group = |file| Source::new(file).and_then(|source| source.group()).map_err(|error| error.to_string());
    files.into_iter().map(group).collect()
}

/// Answers whoever comes; ends if the socket cannot be made.
fn serve(place: &Place, tell: impl Fn() -> Vec<u8>) -> Option<()> {
    let path = place.path.as_bytes();
    let mut address = sockaddr_un { sun_family: libc::AF_UNIX as u16, sun_path: [0; 108] };
    // The last byte stays zero.
    if path.len() >= address.sun_path.len() {
        return None;
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as i8;
    }
    let len = offset_of!(sockaddr_un, sun_path) + path.len() + 1;
    let kind = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as usize;
    // SAFETY: what is closed is this thread's copy of each descriptor; the address is as long as told.
    let listener = unsafe {
        sys::call(libc::SYS_close_range, [0, u32::MAX as usize, libc::CLOSE_RANGE_UNSHARE as usize, 0, 0, 0]).ok()?;
        let listener = sys::call(libc::SYS_socket, [libc::AF_UNIX as usize, kind, 0, 0, 0, 0]).ok()?;
        sys::call(libc::SYS_bind, [listener, (&raw const address).addr(), len, 0, 0, 0]).ok()?;
        sys::call(libc::SYS_listen, [listener, WAITING, 0, 0, 0, 0]).ok()?;
        listener
    };
    loop {
        // SAFETY: no address is asked for.
        match unsafe { sys::call(libc::SYS_accept4, [listener, 0, 0, libc::SOCK_CLOEXEC as usize, 0, 0]) } {
            Ok(stream) => answer(stream, &tell()),
            // Without memory, most likely: do not spin.
            Err(_) => thread::sleep(PATIENCE),
        }
    }
}

/// Sends `text`, and closes. Who goes away early does that on its own account.
fn answer(stream: usize, mut text: &[u8]) {
    let patience = libc::timeval { tv_sec: PATIENCE.as_secs() as i64, tv_usec: 0 };
    let option = [libc::SOL_SOCKET, libc::SO_SNDTIMEO].map(|number| number as usize);
    // SAFETY: the descriptor is this thread's, and each buffer as long as told.
    unsafe {
        let size = size_of_val(&patience);
        sys::raw(libc::SYS_setsockopt, [stream, option[0], option[1], (&raw const patience).addr(), size, 0]);
        while !text.is_empty() {
            let sent = [stream, text.as_ptr().addr(), text.len(), libc::MSG_NOSIGNAL as usize, 0, 0];
            match sys::call(libc::SYS_sendto, sent) {
                Ok(sent) if sent > 0 => text = text.get(sent..).unwrap_or(&[]),
                _ => break,
            }
        }
        sys::raw(libc::SYS_close, [stream, 0, 0, 0, 0, 0]);
    }
}
