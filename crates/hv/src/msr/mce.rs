//! Machine-check architecture (SDM vol. 3, chapter 16): banks that report what the client injects.
use x86::msr;

use super::{By, Refused};

/// Banks that a vCPU can have.
pub(crate) const BANKS: usize = 32;
/// Banks before KVM_X86_SETUP_MCE.
const DEFAULT_BANKS: u64 = 10;
/// MCG_CAP: MCG_CTL is present.
const MCG_CTL_P: u64 = 1 << 8;
/// What KVM_X86_SETUP_MCE may ask for: MCG_CTL, software error recovery.
pub(crate) const CAPABILITIES: u64 = MCG_CTL_P | 1 << 24;

/// The registers.
#[derive(Debug)]
pub(crate) struct Mce {
    cap: u64,
    status: u64,
    ctl: u64,
    /// CTL, STATUS, ADDR and MISC of each bank.
    banks: [[u64; 4]; BANKS],
}

impl Default for Mce {
    fn default() -> Self {
        let mut mce = Self { cap: 0, status: 0, ctl: 0, banks: [[0; 4]; BANKS] };
        mce.set_capabilities(DEFAULT_BANKS);
        mce
    }
}

/// The registers of the banks that exist from the start, and the global ones.
pub(super) fn indices() -> impl Iterator<Item = u32> {
    [msr::MCG_STATUS, msr::MCG_CTL].into_iter()
}

impl Mce {
    /// KVM_X86_SETUP_MCE, checked: bits 7:0 number of banks, then capabilities.
    pub(crate) fn setup(&mut self, cap: u64) -> Result<(), Refused> {
        let banks = cap & 0xff;
        if banks == 0 || banks > BANKS as u64 || cap & !(CAPABILITIES | 0xff | 0xff_0000) != 0 {
            return Err(Refused::Invalid);
        }
        self.set_capabilities(cap);
        Ok(())
    }

    fn set_capabilities(&mut self, cap: u64) {
        self.cap = cap;
        self.ctl = if cap & MCG_CTL_P != 0 { u64::MAX } else { 0 };
        for (i, bank) in self.banks.iter_mut().enumerate() {
            bank[0] = if (i as u64) < cap & 0xff { u64::MAX } else { 0 };
        }
    }

    fn bank(&self, index: u32) -> Option<(usize, usize)> {
        let offset = index.checked_sub(msr::MC0_CTL)? as usize;
        let bank = offset / 4;
        ((bank as u64) < self.cap & 0xff && bank < BANKS).then_some((bank, offset % 4))
    }

    pub(super) fn read(&self, index: u32) -> Option<u64> {
        Some(match index {
            msr::MCG_CAP => self.cap,
            msr::MCG_STATUS => self.status,
            msr::MCG_CTL => self.ctl,
            _ => {
                let (bank, register) = self.bank(index)?;
                self.banks[bank][register]
            }
        })
    }

    pub(super) fn write(&mut self, index: u32, value: u64, by: By) -> Option<Result<(), Refused>> {
        let (register, valid) = match index {
            msr::MCG_CAP => return Some(if by == By::Client { Ok(()) } else { Err(Refused::Invalid) }),
            msr::MCG_STATUS => (&mut self.status, true),
            // Without MCG_CTL_P the register holds nothing; QEMU restores it in any case.
            msr::MCG_CTL if self.cap & MCG_CTL_P == 0 => {
                return Some(if value == 0 || by == By::Client { Ok(()) } else { Err(Refused::Invalid) });
            }
            msr::MCG_CTL => (&mut self.ctl, value == 0 || value == u64::MAX),
            _ => {
                let (bank, register) = self.bank(index)?;
                let valid = match register {
                    // All or nothing; Linux clears bit 10 of bank 4 on K8, and bit 0 of bank 0 on P6.
                    0 => value == 0 || value | 1 << 10 | 1 == u64::MAX,
                    // A guest clears the status, it does not invent one.
                    1 => by == By::Client || value == 0,
                    _ => true,
                };
                (&mut self.banks[bank][register], valid)
            }
        };
        if !valid {
            return Some(Err(Refused::Invalid));
        }
        *register = value;
        Some(Ok(()))
    }

    /// Enters a machine check (KVM_X86_SET_MCE) into `bank`; true if it is to be signalled as #MC.
    pub(crate) fn inject(&mut self, bank: u8, status: u64, addr: u64, misc: u64, mcg: u64) -> Result<bool, Refused> {
        const VALID: u64 = 1 << 63;
        const OVERFLOW: u64 = 1 << 62;
        const UNCORRECTED: u64 = 1 << 61;
        let count = self.cap & 0xff;
        if u64::from(bank) >= count || status & VALID == 0 {
            return Err(Refused::Invalid);
        }
        let has_ctl = self.cap & MCG_CTL_P != 0;
        let registers = &mut self.banks[usize::from(bank) % BANKS];
        let uncorrected = status & UNCORRECTED != 0;
        if uncorrected && (has_ctl && self.ctl != u64::MAX || registers[0] != u64::MAX) {
            return Ok(false);
        }
        if !uncorrected && registers[1] & VALID != 0 && registers[1] & UNCORRECTED != 0 {
            registers[1] |= OVERFLOW;
            return Ok(false);
        }
        let overflow = if registers[1] & VALID != 0 { OVERFLOW } else { 0 };
        *registers = [registers[0], status | overflow, addr, misc];
        if uncorrected {
            self.status = mcg;
        }
        Ok(uncorrected)
    }
}
