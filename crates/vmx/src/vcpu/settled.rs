//! The usual round: the guest leaves for an instruction that the core carries out with general registers, and is entered again on
//! the same processor. Then the control structure has all that it needs but for RIP and perhaps control flags, and nobody asks for
//! more of it than is read here.
//!
//! A vCPU is *settled* from such an exit until something else is asked of it. It is *ordinary* if an exit can settle it.
use hv::backend::Groups;
use mmu::shadow::Root;
use platform::{Hardware, hardware::Watch};
use x86::{Shadow, flags};

use super::Guest;
use crate::{
    backend::Common,
    exit::{Report, reason},
    fields::{EXIT_LENGTH, GUEST_RIP, QUALIFICATION},
    guest_state::Form,
    instructions::Instructions,
    local::Resident,
    vmcs::Current,
};

/// Beyond [`Groups::PLAIN`], what is read together when somebody asks.
pub(super) const REST: Groups = Groups::GENERAL.without(Groups::PLAIN).and(Groups::STATUS);

impl<P: Hardware, I: Instructions> Guest<P, I> {
    /// Something has changed of what depends on neither registers nor the root.
    pub(super) fn unsettle(&mut self) {
        (self.unsettled, self.settled) = (true, false);
    }

    /// What is true of most guests nearly always; asked when something changes that it depends on.
    pub(super) fn is_ordinary(&self, common: &Common<P>) -> bool {
        let traced = self.asked.debug.single_step || self.has_breakpoints();
        self.form == Form::Itself && common.processor.virtual_nmis && !traced
    }

    /// Whether there is nothing to do for an entry with `root` that [`Self::goes_on`].
    #[inline]
    pub(super) fn is_settled_on(&self, root: Root) -> bool {
        self.settled && self.root == root
    }

    /// Whether this processor, number `cpu`, has everything of a settled guest since its last stay.
    #[inline]
    pub(crate) fn goes_on(&self, resident: &Resident, cpu: usize) -> bool {
        self.last_cpu == cpu
            && resident.has(self.region.node(), cpu, self.number)
            // SAFETY: interrupts are off where a `Resident` can be had, and the vCPU runs on this thread.
            && unsafe { self.user_mode.told().stays() }
    }

    /// What an entry writes then.
    #[inline]
    pub(crate) fn write_plain(&mut self, vmcs: &mut Current<I>) {
        let state = &*self.state;
        // It has moved on.
        vmcs.write(GUEST_RIP, state.rip);
        self.fields.rflags.put(vmcs, state.flags.others() | self.rflags & flags::STATUS);
    }

    /// Reads what an exit for `reason` needs if it settles the vCPU. False: it does not. `went_on`: it was settled before.
    #[inline]
    pub(super) fn read_plain(&mut self, common: &Common<P>, reason: u32, went_on: bool, vmcs: &Current<I>) -> bool {
        if !self.ordinary || !Report::is_plain(reason) {
            return false;
        }
        let fields = &mut *self.fields;
        let (rflags, held) = (fields.rflags.get(vmcs), fields.interruptibility.get(vmcs));
        if held != 0 || rflags & flags::TF != 0 {
            return false;
        }
        // What else there is to an exit is not looked at then.
        let report = &mut self.left.report;
        (report.reason, report.len) = (reason, vmcs.read(EXIT_LENGTH) as u8);
        if reason == reason::IO {
            report.qualification = vmcs.read(QUALIFICATION);
        }
        let state = &mut *self.state;
        state.rip = vmcs.read(GUEST_RIP);
        fields.rip.changed();
        state.flags.set_control(u64::MAX, rflags);
        state.shadow = Shadow::None;
        self.rflags = rflags;
        self.stale = self.stale.and(self.lazy.and(REST));
        if !common.nested {
            // The core asks for it before each entry.
            self.take_cr0(common, vmcs);
        }
        if reason == reason::VMCALL {
            // The answer depends on the privilege level.
            self.take_rest(vmcs);
        }
        self.known = None;
        if !went_on {
            (self.traps, self.asked.nmi_blocked) = (0, false);
        }
        // Whoever no longer waits for a window says so.
        self.settled = true;
        true
    }

