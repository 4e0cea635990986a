//! The task priority of old guests that change it all the time: QEMU's option ROM patches them to use a word in memory
//! instead of the local APIC's register.
//!
//! To find the instructions, the client has each access to the register told (KVM_TPR_ACCESS_REPORTING). Then it says
//! where the word is (KVM_SET_VAPIC_ADDR): before each entry the word shows the task priority, the priority in service and
//! the highest request, and after each exit its low byte is the task priority.
use abi::{KVM_EXIT_TPR_ACCESS, KvmRunTprAccess, KvmTprAccessCtl};
use mmu::PhysMem;
use platform::Platform;

use super::{Inner, Run};
use crate::{Errno, Outcome, backend::Backend, uaccess, vm::VmShared};

/// An access to the register that the client is to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TprAccess {
    /// Of the instruction.
    pub(crate) rip: u64,
    pub(crate) write: bool,
}

/// What the client has asked for, and what it has not got yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tpr {
    reporting: bool,
    /// Guest-physical address of the word.
    word: Option<u64>,
    access: Option<TprAccess>,
}

impl Tpr {
    /// Whether the client is to hear of an access.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        self.access.is_some()
    }

    /// Whether there is a word that shows the task priority.
    #[inline]
    pub(crate) fn has_word(&self) -> bool {
        self.word.is_some()
    }

    /// The guest has accessed the register.
    pub(crate) fn accessed(&mut self, access: TprAccess) {
        if self.reporting {
            self.access = Some(access);
        }
    }
}

impl<B: Backend> Inner<B> {
    pub(super) fn tpr_access_reporting(&mut self, arg: u64) -> Result<Outcome<B>, Errno> {
        type Mem<B> = <<B as Backend>::Platform as Platform>::Memory;
        let control: KvmTprAccessCtl = uaccess::get::<Mem<B>, _>(arg)?;
        if control.flags != 0 {
            return Err(Errno::EINVAL);
        }
        self.tpr.reporting = control.enabled != 0;
        uaccess::put::<Mem<B>, _>(arg, &control)?;
        Ok(Outcome::OK)
    }

    /// Address 0 takes the word away.
    pub(super) fn set_vapic_addr(
        &mut self,
        gpa: u64,
        vm: &VmShared<B::Platform>,
        reader: usize,
    ) -> Result<Outcome<B>, Errno> {
        if self.apic.is_none() || gpa != 0 && vm.memory.resolve(reader, gpa >> 12).is_none() {
            return Err(Errno::EINVAL);
        }
        self.tpr.word = (gpa != 0).then_some(gpa);
        Ok(Outcome::OK)
    }
}

impl<B: Backend> Run<'_, B> {
    /// KVM_EXIT_TPR_ACCESS, if there is one to tell.
    pub(super) fn report_tpr_access(&mut self) -> Result<bool, Errno> {
        let Some(access) = self.inner.tpr.access.take() else { return Ok(false) };
        let payload = KvmRunTprAccess { rip: access.rip, is_write: access.write.into(), pad: 0 };
        self.page.exit(KVM_EXIT_TPR_ACCESS, &payload)?;
        Ok(true)
    }

    /// Before an entry: the word shows the local APIC. A guest that has no memory there sees nothing.
    #[inline]
    pub(super) fn show_vapic(&mut self) {
        if self.inner.tpr.has_word() {
            self.show_word();
        }
    }

    #[inline(never)]
    fn show_word(&mut self) {
        let (Some(gpa), Some(apic)) = (self.inner.tpr.word, &self.inner.apic) else { return };
        let lapic = &apic.lapic;
        let in_service = u32::from(lapic.highest_in_service().unwrap_or(0) & 0xf0);
        let requested = u32::from(lapic.requested_vector().unwrap_or(0));
        let word = u32::from(lapic.tpr()) | in_service << 8 | requested << 24;
        let _ = self.vm.write_guest(self.index, gpa, &word.to_le_bytes());
    }

    /// After an exit: the word's low byte is the task priority.
    #[inline]
    pub(super) fn take_vapic(&mut self) {
        if self.inner.tpr.has_word() {
            self.take_word();
        }
    }

    #[inline(never)]
    fn take_word(&mut self) {
        let (Some(gpa), Some(apic)) = (self.inner.tpr.word, &mut self.inner.apic) else { return };
        let word = self.vm.memory.view(self.index).and_then(|view| view.load::<u32>(gpa).ok());
        if let Some(word) = word
            && apic.lapic.tpr() != word as u8
        {
            apic.lapic.set_tpr(word as u8);
            self.inner.show_cr8();
        }
    }
}
