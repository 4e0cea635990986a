//! The objects behind descriptors. C hands each call on with the pointer that it was given for the descriptor; here it
//! becomes the object, its ioctl runs, and an answer that is a new object becomes a new descriptor.
use alloc::boxed::Box;
use core::{
    ffi::c_void,
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicPtr, Ordering::SeqCst},
};

use abi::{KVM_CREATE_VCPU, KVM_RUN};
use hv::{Errno, Outcome, StatsFile};
use platform::{
    Hva, MaySleep, Memory, Pages,
    fallible::{Shared, try_box},
};

use crate::{
    cpu::{Cpu, with_cpu},
    glue::{self, Data, Opaque},
    memory::ClientMemory,
    pages::{self, MappedPages},
    vm::Bound,
};

/// Every entry of this module is a system call.
const CX: MaySleep = MaySleep::at_entry();

/// Pages that a vCPU has to itself: `kvm_run` and PIO data. The one behind them is the VM's.
const OWN_PAGES: u64 = 2;

/// The device, from when it is registered until the module goes: an `hv::Kvm` of the processor's kind.
static DEVICE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Makes `kvm` the device.
pub fn publish<B: Cpu>(kvm: Box<hv::Kvm<B>>) {
    DEVICE.store(Box::into_raw(kvm).cast(), SeqCst);
}

/// Takes the device away; nobody has a descriptor of it.
pub fn withdraw() {
    with_cpu!(withdraw_of())
}

fn withdraw_of<B: Cpu>() {
    let kvm = DEVICE.swap(ptr::null_mut(), SeqCst);
    if !kvm.is_null() {
        // SAFETY: made by `publish`, and taken out once.
        drop(unsafe { Box::from_raw(kvm.cast::<hv::Kvm<B>>()) });
    }
}

/// A vCPU and the pages that it shares with its client.
struct VcpuFile<B: Cpu> {
    /// Dropped before what it uses.
    vcpu: hv::Vcpu<B>,
    pages: MappedPages,
    bound: Shared<Bound<B>>,
}

/// What the system call returns.
fn returned(result: Result<i32, Errno>) -> i64 {
    i64::from(result.unwrap_or_else(|errno| -errno.0))
}

/// Puts `object` behind the descriptor that `fd` makes for it.
fn descriptor<T>(object: T, fd: impl FnOnce(Data) -> i32) -> Result<i32, Errno> {
    let object = Box::into_raw(try_box(object)?);
    let fd = fd(object.cast());
    if fd >= 0 {
        return Ok(fd);
    }
    // SAFETY: no descriptor has taken it.
    drop(unsafe { Box::from_raw(object) });
    Err(Errno(-fd))
}

/// A descriptor that no vCPU is behind yet.
struct Reserved {
    fd: i32,
    file: *mut Opaque,
}

impl Reserved {
    fn new(id: u32) -> Result<Self, Errno> {
        let mut file = ptr::null_mut();
        // SAFETY: it writes the file's address.
        let fd = unsafe { glue::rekvm_vcpu_fd_reserve(id, &mut file) };
        if fd >= 0 { Ok(Self { fd, file }) } else { Err(Errno(-fd)) }
    }

    /// The descriptor, with `object` behind it.
    fn install(self, object: Data) -> i32 {
        // SAFETY: reserved by `new`, and installed once.
        unsafe { glue::rekvm_vcpu_fd_install(self.fd, self.file, object) };
        let fd = self.fd;
        core::mem::forget(self);
        fd
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: reserved by `new`, and not installed.
        unsafe { glue::rekvm_vcpu_fd_give_back(self.fd, self.file) };
    }
}

/// KVM_CREATE_VCPU. A vCPU that has been made has its number for good: whatever may fail besides comes first.
fn create_vcpu<B: Cpu>(bound: &Shared<Bound<B>>, id: u64) -> Result<i32, Errno> {
    let room = try_box(MaybeUninit::<VcpuFile<B>>::uninit())?;
    let pages = MappedPages::new(OWN_PAGES * 4096, &CX)?;
    let reserved = Reserved::new(id as u32)?;
    let Outcome::NewVcpu(vcpu) = bound.vm().ioctl(KVM_CREATE_VCPU, id, &CX)? else { return Err(Errno::EIO) };
    vcpu.set_run_pages(pages.at());
    let file = Box::write(room, VcpuFile { vcpu, pages, bound: bound.clone() });
    Ok(reserved.install(Box::into_raw(file).cast()))
}

/// The answer of a system call.
fn answer<B: Cpu>(outcome: Outcome<B>) -> Result<i32, Errno> {
    match outcome {
        Outcome::Value(value) => Ok(value),
        // SAFETY: the pointer is a VM's, and becomes its descriptor's.
        Outcome::NewVm(vm) => descriptor(Bound::new(vm)?, |object| unsafe { glue::rekvm_vm_fd(object) }),
        // See `create_vcpu`.
        Outcome::NewVcpu(_) => Err(Errno::EIO),
        // SAFETY: the pointer is a statistics file's, and becomes its descriptor's.
        Outcome::NewStats(file) => descriptor(file, |object| unsafe { glue::rekvm_stats_fd(object) }),
    }
}

