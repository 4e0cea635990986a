//! The ioctls of a VM's descriptor.
use core::sync::atomic::Ordering::SeqCst;

use abi::*;
use mmu::shadow::{LEAST_PAGES, default_limit};
use platform::{MaySleep, Platform};

use super::{Irqchip, MAX_VCPUS, Vm};
use crate::{
    Errno, Outcome, StatsFile, Vcpu,
    backend::Backend,
    uaccess,
    vcpu::{Rate, request},
};

type Mem<B> = <<B as Backend>::Platform as Platform>::Memory;

impl<B: Backend> Vm<B> {
    /// `ioctl` on a VM's descriptor.
    pub fn ioctl(&self, nr: u32, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        match nr {
            KVM_CHECK_EXTENSION => Ok(Outcome::Value(self.kvm().check_extension(arg))),
            KVM_CREATE_VCPU => self.create_vcpu(arg, cx),
            KVM_SET_USER_MEMORY_REGION => self.set_user_memory_region(arg, cx),
            KVM_SET_MEMORY_REGION => self.set_memory_region(arg, cx),
            KVM_SET_MEMORY_ALIAS => self.set_memory_alias(arg, cx),
            KVM_GET_DIRTY_LOG => self.get_dirty_log(arg, cx),
            KVM_CLEAR_DIRTY_LOG => self.clear_dirty_log(arg, cx),
            KVM_SET_NR_MMU_PAGES => {
                if arg < LEAST_PAGES as u64 {
                    return Err(Errno::EINVAL);
                }
                self.shared().settings.mmu_pages.store(arg, SeqCst);
                if let Some(shadow) = &self.shared().shadow {
                    let limit = usize::try_from(arg).unwrap_or(usize::MAX);
                    self.shared().settle(shadow, shadow.set_limit(limit))?;
                }
                Ok(Outcome::OK)
            }
            KVM_GET_NR_MMU_PAGES => {
                let pages = match &self.shared().shadow {
                    Some(shadow) => shadow.usage().0 as u64,
                    None => match self.shared().settings.mmu_pages.load(SeqCst) {
                        // What the bound would be where there are shadow pages.
                        0 => default_limit(self.shared().memory.locked(cx).pages()) as u64,
                        pages => pages,
                    },
                };
                Ok(Outcome::Value(i32::try_from(pages).unwrap_or(i32::MAX)))
            }
            KVM_SET_TSS_ADDR => self.set_tss_addr(arg),
            KVM_SET_IDENTITY_MAP_ADDR => self.set_identity_map_addr(arg),
            KVM_CREATE_IRQCHIP => self.create_irqchip(),
            KVM_CREATE_PIT => self.create_pit(None),
            KVM_CREATE_PIT2 => self.create_pit(Some(arg)),
            KVM_IRQ_LINE => self.irq_line(arg, false),
            KVM_IRQ_LINE_STATUS => self.irq_line(arg, true),
            KVM_IRQFD => self.irqfd(arg, cx),
            KVM_IOEVENTFD => self.ioeventfd(arg, cx),
            KVM_REGISTER_COALESCED_MMIO => self.register_coalesced(arg, cx),
            KVM_UNREGISTER_COALESCED_MMIO => self.unregister_coalesced(arg, cx),
            KVM_SIGNAL_MSI => self.signal_msi(arg),
            KVM_SET_GSI_ROUTING => self.set_gsi_routing(arg),
            KVM_GET_IRQCHIP => self.get_irqchip(arg),
            KVM_SET_IRQCHIP => self.set_irqchip(arg),
            KVM_GET_PIT => self.get_pit(arg),
            KVM_SET_PIT => self.set_pit(arg),
            KVM_GET_PIT2 => self.get_pit2(arg),
            KVM_SET_PIT2 => self.set_pit2(arg),
            KVM_REINJECT_CONTROL => self.reinject_control(arg),
            KVM_SET_BOOT_CPU_ID => self.set_boot_cpu_id(arg),
            KVM_X86_SET_MSR_FILTER => self.set_msr_filter(arg, cx),
            KVM_ENABLE_CAP => self.enable_cap(arg, cx),
            KVM_GET_CLOCK => self.get_clock(arg),
            KVM_SET_CLOCK => self.set_clock(arg),
            KVM_SET_TSC_KHZ => {
                let khz = u32::try_from(arg).map_err(|_| Errno::EINVAL)?;
                Rate::new::<B::Platform>(khz).ok_or(Errno::EINVAL)?;
                self.shared().settings.tsc_khz.store(khz, SeqCst);
                Ok(Outcome::OK)
            }
            KVM_GET_TSC_KHZ => Ok(Outcome::Value(i32::try_from(self.shared().tsc_khz()).unwrap_or(i32::MAX))),
            KVM_GET_STATS_FD => Ok(Outcome::NewStats(StatsFile::new(self.clone(), None))),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn create_vcpu(&self, id: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let index = usize::try_from(id).ok().filter(|i| *i < MAX_VCPUS).ok_or(Errno::EINVAL)?;
        let _config = self.0.config.lock();
        if self.vcpus().get(index).is_some() {
            return Err(Errno::EEXIST);
        }
        let vcpu = Vcpu::create(self, index, cx)?;
        // Last: what failed before has left nothing behind.
        self.vcpus().publish(index);
        Ok(Outcome::NewVcpu(vcpu))
    }

    fn set_tss_addr(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        // Three pages below 4 GiB, as Linux has it.
        if arg > 0xffff_ffff - 3 * 4096 {
            return Err(Errno::EINVAL);
        }
        self.shared().settings.tss_addr.store(arg, SeqCst);
        Ok(Outcome::OK)
    }

    fn set_identity_map_addr(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        let addr: u64 = uaccess::get::<Mem<B>, _>(arg)?;
        let _config = self.0.config.lock();
        if self.vcpus().iter().next().is_some() {
            return Err(Errno::EINVAL);
        }
        let addr = if addr == 0 { 0xfffb_c000 } else { addr };
        self.shared().settings.identity_map_addr.store(addr, SeqCst);
        Ok(Outcome::OK)
    }

    fn set_boot_cpu_id(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        let _config = self.0.config.lock();
        if self.vcpus().iter().next().is_some() {
            return Err(Errno::EBUSY);
        }
        let id = u32::try_from(arg).ok().filter(|id| (*id as usize) < MAX_VCPUS).ok_or(Errno::EINVAL)?;
        self.shared().settings.boot_cpu.store(id, SeqCst);
        Ok(Outcome::OK)
    }

    fn get_clock(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        let now = self.shared().clock.read::<B::Platform>();
        let clock = KvmClockData {
            clock: now.kvmclock,
            flags: KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC,
            realtime: B::Platform::wall_clock_ns(),
            host_tsc: now.host_tsc,
            ..KvmClockData::default()
        };
        uaccess::put::<Mem<B>, _>(arg, &clock)?;
        Ok(Outcome::OK)
    }

    fn set_clock(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        let clock: KvmClockData = uaccess::get::<Mem<B>, _>(arg)?;
        // What KVM_GET_CLOCK answers is taken back; only REALTIME means something.
        if clock.flags & !(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC) != 0 {
            return Err(Errno::EINVAL);
        }
        let passed = if clock.flags & KVM_CLOCK_REALTIME != 0 {
            B::Platform::wall_clock_ns().saturating_sub(clock.realtime)
        } else {
            0
        };
        self.shared().clock.set::<B::Platform>(clock.clock.saturating_add(passed));
        self.vcpus().request_all(request::CLOCK);
        Ok(Outcome::OK)
    }

    /// Whether local APICs are in the hypervisor.
    pub(crate) fn has_lapic(&self) -> bool {
        self.shared().chips.mode() != Irqchip::None
    }
}
