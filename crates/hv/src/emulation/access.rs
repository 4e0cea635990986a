//! Device accesses of an emulated instruction on their way to the client and back.
use abi::*;
use platform::MaySleep;

use super::{Completion, DeviceAccess};
use crate::{
    Errno,
    backend::Backend,
    stats::Counter,
    vcpu::{PIO_DATA, Run, Step},
    vm::Space,
};

impl<B: Backend> Run<'_, B> {
    /// Asks the client for the next device access, if there is one.
    pub(super) fn ask_client(&mut self) -> Result<Step, Errno> {
        let Some(access) = self.inner.tx.next_for_client() else { return Ok(Step::Continue) };
        match access.space {
            Space::Mmio => self.mmio_exit(&access)?,
            Space::Pio => self.pio_access_exit(&access)?,
        }
        self.inner.tx.set_completion(Completion::Access);
        Ok(Step::ToClient)
    }

    fn mmio_exit(&mut self, access: &DeviceAccess) -> Result<(), Errno> {
        self.shared.stats.count(Counter::MmioExits);
        let mmio = KvmRunMmio {
            phys_addr: access.at,
            data: access.data.to_le_bytes(),
            len: access.len.into(),
            is_write: access.write.into(),
            pad: [0; 3],
        };
        self.page.exit(KVM_EXIT_MMIO, &mmio)
    }

    fn pio_access_exit(&mut self, access: &DeviceAccess) -> Result<(), Errno> {
        self.shared.stats.count(Counter::PioUserExits);
        self.page.copy_to(PIO_DATA, &access.data.to_le_bytes())?;
        let io = KvmRunIo {
            direction: if access.write { KVM_EXIT_IO_OUT } else { KVM_EXIT_IO_IN },
            size: access.len,
            port: access.at as u16,
            count: 1,
            data_offset: PIO_DATA,
        };
        self.page.exit(KVM_EXIT_IO, &io)
    }

    /// The client has carried the access out: goes on with the next one, or with the instruction.
    pub(crate) fn complete_access(&mut self, cx: &MaySleep) -> Result<Step, Errno> {
        let Some(access) = self.inner.tx.next_for_client() else { return Ok(Step::Continue) };
        let mut data = [0; 8];
        if !access.write {
            match access.space {
                Space::Mmio => data = self.page.payload::<KvmRunMmio>()?.data,
                Space::Pio => self.page.copy_from(PIO_DATA, &mut data)?,
            }
        }
        let mask = if access.len >= 8 { u64::MAX } else { (1 << (8 * u32::from(access.len))) - 1 };
        let unfinished = match self.inner.tx.done_by_client(u64::from_le_bytes(data) & mask) {
            Ok(unfinished) => unfinished,
            Err(_) => {
                self.inner.tx.abandon();
                return Err(Errno::ENOMEM);
            }
        };
        if self.ask_client()? == Step::ToClient {
            return Ok(Step::ToClient);
        }
        if unfinished { self.emulate(cx) } else { Ok(Step::Continue) }
    }
}
