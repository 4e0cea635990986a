//! Coalesced MMIO and PIO: writes to zones go into the ring, until it is full.
use abi::*;
use platform::{Hva, Memory};

use crate::{
    Errno,
    backend::{Access, Exit, PioExit},
    testing::{CODE, Machine, host},
};

fn zone(m: &Machine, nr: u32, addr: u64, size: u32, pio: u32) -> Result<(), Errno> {
    m.vm_ioctl(nr, &mut KvmCoalescedMmioZone { addr, size, pio }).map(drop)
}

fn ring<T: Pod>(m: &Machine, offset: u64) -> T {
    let mut value = T::zeroed();
    host::Client::copy_from(Hva(m.vm.coalesced_ring().0 + offset), value.bytes_mut()).unwrap();
    value
}

fn set_ring(m: &Machine, first: u32, last: u32) {
    let header = KvmCoalescedMmioRing { first, last };
    host::Client::copy_to(m.vm.coalesced_ring(), header.bytes()).unwrap();
}

/// mov [bx + 0x10000], al, executed: the exit.
fn store(m: &Machine, gpa: u64) -> Result<u32, Errno> {
    m.poke(CODE, &[0x88, 0x07]);
    m.state(|s| {
        s.rip = CODE;
        s.seg[3] = x86::Segment::real(0x1000, 0);
        s.gpr[3] = gpa - 0x1_0000;
        s.gpr[0] = 0x5a;
    });
    m.script.exit(Exit::NestedPageFault { gpa, access: Access::Write, table_walk: false });
    m.run()
}

fn out(m: &Machine, port: u16) -> Result<u32, Errno> {
    m.script.exit(Exit::Pio(PioExit { port, size: 1, write: true, string: false, len: 1 }));
    m.run()
}

#[test]
fn writes_to_a_zone_wait_in_the_ring() {
    let m = Machine::new();
    zone(&m, KVM_REGISTER_COALESCED_MMIO, 0x1_0100, 0x10, 0).unwrap();
    zone(&m, KVM_REGISTER_COALESCED_MMIO, 0x70, 1, 1).unwrap();
    for gpa in [0x1_00ff, 0x1_0110] {
        assert_eq!(store(&m, gpa), Ok(KVM_EXIT_MMIO));
    }
    assert_ne!(store(&m, 0x1_0100), Ok(KVM_EXIT_MMIO));
    assert_ne!(store(&m, 0x1_010f), Ok(KVM_EXIT_MMIO));
    assert_ne!(out(&m, 0x70), Ok(KVM_EXIT_IO));
    assert_eq!(out(&m, 0x71), Ok(KVM_EXIT_IO));
    assert_eq!(ring::<KvmCoalescedMmioRing>(&m, 0), KvmCoalescedMmioRing { first: 0, last: 3 });
    let data = [0x5a, 0, 0, 0, 0, 0, 0, 0];
    for (n, (phys_addr, pio)) in [(0x1_0100, 0), (0x1_010f, 0), (0x70, 1)].into_iter().enumerate() {
        let expected = KvmCoalescedMmio { phys_addr, len: 1, pio, data };
        assert_eq!(ring::<KvmCoalescedMmio>(&m, 8 + 24 * n as u64), expected);
    }
    // A zone goes when it holds all of what is named.
    zone(&m, KVM_UNREGISTER_COALESCED_MMIO, 0x1_0100, 0x20, 0).unwrap();
    assert_ne!(store(&m, 0x1_0100), Ok(KVM_EXIT_MMIO));
    zone(&m, KVM_UNREGISTER_COALESCED_MMIO, 0x1_0104, 4, 0).unwrap();
    assert_eq!(store(&m, 0x1_0100), Ok(KVM_EXIT_MMIO));
    assert_eq!(zone(&m, KVM_REGISTER_COALESCED_MMIO, 0, 1, 2), Err(Errno::EINVAL));
}

#[test]
fn a_full_ring_and_one_that_makes_no_sense_take_nothing() {
    let m = Machine::new();
    zone(&m, KVM_REGISTER_COALESCED_MMIO, 0x1_0000, 0x1000, 0).unwrap();
    let max = KVM_COALESCED_MMIO_MAX as u32;
    for (first, last) in [(0, max - 1), (5, 4), (0, max), (0, u32::MAX), (3, u32::MAX - 1)] {
        set_ring(&m, first, last);
        assert_eq!(store(&m, 0x1_0000), Ok(KVM_EXIT_MMIO), "{first} {last}");
        assert_eq!(ring::<KvmCoalescedMmioRing>(&m, 0), KvmCoalescedMmioRing { first, last });
    }
    set_ring(&m, 1, max - 1);
    assert_ne!(store(&m, 0x1_0000), Ok(KVM_EXIT_MMIO));
    assert_eq!(ring::<KvmCoalescedMmioRing>(&m, 0).last, 0);
}

#[test]
fn zones_are_bounded() {
    let m = Machine::new();
    let results = (0..1001).map(|n| zone(&m, KVM_REGISTER_COALESCED_MMIO, n << 20, 1, 0));
    let failed: std::vec::Vec<_> = results.enumerate().filter(|(_, result)| result.is_err()).collect();
    assert_eq!(failed, [(1000, Err(Errno::ENOSPC))]);
}
