//! /dev/kvm inside this process, behind a boundary that looks like the system call's: a descriptor number goes in, a
//! value or an error number comes out.
//!
//! The descriptors are real ones, so that the kernel hands out the numbers and they work wherever only a number is
//! needed: a memfd for each object, a vCPU's holding the pages that it shares with its client. What a descriptor
//! stands for is found in a table of this process (`table`), once for each call.
mod fd;
mod process;
mod table;

use std::{
    ffi::CStr,
    ops::{Range, RangeInclusive},
    os::fd::RawFd,
};

use abi::KVM_RUN;
use fd::{Pages, memfd};
use hv::{Errno, Outcome};
use platform::{MaySleep, Waiter, fallible::Shared};
use soft::Soft;
pub use soft::{Options, PagingKind, TlbKind};
use table::{Object, TABLE, VcpuFile};

use crate::{User, pages::map_again, per_process::PerProcess, signals::Call};
pub use process::watch;

/// The processor that guests of this device run on.
type Cpu = Soft<User>;
type Kvm = hv::Kvm<Cpu>;

/// Bytes that a vCPU shares with its client: what KVM_GET_VCPU_MMAP_SIZE answers.
const RUN_BYTES: u64 = hv::Vcpu::<Cpu>::RUN_PAGES * 4096;

/// Where the page of coalesced writes is in a vCPU's mapping.
const RING_OFFSET: u64 = abi::KVM_COALESCED_MMIO_PAGE_OFFSET * 4096;

const EBADF: Errno = Errno(libc::EBADF);

/// Every entry of this module is a place that may sleep.
const CX: MaySleep = MaySleep::at_entry();

/// `open("/dev/kvm")`: a new descriptor of the device.
pub fn open() -> Result<RawFd, Errno> {
    open_with(Options::default())
}

/// The same for a device whose processors work as `options` say. VMs of different options live side by
/// side.
pub fn open_with(options: Options) -> Result<RawFd, Errno> {
    let _call = Call::begin();
    let preparing = process::prepare()?;
    kvm(options)?;
    drop(preparing);
    insert(c"rekvm", Object::Device(options))
}

/// The hypervisor of this process behind devices that were opened with `options`: a child of fork has its own, as locks of its
/// parent's may be held by threads that it does not have.
fn kvm(options: Options) -> Result<&'static Kvm, Errno> {
    static KVM: [[PerProcess<Kvm>; 2]; 3] = [const { [const { PerProcess::new() }; 2] }; 3];
    let [of_slots, of_shadow, of_nested] = &KVM;
    let [normal, adversarial] = match options.paging {
        PagingKind::Slots => of_slots,
        PagingKind::Shadow => of_shadow,
        PagingKind::Nested => of_nested,
    };
    let place = if options.tlb == TlbKind::Adversarial { adversarial } else { normal };
    place.get(|| Kvm::new(Cpu::with_options(options), &CX))
}

/// `ioctl`: `nr` is the full request number.
///
/// # Safety
/// `arg` is what the request asks for. An address that cannot be accessed is EFAULT; one that can is read and written
/// by the request, at once or (guest memory) for as long as the VM uses it.
pub unsafe fn ioctl(fd: RawFd, nr: u32, arg: u64) -> Result<i32, Errno> {
    let mut call = Call::begin();
    let outcome = match TABLE.own(fd)? {
        Object::Device(options) => kvm(options)?.ioctl(nr, arg, &CX),
        Object::Vm(vm) => vm.ioctl(nr, arg, &CX),
        Object::Vcpu(file) => {
            // The signal mask of KVM_SET_SIGNAL_MASK is in force during KVM_RUN only.
            if nr == KVM_RUN
                && let Some(mask) = file.vcpu.signal_mask()
            {
                call.with_mask(mask);
            }
            file.vcpu.ioctl(nr, arg, &CX)
        }
        Object::Stats(_) => Err(Errno::ENOTTY),
    }?;
    match outcome {
        Outcome::Value(value) => Ok(value),
        Outcome::NewVm(vm) => insert(c"rekvm-vm", Object::Vm(vm)),
        Outcome::NewVcpu(vcpu) => {
            let fd = memfd(c"rekvm-vcpu", RUN_BYTES)?;
            let pages = Pages::map(&fd, RUN_BYTES)?;
            vcpu.set_run_pages(pages.at());
            TABLE.insert(fd, Object::Vcpu(VcpuFile { vcpu, _pages: pages }))
        }
        Outcome::NewStats(file) => insert(c"rekvm-stats", Object::Stats(Shared::try_new(file)?)),
    }
}

