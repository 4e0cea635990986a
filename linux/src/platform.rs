//! The Linux kernel as the machine that hosts guests.
use core::{arch::asm, fmt, fmt::Write, marker::PhantomData};

use platform::{
    Atomic, BadAddress, Hardware, HostFrame, Hva, Level, MaySleep, Platform, TimerCallback,
    hardware::{LosesProcessor, Mitigations},
};

use crate::{
    eventfd::KernelEventFd,
    fpu::KernelFpu,
    glue,
    lock::{KernelMutex, KernelSpin},
    memory::{self, ClientMemory},
    pages::{KernelFrames, KernelTable, MappedPages},
    timer::HrTimer,
    wait::Thread,
    watch::SwitchWatch,
};

/// The kernel that the module is loaded into.
pub enum Linux {}

/// While it lives, preemption is off.
pub struct Pin(PhantomData<*mut ()>);

impl Drop for Pin {
    fn drop(&mut self) {
        // SAFETY: switched off by whoever made this, on this thread.
        unsafe { glue::rekvm_preempt_enable() };
    }
}

impl Platform for Linux {
    type Memory = ClientMemory;
    type Pages = MappedPages;
    type EventFd = KernelEventFd;
    type RawMutex = KernelMutex;
    type RawSpin = KernelSpin;
    type Waiter = Thread;
    type Timer<C: TimerCallback> = HrTimer<C>;
    type TablePage = KernelTable;
    type Pin = Pin;

    fn now_ns() -> u64 {
        glue::rekvm_now_ns()
    }

    fn wall_clock_ns() -> u64 {
        glue::rekvm_wall_clock_ns()
    }

    #[inline]
    fn tsc() -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: every processor that this runs on has RDTSC, and the kernel may use it.
        unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
        u64::from(low) | u64::from(high) << 32
    }

    fn tsc_khz() -> u32 {
        glue::rekvm_tsc_khz()
    }

    fn random(buf: &mut [u8]) {
        // SAFETY: `buf` is valid for writes of its length.
        unsafe { glue::rekvm_random(buf.as_mut_ptr(), buf.len()) };
    }

    #[inline]
    fn signal_pending() -> bool {
        glue::rekvm_signal_pending()
    }

    #[inline]
    fn relax(_cx: &MaySleep) {
        if glue::rekvm_work_pending() {
            glue::rekvm_work();
        }
        glue::rekvm_cond_resched();
    }

    #[inline]
    fn pin() -> Pin {
        // SAFETY: switched on again when the answer goes.
        unsafe { glue::rekvm_preempt_disable() };
        Pin(PhantomData)
    }

    fn host_frame(hva: Hva, write: bool, cx: &MaySleep) -> Result<HostFrame, BadAddress> {
        memory::host_frame(hva, write, cx)
    }

    fn host_frames_now(hva: Hva, hpas: &mut [u64], cx: &MaySleep) -> usize {
        memory::host_frames_now(hva, hpas, cx)
    }

    fn log(level: Level, message: fmt::Arguments<'_>) {
        let mut line = Line { text: [0; LINE], len: 0 };
        // What does not fit is cut off.
        let _ = line.write_fmt(message);
        let (text, len) = (line.text.as_ptr(), line.len as i32);
        // SAFETY: the first `len` bytes at `text` are the line.
        unsafe {
            match level {
                Level::Error => glue::rekvm_log_error(text, len),
                Level::Warning => glue::rekvm_log_warning(text, len),
                Level::Info => glue::rekvm_log_info(text, len),
            }
        }
    }
}

/// Most bytes of a line of the log.
const LINE: usize = 256;

/// A line on the stack.
struct Line {
    text: [u8; LINE],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = self.text.get_mut(self.len..).unwrap_or_default();
        let fits = room.len().min(s.len());
        for (to, from) in room.iter_mut().zip(s.bytes()) {
            *to = from;
        }
        self.len += fits;
        Ok(())
    }
}

impl Hardware for Linux {
    type Frames = KernelFrames;
    type GuestFpu = KernelFpu;
    type Watch<L: LosesProcessor> = SwitchWatch<L>;

    fn cpu(_cx: &Atomic) -> usize {
        glue::rekvm_cpu() as usize
    }

    fn cpus() -> usize {
        glue::rekvm_cpus() as usize
    }

    fn on_cpu(cpu: usize, f: &(dyn Fn(&Atomic) + Sync)) {
        let call = Call(f);
        // SAFETY: the call is over when this returns, or was not made.
        unsafe { glue::rekvm_on_cpu(cpu as u32, (&raw const call).cast_mut().cast()) };
    }

    fn change_cr4(bits: u64, set: bool, _cx: &Atomic) {
        glue::rekvm_change_cr4(bits, set);
    }

    #[inline]
    fn irqs_off(_cx: &Atomic) {
        glue::rekvm_irqs_off();
    }

    #[inline]
    fn irqs_on(_cx: &Atomic) {
        glue::rekvm_irqs_on();
    }

    #[inline]
    fn prepare(_cx: &Atomic) -> Option<usize> {
        usize::try_from(glue::rekvm_prepare()).ok()
    }

    #[inline]
    fn guest_begins(_cx: &Atomic) {
        glue::rekvm_guest_begins();
    }

    #[inline]
    fn guest_ended(_cx: &Atomic) {
        glue::rekvm_guest_ended();
    }

    fn machine_check(_cx: &Atomic) {
        glue::rekvm_machine_check();
    }

    fn mitigations() -> Mitigations {
        let bits = glue::rekvm_mitigations();
        let has = |bit: u32| bits & bit != 0;
        Mitigations {
            ibpb: has(1),
            fill_rsb: has(2),
            clear_buffers: has(4),
            flush_l1d: has(8),
            untrain_returns: has(16),
        }
    }
}

/// What another processor is to do.
struct Call<'a>(&'a (dyn Fn(&Atomic) + Sync));

/// Runs on that processor, with interrupts off.
///
/// # Safety
/// `data` is what `on_cpu` has given to `rekvm_on_cpu`, which waits.
#[unsafe(no_mangle)]
unsafe extern "C" fn rekvm_rs_call(data: glue::Data) {
    // SAFETY: as the caller promises.
    let call = unsafe { &*data.cast::<Call<'_>>() };
    (call.0)(&Atomic::at_entry());
}
