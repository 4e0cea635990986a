//! MSRs that act: time-stamp counter, local APIC, kvmclock; and the way to all others.
use core::marker::PhantomData;

use abi::{KvmMsrEntry, KvmMsrs};
use alloc::vec::Vec;
use platform::Platform;
use x86::msr;

use super::{Inner, LocalApic, async_pf, clock::ClockWriter, para_2007};
use crate::{
    Errno, Outcome,
    backend::{Backend, BackendVcpu, Groups},
    cpuid::{PV_CLOCK, PV_CLOCK_NEW},
    msr::{By, Refused},
    uaccess,
    vm::VmShared,
};

/// Most registers of one call; Linux refuses 256 already.
pub(crate) const MAX_MSRS: usize = 255;

type Mem<B> = <<B as Backend>::Platform as Platform>::Memory;

/// Whether this register is one of this file.
#[cfg(test)]
pub(crate) fn is_active(index: u32) -> bool {
    matches!(
        index,
        msr::TSC | msr::TSC_ADJUST | msr::TSC_DEADLINE | msr::APIC_BASE | msr::X2APIC_FIRST
            ..=msr::X2APIC_LAST
                | msr::SMBASE
                | msr::SMI_COUNT
                | msr::KVM_WALL_CLOCK
                | msr::KVM_SYSTEM_TIME
                | msr::KVM_WALL_CLOCK_NEW
                | msr::KVM_SYSTEM_TIME_NEW
    ) || async_pf::is_ours(index)
}

impl<B: Backend> Inner<B> {
    /// Whether the guest's CPUID offers kvmclock by these MSRs. A client saves and restores them in any case.
    fn offers_clock(&self, index: u32, by: By) -> bool {
        let bit = if index > 0x4000_0000 { PV_CLOCK_NEW } else { PV_CLOCK };
        by == By::Client || self.cpuid.pv_features() & bit != 0
    }

    /// The same for asynchronous page faults.
    fn offers_async_pf(&self, index: u32, by: By) -> bool {
        async_pf::is_ours(index) && (by == By::Client || async_pf::is_offered(self.cpuid.pv_features()))
    }

    /// RDMSR.
    pub(crate) fn read_msr(&mut self, index: u32, by: By) -> Result<u64, Refused> {
        match index {
            msr::TSC => return Ok(self.tsc.read::<B::Platform>()),
            msr::TSC_ADJUST if by == By::Client || self.cpuid.has_tsc_adjust() => return Ok(self.tsc.adjust()),
            msr::APIC_BASE => return Ok(self.apic_base()),
            msr::SMBASE if by == By::Client => return Ok(self.smm.base.into()),
            msr::SMI_COUNT => return Ok(self.smm.count),
            msr::KVM_API_MAGIC_2007 => return Ok(self.para_2007.unwrap_or(0)),
            msr::TSC_DEADLINE if by == By::Client || self.cpuid.has_tsc_deadline() => {
                return Ok(self.apic.as_ref().map_or(0, |apic| apic.lapic.tsc_deadline()));
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                let apic = self.apic.as_ref().ok_or(Refused::Unknown)?;
                let now = LocalApic::<B::Platform>::now(&self.tsc);
                return apic.lapic.x2apic_read(index, now).map_err(|_| Refused::Invalid);
            }
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW if self.offers_clock(index, by) => {
                return Ok(self.pv.wall_clock);
            }
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_NEW if self.offers_clock(index, by) => {
                return Ok(self.pv.system_time);
            }
            _ if self.offers_async_pf(index, by) => return Ok(self.async_pf.read(index)),
            _ => {}
        }
        let state = self.cpu.registers(Groups::MSRS.and(Groups::SEGMENTS).and(Groups::CONTROL));
        self.msrs.read(index, by, state, &self.cpuid)
    }

