//! What each system call of the client's becomes. Most go to the kernel as they are.
use std::{ffi::c_int, sync::atomic::Ordering};

use abi::KVM_RUN;
use libc::AT_FDCWD;
use platform::{Hva, Memory};
use serve::{descriptors, node};
use user::{ClientMemory, device, signals, signals::Action, sys};

use crate::{
    brk, clone,
    files::{self, Path},
    slot,
    trap::{SIGSYS_BIT, Trap},
    world::{self, visit},
};

/// An error as the kernel returns it.
fn failed(errno: c_int) -> isize {
    -(errno as isize)
}

fn answer(result: Result<usize, c_int>) -> isize {
    result.map_or_else(failed, |value| value as isize)
}

/// Bare.
fn kernel(trap: &Trap<'_>) -> isize {
    // SAFETY: the client's own call.
    unsafe { sys::raw(trap.number, trap.args) }
}

/// Carries out a call of the client's in our world. Bare outside of `act`.
fn ours(act: impl FnOnce() -> Result<usize, c_int>) -> isize {
    let Some(slot) = slot::own() else { return failed(libc::EAGAIN) };
    answer(visit(slot, None, act).unwrap_or(Err(libc::EAGAIN)))
}

/// A request to the device. KVM_RUN is the one that signals end.
fn request(trap: &mut Trap<'_>) -> isize {
    let [fd, number, argument, ..] = trap.args;
    let Some(slot) = slot::own() else { return failed(libc::EAGAIN) };
    let open = (number as u32 == KVM_RUN).then(|| *trap.mask());
    let done = visit(slot, open, || {
        // SAFETY: the client's own argument.
        unsafe { device::ioctl(fd as c_int, number as u32, argument as u64) }
    });
    answer(done.map_or(Err(libc::EAGAIN), |done| done.map(|value| value as usize).map_err(|error| error.0)))
}

/// The answer of a system call. Bare.
pub(crate) fn carry_out(trap: &mut Trap<'_>) -> isize {
    let [a, b, c, d, e, f] = trap.args;
    let (here, fd) = (AT_FDCWD as usize, a as c_int);
    match trap.number {
        libc::SYS_ioctl if descriptors::asks_the_device(fd, b as u32) => request(trap),
        libc::SYS_ioctl if !device::owns(fd) && descriptors::is_of_kvm(b as u32) => adopted(trap),
        libc::SYS_mmap if d as c_int & libc::MAP_ANONYMOUS == 0 && device::owns(e as c_int) => ours(|| {
            // SAFETY: the client's own place.
            let mapped = unsafe { device::mmap_at(a, e as c_int, b, c as c_int, d as c_int, f as u64) };
            mapped.map(|at| at.addr()).map_err(|error| error.0)
        }),
        libc::SYS_close if device::owns(fd) => ours(|| device::close(fd).map(|()| 0).map_err(|error| error.0)),
        libc::SYS_close_range => close_range(trap),
        libc::SYS_dup | libc::SYS_dup2 | libc::SYS_dup3 => copy(trap),
        libc::SYS_fcntl if matches!(b as c_int, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) => copy(trap),
        libc::SYS_read if device::owns(fd) => ours(|| descriptors::read(fd, b, c, None)),
        libc::SYS_pread64 if device::owns(fd) => ours(|| descriptors::read(fd, b, c, Some(d as i64))),

        libc::SYS_open => open(trap, here, a, b),
        libc::SYS_creat => open(trap, here, a, 0),
        libc::SYS_openat => open(trap, a, b, c),
        libc::SYS_openat2 => {
            let flags = ClientMemory::load::<u64>(Hva(c as u64)).unwrap_or(0);
            open(trap, a, b, flags as usize)
        }
        libc::SYS_access if Path::copy(a).is_device(here) => answer(access(b)),
        libc::SYS_faccessat | node::FACCESSAT2 if Path::copy(b).is_device(a) => answer(access(c)),
        libc::SYS_stat | libc::SYS_lstat if Path::copy(a).is_device(here) => answer(node::tell_stat(b)),
        libc::SYS_fstat if is_node(a) => answer(node::tell_stat(b)),
        libc::SYS_newfstatat if is_device_at(a, b, d) => answer(node::tell_stat(c)),
        libc::SYS_statx if is_device_at(a, b, c) => answer(node::tell_statx(e)),
        libc::SYS_readlink if Path::copy(a).myself().is_some() => answer(files::read_myself(b, c)),
        libc::SYS_readlinkat if Path::copy(b).myself().is_some() => answer(files::read_myself(c, d)),
        libc::SYS_execve => files::execute(a, b, c),

        libc::SYS_brk => brk::set(a) as isize,
        libc::SYS_clone | libc::SYS_clone3 | libc::SYS_fork | libc::SYS_vfork => match slot::own() {
            Some(slot) => clone::clone(trap, slot),
            None => failed(libc::EAGAIN),
        },
        libc::SYS_exit => exit(trap),
        libc::SYS_exit_group => {
            serve::statistics::end();
            kernel(trap)
        }

        libc::SYS_rt_sigaction => action(trap),
        libc::SYS_rt_sigprocmask => answer(change_mask(trap)),
        // SAFETY: the client's stack pointer is at the frame that it wants to return from.
        libc::SYS_rt_sigreturn => unsafe { trap.return_from_signal() },
        libc::SYS_sigaltstack => alternate_stack(trap),
        libc::SYS_rt_sigsuspend => with_mask(trap, 0),
        libc::SYS_ppoll => with_mask(trap, 3),
        libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => with_mask(trap, 4),
        libc::SYS_pselect6 => with_described_mask(trap),
        _ => kernel(trap),
    }
}

