//! What of the processor only user mode uses: selectors of data segments, LDTR and the limit of GDTR, the MSRs of SYSCALL,
//! KERNEL_GS_BASE and TSC_AUX. The kernel does without, so all of it stays as a guest leaves it until the guest comes back (row
//! C07). It is the host's again before the thread returns to user mode, and before another thread gets the processor.
use core::{cell::UnsafeCell, marker::PhantomData};

use platform::{Atomic, hardware::LosesProcessor};
use x86::{CpuState, msr};

use crate::{
    instructions::{HostProcessor, HostThread, Instructions},
    local::Resident,
};

/// TSC_AUX, which every mode reads, and those of long mode. KERNEL_GS_BASE is the last one.
const REGISTERS: [u32; 5] = [msr::TSC_AUX, msr::STAR, msr::LSTAR, msr::SFMASK, msr::KERNEL_GS_BASE];
const OF_EVERY_MODE: usize = 1;
const KERNEL_GS_BASE: usize = REGISTERS.len() - 1;

/// What one vCPU has taken.
#[derive(Debug)]
pub struct UserMode<I> {
    taken: UnsafeCell<Taken>,
    instructions: PhantomData<fn() -> I>,
}

// SAFETY: only the thread that runs the vCPU comes here, with interrupts off: by itself, or when it loses its processor.
unsafe impl<I> Sync for UserMode<I> {}

#[derive(Debug, Default)]
struct Taken {
    /// Whether the guest has been entered since all was the host's.
    any: bool,
    /// So many of the registers have the guest's values.
    loaded: usize,
    /// Those of them that differed from the host's, whose values are beside.
    written: [bool; REGISTERS.len()],
    host: [u64; REGISTERS.len()],
    /// The guest's KERNEL_GS_BASE, as it was when the register became the host's again.
    kernel_gs_base: u64,
    thread: HostThread,
    processor: HostProcessor,
    ldtr: u16,
}

impl<I> Default for UserMode<I> {
    /// Nothing is taken.
    fn default() -> Self {
        Self { taken: UnsafeCell::new(Taken::default()), instructions: PhantomData }
    }
}

impl<I: Instructions> UserMode<I> {
    /// Whether the guest's registers are on the processor, those of long mode if it is in `long` mode.
    ///
    /// # Safety
    /// The caller is the thread that runs the vCPU, and interrupts are off.
    #[inline]
    pub unsafe fn is_loaded(&self, long: bool) -> bool {
        // SAFETY: by the caller's promise, nobody else is here.
        unsafe { &*self.taken.get() }.loaded >= needed(long)
    }

    /// Whether all that a guest has taken for its last stay is still there.
    ///
    /// # Safety
    /// As [`Self::is_loaded`].
    #[inline]
    pub unsafe fn stays(&self) -> bool {
        // SAFETY: by the caller's promise.
        let taken = unsafe { &mut *self.taken.get() };
        if taken.any {
            taken.note_ldtr(I::ldtr());
        }
        taken.any
    }

    /// The guest is about to be entered with the registers of `state`.
    ///
    /// # Safety
    /// As [`Self::is_loaded`]. The thread is `thread`, and `resident` belongs to its processor.
    #[inline]
    pub unsafe fn take(&self, state: &CpuState, resident: &Resident, thread: &HostThread, long: bool) {
        // SAFETY: by the caller's promise.
        let taken = unsafe { &mut *self.taken.get() };
        let ldtr = I::ldtr();
        if !taken.any {
            (taken.any, taken.thread, taken.processor, taken.ldtr) = (true, *thread, resident.host, ldtr);
        } else {
            taken.note_ldtr(ldtr);
        }
        if taken.loaded < needed(long) {
            // SAFETY: as above.
            unsafe { taken.load::<I>(state, resident, long) };
        }
    }

    /// The guest's KERNEL_GS_BASE, which it may have exchanged, if the registers of long mode were loaded at its last stay.
    ///
    /// # Safety
    /// As [`Self::is_loaded`].
    pub unsafe fn kernel_gs_base(&self) -> u64 {
        // SAFETY: by the caller's promise; the register exists.
        unsafe {
            let taken = &*self.taken.get();
            if taken.loaded > KERNEL_GS_BASE { I::read_msr(msr::KERNEL_GS_BASE) } else { taken.kernel_gs_base }
        }
    }

