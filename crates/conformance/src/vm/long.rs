//! The same small machine in 64-bit mode.
use abi::KvmSegment;
use iced_x86::{IcedError, code_asm::CodeAssembler};

use super::{RealMode, assemble};
use crate::device::Device;

impl RealMode {
    /// Brings the vCPU to 64-bit mode, privilege level 0, at `ip`, where `code` is put. The first 2 MiB are mapped to
    /// themselves by tables at 0x4000 to 0x6fff; there is no descriptor table.
    pub fn go_long(&self, device: &Device, ip: u64, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        self.memory.write(ip as usize, &assemble(64, ip, code));
        for (at, entry) in [(0x4000, 0x5003), (0x5000, 0x6003), (0x6000, 0x83)] {
            self.memory.set_u64(at, entry);
        }
        self.vcpu.support_all(device);
        self.vcpu.edit_sregs(|s| {
            (s.cr0, s.cr3, s.cr4, s.efer) = (0x8000_0011, 0x4000, 0x20, 0x500);
            let flat = KvmSegment { limit: u32::MAX, present: 1, s: 1, g: 1, ..KvmSegment::default() };
            s.cs = KvmSegment { selector: 8, type_: 11, l: 1, ..flat };
            for segment in [&mut s.ds, &mut s.es, &mut s.fs, &mut s.gs, &mut s.ss] {
                *segment = KvmSegment { selector: 16, type_: 3, db: 1, ..flat };
            }
        });
        self.vcpu.edit_regs(|r| (r.rip, r.rsp, r.rflags) = (ip, 0x8000, 2));
    }
}
