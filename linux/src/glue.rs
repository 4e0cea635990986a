//! The C side, as `glue/*.c` defines it: one function for each thing that only C can say to the kernel.
use core::ffi::c_void;

/// Something of the kernel's that Rust only passes on.
#[repr(C)]
pub struct Opaque([u8; 0]);

/// What a C callback is given back.
pub type Data = *mut c_void;

macro_rules! glue {
    ($($file:literal: { $($(#[$meta:meta])* $kind:ident $name:ident $tokens:tt $(-> $ret:ty)?;)* })*) => {$($(
        glue!(@ $kind $(#[$meta])* $name $tokens $(-> $ret)?);
    )*)*};
    (@ fn $(#[$meta:meta])* $name:ident ($($arg:ident: $type:ty),*) $(-> $ret:ty)?) => {
        unsafe extern "C" { $(#[$meta])* pub fn $name($($arg: $type),*) $(-> $ret)?; }
    };
    (@ safe $(#[$meta:meta])* $name:ident ($($arg:ident: $type:ty),*) $(-> $ret:ty)?) => {
        unsafe extern "C" { $(#[$meta])* pub safe fn $name($($arg: $type),*) $(-> $ret)?; }
    };
    (@ value $(#[$meta:meta])* $name:ident ($type:ty)) => {
        // Set before any Rust runs, and never changed.
        unsafe extern "C" { $(#[$meta])* pub safe static $name: $type; }
    };
}

glue! {
    "module.c": {
        value rekvm_npt(bool);
        value rekvm_ept(bool);
        value rekvm_vnmi(bool);
        safe rekvm_device_register() -> i32;
        safe rekvm_device_deregister();
        safe rekvm_processors_enable() -> i32;
        safe rekvm_processors_disable();
    }
    "files.c": {
        fn rekvm_vm_fd(object: Data) -> i32;
        fn rekvm_vcpu_fd_reserve(id: u32, file: &mut *mut Opaque) -> i32;
        fn rekvm_vcpu_fd_install(fd: i32, file: *mut Opaque, object: Data);
        fn rekvm_vcpu_fd_give_back(fd: i32, file: *mut Opaque);
        fn rekvm_stats_fd(object: Data) -> i32;
        fn rekvm_vmalloc_page(at: u64) -> *mut Opaque;
        fn rekvm_vm_insert(vma: *mut Opaque, index: u64, at: u64);
    }
    "statistics.c": {
        safe rekvm_statistics_root() -> *mut Opaque;
        safe rekvm_statistics_folder(number: u32) -> *mut Opaque;
        fn rekvm_statistics_file(folder: *mut Opaque, name: *const u8, shown: Data);
        fn rekvm_statistics_remove(folder: *mut Opaque);
    }
    "memory.c": {
        safe rekvm_shrinker_register() -> i32;
        safe rekvm_shrinker_unregister();
        safe rekvm_preemptible() -> bool;
        safe rekvm_alloc(bytes: usize, may_sleep: bool) -> *mut u8;
        fn rekvm_free(at: *mut u8);
        safe rekvm_vmalloc(bytes: usize) -> *mut u8;
        fn rekvm_vfree(at: *mut u8);
        fn rekvm_vmalloc_hpa(at: u64) -> u64;
        safe rekvm_pages(bytes: usize, below_4g: bool) -> *mut u8;
        fn rekvm_free_pages(at: *mut u8, bytes: usize);
        fn rekvm_hpa(at: *mut u8) -> u64;
        safe rekvm_at_hpa(hpa: u64) -> *mut u8;
        fn rekvm_load8(at: u64, value: &mut u8) -> i32;
        fn rekvm_load16(at: u64, value: &mut u16) -> i32;
        fn rekvm_load32(at: u64, value: &mut u32) -> i32;
        fn rekvm_load64(at: u64, value: &mut u64) -> i32;
        fn rekvm_load8_atomic(at: u64, value: &mut u8) -> i32;
        fn rekvm_load16_atomic(at: u64, value: &mut u16) -> i32;
        fn rekvm_load32_atomic(at: u64, value: &mut u32) -> i32;
        fn rekvm_load64_atomic(at: u64, value: &mut u64) -> i32;
        fn rekvm_store8(at: u64, value: u8) -> i32;
        fn rekvm_store16(at: u64, value: u16) -> i32;
        fn rekvm_store32(at: u64, value: u32) -> i32;
        fn rekvm_store64(at: u64, value: u64) -> i32;
        fn rekvm_cmpxchg8(at: u64, old: &mut u8, new: u8) -> i32;
        fn rekvm_cmpxchg16(at: u64, old: &mut u16, new: u16) -> i32;
        fn rekvm_cmpxchg32(at: u64, old: &mut u32, new: u32) -> i32;
        fn rekvm_cmpxchg64(at: u64, old: &mut u64, new: u64) -> i32;
        fn rekvm_cmpxchg128(at: u64, words: &mut [u64; 4]) -> i32;
        fn rekvm_copy_from_client(to: *mut u8, at: u64, bytes: usize) -> usize;
        fn rekvm_copy_to_client(at: u64, from: *const u8, bytes: usize) -> usize;
        safe rekvm_client_page(at: u64, write: bool) -> *mut Opaque;
        safe rekvm_client_page_now(at: u64, write: bool) -> *mut Opaque;
        fn rekvm_client_pages_now(at: u64, count: i32, pages: *mut *mut Opaque) -> i32;
        safe rekvm_client_page_is_large(at: u64) -> bool;
        fn rekvm_put_page(page: *mut Opaque);
        fn rekvm_page_hpa(page: *mut Opaque) -> u64;
        fn rekvm_page_is_compound(page: *mut Opaque) -> bool;
        fn rekvm_page_is_anonymous(page: *mut Opaque) -> bool;
        fn rekvm_page_dirty(page: *mut Opaque);
        safe rekvm_client_frame(at: u64, write: bool, hpa: &mut u64, writable: &mut bool) -> i32;
        safe rekvm_current_mm() -> *const Opaque;
        value rekvm_listener_size(usize);
        fn rekvm_listen(listener: *mut u8, object: Data) -> i32;
        fn rekvm_unlisten(listener: *mut u8);
    }
    "sync.c": {
        value rekvm_mutex_size(usize);
        fn rekvm_mutex_init(lock: *mut u8, rank: u8);
        fn rekvm_mutex_lock(lock: *mut u8);
        fn rekvm_mutex_trylock(lock: *mut u8) -> bool;
        fn rekvm_mutex_unlock(lock: *mut u8);
        value rekvm_spin_size(usize);
        fn rekvm_spin_init(lock: *mut u8, rank: u8);
        fn rekvm_spin_lock(lock: *mut u8);
        fn rekvm_spin_trylock(lock: *mut u8) -> bool;
        fn rekvm_spin_unlock(lock: *mut u8);
        fn rekvm_spin_lock_irq(lock: *mut u8);
        fn rekvm_spin_trylock_irq(lock: *mut u8) -> bool;
        fn rekvm_spin_unlock_irq(lock: *mut u8);
        fn rekvm_machines_lock();
        fn rekvm_machines_unlock();
        fn rekvm_preempt_disable();
        fn rekvm_preempt_enable();
        safe rekvm_current() -> *mut Opaque;
        fn rekvm_rcu_read_lock();
        fn rekvm_rcu_read_unlock();
        fn rekvm_wake(task: *mut Opaque);
        fn rekvm_kick(task: *mut Opaque);
        safe rekvm_will_sleep();
        safe rekvm_schedule();
        safe rekvm_will_not_sleep();
        safe rekvm_signal_pending() -> bool;
        safe rekvm_work_pending() -> bool;
        safe rekvm_work();
        safe rekvm_cond_resched();
        fn rekvm_signal_mask(mask: u64);
        fn rekvm_signal_mask_back();
        value rekvm_timer_size(usize);
        fn rekvm_timer_init(timer: *mut u8, callback: unsafe extern "C" fn(Data), data: Data);
        fn rekvm_timer_arm(timer: *mut u8, deadline_ns: i64);
        fn rekvm_timer_try_cancel(timer: *mut u8);
        fn rekvm_timer_cancel(timer: *mut u8);
        safe rekvm_now_ns() -> u64;
        safe rekvm_wall_clock_ns() -> u64;
        safe rekvm_tsc_khz() -> u32;
        fn rekvm_random(to: *mut u8, bytes: usize);
        fn rekvm_log_error(text: *const u8, bytes: i32);
        fn rekvm_log_warning(text: *const u8, bytes: i32);
        fn rekvm_log_info(text: *const u8, bytes: i32);
        fn rekvm_panic(text: *const u8, bytes: i32, line: u32);
    }
    "eventfd.c": {
        safe rekvm_eventfd_get(fd: i32) -> *mut Opaque;
        fn rekvm_eventfd_put(file: *mut Opaque);
        fn rekvm_eventfd_signal(file: *mut Opaque);
        value rekvm_watch_size(usize);
        fn rekvm_watch_init(watch: *mut u8, file: *mut Opaque, signalled: unsafe extern "C" fn(Data), data: Data) -> i32;
        fn rekvm_watch_begin(watch: *mut u8, file: *mut Opaque) -> bool;
        fn rekvm_watch_end(watch: *mut u8);
        fn rekvm_watch_destroy(watch: *mut u8);
    }
    "hardware.c": {
        safe rekvm_cpu() -> u32;
        safe rekvm_cpus() -> u32;
        fn rekvm_on_cpu(cpu: u32, data: Data);
        safe rekvm_change_cr4(bits: u64, set: bool);
        safe rekvm_prepare() -> i32;
        safe rekvm_irqs_off();
        safe rekvm_irqs_on();
        safe rekvm_guest_begins();
        safe rekvm_guest_ended();
        safe rekvm_machine_check();
        safe rekvm_mitigations() -> u32;
        value rekvm_switch_size(usize);
        fn rekvm_switch_init(watched: *mut u8, callback: unsafe extern "C" fn(Data), data: Data);
        fn rekvm_switch_destroy(watched: *mut u8);
        fn rekvm_switch_begin(watched: *mut u8);
        fn rekvm_switch_end(watched: *mut u8);
        value rekvm_fpu_size(usize);
        value rekvm_fpu_area(usize);
        fn rekvm_fpu_init(fpu: *mut u8) -> bool;
        fn rekvm_fpu_destroy(fpu: *mut u8);
        fn rekvm_fpu_swap(fpu: *mut u8, to_guest: bool);
        fn rekvm_fpu_save(fpu: *mut u8, components: u64);
        fn rekvm_fpu_restore(fpu: *mut u8, components: u64) -> i32;
    }
}

/// Of a test build.
#[cfg(feature = "scarce")]
pub mod scarce {
    use core::sync::atomic::AtomicI32;

    unsafe extern "C" {
        /// The module's parameter: so many allocations from now on, one fails. 0: none does.
        pub safe static rekvm_fail_at: AtomicI32;
    }
}
