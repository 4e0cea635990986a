//! The ioctls of a vCPU's descriptor.
use abi::*;
use platform::{Hva, MaySleep, Memory, Platform};

use super::{Inner, Rate, Vcpu};
use crate::{
    Errno, Outcome, StatsFile,
    backend::{Backend, BackendVcpu, Groups},
    cpuid::{Cpuid, MAX_ENTRIES},
    uaccess,
    vm::Irqchip,
};

type Mem<B> = <<B as Backend>::Platform as Platform>::Memory;

impl<B: Backend> Vcpu<B> {
    /// `ioctl` on a vCPU's descriptor. KVM_RUN returns `Err(EINTR)` for a signal; every other end of KVM_RUN that the
    /// client is to handle is `Ok(Outcome::OK)` with `exit_reason` in the shared page.
    pub fn ioctl(&self, nr: u32, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        // A vCPU is used by one thread at a time.
        let mut guard = self.0.inner.lock();
        let inner = &mut *guard;
        if nr == KVM_RUN {
            return if arg == 0 { self.run(inner, cx) } else { Err(Errno::EINVAL) };
        }
        self.other_ioctl(inner, nr, arg)
    }

    /// All but KVM_RUN, and apart from it: what these copy would take half of a kernel's stack from it.
    #[inline(never)]
    fn other_ioctl(&self, inner: &mut Inner<B>, nr: u32, arg: u64) -> Result<Outcome<B>, Errno> {
        // Some of these use guest memory.
        let _in_use = self.shared().begin();
        let (vm, index) = (&**self.vm().shared(), self.0.index);
        match nr {
            KVM_GET_REGS => put::<B, _>(arg, &inner.get_regs()),
            KVM_SET_REGS => inner.set_regs(&get::<B, _>(arg)?),
            KVM_GET_SREGS => put::<B, _>(arg, &inner.get_sregs()),
            KVM_SET_SREGS => inner.set_sregs(&get::<B, _>(arg)?, vm, index),
            KVM_GET_SREGS2 => put::<B, _>(arg, &inner.get_sregs2(vm, index)),
            KVM_SET_SREGS2 => inner.set_sregs2(&get::<B, _>(arg)?, vm, index),
            KVM_GET_FPU => put::<B, _>(arg, &inner.get_fpu()),
            KVM_SET_FPU => inner.set_fpu(&get::<B, _>(arg)?),
            KVM_GET_XSAVE | KVM_GET_XSAVE2 => inner.get_xsave(arg, self.vm().kvm().backend()),
            KVM_SET_XSAVE => inner.set_xsave(arg, self.vm().kvm().backend()),
            KVM_GET_XCRS => put::<B, _>(arg, &inner.get_xcrs()),
            KVM_SET_XCRS => inner.set_xcrs(&get::<B, _>(arg)?, self.vm().kvm().backend()),
            KVM_GET_DEBUGREGS => put::<B, _>(arg, &inner.get_debugregs()),
            KVM_SET_DEBUGREGS => inner.set_debugregs(&get::<B, _>(arg)?),
            KVM_GET_MSRS => inner.get_msrs(arg),
            KVM_SET_MSRS => inner.set_msrs(arg, vm, index),
            KVM_SET_CPUID2 => self.set_cpuid2(inner, arg),
            KVM_GET_CPUID2 => get_cpuid2(inner, arg),
            KVM_SET_CPUID => self.set_cpuid_2007(inner, arg),
            KVM_TRANSLATE => inner.translate(arg, vm, index),
            KVM_INTERRUPT => inner.interrupt(&get::<B, _>(arg)?, vm.chips.mode()),
            KVM_TPR_ACCESS_REPORTING => inner.tpr_access_reporting(arg),
            KVM_SET_VAPIC_ADDR => inner.set_vapic_addr(get::<B, KvmVapicAddr>(arg)?.vapic_addr, vm, index),
            KVM_NMI => {
                self.shared().lapic.queue_nmi();
                Ok(Outcome::OK)
            }
            KVM_SMI => {
                self.shared().lapic.queue_smi();
                Ok(Outcome::OK)
            }
            KVM_GET_MP_STATE => {
                inner.pull_init_sipi(vm, index);
                put::<B, _>(arg, &KvmMpState { mp_state: inner.mp.to_abi() })
            }
            KVM_SET_MP_STATE => inner.set_mp_state(&get::<B, _>(arg)?, &self.shared().lapic),
            KVM_GET_VCPU_EVENTS => put::<B, _>(arg, &inner.get_events(vm, &self.shared().lapic)),
            KVM_SET_VCPU_EVENTS => inner.set_events(&get::<B, _>(arg)?, vm, &self.shared().lapic),
            KVM_GET_LAPIC => inner.get_lapic(arg, vm),
            KVM_SET_LAPIC => inner.set_lapic(arg, vm),
            KVM_SET_GUEST_DEBUG => inner.set_guest_debug(&get::<B, _>(arg)?),
            KVM_DEBUG_GUEST => inner.debug_guest_2007(&get::<B, _>(arg)?),
            KVM_SET_SIGNAL_MASK => self.signal_mask_ioctl(arg),
            KVM_X86_SETUP_MCE => {
                let cap: u64 = get::<B, _>(arg)?;
                inner.msrs.mce.setup(cap).map_err(|_| Errno::EINVAL)?;
                Ok(Outcome::OK)
            }
            KVM_X86_SET_MCE => inner.set_mce(&get::<B, _>(arg)?),
            KVM_SET_TSC_KHZ => {
                let rate = u32::try_from(arg).ok().and_then(Rate::new::<B::Platform>).ok_or(Errno::EINVAL)?;
                inner.tsc.set_rate(rate, vm.clock.tsc_offset(rate));
                inner.tsc_changed(vm, index);
                Ok(Outcome::OK)
            }
            KVM_GET_TSC_KHZ => Ok(Outcome::Value(i32::try_from(inner.tsc.rate().khz()).unwrap_or(i32::MAX))),
            KVM_HAS_DEVICE_ATTR => inner.has_device_attr(&get::<B, _>(arg)?),
            KVM_GET_DEVICE_ATTR => inner.get_device_attr(&get::<B, _>(arg)?),
            KVM_SET_DEVICE_ATTR => inner.set_device_attr(&get::<B, _>(arg)?, vm, index),
            KVM_GET_NESTED_STATE => inner.get_nested_state(arg),
            KVM_SET_NESTED_STATE => inner.set_nested_state(arg),
            KVM_KVMCLOCK_CTRL => {
                if inner.pv.system_time & 1 == 0 {
                    return Err(Errno::EINVAL);
                }
                inner.pv.stopped = true;
                self.shared().request(super::request::CLOCK);
                Ok(Outcome::OK)
            }
            KVM_ENABLE_CAP => Err(Errno::EINVAL),
            KVM_GET_STATS_FD => Ok(Outcome::NewStats(StatsFile::new(self.vm().clone(), Some(index)))),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn set_cpuid2(&self, inner: &mut Inner<B>, arg: u64) -> Result<Outcome<B>, Errno> {
        let header: KvmCpuid2 = get::<B, _>(arg)?;
        let entries = uaccess::get_tail::<Mem<B>, KvmCpuid2, KvmCpuidEntry2>(arg, header.nent, MAX_ENTRIES)?;
        self.use_cpuid(inner, Cpuid::new(entries))
    }

    fn set_cpuid_2007(&self, inner: &mut Inner<B>, arg: u64) -> Result<Outcome<B>, Errno> {
        let header: KvmCpuid = get::<B, _>(arg)?;
        let entries = uaccess::get_tail::<Mem<B>, KvmCpuid, KvmCpuidEntry>(arg, header.nent, MAX_ENTRIES)?;
        self.use_cpuid(inner, Cpuid::from_2007(&entries)?)
    }

    /// CPUID is fixed once the guest has run, except for being set to the same again.
    fn use_cpuid(&self, inner: &mut Inner<B>, cpuid: Cpuid) -> Result<Outcome<B>, Errno> {
        if inner.ran {
            let same = inner.cpuid.entries() == cpuid.entries();
            return if same { Ok(Outcome::OK) } else { Err(Errno::EINVAL) };
        }
        inner.set_cpuid(cpuid, self.vm().kvm().backend());
        Ok(Outcome::OK)
    }

    /// KVM_SET_SIGNAL_MASK: 8 bytes of signal set behind their length; a null pointer takes the mask back.
    fn signal_mask_ioctl(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        if arg == 0 {
            self.set_signal_mask(None);
            return Ok(Outcome::OK);
        }
        let header: KvmSignalMask = get::<B, _>(arg)?;
        if header.len != 8 {
            return Err(Errno::EINVAL);
        }
        let mut set = [0; 8];
        Mem::<B>::copy_from(Hva::of_client(arg)?.add(size_of::<KvmSignalMask>() as u64), &mut set)?;
        self.set_signal_mask(Some(u64::from_le_bytes(set)));
        Ok(Outcome::OK)
    }
}

fn get<B: Backend, T: Pod>(arg: u64) -> Result<T, Errno> {
    uaccess::get::<Mem<B>, T>(arg)
}

fn put<B: Backend, T: Pod>(arg: u64, value: &T) -> Result<Outcome<B>, Errno> {
    uaccess::put::<Mem<B>, T>(arg, value)?;
    Ok(Outcome::OK)
}

fn get_cpuid2<B: Backend>(inner: &Inner<B>, arg: u64) -> Result<Outcome<B>, Errno> {
    let header: KvmCpuid2 = get::<B, _>(arg)?;
    let entries = inner.cpuid.entries();
    if (header.nent as usize) < entries.len() {
        return Err(Errno::E2BIG);
    }
    uaccess::put::<Mem<B>, _>(arg, &KvmCpuid2 { nent: entries.len() as u32, padding: 0 })?;
    uaccess::put_tail::<Mem<B>, KvmCpuid2, _>(arg, entries)?;
    Ok(Outcome::OK)
}

impl<B: Backend> Inner<B> {
    /// KVM_INTERRUPT: queues a vector. With a local APIC in the hypervisor it comes from the client's 8259A, which has one
    /// INTR line.
    fn interrupt(&mut self, interrupt: &KvmInterrupt, mode: Irqchip) -> Result<Outcome<B>, Errno> {
        let vector = u8::try_from(interrupt.irq).map_err(|_| Errno::EINVAL)?;
        match mode {
            Irqchip::Kernel => return Err(Errno::ENXIO),
            Irqchip::Split if self.events.client_irq().is_some() => return Err(Errno::EEXIST),
            Irqchip::Split | Irqchip::None => {}
        }
        self.events.add_client_irq(vector);
        Ok(Outcome::OK)
    }

    fn set_mce(&mut self, mce: &KvmX86Mce) -> Result<Outcome<B>, Errno> {
        let injected = self.msrs.mce.inject(mce.bank, mce.status, mce.addr, mce.misc, mce.mcg_status);
        if injected.map_err(|_| Errno::EINVAL)? {
            let state = self.cpu.registers(Groups::CONTROL);
            if state.cr4 & x86::Cr4::MCE.bits() == 0 {
                self.events.triple_fault = true;
            } else {
                self.events.raise(x86::Exception::plain(x86::Vector::MC));
            }
        }
        Ok(Outcome::OK)
    }
}
