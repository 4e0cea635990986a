//! Loading and unloading, and processors that come and go.
use core::{
    ffi::c_void,
    sync::atomic::{AtomicPtr, Ordering::SeqCst},
};

use alloc::boxed::Box;
use hv::{Errno, Kvm, StatsFile};
use platform::{Atomic, Level, MaySleep, Platform, fallible::try_box, hardware::Refusal};

use crate::{
    cpu::{self, Amd, Cpu, Intel, with_cpu},
    device, errno, glue, heap,
    platform::Linux,
    statistics::Files,
};

/// The back end, from before the first processor is switched on until after the last is off: of the processor's kind.
static CPUS: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

fn cpus<B: Cpu>() -> Option<&'static B> {
    // SAFETY: null, or valid while processors are switched on and off, see `unload`.
    unsafe { CPUS.load(SeqCst).cast::<B>().as_ref() }
}

fn forget_cpus() {
    with_cpu!(forget_cpus_of())
}

fn forget_cpus_of<B: Cpu>() {
    let cpus = CPUS.swap(core::ptr::null_mut(), SeqCst);
    if !cpus.is_null() {
        // SAFETY: made by `load`, and taken out once.
        drop(unsafe { Box::from_raw(cpus.cast::<B>()) });
    }
}

fn errno_of(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::NotThere | Refusal::DisabledByFirmware | Refusal::Lacking(_) => Errno::EOPNOTSUPP,
        Refusal::AlreadyInUse => Errno::EBUSY,
        Refusal::OutOfMemory => Errno::ENOMEM,
    }
}

/// Sums over all VMs in debugfs.
static TOTALS: AtomicPtr<Files> = AtomicPtr::new(core::ptr::null_mut());

/// Shows them. Who has no memory for that does without.
fn show_totals<B: Cpu>() {
    let names = StatsFile::<B>::vm_names();
    let Ok(files) = Files::new(names.clone().count()).and_then(try_box) else { return };
    files.show(core::ptr::null_mut(), 0, names);
    TOTALS.store(Box::into_raw(files), SeqCst);
}

fn hide_totals() {
    let files = TOTALS.swap(core::ptr::null_mut(), SeqCst);
    if !files.is_null() {
        // SAFETY: made by `show_totals`, and taken out once.
        let files = unsafe { Box::from_raw(files) };
        files.hide();
    }
}

/// Says in the log why the module is not loaded.
fn refused(refusal: Refusal) -> Errno {
    Linux::log(Level::Error, format_args!("not loaded: {refusal}"));
    errno_of(refusal)
}

/// Makes the device, or says in the log why not. What has been switched on is off again if it fails.
fn load() -> Result<(), Errno> {
    let cx = MaySleep::at_entry();
    match Amd::new(svm::Options { npt: glue::rekvm_npt }, &cx) {
        // No processor has both.
        Err(Refusal::NotThere) => {
            cpu::choose(true);
            load_as(
                Intel::new(vmx::Options { ept: glue::rekvm_ept, vnmi: glue::rekvm_vnmi }, &cx).map_err(refused)?,
                &cx,
            )
        }
        amd => load_as(amd.map_err(refused)?, &cx),
    }
}

fn load_as<B: Cpu>(cpu: B, cx: &MaySleep) -> Result<(), Errno> {
    let paging = if cpu.nested() { "nested" } else { "shadow" };
    heap::permanently(hv::prepare);
    CPUS.store(Box::into_raw(try_box(cpu.clone())?).cast(), SeqCst);
    errno::check(glue::rekvm_processors_enable()).inspect_err(|errno| {
        let why = if *errno == Errno::EBUSY { "another hypervisor's module is loaded" } else { "see above" };
        Linux::log(Level::Error, format_args!("not loaded: {why} (error {})", errno.0));
    })?;
    let result = Kvm::new(cpu, cx).and_then(|kvm| {
        device::publish(try_box(kvm)?);
        errno::check(glue::rekvm_shrinker_register())?;
        errno::check(glue::rekvm_device_register()).inspect_err(|_| {
            glue::rekvm_shrinker_unregister();
            Linux::log(Level::Error, format_args!("not loaded: another module has /dev/kvm"));
        })
    });
    match result {
        Ok(()) => {
            show_totals::<B>();
            Linux::log(Level::Info, format_args!("guests run on {} with {paging} paging", B::NAME));
        }
        Err(_) => {
            device::withdraw();
            glue::rekvm_processors_disable();
        }
    }
    result
}

/// `insmod`: zero or a negative error number.
#[unsafe(no_mangle)]
extern "C" fn rekvm_rs_init() -> i32 {
    match load() {
        Ok(()) => 0,
        Err(errno) => {
            forget_cpus();
            report_leaks();
            -errno.0
        }
    }
}

/// `rmmod`: nobody has a descriptor any more.
#[unsafe(no_mangle)]
extern "C" fn rekvm_rs_exit() {
    glue::rekvm_device_deregister();
    hide_totals();
    glue::rekvm_shrinker_unregister();
    device::withdraw();
    glue::rekvm_processors_disable();
    forget_cpus();
    report_leaks();
    Linux::log(Level::Info, format_args!("unloaded, {} allocations left", heap::live()));
}

fn report_leaks() {
    if heap::live() != 0 {
        Linux::log(Level::Error, format_args!("{} allocations were not given back", heap::live()));
    }
}

fn cpu_enable<B: Cpu>(cpu: u32) -> i32 {
    let Some(cpus) = cpus::<B>() else { return -Errno::ENODEV.0 };
    match cpus.enable(cpu as usize, &Atomic::at_entry()) {
        Ok(()) => 0,
        Err(refusal) => {
            Linux::log(Level::Error, format_args!("processor {cpu}: {refusal}"));
            -errno_of(refusal).0
        }
    }
}

/// Switches virtualization on for processor `cpu`, which runs this with interrupts off. Zero, or a negative error number.
#[unsafe(no_mangle)]
extern "C" fn rekvm_rs_cpu_enable(cpu: u32) -> i32 {
    with_cpu!(cpu_enable(cpu))
}

fn cpu_disable<B: Cpu>(cpu: u32) {
    if let Some(cpus) = cpus::<B>() {
        cpus.disable(cpu as usize, &Atomic::at_entry());
    }
}

/// Switches it off.
#[unsafe(no_mangle)]
extern "C" fn rekvm_rs_cpu_disable(cpu: u32) {
    with_cpu!(cpu_disable(cpu))
}