fn device_ioctl<B: Cpu>(nr: u32, arg: u64) -> i64 {
    // SAFETY: null, or the device, which outlives its descriptors.
    let Some(kvm) = (unsafe { DEVICE.load(SeqCst).cast::<hv::Kvm<B>>().as_ref() }) else {
        return returned(Err(Errno::ENODEV));
    };
    returned(kvm.ioctl(nr, arg, &CX).and_then(answer))
}

/// The ioctl of a descriptor of /dev/kvm.
#[unsafe(no_mangle)]
extern "C" fn rekvm_rs_device_ioctl(nr: u32, arg: u64) -> i64 {
    with_cpu!(device_ioctl(nr, arg))
}

/// # Safety
/// `object` is a VM's.
unsafe fn vm_ioctl<B: Cpu>(object: Data, nr: u32, arg: u64) -> i64 {
    // SAFETY: as the caller promises; the descriptor keeps it alive.
    let bound = unsafe { &*object.cast::<Shared<Bound<B>>>() };
    returned(bound.check().and_then(|()| match nr {
        KVM_CREATE_VCPU => create_vcpu(bound, arg),
        _ => answer(bound.vm().ioctl(nr, arg, &CX)?),
    }))
}

/// The ioctl of a VM's descriptor.
///
/// # Safety
/// `object` is a VM's.
#[unsafe(no_mangle)]
unsafe extern "C" fn rekvm_rs_vm_ioctl(object: Data, nr: u32, arg: u64) -> i64 {
    // SAFETY: as the caller promises.
    unsafe { with_cpu!(vm_ioctl(object, nr, arg)) }
}

/// # Safety
/// `object` is a VM's, and `vma` the mapping that is being made.
unsafe fn vm_mapped<B: Cpu>(object: Data, vma: *mut Opaque, first: u64, count: u64) {
    // SAFETY: as the caller promises; the descriptor keeps it alive.
    let bound = unsafe { &*object.cast::<Shared<Bound<B>>>() };
    bound.vm().for_each_owned(|memory| {
        let (base, pages) = (memory.gpa >> 12, memory.bytes >> 12);
        for page in base.max(first)..base.saturating_add(pages).min(first.saturating_add(count)) {
            // SAFETY: within the slot's memory, which stays while this runs, and within the mapping.
            unsafe { glue::rekvm_vm_insert(vma, page - first, memory.hva.add((page - base) << 12).0) };
        }
    });
}

/// The client makes a mapping of `count` guest-physical pages from `first` on: what is there now stays in it, whatever
/// becomes of its slot.
///
/// # Safety
/// `object` is a VM's, and `vma` the mapping that is being made.
#[unsafe(no_mangle)]
unsafe extern "C" fn rekvm_rs_vm_mapped(object: Data, vma: *mut Opaque, first: u64, count: u64) {
    // SAFETY: as the caller promises.
    unsafe { with_cpu!(vm_mapped(object, vma, first, count)) }
}

/// # Safety
/// `object` is a VM's.
unsafe fn vm_page<B: Cpu>(object: Data, index: u64) -> *mut Opaque {
    // SAFETY: as the caller promises; the descriptor keeps it alive.
    let bound = unsafe { &*object.cast::<Shared<Bound<B>>>() };
    let gpa = index << 12;
    let mut page = ptr::null_mut();
    bound.vm().for_each_owned(|memory| {
        let offset = gpa.wrapping_sub(memory.gpa);
        if offset < memory.bytes {
            // SAFETY: within the slot's memory, which stays while this runs.
            page = unsafe { pages::page_for_client(memory.hva.add(offset)) };
        }
    });
    page
}

/// The page `index` of a VM's mapping: memory of its 2007 slots by guest-physical page number. Null: there is none.
///
/// # Safety
/// `object` is a VM's.
#[unsafe(no_mangle)]
unsafe extern "C" fn rekvm_rs_vm_page(object: Data, index: u64) -> *mut Opaque {
    // SAFETY: as the caller promises.
    unsafe { with_cpu!(vm_page(object, index)) }
}

/// # Safety
/// `object` is a VM's, and not used any more.
unsafe fn vm_release<B: Cpu>(object: Data) {
    // SAFETY: as the caller promises; made by `descriptor`.
    drop(unsafe { Box::from_raw(object.cast::<Shared<Bound<B>>>()) });
}

/// The last reference to a VM's descriptor is gone.
///
/// # Safety
/// `object` is a VM's, and not used any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn rekvm_rs_vm_release(object: Data) {
    // SAFETY: as the caller promises.
    unsafe { with_cpu!(vm_release(object)) }
}

/// The signal mask of KVM_SET_SIGNAL_MASK, in force while this lives.
struct SignalWindow;

impl SignalWindow {
    fn open(mask: u64) -> Self {
        // SAFETY: taken back when the window closes, before the system call returns.
        unsafe { glue::rekvm_signal_mask(mask) };
        Self
    }
}

