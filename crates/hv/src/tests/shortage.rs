//! Memory runs out at each allocation of a call in turn: the client gets ENOMEM, nothing is left behind, and the same call
//! works when there is memory again.
use abi::*;
use platform::scarce::{self, Shortage};
use x86::{exception::pf, paging as bits};

use crate::{
    Errno, Kvm, Outcome,
    backend::{Access, Exit, Translation},
    testing::{Machine, RAM, cx, entries, host::Mapping, script::Scripted},
};

const ALL: [Translation; 3] =
    [Translation::Slots, Translation::Shadow, Translation::Nested(mmu::shadow::EntryFormat::X86)];

/// Runs `call` on what `prepare` makes, each of its allocations failing in turn, alone or with all that follow. It must
/// answer ENOMEM, and then work; or work, if it can do without. How many allocations have led to ENOMEM.
#[track_caller]
fn each_in_turn<T>(prepare: impl Fn() -> T, call: impl Fn(&T) -> Result<(), Errno>) -> u64 {
    // What is made once and for all.
    assert_eq!(call(&prepare()), Ok(()));
    let mut failed = 0;
    for shortage in [Shortage::Once, Shortage::Lasting] {
        for count in 0.. {
            let before = scarce::bytes();
            let made = prepare();
            let (result, short) = scarce::run_short(count, shortage, || call(&made));
            match result {
                Err(Errno::ENOMEM) if short => {
                    failed += 1;
                    assert_eq!(call(&made), Ok(()), "with memory again, after allocation {count}, {shortage:?}");
                }
                result => assert_eq!(result, Ok(()), "allocation {count}, {shortage:?}"),
            }
            drop(made);
            assert_eq!(scarce::bytes(), before, "left behind after allocation {count}, {shortage:?}");
            if !short {
                break;
            }
        }
    }
    failed
}

fn kvm(translation: Translation) -> Kvm<Scripted> {
    Kvm::new(Scripted { translation, ..Scripted::default() }, &cx()).unwrap()
}

#[test]
fn a_vm_is_made() {
    for translation in ALL {
        let count = each_in_turn(|| kvm(translation), |kvm| kvm.ioctl(KVM_CREATE_VM, 0, &cx()).map(drop));
        assert!(count > 256, "each vCPU that it may have has a place: {count}");
    }
}

#[test]
fn a_vcpu_is_made() {
    for (translation, chips) in ALL.into_iter().flat_map(|translation| [(translation, false), (translation, true)]) {
        let prepare = || {
            let Outcome::NewVm(vm) = kvm(translation).ioctl(KVM_CREATE_VM, 0, &cx()).unwrap() else { panic!("no VM") };
            if chips {
                vm.ioctl(KVM_CREATE_IRQCHIP, 0, &cx()).unwrap();
            }
            vm
        };
        let count = each_in_turn(prepare, |vm| vm.ioctl(KVM_CREATE_VCPU, 7, &cx()).map(drop));
        assert!(count > 0, "{count}");
    }
}

#[test]
fn interrupt_controllers_are_made() {
    let prepare = || {
        let Outcome::NewVm(vm) = kvm(Translation::Slots).ioctl(KVM_CREATE_VM, 0, &cx()).unwrap() else {
            panic!("no VM")
        };
        vm
    };
    each_in_turn(prepare, |vm| vm.ioctl(KVM_CREATE_IRQCHIP, 0, &cx()).map(drop));
    let pit = || {
        let vm = prepare();
        vm.ioctl(KVM_CREATE_IRQCHIP, 0, &cx()).unwrap();
        vm
    };
    each_in_turn(pit, |vm| vm.ioctl(KVM_CREATE_PIT, 0, &cx()).map(drop));
}

/// A structure for an ioctl of the VM.
fn vm_ioctl<T: Pod + Copy>(m: &Machine, nr: u32, value: T) -> Result<(), Errno> {
    let mut value = value;
    m.vm_ioctl(nr, &mut value).map(drop)
}

fn machines() -> impl Iterator<Item = impl Fn() -> Machine> {
    ALL.into_iter().map(|translation| move || Machine::on(translation))
}

fn slot(gpa: u64, pages: u64, flags: u32) -> KvmUserspaceMemoryRegion {
    // Nothing is read there.
    let (slot, memory_size, userspace_addr) = (3, pages << 12, 0x10_0000);
    KvmUserspaceMemoryRegion { slot, flags, guest_phys_addr: gpa, memory_size, userspace_addr }
}

#[test]
fn slots_come_change_and_go() {
    const NEW: u64 = 1 << 30;
    for machine in machines() {
        let set = |m: &Machine, region| vm_ioctl(m, KVM_SET_USER_MEMORY_REGION, region);
        each_in_turn(&machine, |m| set(m, slot(NEW, 600, KVM_MEM_LOG_DIRTY_PAGES)));
        let with_slot = || {
            let m = machine();
            set(&m, slot(NEW, 600, 0)).unwrap();
            m
        };
        for changed in
            [slot(NEW, 600, KVM_MEM_LOG_DIRTY_PAGES), slot(NEW, 600, KVM_MEM_READONLY), slot(2 * NEW, 600, 0)]
        {
            let expected = if changed.flags & KVM_MEM_READONLY != 0 { Err(Errno::EINVAL) } else { Ok(()) };
            if expected.is_ok() {
                each_in_turn(with_slot, |m| set(m, changed));
            }
        }
        each_in_turn(with_slot, |m| set(m, slot(NEW, 0, 0)));
        each_in_turn(&machine, |m| {
            let region = KvmMemoryRegion { slot: 4, flags: 0, guest_phys_addr: NEW, memory_size: 0x2000 };
            vm_ioctl(m, KVM_SET_MEMORY_REGION, region)
        });
    }
}

