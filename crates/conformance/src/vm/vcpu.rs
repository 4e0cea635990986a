//! A vCPU: its registers, KVM_RUN and the answers to its exits.
use abi::*;

use super::{Exit, RunPage, read_list};
use crate::device::{Errno, Fd};

/// A vCPU's descriptor and its mapping.
pub struct Vcpu {
    /// For raw calls.
    pub fd: Fd,
    /// The mapping.
    pub page: RunPage,
}

impl Vcpu {
    /// KVM_RUN, which has to succeed.
    ///
    /// # Panics
    /// With the error number otherwise.
    #[track_caller]
    pub fn run(&self) -> Exit {
        self.try_run().expect("KVM_RUN")
    }

    /// KVM_RUN. On x86 it answers 0 whenever it does not fail.
    pub fn try_run(&self) -> Result<Exit, Errno> {
        let answer = self.fd.number(KVM_RUN, 0)?;
        assert_eq!(answer, 0, "KVM_RUN's answer");
        Ok(Exit::of(self.page))
    }

    /// Runs until HLT; any other exit is wrong.
    #[track_caller]
    pub fn run_to_hlt(&self) {
        assert_eq!(self.run(), Exit::Hlt);
    }

    /// Fills in what the guest reads: all items of IN, or the bytes of an MMIO read.
    ///
    /// # Panics
    /// If the last exit reads nothing, or not so many bytes.
    pub fn answer(&self, data: &[u8]) {
        match Exit::of(self.page) {
            Exit::In { size, count, .. } => {
                assert_eq!(data.len(), usize::from(size) * count as usize);
                let io: KvmRunIo = self.page.payload();
                self.page.0.write(io.data_offset as usize, data);
            }
            Exit::Read { len, .. } => {
                let mut mmio: KvmRunMmio = self.page.payload();
                assert_eq!(data.len(), len as usize);
                mmio.data[..data.len()].copy_from_slice(data);
                self.page.set_payload(&mmio);
            }
            other => panic!("{other:?} has no answer"),
        }
    }

    /// KVM_GET_REGS.
    pub fn regs(&self) -> KvmRegs {
        self.fd.get(KVM_GET_REGS).expect("KVM_GET_REGS")
    }

    /// KVM_SET_REGS.
    pub fn set_regs(&self, regs: &KvmRegs) {
        self.fd.put(KVM_SET_REGS, regs).expect("KVM_SET_REGS");
    }

    /// Changes some general registers.
    pub fn edit_regs(&self, edit: impl FnOnce(&mut KvmRegs)) {
        let mut regs = self.regs();
        edit(&mut regs);
        self.set_regs(&regs);
    }

    /// KVM_GET_SREGS.
    pub fn sregs(&self) -> KvmSregs {
        self.fd.get(KVM_GET_SREGS).expect("KVM_GET_SREGS")
    }

    /// KVM_SET_SREGS.
    pub fn set_sregs(&self, sregs: &KvmSregs) {
        self.fd.put(KVM_SET_SREGS, sregs).expect("KVM_SET_SREGS");
    }

    /// Changes some system registers.
    pub fn edit_sregs(&self, edit: impl FnOnce(&mut KvmSregs)) {
        let mut sregs = self.sregs();
        edit(&mut sregs);
        self.set_sregs(&sregs);
    }

    /// KVM_INTERRUPT.
    pub fn interrupt(&self, vector: u32) -> Result<i32, Errno> {
        self.fd.put(KVM_INTERRUPT, &KvmInterrupt { irq: vector })
    }

    /// KVM_GET_VCPU_EVENTS.
    pub fn events(&self) -> KvmVcpuEvents {
        self.fd.get(KVM_GET_VCPU_EVENTS).expect("KVM_GET_VCPU_EVENTS")
    }

    /// KVM_GET_MP_STATE.
    pub fn mp_state(&self) -> u32 {
        self.fd.get::<KvmMpState>(KVM_GET_MP_STATE).expect("KVM_GET_MP_STATE").mp_state
    }

    /// KVM_SET_MP_STATE.
    pub fn set_mp_state(&self, mp_state: u32) -> Result<i32, Errno> {
        self.fd.put(KVM_SET_MP_STATE, &KvmMpState { mp_state })
    }

    /// KVM_TRANSLATE: the gpa, if the address is mapped.
    pub fn translate(&self, gva: u64) -> Option<KvmTranslation> {
        let mut translation = KvmTranslation { linear_address: gva, ..Default::default() };
        self.fd.exchange(KVM_TRANSLATE, &mut translation).expect("KVM_TRANSLATE");
        (translation.valid != 0).then_some(translation)
    }

    /// KVM_SET_CPUID2 with these entries.
    pub fn set_cpuid(&self, entries: &[KvmCpuidEntry2]) -> Result<i32, Errno> {
        let header = KvmCpuid2 { nent: entries.len() as u32, padding: 0 };
        self.fd.buffer(KVM_SET_CPUID2, &mut super::list_with(&header, entries))
    }

    /// KVM_GET_MSRS of one: its value, or None if the device does not know it.
    pub fn msr(&self, index: u32) -> Option<u64> {
        let header = KvmMsrs { nmsrs: 1, pad: 0 };
        let mut bytes = super::list_with(&header, &[KvmMsrEntry { index, ..Default::default() }]);
        let found = self.fd.buffer(KVM_GET_MSRS, &mut bytes).expect("KVM_GET_MSRS");
        (found == 1).then(|| read_list::<KvmMsrs, KvmMsrEntry>(&bytes, 1)[0].data)
    }

    /// KVM_SET_MSRS of one: whether the device took it.
    pub fn set_msr(&self, index: u32, data: u64) -> bool {
        let header = KvmMsrs { nmsrs: 1, pad: 0 };
        let mut bytes = super::list_with(&header, &[KvmMsrEntry { index, data, ..Default::default() }]);
        self.fd.buffer(KVM_SET_MSRS, &mut bytes).expect("KVM_SET_MSRS") == 1
    }
}