/// A request of KVM's to a descriptor that we do not know: it may have come over a socket.
fn adopted(trap: &mut Trap<'_>) -> isize {
    let fd = trap.args[0] as c_int;
    if ours(|| Ok(device::adopt(fd).into())) == 1 { request(trap) } else { kernel(trap) }
}

/// Bare.
fn access(mode: usize) -> Result<usize, c_int> {
    node::access(mode as c_int).map(|value| value as usize)
}

/// Whether a descriptor is of the device itself.
fn is_node(fd: usize) -> bool {
    device::owns(fd as c_int) && ours(|| Ok(device::is_device(fd as c_int).into())) == 1
}

/// Whether a folder, a path and flags mean the device: by its path, or by an open descriptor of it. Bare.
fn is_device_at(dir: usize, path: usize, flags: usize) -> bool {
    let name = Path::copy(path);
    let empty = name.is_empty() && flags as c_int & libc::AT_EMPTY_PATH != 0;
    (empty && is_node(dir)) || name.is_device(dir)
}

fn open(trap: &mut Trap<'_>, dir: usize, path: usize, flags: usize) -> isize {
    let name = Path::copy(path);
    if name.is_device(dir) {
        return ours(|| serve::open(flags as c_int).map(|fd| fd as usize));
    }
    match (name.myself(), trap.number) {
        (Some(myself), libc::SYS_open) => trap.args[0] = myself.addr(),
        (Some(myself), libc::SYS_openat) => trap.args[1] = myself.addr(),
        _ => {}
    }
    kernel(trap)
}

fn close_range(trap: &Trap<'_>) -> isize {
    let [first, last, flags, ..] = trap.args;
    ours(|| {
        descriptors::close_range(first as u32, last as u32, flags as u32);
        Ok(0)
    });
    kernel(trap)
}

/// `dup` and its kin: what the new number stands for.
fn copy(trap: &Trap<'_>) -> isize {
    let value = kernel(trap);
    let (old, new) = (trap.args[0] as c_int, value as c_int);
    if value < 0 || !device::owns(old) && !device::owns(new) {
        return value;
    }
    ours(|| descriptors::copied(old, new).map(|()| new as usize))
}

/// The end of a thread. Bare.
fn exit(trap: &Trap<'_>) -> isize {
    if let Some(slot) = slot::own() {
        world::leave(slot);
        // The selector stays as it is: no other call of this thread comes.
        slot.selector.store(slot::BLOCK, Ordering::Relaxed);
        slot::release(slot);
    }
    kernel(trap)
}