#[test]
fn what_a_vm_is_told_is_kept() {
    let chips = Machine::with_irqchip;
    let mut routes = KvmIrqRouting { nr: 40, flags: 0 }.bytes().to_vec();
    (0..40).for_each(|gsi| routes.extend(KvmIrqRoutingEntry::to_msi(gsi, 0xfee0_0000, 0x40).bytes()));
    let set = |m: &Machine| {
        let mut routes = scarce::plenty(|| routes.clone());
        m.client.with_bytes(&mut routes, |arg| m.vm.ioctl(KVM_SET_GSI_ROUTING, arg, &cx())).map(drop)
    };
    assert!(each_in_turn(chips, set) > 0);

    let irqfd = KvmIrqfd { fd: 901, gsi: 5, flags: 0, resamplefd: 0, pad: [0; 16] };
    assert!(each_in_turn(chips, |m| vm_ioctl(m, KVM_IRQFD, irqfd)) > 0);
    let resample = KvmIrqfd { flags: KVM_IRQFD_FLAG_RESAMPLE, resamplefd: 903, ..irqfd };
    assert!(each_in_turn(chips, |m| vm_ioctl(m, KVM_IRQFD, resample)) > 0);

    let ioeventfd = KvmIoeventfd { addr: 0x1_0000, len: 4, fd: 905, ..KvmIoeventfd::default() };
    assert!(each_in_turn(chips, |m| vm_ioctl(m, KVM_IOEVENTFD, ioeventfd)) > 0);

    let zone = KvmCoalescedMmioZone { addr: 0x1_0000, size: 4, pio: 0 };
    assert!(each_in_turn(chips, |m| vm_ioctl(m, KVM_REGISTER_COALESCED_MMIO, zone)) > 0);

    let prepare = || (chips(), Mapping::new(4096));
    let filter = |(m, bitmap): &(Machine, Mapping)| {
        let mut filter = KvmMsrFilter::default();
        filter.ranges[0] =
            KvmMsrFilterRange { flags: KVM_MSR_FILTER_READ, nmsrs: 64, base: 0x10, pad: 0, bitmap: bitmap.at() };
        vm_ioctl(m, KVM_X86_SET_MSR_FILTER, filter)
    };
    assert!(each_in_turn(prepare, filter) > 0);
}

#[test]
fn what_a_vcpu_is_told_is_kept() {
    let mut table = KvmCpuid2 { nent: 50, padding: 0 }.bytes().to_vec();
    table.resize(8 + 50 * size_of::<KvmCpuidEntry2>(), 0);
    let set = |m: &Machine| {
        let mut table = scarce::plenty(|| table.clone());
        m.client.with_bytes(&mut table, |arg| m.vcpu.ioctl(KVM_SET_CPUID2, arg, &cx())).map(drop)
    };
    assert!(each_in_turn(Machine::new, set) > 0);

    let mut msrs = KvmMsrs { nmsrs: 50, pad: 0 }.bytes().to_vec();
    (0..50).for_each(|_| msrs.extend(KvmMsrEntry { index: x86::msr::STAR, reserved: 0, data: 7 }.bytes()));
    for nr in [KVM_SET_MSRS, KVM_GET_MSRS] {
        let ioctl = |m: &Machine| {
            let mut msrs = scarce::plenty(|| msrs.clone());
            m.client.with_bytes(&mut msrs, |arg| m.vcpu.ioctl(nr, arg, &cx())).map(drop)
        };
        each_in_turn(Machine::new, ioctl);
    }
}

#[test]
fn a_guest_that_faults_runs_on() {
    for (translation, levels) in [(Translation::Shadow, 3), (Translation::Nested(mmu::shadow::EntryFormat::X86), 4)] {
        let prepare = || {
            let m = Machine::paged(translation);
            // More entries than faults: each writes to every page but those of the tables, until all are mapped.
            for _ in 0..200 {
                m.script.entry(move |_, env| {
                    scarce::plenty(|| {
                        assert_eq!(env.root.levels, levels);
                        let mapped = |gva: u64| entries(env, gva).last().is_some_and(|entry| entry & bits::P != 0);
                        match (6..RAM >> 12).map(|page| page << 12).find(|gva| !mapped(*gva)) {
                            None => Exit::Shutdown,
                            Some(gva) if translation == Translation::Shadow => {
                                Exit::PageFault { gva, code: pf::WRITE, implicit: false }
                            }
                            Some(gpa) => Exit::NestedPageFault { gpa, access: Access::Write, table_walk: false },
                        }
                    })
                });
            }
            m
        };
        let run = |m: &Machine| {
            let reason = m.run()?;
            assert_eq!(reason, KVM_EXIT_SHUTDOWN);
            scarce::plenty(|| m.in_order());
            Ok(())
        };
        let failed = each_in_turn(prepare, run);
        assert!(failed > 10, "{translation:?}: {failed}");
    }
}

#[test]
fn the_dirty_log_is_read() {
    for translation in ALL {
        let prepare = || {
            let m = Machine::on(translation);
            let region = KvmUserspaceMemoryRegion {
                slot: 0,
                flags: KVM_MEM_LOG_DIRTY_PAGES,
                guest_phys_addr: 0,
                memory_size: RAM,
                userspace_addr: m.ram.at(),
            };
            vm_ioctl(&m, KVM_SET_USER_MEMORY_REGION, region).unwrap();
            (m, Mapping::new(4096))
        };
        let read = |(m, bitmap): &(Machine, Mapping)| {
            vm_ioctl(m, KVM_GET_DIRTY_LOG, KvmDirtyLog { slot: 0, padding1: 0, dirty_bitmap: bitmap.at() })
        };
        each_in_turn(prepare, read);
    }
}
