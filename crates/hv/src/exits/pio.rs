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
            Some(data) => {
                self.pio_done(&pio, data);
                self.skip(pio.len);
                Ok(Step::Continue)
            }
            None => self.pio_client(pio),
        }
    }

    /// The client is to carry an access out.
    pub(crate) fn pio_client(&mut self, pio: PioExit) -> Result<Step, Errno> {
        let data = self.accumulator();
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
    fn accumulator(&mut self) -> [u8; 4] {
        (self.inner.cpu.registers(Groups::PLAIN).gpr[0] as u32).to_le_bytes()
    }

    /// Carries an access out inside the hypervisor, and answers what has been read or written; None: it is the client's.
    #[inline(always)]
    pub(super) fn port(&mut self, pio: &PioExit) -> Option<[u8; 4]> {
        let mut all = self.accumulator();
        let data = all.get_mut(..usize::from(pio.size))?;
        let (vm, reader, at, len) = (self.vm, self.index, pio.port.into(), pio.size.into());
        if pio.write {
            let mut value = [0; 8];
            value.iter_mut().zip(&*data).for_each(|(to, from)| *to = *from);
            if let Some(event) = vm.ioeventfds.find(reader, Space::Pio, at, len, u64::from_le_bytes(value)) {
                event.signal();
                return Some(all);
            }
        }
        match vm.bus.find(reader, Space::Pio, at, len) {
            Some(device) if pio.write => vm.port_out(device, pio.port, data),
            Some(device) => vm.port_in(device, pio.port, data),
            None => {
                let pushed = pio.write
                    && vm.coalesced.wants(reader, Space::Pio, at, len)
                    && vm.coalesced.push(Space::Pio, at, data);
                return pushed.then_some(all);
            }
        }
        Some(all)
    }

    /// An access has been carried out inside.
    #[inline]
    pub(super) fn pio_done(&mut self, pio: &PioExit, data: [u8; 4]) {
        self.shared.stats.count(Counter::PioKernel);
        if !pio.write {
            self.load_accumulator(data, pio.size);
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
            self.load_accumulator(data, pio.exit.size);
        }
        self.skip(pio.exit.len);
        Ok(Step::Continue)
    }

    /// AL, AX or EAX.
    fn load_accumulator(&mut self, data: [u8; 4], size: u8) {
        let value = u64::from(u32::from_le_bytes(data));
        let rax = &mut self.inner.cpu.registers_mut(Groups::PLAIN).gpr[0];
        *rax = match size {
            1 => *rax & !0xff | value & 0xff,
            2 => *rax & !0xffff | value & 0xffff,
            _ => value,
        };
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