/// `rt_sigaction`. SIGSYS is ours: what the client wants done with it is forgotten.
fn action(trap: &Trap<'_>) -> isize {
    let [signal, new, old, size, ..] = trap.args;
    if size != size_of::<u64>() {
        return failed(libc::EINVAL);
    }
    let words = [0, 8, 16, 24];
    let mut wanted = None;
    if new != 0 {
        let [Ok(handler), Ok(flags), Ok(restorer), Ok(mask)] =
            words.map(|offset| ClientMemory::load::<u64>(Hva(new as u64 + offset)))
        else {
            return failed(libc::EFAULT);
        };
        let mask = mask & !SIGSYS_BIT;
        wanted = Some(Action { handler: handler as usize, flags, restorer: restorer as usize, mask });
    }
    let mut before = Action::default();
    if signal as c_int != libc::SIGSYS {
        let answer = ours(|| {
            before = signals::set(signal as c_int, wanted.as_ref()).map_err(|error| error.0)?;
            Ok(0)
        });
        if answer < 0 {
            return answer;
        }
    }
    if old != 0 {
        let values = [before.handler as u64, before.flags, before.restorer as u64, before.mask];
        for (offset, value) in words.into_iter().zip(values) {
            if ClientMemory::store(Hva(old as u64 + offset), value).is_err() {
                return failed(libc::EFAULT);
            }
        }
    }
    0
}

/// `rt_sigprocmask`: the thread goes on with another mask, in which SIGSYS is never blocked. Bare.
fn change_mask(trap: &mut Trap<'_>) -> Result<usize, c_int> {
    let [how, set, old, size, ..] = trap.args;
    if size != size_of::<u64>() {
        return Err(libc::EINVAL);
    }
    let fault = |_| libc::EFAULT;
    let change = if set == 0 { None } else { Some(ClientMemory::load::<u64>(Hva(set as u64)).map_err(fault)?) };
    let now = *trap.mask();
    if let Some(change) = change {
        let new = match how as c_int {
            libc::SIG_BLOCK => now | change,
            libc::SIG_UNBLOCK => now & !change,
            libc::SIG_SETMASK => change,
            _ => return Err(libc::EINVAL),
        };
        *trap.mask() = new & !SIGSYS_BIT;
    }
    if old != 0 {
        ClientMemory::store(Hva(old as u64), now).map_err(fault)?;
    }
    Ok(0)
}

/// `sigaltstack`: the return from our handler would put the old one back. Bare.
fn alternate_stack(trap: &mut Trap<'_>) -> isize {
    let answer = kernel(trap);
    if answer == 0 {
        // SAFETY: the kernel fills the structure.
        unsafe { sys::raw(libc::SYS_sigaltstack, [0, (&raw mut trap.context.uc_stack).addr(), 0, 0, 0, 0]) };
    }
    answer
}

/// A call that waits with another mask, whose address is argument `place`: SIGSYS must not be blocked. Bare.
fn with_mask(trap: &mut Trap<'_>, place: usize) -> isize {
    let Some(at) = trap.args.get_mut(place).filter(|at| **at != 0) else { return kernel(trap) };
    let Ok(mask) = ClientMemory::load::<u64>(Hva(*at as u64)) else { return failed(libc::EFAULT) };
    let mask = mask & !SIGSYS_BIT;
    *at = (&raw const mask).addr();
    kernel(trap)
}

/// `pselect6`, whose last argument is the address of the mask's address and size. Bare.
fn with_described_mask(trap: &mut Trap<'_>) -> isize {
    let at = trap.args[5] as u64;
    if at == 0 {
        return kernel(trap);
    }
    let [Ok(mask_at), Ok(size)] = [at, at + 8].map(|at| ClientMemory::load::<u64>(Hva(at))) else {
        return failed(libc::EFAULT);
    };
    if mask_at == 0 {
        return kernel(trap);
    }
    let Ok(mask) = ClientMemory::load::<u64>(Hva(mask_at)) else { return failed(libc::EFAULT) };
    let mask = mask & !SIGSYS_BIT;
    let described = [(&raw const mask).addr(), size as usize];
    trap.args[5] = described.as_ptr().addr();
    kernel(trap)
}