    /// Everything is the host's again.
    ///
    /// # Safety
    /// As [`Self::is_loaded`].
    pub unsafe fn give_back(&self) {
        // SAFETY: by the caller's promise; the values are the host's own.
        unsafe {
            let taken = &mut *self.taken.get();
            if !core::mem::take(&mut taken.any) {
                return;
            }
            taken.unload::<I>();
            I::load_host(&taken.processor, &taken.thread, taken.ldtr);
            // The selector of GS brings a base of its own.
            if taken.thread.selectors[3] != 0 {
                I::write_msr(msr::KERNEL_GS_BASE, taken.thread.kernel_gs_base);
            }
        }
    }

    /// The MSRs are the host's again: the guest's have changed.
    ///
    /// # Safety
    /// As [`Self::is_loaded`].
    pub unsafe fn unload(&self) {
        // SAFETY: by the caller's promise.
        unsafe { (*self.taken.get()).unload::<I>() };
    }
}

impl Taken {
    /// LDTR before an entry that is not the first, which has made it null: a process may have got a table meanwhile.
    #[inline]
    fn note_ldtr(&mut self, ldtr: u16) {
        if ldtr != 0 {
            self.ldtr = ldtr;
        }
    }

    /// # Safety
    /// As [`UserMode::take`].
    #[cold]
    #[inline(never)]
    unsafe fn load<I: Instructions>(&mut self, state: &CpuState, resident: &Resident, long: bool) {
        let guest = [state.tsc_aux, state.star, state.lstar, state.sfmask, state.kernel_gs_base];
        let [star, lstar, sfmask] = resident.msrs.syscall;
        // Without TSC_AUX there is nothing to load.
        let tsc_aux = resident.msrs.tsc_aux.unwrap_or(state.tsc_aux);
        self.host = [tsc_aux, star, lstar, sfmask, self.thread.kernel_gs_base];
        let range = self.loaded..needed(long);
        self.loaded = range.end;
        for n in range {
            self.written[n] = guest[n] != self.host[n];
            if self.written[n] {
                // SAFETY: these registers exist; the values were checked when the guest wrote them. The kernel does not use them.
                unsafe { I::write_msr(REGISTERS[n], guest[n]) };
            }
        }
    }

    /// # Safety
    /// As [`UserMode::unload`].
    #[inline(never)]
    unsafe fn unload<I: Instructions>(&mut self) {
        let loaded = core::mem::take(&mut self.loaded);
        // SAFETY: the host's own values.
        unsafe {
            if loaded > KERNEL_GS_BASE {
                self.kernel_gs_base = I::read_msr(msr::KERNEL_GS_BASE);
                // SWAPGS has no exit.
                self.written[KERNEL_GS_BASE] = self.kernel_gs_base != self.host[KERNEL_GS_BASE];
            }
            for ((index, value), written) in REGISTERS.into_iter().zip(self.host).zip(self.written).take(loaded) {
                if written {
                    I::write_msr(index, value);
                }
            }
        }
    }
}

/// How many registers have to be loaded.
const fn needed(long: bool) -> usize {
    if long { REGISTERS.len() } else { OF_EVERY_MODE }
}