    /// Reads the others of the general registers, and what mode and privilege level follow from.
    pub(super) fn take_rest(&mut self, vmcs: &Current<I>) {
        self.stale = self.stale.without(REST);
        self.state.gpr[4] = self.fields.rsp.get(vmcs);
        self.state.flags.set_status(self.rflags);
        self.take_levels(vmcs, self.rflags);
    }
}

#[cfg(test)]
mod tests {
    use hardware::asked::UNSCALED;
    use hv::backend::{BackendVcpu, Event, EventKind, Exit, FlushTlb, Groups, GuestDebug};
    use platform::Atomic;
    use x86::{Shadow, debug, flags};

    use super::super::held::blocked;
    use crate::{controls::primary, exit::reason, fields::*, testing::*};

    /// Leaves for CPUID, with these status flags.
    fn cpuid(rig: &mut Rig, rflags: u64) {
        rig.guest(move |s| {
            put(s, GUEST_RIP, 0x1000);
            put(s, GUEST_RSP, 0x8000);
            put(s, GUEST_RFLAGS, 2 | rflags);
            put(s, EXIT_REASON, reason::CPUID);
            put(s, EXIT_LENGTH, 2);
        });
        assert_eq!(rig.run(), Exit::Cpuid { len: 2 });
    }

    /// The core has carried it out.
    fn plain(rig: &mut Rig) {
        rig.vcpu.registers_mut(Groups::PLAIN).rip += 2;
    }

    #[test]
    fn what_nobody_asks_for_between_two_stays_goes_on() {
        let mut rig = Rig::new();
        cpuid(&mut rig, flags::ZF | flags::IF);
        assert!(rig.vcpu.is_settled());
        plain(&mut rig);
        take_writes();
        // The status flags and RSP are the guest's, whoever has looked at them.
        for look in [false, true] {
            cpuid(&mut rig, flags::CF | flags::IF);
            assert_eq!((rig.seen(GUEST_RIP), rig.seen(GUEST_RSP)), (0x1002, 0x8000));
            plain(&mut rig);
            if look {
                let state = rig.vcpu.registers(Groups::GENERAL);
                assert_eq!((state.gpr[4], state.flags.get()), (0x8000, 2 | flags::CF | flags::IF));
            }
        }
        rig.halt();
        assert_eq!((rig.seen(GUEST_RSP), rig.seen(GUEST_RFLAGS)), (0x8000, 2 | flags::CF | flags::IF));
        assert!(take_writes().iter().all(|field| *field == GUEST_RIP.encoding()));
        // The core takes a flag of its own away.
        rig.vcpu.registers_mut(Groups::PLAIN).flags.set_control(flags::IF, 0);
        rig.halt();
        assert_eq!(rig.seen(GUEST_RFLAGS), 2 | flags::CF);
    }

    #[test]
    fn an_exit_for_something_else_behind_it_is_read_whole() {
        let mut rig = Rig::new();
        cpuid(&mut rig, flags::ZF);
        plain(&mut rig);
        rig.guest(|s| {
            put(s, GUEST_RSP, 0x9000);
            put(s, GUEST_RFLAGS, 2 | flags::CF);
            put(s, EXIT_REASON, reason::INTERRUPT);
        });
        assert_eq!(rig.run(), Exit::Interrupted);
        let state = rig.vcpu.registers(Groups::GENERAL.and(Groups::STATUS));
        assert_eq!((state.gpr[4], state.flags.get()), (0x9000, 2 | flags::CF));
        rig.halt();
        assert_eq!((rig.seen(GUEST_RSP), rig.seen(GUEST_RFLAGS)), (0x9000, 2 | flags::CF));
    }

