//! Port I/O (row A06). IN and OUT are handled here without decoding anything: they are the commonest exits to a
//! client. INS and OUTS are the emulator's.
use abi::*;
use platform::{EventFd, MaySleep};
use x86::{Mode, Seg};

use crate::{
    Errno,
    backend::{Backend, BackendVcpu, Groups, PioExit},
    emulation::{Completion, PendingPio},
    stats::Counter,
    vcpu::{PIO_DATA, Run, Step},
    vm::Space,
};

/// A port of a firmware of old whose OUT must not be repeated (`KVM_X86_QUIRK_OUT_7E_INC_RIP`).
const QUIRK_PORT: u16 = 0x7e;

impl<B: Backend> Run<'_, B> {
    pub(super) fn pio(&mut self, pio: PioExit, cx: &MaySleep) -> Result<Step, Errno> {
        if !pio.is_plain() {
            return self.emulate(cx);
        }
        match self.port(&pio) {
            Some(value) => {
                self.pio_done(&pio, value);
                self.skip(pio.len);
                Ok(Step::Continue)
            }
            None => self.pio_client(pio),
        }
    }

    /// The client is to carry an access out.
    pub(crate) fn pio_client(&mut self, pio: PioExit) -> Result<Step, Errno> {
        let data = self.accumulator().to_le_bytes();
        self.shared.stats.count(Counter::PioUserExits);
        self.page.copy_to(PIO_DATA, data.get(..usize::from(pio.size)).unwrap_or_default())?;
        let io = KvmRunIo {
            direction: if pio.write { KVM_EXIT_IO_OUT } else { KVM_EXIT_IO_IN },
            size: pio.size,
            port: pio.port,
            count: 1,
            data_offset: PIO_DATA,
        };
        self.page.exit(KVM_EXIT_IO, &io)?;
        if pio.write && pio.port == QUIRK_PORT && !self.vm.quirk_disabled(KVM_X86_QUIRK_OUT_7E_INC_RIP) {
            self.skip(pio.len);
        } else {
            let at = self.linear_rip();
            self.inner.tx.set_completion(Completion::Pio(PendingPio { exit: pio, at }));
        }
        Ok(Step::ToClient)
    }

    /// EAX.
    fn accumulator(&mut self) -> u32 {
        self.inner.cpu.registers(Groups::PLAIN).gpr[0] as u32
    }

    /// Carries an access out inside the hypervisor, and answers what has been read or written; None: it is the client's.
    #[inline(always)]
    pub(super) fn port(&mut self, pio: &PioExit) -> Option<u32> {
        let vm = self.vm;
        let device = vm.bus.of_port(pio.port, pio.size);
        if !pio.write {
            return device.map(|device| vm.port_in(device, pio.port, pio.size));
        }
        let value = self.accumulator() & pio.mask();
        let (reader, at, len) = (self.index, pio.port.into(), pio.size.into());
        if let Some(event) = vm.ioeventfds.find(reader, Space::Pio, at, len, value.into()) {
            event.signal();
        } else if let Some(device) = device {
            vm.port_out(device, pio.port, pio.size, value);
        } else if !self.coalesced(pio, value) {
            return None;
        }
        Some(value)
    }

    /// Puts a write into the ring of coalesced ones, if it belongs there.
    #[inline(never)]
    fn coalesced(&self, pio: &PioExit, value: u32) -> bool {
        let (ring, at, len) = (&self.vm.coalesced, pio.port.into(), usize::from(pio.size));
        ring.wants(self.index, Space::Pio, at, len as u64)
            && value.to_le_bytes().get(..len).is_some_and(|data| ring.push(Space::Pio, at, data))
    }

    /// An access has been carried out inside.
    #[inline]
    pub(super) fn pio_done(&mut self, pio: &PioExit, value: u32) {
        self.shared.stats.count(Counter::PioKernel);
        if !pio.write {
            self.load_accumulator(value, pio);
        }
    }

    /// The client has carried out an IN or OUT.
    pub(crate) fn complete_pio(&mut self, pio: &PendingPio) -> Result<Step, Errno> {
        if self.linear_rip() != pio.at {
            // The client put the vCPU somewhere else (reset): the instruction is no more.
            return Ok(Step::Continue);
        }
        if !pio.exit.write {
            let mut data = [0; 4];
            self.page.copy_from(PIO_DATA, &mut data)?;
            self.load_accumulator(u32::from_le_bytes(data), &pio.exit);
        }
        self.skip(pio.exit.len);
        Ok(Step::Continue)
    }

    /// AL, AX or EAX.
    fn load_accumulator(&mut self, value: u32, pio: &PioExit) {
        let mask = pio.mask();
        // A register of 32 bits that is written clears the other half.
        let kept = if mask == u32::MAX { 0 } else { !u64::from(mask) };
        let rax = &mut self.inner.cpu.registers_mut(Groups::PLAIN).gpr[0];
        *rax = *rax & kept | u64::from(value & mask);
    }

    /// Linear address of the instruction.
    pub(super) fn linear_rip(&mut self) -> u64 {
        let state = self.inner.cpu.registers(Groups::GENERAL);
        if state.mode == Mode::Long64 {
            // Code has no base there, and segments take long to fetch.
            return state.rip;
        }
        let state = self.inner.cpu.registers(Groups::GENERAL.and(Groups::SEGMENTS));
        state.seg[Seg::Cs as usize].base.wrapping_add(state.rip)
    }
}