    /// WRMSR. `reader` is this vCPU's number, for writes to guest memory.
    pub(crate) fn write_msr(
        &mut self,
        index: u32,
        value: u64,
        by: By,
        vm: &VmShared<B::Platform>,
        reader: usize,
    ) -> Result<(), Refused> {
        match index {
            msr::TSC => {
                if by == By::Guest {
                    self.tsc.write::<B::Platform>(value);
                } else {
                    self.tsc.set_offset(vm.clock.set_tsc::<B::Platform>(value, self.tsc.rate()));
                }
                self.tsc_changed(vm, reader);
                return Ok(());
            }
            msr::TSC_ADJUST if by == By::Client || self.cpuid.has_tsc_adjust() => {
                self.tsc.set_adjust(value, by == By::Guest);
                self.tsc_changed(vm, reader);
                return Ok(());
            }
            msr::APIC_BASE => return self.set_apic_base(value, by),
            msr::SMBASE if by == By::Client => {
                self.smm.base = u32::try_from(value).map_err(|_| Refused::Invalid)?;
                return Ok(());
            }
            msr::SMI_COUNT if by == By::Client => {
                self.smm.count = value;
                return Ok(());
            }
            msr::KVM_API_MAGIC_2007 => {
                self.para_2007 = para_2007::announce(value, self.features, vm, reader)?.then_some(value);
                return Ok(());
            }
            msr::TSC_DEADLINE if by == By::Client || self.cpuid.has_tsc_deadline() => {
                if let Some(apic) = &mut self.apic {
                    let effects = apic.lapic.set_tsc_deadline(value);
                    apic.apply(effects, vm, &self.tsc);
                }
                return Ok(());
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                let apic = self.apic.as_mut().ok_or(Refused::Unknown)?;
                let now = LocalApic::<B::Platform>::now(&self.tsc);
                let effects = apic.lapic.x2apic_write(index, value, now).map_err(|_| Refused::Invalid)?;
                apic.apply(effects, vm, &self.tsc);
                self.show_cr8();
                return Ok(());
            }
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW if self.offers_clock(index, by) => {
                self.pv.wall_clock = value;
                if by == By::Guest {
                    let writer = ClockWriter { vm, reader, platform: PhantomData::<B::Platform> };
                    writer.wall_clock(value);
                }
                return Ok(());
            }
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_NEW if self.offers_clock(index, by) => {
                self.pv.system_time = value;
                self.write_clock(vm, reader);
                return Ok(());
            }
            _ if self.offers_async_pf(index, by) => return self.async_pf.write(index, value, self.apic.is_some()),
            _ => {}
        }
        let state = self.cpu.registers_mut(Groups::MSRS.and(Groups::SEGMENTS).and(Groups::CONTROL));
        let effects = self.msrs.write(index, value, by, state, &self.cpuid)?;
        if effects.flush {
            self.flush_guest();
        }
        Ok(())
    }

    pub(super) fn tsc_changed(&mut self, vm: &VmShared<B::Platform>, reader: usize) {
        self.tsc.apply::<B>(&mut self.cpu);
        if let Some(apic) = &mut self.apic {
            apic.arm(&self.tsc);
        }
        self.write_clock(vm, reader);
    }

    /// Writes kvmclock's structure where the guest wants it.
    pub(crate) fn write_clock(&mut self, vm: &VmShared<B::Platform>, reader: usize) {
        let writer = ClockWriter { vm, reader, platform: PhantomData::<B::Platform> };
        writer.system_time(&mut self.pv, &self.tsc);
    }

    pub(crate) fn set_apic_base(&mut self, value: u64, by: By) -> Result<(), Refused> {
        let Some(apic) = &mut self.apic else {
            self.apic_base = value;
            return Ok(());
        };
        apic.lapic.set_apic_base(value, by == By::Client).map_err(|_| Refused::Invalid)?;
        apic.arm(&self.tsc);
        self.show_cr8();
        Ok(())
    }

    /// The task priority register may have changed: CR8 shows it.
    pub(crate) fn show_cr8(&mut self) {
        let Some(apic) = &self.apic else { return };
        let cr8 = apic.lapic.cr8();
        // A back end takes its time for what has been written.
        if self.cpu.registers(Groups::SWITCHES).cr8 != cr8 {
            self.cpu.registers_mut(Groups::SWITCHES).cr8 = cr8;
        }
    }

    /// KVM_GET_MSRS: how many of the entries could be read, in order.
    pub(super) fn get_msrs(&mut self, arg: u64) -> Result<Outcome<B>, Errno> {
        let mut entries = Self::msr_entries(arg)?;
        let mut done = 0;
        for entry in &mut entries {
            let Ok(value) = self.read_msr(entry.index, By::Client) else { break };
            entry.data = value;
            done += 1;
        }
        uaccess::put_tail::<Mem<B>, KvmMsrs, _>(arg, &entries)?;
        Ok(Outcome::Value(done))
    }

    /// KVM_SET_MSRS: how many of the entries could be written, in order.
    pub(super) fn set_msrs(
        &mut self,
        arg: u64,
        vm: &VmShared<B::Platform>,
        reader: usize,
    ) -> Result<Outcome<B>, Errno> {
        let mut done = 0;
        for entry in Self::msr_entries(arg)? {
            if self.write_msr(entry.index, entry.data, By::Client, vm, reader).is_err() {
                break;
            }
            done += 1;
        }
        Ok(Outcome::Value(done))
    }

    fn msr_entries(arg: u64) -> Result<Vec<KvmMsrEntry>, Errno> {
        let header: KvmMsrs = uaccess::get::<Mem<B>, _>(arg)?;
        uaccess::get_tail::<Mem<B>, KvmMsrs, KvmMsrEntry>(arg, header.nmsrs, MAX_MSRS)
    }
}