    #[test]
    fn whatever_is_asked_for_ends_it() {
        type Ask = fn(&mut Rig);
        let asks: [Ask; 9] = [
            |rig| rig.vcpu.inject(Event { kind: EventKind::Interrupt(0x31) }),
            |rig| rig.vcpu.request_window(true, false),
            |rig| rig.vcpu.set_nmi_blocked(true),
            |rig| rig.vcpu.flush(FlushTlb::Current),
            |rig| rig.vcpu.set_tsc(1, UNSCALED),
            |rig| rig.vcpu.set_debug(GuestDebug { single_step: true, ..GuestDebug::default() }),
            |rig| rig.vcpu.registers_mut(Groups::GENERAL).gpr[4] = 0x9000,
            |rig| rig.vcpu.registers_mut(Groups::DEBUG).dr7 |= 1,
            |rig| rig.vcpu.load(&Atomic::at_entry()),
        ];
        for (n, ask) in asks.into_iter().enumerate() {
            let mut rig = Rig::new();
            cpuid(&mut rig, 0);
            ask(&mut rig);
            assert!(!rig.vcpu.is_settled(), "{n}");
            cpuid(&mut rig, 0);
            match n {
                0 => assert_eq!(rig.seen(ENTRY_EVENT), 0x8000_0031),
                1 => assert_ne!(rig.seen(PRIMARY_CONTROLS) & primary::INTERRUPT_WINDOW, 0),
                2 => assert_eq!(rig.seen(GUEST_INTERRUPTIBILITY), blocked::NMI),
                4 => assert_eq!(rig.seen(TSC_OFFSET), 1),
                5 => assert_ne!(rig.seen(GUEST_RFLAGS) & flags::TF, 0),
                6 => assert_eq!(rig.seen(GUEST_RSP), 0x9000),
                7 => assert_eq!(rig.seen(GUEST_DR7), debug::DR7_FIXED | 1),
                _ => {}
            }
        }
        // A window that was open closes.
        let mut rig = Rig::new();
        rig.vcpu.request_window(true, false);
        cpuid(&mut rig, 0);
        rig.vcpu.request_window(false, false);
        cpuid(&mut rig, 0);
        assert_eq!(rig.seen(PRIMARY_CONTROLS) & primary::INTERRUPT_WINDOW, 0);
    }

    #[test]
    fn an_exit_with_more_to_it_does_not_settle() {
        for (rflags, held, dr7) in [(flags::TF, 0, 0), (flags::IF, blocked::STI, 0), (0, blocked::NMI, 0), (0, 0, 1)] {
            let mut rig = Rig::new();
            rig.vcpu.registers_mut(Groups::DEBUG).dr7 |= dr7;
            rig.halt();
            rig.guest(move |s| {
                put(s, GUEST_RFLAGS, 2 | rflags);
                put(s, GUEST_INTERRUPTIBILITY, held);
                put(s, EXIT_REASON, reason::CPUID);
            });
            rig.run();
            assert!(!rig.vcpu.is_settled(), "{rflags:#x} {held} {dr7}");
            assert_eq!(rig.vcpu.nmi_blocked(), held == blocked::NMI);
            assert_eq!(rig.vcpu.registers(Groups::PLAIN).shadow == Shadow::Sti, held == blocked::STI);
        }
    }

    #[test]
    fn another_vcpu_or_processor_in_between_ends_it_too() {
        let mut rig = Rig::new();
        let mut other = rig.another();
        let general = |rig: &mut Rig| {
            cpuid(rig, 0);
            assert_eq!((rig.seen(GUEST_RSP), rig.seen(HOST_TR_BASE)), (0x8000, 0x7000 + script(|s| s.cpu) as u64));
        };
        cpuid(&mut rig, 0);
        other.halt();
        general(&mut rig);
        script(|s| s.cpu = 1);
        general(&mut rig);
        script(|s| s.cpu = 0);
        general(&mut rig);
        rig.loses_processor();
        general(&mut rig);
    }
}