impl Drop for SignalWindow {
    fn drop(&mut self) {
        // SAFETY: the mask was changed by `open`.
        unsafe { glue::rekvm_signal_mask_back() };
    }
}

/// # Safety
/// `object` is a vCPU's.
unsafe fn vcpu_ioctl<B: Cpu>(object: Data, nr: u32, arg: u64) -> i64 {
    // SAFETY: as the caller promises; the descriptor keeps it alive.
    let file = unsafe { &*object.cast::<VcpuFile<B>>() };
    let result = file.bound.check().and_then(|()| {
        let _window = if nr == KVM_RUN { file.vcpu.signal_mask().map(SignalWindow::open) } else { None };
        file.vcpu.ioctl(nr, arg, &CX)
    });
    returned(result.and_then(answer))
}

/// The ioctl of a vCPU's descriptor.
///
/// # Safety
/// `object` is a vCPU's.
#[unsafe(no_mangle)]
unsafe extern "C" fn rekvm_rs_vcpu_ioctl(object: Data, nr: u32, arg: u64) -> i64 {
    // SAFETY: as the caller promises.
    unsafe { with_cpu!(vcpu_ioctl(object, nr, arg)) }
}

/// # Safety
/// `object` is a vCPU's.
unsafe fn vcpu_page<B: Cpu>(object: Data, index: u64) -> *mut Opaque {
    // SAFETY: as the caller promises; the descriptor keeps it alive.
    let file = unsafe { &*object.cast::<VcpuFile<B>>() };
    let at = match index {
        0..OWN_PAGES => file.pages.at().add(index * 4096),
        abi::KVM_COALESCED_MMIO_PAGE_OFFSET => file.vcpu.vm().coalesced_ring(),
        _ => return ptr::null_mut(),
    };
    // SAFETY: a page of the vCPU's, or of its VM's, both of which the descriptor keeps alive.
    unsafe { pages::page_for_client(at) }
}

/// The page `index` of a vCPU's mapping. Null: there is none.
///
/// # Safety
/// `object` is a vCPU's.
#[unsafe(no_mangle)]
unsafe extern "C" fn rekvm_rs_vcpu_page(object: Data, index: u64) -> *mut Opaque {
    // SAFETY: as the caller promises.
    unsafe { with_cpu!(vcpu_page(object, index)) }
}

/// # Safety
/// `object` is a vCPU's, and not used any more.
unsafe fn vcpu_release<B: Cpu>(object: Data) {
    // SAFETY: as the caller promises; made by `descriptor`.
    drop(unsafe { Box::from_raw(object.cast::<VcpuFile<B>>()) });
}

/// The last reference to a vCPU's descriptor is gone.
///
/// # Safety
/// `object` is a vCPU's, and not used any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn rekvm_rs_vcpu_release(object: Data) {
    // SAFETY: as the caller promises.
    unsafe { with_cpu!(vcpu_release(object)) }
}

/// # Safety
/// `object` is a statistics file's.
unsafe fn stats_read<B: Cpu>(object: Data, to: u64, bytes: usize, offset: u64) -> i64 {
    // SAFETY: as the caller promises; the descriptor keeps it alive.
    let file = unsafe { &*object.cast::<StatsFile<B>>() };
    returned(read_stats(file, to, bytes, offset))
}

/// `read` or `pread` of a statistics file: how many bytes were read, or a negative error number.
///
/// # Safety
/// `object` is a statistics file's.
#[unsafe(no_mangle)]
unsafe extern "C" fn rekvm_rs_stats_read(object: Data, to: u64, bytes: usize, offset: u64) -> i64 {
    // SAFETY: as the caller promises.
    unsafe { with_cpu!(stats_read(object, to, bytes, offset)) }
}

fn read_stats<B: Cpu>(file: &StatsFile<B>, to: u64, bytes: usize, offset: u64) -> Result<i32, Errno> {
    let mut done = 0;
    let mut part = [0; 256];
    while done < bytes {
        let want = part.len().min(bytes - done);
        let got = file.read_at(offset.wrapping_add(done as u64), part.get_mut(..want).unwrap_or_default());
        if got == 0 {
            break;
        }
        ClientMemory::copy_to(Hva::of_client(to)?.add(done as u64), part.get(..got).unwrap_or_default())?;
        done += got;
    }
    Ok(i32::try_from(done).unwrap_or(i32::MAX))
}

/// # Safety
/// `object` is a statistics file's, and not used any more.
unsafe fn stats_release<B: Cpu>(object: Data) {
    // SAFETY: as the caller promises; made by `descriptor`.
    drop(unsafe { Box::from_raw(object.cast::<StatsFile<B>>()) });
}

/// The last reference to a statistics file's descriptor is gone.
///
/// # Safety
/// `object` is a statistics file's, and not used any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn rekvm_rs_stats_release(object: Data) {
    // SAFETY: as the caller promises.
    unsafe { with_cpu!(stats_release(object)) }
}
