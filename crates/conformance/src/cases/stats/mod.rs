//! Statistics, as KVM_GET_STATS_FD tells them.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno, Fd},
    runner::{Case, case},
    vm::{Exit, RealMode},
};

pub(super) const CASES: &[Case] = &[
    case("the-file-is-well-formed", "A20", well_formed).needs(KVM_CAP_BINARY_STATS_FD),
    case("exits-are-counted", "A20", counted).needs(KVM_CAP_BINARY_STATS_FD),
    case("reads-anywhere", "A20", reads).needs(KVM_CAP_BINARY_STATS_FD),
    case("reads-go-on-where-they-ended", "A20", reads_on).needs(KVM_CAP_BINARY_STATS_FD),
    case("the-file-outlives-its-vcpu", "A20 A02", outlives).needs(KVM_CAP_BINARY_STATS_FD),
    case("it-is-no-other-descriptor", "A20", no_other).needs(KVM_CAP_BINARY_STATS_FD),
];

/// A statistic: its name and where its values are in the file.
struct Stat {
    name: String,
    offset: u64,
}

fn header(file: &Fd) -> KvmStatsHeader {
    let mut header = KvmStatsHeader::default();
    assert_eq!(file.read_at(header.bytes_mut(), 0), Ok(size_of::<KvmStatsHeader>()));
    header
}

fn stats(file: &Fd) -> Vec<Stat> {
    let h = header(file);
    let size = size_of::<KvmStatsDesc>() + h.name_size as usize;
    (0..h.num_desc as usize)
        .map(|n| {
            let mut bytes = vec![0; size];
            assert_eq!(file.read_at(&mut bytes, u64::from(h.desc_offset) + (n * size) as u64), Ok(size));
            let desc = KvmStatsDesc::from_prefix(&bytes).expect("a description");
            assert!(desc.size >= 1 && desc.flags & KVM_STATS_TYPE_MASK <= KVM_STATS_TYPE_MAX);
            let name = &bytes[size_of::<KvmStatsDesc>()..];
            let end = name.iter().position(|byte| *byte == 0).expect("a terminated name");
            let name = String::from_utf8(name[..end].to_vec()).expect("a name");
            Stat { name, offset: u64::from(h.data_offset) + u64::from(desc.offset) }
        })
        .collect()
}

fn value(file: &Fd, name: &str) -> u64 {
    let stat = stats(file).into_iter().find(|stat| stat.name == name).unwrap_or_else(|| panic!("no statistic {name}"));
    let mut bytes = [0; 8];
    assert_eq!(file.read_at(&mut bytes, stat.offset), Ok(8));
    u64::from_le_bytes(bytes)
}

fn machine(device: &Device) -> RealMode {
    RealMode::new(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.out(0x10, al)?;
        a.hlt()?;
        a.jmp(start)
    })
}

fn well_formed(device: &Device) {
    let machine = machine(device);
    for owner in [&machine.vm.fd, &machine.vcpu.fd] {
        let file = owner.make(KVM_GET_STATS_FD, 0).expect("KVM_GET_STATS_FD");
        let h = header(&file);
        assert_eq!(h.flags, 0);
        assert!(h.num_desc > 0 && h.name_size > 0);
        assert!(h.id_offset >= 24 && h.desc_offset > h.id_offset && h.data_offset > h.desc_offset);
        let mut id = vec![0; h.name_size as usize];
        assert_eq!(file.read_at(&mut id, h.id_offset.into()), Ok(id.len()));
        assert!(id[0] != 0 && id.contains(&0), "an id that is no text: {id:?}");
        let mut names: Vec<_> = stats(&file).into_iter().map(|stat| stat.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a name stands twice");
    }
}

fn counted(device: &Device) {
    let machine = machine(device);
    let file = machine.vcpu.fd.make(KVM_GET_STATS_FD, 0).expect("KVM_GET_STATS_FD");
    let before = value(&file, "exits");
    for _ in 0..10 {
        assert_eq!(machine.vcpu.run(), Exit::out8(0x10, 0));
        machine.vcpu.run_to_hlt();
    }
    let counted = value(&file, "exits") - before;
    assert!((20..100).contains(&counted), "{counted} exits for 20");
    assert!(value(&file, "halt_exits") >= 10);
    // Each vCPU has its own.
    let second = machine.vm.vcpu(1);
    let second = second.fd.make(KVM_GET_STATS_FD, 0).expect("KVM_GET_STATS_FD");
    assert_eq!(value(&second, "exits"), 0);
}

fn reads(device: &Device) {
    let machine = machine(device);
    let file = machine.vcpu.fd.make(KVM_GET_STATS_FD, 0).expect("KVM_GET_STATS_FD");
    let mut all = vec![0; 1 << 20];
    let len = file.read_at(&mut all, 0).expect("a read");
    assert!(len > 24 && len < all.len());
    for offset in [1, 7, 24, len / 2, len - 1] {
        let mut part = vec![0; 100];
        let read = file.read_at(&mut part, offset as u64).expect("a read");
        assert_eq!(read, 100.min(len - offset));
        assert_eq!(part[..read], all[offset..offset + read], "offset {offset}");
    }
    for offset in [len as u64, len as u64 + 1000, 1 << 40] {
        assert_eq!(file.read_at(&mut [0; 8], offset), Ok(0), "offset {offset}");
    }
}

fn reads_on(device: &Device) {
    let machine = machine(device);
    let file = machine.vcpu.fd.make(KVM_GET_STATS_FD, 0).expect("KVM_GET_STATS_FD");
    let mut all = vec![0; 1 << 20];
    let len = file.read_at(&mut all, 0).expect("a read");
    // Where it ended is the file's, whichever descriptor it is read by.
    let copy = file.dup().expect("dup");
    let mut said = Vec::new();
    for n in 0.. {
        let mut part = vec![0; 24 + 700 * n];
        let read = if n % 2 == 0 { &file } else { &copy }.read(&mut part).expect("a read");
        assert!(read == part.len() || read == len - said.len(), "{read} bytes");
        said.extend_from_slice(&part[..read]);
        if read == 0 {
            break;
        }
    }
    assert_eq!(said, all[..len]);
    assert_eq!(machine.vcpu.fd.read(&mut [0; 8]), Err(Errno::EINVAL));
}

fn outlives(device: &Device) {
    let machine = machine(device);
    let file = machine.vcpu.fd.make(KVM_GET_STATS_FD, 0).expect("KVM_GET_STATS_FD");
    machine.vcpu.run();
    let before = value(&file, "exits");
    drop(machine);
    assert_eq!(value(&file, "exits"), before);
}

fn no_other(device: &Device) {
    let machine = machine(device);
    let file = machine.vcpu.fd.make(KVM_GET_STATS_FD, 0).expect("KVM_GET_STATS_FD");
    assert_eq!(file.number(KVM_RUN, 0), Err(Errno::ENOTTY));
    assert_eq!(file.get::<KvmRegs>(KVM_GET_REGS), Err(Errno::ENOTTY));
    assert_eq!(
        device.fd.make(KVM_GET_STATS_FD, 0).err().map(|errno| errno == Errno::EINVAL || errno == Errno::ENOTTY),
        Some(true)
    );
}
