//! REP INS and REP OUTS of several elements in one exit: the elements of one page go through the data page that the
//! client shares.
//!
//! OUTS copies them there, moves the registers on, and the client gets them. INS asks the client first; when it has
//! filled the page, the instruction is executed again, copies the elements to memory and moves the registers on. Where a
//! device inside the hypervisor or device memory takes part, elements go one by one.
use emulate::{Access, Res};
use mmu::{PhysMem, Request};
use platform::Platform;

use super::{
    Bulk,
    guest::{Guest, Why},
};
use crate::{backend::VectorUnit, vcpu::PIO_DATA, vm::Space};

/// Bytes that are copied at a time.
const CHUNK: usize = 256;

impl<P: Platform, V: VectorUnit> Guest<'_, P, V> {
    /// Whether all accesses to this port go to the client.
    fn port_is_clients(&self, port: u16, size: u8) -> bool {
        let (vm, reader, at, len) = (self.vm, self.reader, port.into(), size.into());
        vm.bus.of_port(port, size).is_none()
            && !vm.ioeventfds.any_at(reader, Space::Pio, at)
            && !vm.coalesced.wants(reader, Space::Pio, at, len)
    }

    pub(super) fn string_out(&mut self, port: u16, size: u8, linear: u64, count: u64) -> Res<u64> {
        if !self.tx.is_fresh() || !self.port_is_clients(port, size) {
            return Ok(0);
        }
        let request = self.request(Request::READ, Access::Program);
        let gpa = self.translate(linear, request)?;
        let total = count * u64::from(size);
        let mut done = 0;
        while done < total {
            let mut bytes = [0; CHUNK];
            let part = &mut bytes[..(total - done).min(CHUNK as u64) as usize];
            if self.memory(|view| view.read(gpa + done, part))?.is_err() {
                // Device memory. What is in the data page already is no harm.
                return Ok(0);
            }
            self.page.copy_to(PIO_DATA + done, part).map_err(|_| self.stop(Why::BadAddress))?;
            done += part.len() as u64;
        }
        self.tx.set_bulk(Bulk { write: true, port, size, count: count as u32 });
        Ok(count)
    }

    pub(super) fn string_in(&mut self, port: u16, size: u8, linear: u64, count: u64) -> Res<u64> {
        if let Some(read) = self.tx.take_bulk(port, size) {
            return self.take_elements(size, linear, count.min(read.into()));
        }
        if !self.tx.is_fresh() || !self.port_is_clients(port, size) {
            return Ok(0);
        }
        // A device must not be read for values that cannot be stored.
        let request = self.request(Request::WRITE, Access::Program);
        let gpa = self.translate(linear, request)?;
        if self.memory(|view| view.writable(gpa))?.is_err() {
            return Ok(0);
        }
        self.tx.set_bulk(Bulk { write: false, port, size, count: count as u32 });
        Err(self.stop(Why::Device))
    }

    /// Copies what the client has read to memory.
    fn take_elements(&mut self, size: u8, linear: u64, count: u64) -> Res<u64> {
        let request = self.request(Request::WRITE, Access::Program);
        let gpa = self.translate(linear, request)?;
        let total = count * u64::from(size);
        let mut done = 0;
        while done < total {
            let mut bytes = [0; CHUNK];
            let part = &mut bytes[..(total - done).min(CHUNK as u64) as usize];
            self.page.copy_from(PIO_DATA + done, part).map_err(|_| self.stop(Why::BadAddress))?;
            self.write_piece(gpa + done, part)?;
            done += part.len() as u64;
        }
        Ok(count)
    }
}