impl<I: Instructions> LosesProcessor for UserMode<I> {
    fn loses_processor(&self, _cx: &Atomic) {
        // SAFETY: the thread runs the vCPU, and interrupts are off while it loses its processor.
        unsafe { self.give_back() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use Step::{DebugAddresses, GuestBegins, GuestEnded, IrqsOff, IrqsOn, SetXcr0, WriteMsr};
    use hv::backend::{BackendVcpu, Groups};
    use std::vec::Vec;

    const LOAD_HOST: Step = Step::Own("load host", 0);

    const LOADED: [Step; 4] =
        [WriteMsr(msr::TSC_AUX, 5), WriteMsr(msr::STAR, 1), WriteMsr(msr::LSTAR, 2), WriteMsr(msr::KERNEL_GS_BASE, 4)];
    const UNLOADED: [Step; 5] = [
        WriteMsr(msr::TSC_AUX, 0),
        WriteMsr(msr::STAR, 0),
        WriteMsr(msr::LSTAR, 0),
        WriteMsr(msr::KERNEL_GS_BASE, 0),
        LOAD_HOST,
    ];

    /// A guest in long mode that has been entered, and the steps while it had the processor.
    fn entered() -> (Rig, Vec<Step>) {
        script(|s| s.cpuid.get_mut(&0x8000_0001).unwrap()[3] |= 1 << 27);
        let mut rig = Rig::new();
        long_mode(&mut rig);
        rig.halt();
        let steps = middle(&take_steps()).to_vec();
        (rig, steps)
    }

    #[test]
    fn registers_that_the_kernel_uses_too_are_the_hosts_outside() {
        let (_rig, steps) = entered();
        let around = [DebugAddresses([1, 2, 3, 4]), SetXcr0(3), run(false, false), SetXcr0(7), GuestEnded];
        assert_eq!(steps, [&[GuestBegins], &LOADED[..], &around].concat());
    }

    #[test]
    fn registers_that_only_user_mode_uses_stay_until_the_thread_goes_there() {
        let (mut rig, _) = entered();
        for _ in 0..2 {
            rig.halt();
            let between =
                [GuestBegins, DebugAddresses([1, 2, 3, 4]), SetXcr0(3), run(true, false), SetXcr0(7), GuestEnded];
            assert_eq!(middle(&take_steps()), between);
        }
        rig.vcpu.put(&Atomic::at_entry());
        assert_eq!(take_steps(), [&[IrqsOff], &UNLOADED[..], &[IrqsOn, Step::Watch(false), Step::FpuPut]].concat());
        rig.vcpu.load(&Atomic::at_entry());
        assert_eq!(take_steps(), [Step::FpuLoad, Step::Watch(true)]);
        rig.halt();
        let steps = take_steps();
        assert!(LOADED.iter().all(|step| steps.contains(step)), "{steps:?}");
        // Nothing has been taken yet.
        rig.vcpu.put(&Atomic::at_entry());
        take_steps();
        rig.vcpu.load(&Atomic::at_entry());
        rig.vcpu.put(&Atomic::at_entry());
        assert!(!take_steps().contains(&LOAD_HOST));
    }

    #[test]
    fn they_are_the_hosts_when_the_thread_loses_its_processor() {
        let (mut rig, _) = entered();
        set_msr(msr::KERNEL_GS_BASE, 9);
        rig.loses_processor();
        assert_eq!(take_steps(), UNLOADED);
        // SWAPGS of the guest's is seen, then and later.
        assert_eq!(rig.vcpu.registers(Groups::MSRS).kernel_gs_base, 9);
        rig.loses_processor();
        assert_eq!(take_steps(), [IrqsOff, IrqsOn]);
        rig.halt();
        assert!(take_steps().contains(&WriteMsr(msr::KERNEL_GS_BASE, 9)));
        rig.guest(|s| {
            set_msr(msr::KERNEL_GS_BASE, 10);
            put(s, crate::fields::EXIT_REASON, crate::exit::reason::HLT);
        });
        rig.run();
        assert_eq!(rig.vcpu.registers(Groups::MSRS).kernel_gs_base, 10);
        // Entered again without anybody having asked.
        rig.guest(|s| {
            set_msr(msr::KERNEL_GS_BASE, 11);
            put(s, crate::fields::EXIT_REASON, crate::exit::reason::HLT);
        });
        rig.run();
        rig.loses_processor();
        rig.halt();
        assert_eq!(rig.vcpu.registers(Groups::MSRS).kernel_gs_base, 11);
    }

    #[test]
    fn what_the_core_writes_to_them_is_loaded() {
        let (mut rig, _) = entered();
        let state = rig.vcpu.registers_mut(Groups::MSRS);
        (state.lstar, state.kernel_gs_base) = (7, 8);
        rig.halt();
        let steps = take_steps();
        for step in [WriteMsr(msr::LSTAR, 7), WriteMsr(msr::KERNEL_GS_BASE, 8)] {
            assert!(steps.contains(&step), "{steps:?}");
        }
        rig.vcpu.put(&Atomic::at_entry());
        assert!(take_steps().ends_with(&[LOAD_HOST, IrqsOn, Step::Watch(false), Step::FpuPut]));
        assert_eq!(script(|s| [s.msrs[&msr::LSTAR], s.msrs[&msr::KERNEL_GS_BASE]]), [0, 0]);
    }

    #[test]
    fn a_guest_without_long_mode_only_gets_what_it_sees() {
        script(|s| s.cpuid.get_mut(&0x8000_0001).unwrap()[3] |= 1 << 27);
        let mut rig = Rig::new();
        let state = rig.vcpu.registers_mut(Groups::MSRS);
        (state.star, state.kernel_gs_base, state.tsc_aux) = (1, 4, 5);
        rig.halt();
        let written: Vec<_> = take_steps().into_iter().filter(|s| matches!(s, WriteMsr(..))).collect();
        assert_eq!(written, [WriteMsr(msr::TSC_AUX, 5)]);
        // It switches to long mode.
        long_mode(&mut rig);
        rig.halt();
        assert_eq!(script(|s| [s.msrs[&msr::STAR], s.msrs[&msr::KERNEL_GS_BASE]]), [1, 4]);
    }
}
