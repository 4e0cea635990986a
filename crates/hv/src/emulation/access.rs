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
        if let Some(bulk) = self.inner.tx.bulk_for_client() {
            self.pio_exit(bulk.write, bulk.port, bulk.size, bulk.count)?;
        } else if let Some(access) = self.inner.tx.next_for_client() {
            match access.space {
                Space::Mmio => self.mmio_exit(&access)?,
                Space::Pio => {
                    self.page.copy_to(PIO_DATA, &access.data.to_le_bytes())?;
                    self.pio_exit(access.write, access.at as u16, access.len, 1)?;
                }
            }
        } else {
            return Ok(Step::Continue);
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

    /// KVM_EXIT_IO; what is written lies in the data page.
    fn pio_exit(&mut self, write: bool, port: u16, size: u8, count: u32) -> Result<(), Errno> {
        self.shared.stats.count(Counter::PioUserExits);
        let direction = if write { KVM_EXIT_IO_OUT } else { KVM_EXIT_IO_IN };
        self.page.exit(KVM_EXIT_IO, &KvmRunIo { direction, size, port, count, data_offset: PIO_DATA })
    }

    /// The client has carried the access out: goes on with the next one, or with the instruction.
    pub(crate) fn complete_access(&mut self, cx: &MaySleep) -> Result<Step, Errno> {
        if self.inner.tx.bulk_for_client().is_some() {
            return if self.inner.tx.bulk_done() { self.emulate(cx) } else { Ok(Step::Continue) };
        }
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