fn insert(name: &CStr, object: Object) -> Result<RawFd, Errno> {
    TABLE.insert(memfd(name, 0)?, object)
}

/// `mmap` of a vCPU's descriptor (`kvm_run` and the pages behind it), or of a VM's (the memory of its 2007 slots: the
/// offset is a guest-physical address). Returns the address.
///
/// A VM's slots are found when this is called: the places of slots that come later, and those where there is none,
/// are SIGBUS in the mapping that is made now.
pub fn mmap(fd: RawFd, len: usize, prot: i32, flags: i32, offset: u64) -> Result<*mut u8, Errno> {
    if flags & libc::MAP_FIXED != 0 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: at a place of the kernel's choice.
    unsafe { mmap_at(0, fd, len, prot, flags, offset) }
}

/// The same at an address of the client's choice.
///
/// # Safety
/// With MAP_FIXED, what is mapped there now is the client's to replace.
pub unsafe fn mmap_at(at: usize, fd: RawFd, len: usize, prot: i32, flags: i32, offset: u64) -> Result<*mut u8, Errno> {
    let _call = Call::begin();
    let object = TABLE.get(fd).ok_or(EBADF)?;
    let end = offset.checked_add(len as u64).ok_or(Errno::EINVAL)?;
    if !offset.is_multiple_of(4096) {
        return Err(Errno::EINVAL);
    }
    // A VM's descriptor is an empty file: a mapping of it is a place where every access is SIGBUS.
    let map = |offset| fd::map(at, len, prot, flags, fd, offset);
    match object {
        Object::Vcpu(file) if end <= RUN_BYTES => with_ring(&file.vcpu, map(offset)?, len, prot, offset),
        Object::Vm(vm) if flags & libc::MAP_SHARED != 0 => with_slots(&vm, map(0)?, len, prot, offset..end),
        Object::Vcpu(_) | Object::Vm(_) => Err(Errno::EINVAL),
        Object::Device(_) | Object::Stats(_) => Err(Errno::ENODEV),
    }
}

/// Puts the VM's page in its place in a mapping of the pages that a vCPU shares with its client: it is the last one.
fn with_ring(vcpu: &hv::Vcpu<Cpu>, at: *mut u8, len: usize, prot: i32, offset: u64) -> Result<*mut u8, Errno> {
    if offset + len as u64 <= RING_OFFSET {
        return Ok(at);
    }
    let to = at.wrapping_add((RING_OFFSET - offset) as usize);
    // SAFETY: the VM's page, and the last page of the mapping made above, of which nobody else knows yet.
    if let Err(error) = unsafe { map_again(vcpu.vm().coalesced_ring(), to, 4096, prot) } {
        // SAFETY: made above, and told to nobody.
        let _ = unsafe { munmap(at, len) };
        return Err(Errno(error.raw_os_error().unwrap_or(libc::ENOMEM)));
    }
    Ok(at)
}

/// Puts the VM's own memory in the guest-physical `range` in its place in a mapping of that range.
fn with_slots(vm: &hv::Vm<Cpu>, at: *mut u8, len: usize, prot: i32, range: Range<u64>) -> Result<*mut u8, Errno> {
    let mut result = Ok(at);
    vm.for_each_owned(|memory| {
        let (start, end) = (memory.gpa.max(range.start), (memory.gpa + memory.bytes).min(range.end));
        if start >= end || result.is_err() {
            return;
        }
        let from = memory.hva.add(start - memory.gpa);
        let (to, bytes) = (at.wrapping_add((start - range.start) as usize), (end - start) as usize);
        // SAFETY: the slot's memory stays while this runs, and the place lies within the mapping made above, of which
        // nobody else knows yet.
        if let Err(error) = unsafe { map_again(from, to, bytes, prot) } {
            result = Err(Errno(error.raw_os_error().unwrap_or(libc::ENOMEM)));
        }
    });
    if result.is_err() {
        // SAFETY: made above, and told to nobody.
        let _ = unsafe { munmap(at, len) };
    }
    result
}

/// `munmap`.
///
/// # Safety
/// The range comes from [`mmap`], and nothing refers to it any more.
pub unsafe fn munmap(at: *mut u8, len: usize) -> Result<(), Errno> {
    // SAFETY: as the caller promises.
    if unsafe { libc::munmap(at.cast(), len) } == 0 { Ok(()) } else { Err(fd::last_errno()) }
}

/// `pread` of a descriptor that KVM_GET_STATS_FD made: how many bytes of `buf` were filled.
pub fn pread(fd: RawFd, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let _call = Call::begin();
    match TABLE.get(fd).ok_or(EBADF)? {
        Object::Stats(file) => Ok(file.read_at(offset, buf)),
        _ => Err(Errno::EINVAL),
    }
}

/// `read` of such a descriptor: the same from where the last one ended.
pub fn read(fd: RawFd, buf: &mut [u8]) -> Result<usize, Errno> {
    let offset = fd::position(fd)?;
    let len = pread(fd, buf, offset)?;
    fd::move_to(fd, offset.saturating_add(len as u64))?;
    Ok(len)
}

/// `dup`: another descriptor of the same object.
pub fn dup(fd: RawFd) -> Result<RawFd, Errno> {
    let _call = Call::begin();
    let object = TABLE.get(fd).ok_or(EBADF)?;
    TABLE.insert(fd::dup(fd)?, object)
}

/// Tells that the client has made `new` a copy of `old`, which is ours, with dup2 or its kin.
pub fn copied(old: RawFd, new: RawFd) -> Result<(), Errno> {
    let _call = Call::begin();
    if process::shares_memory() { Ok(()) } else { TABLE.copy(old, new) }
}

/// `close`. The object goes with its last descriptor, and with the last call that is using it.
pub fn close(fd: RawFd) -> Result<(), Errno> {
    let _call = Call::begin();
    if process::shares_memory() { fd::close(fd) } else { TABLE.remove(fd) }
}

/// Tells that the client closes the descriptors `numbers`, or makes them stand for something else. They need not be
/// ours.
pub fn forget(numbers: RangeInclusive<RawFd>) {
    let _call = Call::begin();
    if !process::shares_memory() {
        TABLE.forget(numbers);
    }
}

/// Whether a descriptor belongs to this device. Async-signal-safe.
pub fn owns(fd: RawFd) -> bool {
    TABLE.has(fd)
}

/// Whether a descriptor that nobody told us of is of a file of ours, as one is that came over a socket; it belongs to this
/// device from now on.
pub fn adopt(fd: RawFd) -> bool {
    let _call = Call::begin();
    !process::shares_memory() && TABLE.adopt(fd).unwrap_or(false)
}

/// The statistics of this process's first VM and of its vCPUs, a file of the ABI's format (KVM_GET_STATS_FD) each; none if
/// there is no VM. Waits for no vCPU.
///
/// Whoever asks never holds a VM that the client has closed, so the VM's end and its descriptors stay the client's.
pub fn statistics() -> Vec<Vec<u8>> {
    let _call = Call::begin();
    let files = |vm: &hv::Vm<Cpu>| hv::StatsFile::all(vm).map(|file| whole(&file)).collect();
    TABLE.with_first_vm(files).unwrap_or_default()
}

/// All of a statistics file.
fn whole(file: &hv::StatsFile<Cpu>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut part = [0; 512];
    loop {
        let len = file.read_at(bytes.len() as u64, &mut part);
        if len == 0 {
            return bytes;
        }
        bytes.extend_from_slice(&part[..len]);
    }
}

/// Whether a descriptor is of the device itself, rather than of a VM or vCPU.
pub fn is_device(fd: RawFd) -> bool {
    TABLE.has(fd) && matches!(TABLE.get(fd), Some(Object::Device(_)))
}

/// Looks whether every invariant of a VM's shadow tables holds, also while its vCPUs run: Ok tells what was looked at, Err
/// what does not hold. None: the VM has no shadow tables, or this is no VM. Not part of the ABI.
pub fn audit(fd: RawFd) -> Option<Result<String, String>> {
    let Some(Object::Vm(vm)) = TABLE.get(fd) else { return None };
    let report = match vm.audit_shadow(&CX)? {
        Ok(report) => report,
        Err(error) => return Some(Err(format!("{error:?}"))),
    };
    if report.findings.is_empty() {
        return Some(Ok(format!("{} shadow pages, {} leaves", report.pages, report.leaves)));
    }
    let findings: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
    Some(Err(findings.join("; ")))
}

/// Makes KVM_RUN of the vCPU `fd` return EINTR if some thread is inside it: what a signal to that thread does, for
/// whoever cannot have [`crate::signals::note`] called in a handler. Has no effect on a KVM_RUN that begins later; set
/// `immediate_exit` before for that, as with signals.
pub fn kick(fd: RawFd) -> Result<(), Errno> {
    match TABLE.get(fd).ok_or(EBADF)? {
        Object::Vcpu(file) => {
            let requests = file.vcpu.requests();
            requests.fetch_or(hv::request::SIGNAL, std::sync::atomic::Ordering::SeqCst);
            file.vcpu.waiter().wake(requests);
            Ok(())
        }
        _ => Err(Errno::EINVAL),
    }
}
