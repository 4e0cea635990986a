//! KVM_GET_STATS_FD: statistics as a file in Linux's binary format (`Documentation/virt/kvm/api.rst`, 4.133):
//! header, id string, descriptors with their names, values.
use core::fmt::{self, Write};

use abi::{
    KVM_STATS_BASE_POW10, KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_INSTANT, KVM_STATS_UNIT_NONE, KvmStatsDesc,
    KvmStatsHeader, Pod,
};

use super::Counter;
use crate::{Vm, backend::Backend};

/// Bytes of a name, its terminating zero included.
const NAME_SIZE: usize = 48;
const ID_OFFSET: usize = size_of::<KvmStatsHeader>();
const DESC_OFFSET: usize = ID_OFFSET + NAME_SIZE;
const DESC_SIZE: usize = size_of::<KvmStatsDesc>() + NAME_SIZE;
/// What a VM tells beside the sums over its vCPUs, as it is now.
const VM_NAMES: &[&str] = &["vcpus", "mmu_pages", "mmu_pages_limit"];

/// What the descriptor of KVM_GET_STATS_FD reads: the binary format of `abi::stats`. Values are taken when they are
/// read.
pub struct StatsFile<B: Backend> {
    vm: Vm<B>,
    /// A vCPU by its index, or the whole VM.
    vcpu: Option<usize>,
}

impl<B: Backend> core::fmt::Debug for StatsFile<B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("StatsFile").field("vm", &self.vm).field("vcpu", &self.vcpu).finish()
    }
}

impl<B: Backend> Clone for StatsFile<B> {
    fn clone(&self) -> Self {
        Self { vm: self.vm.clone(), vcpu: self.vcpu }
    }
}

impl<B: Backend> StatsFile<B> {
    /// What each vCPU counts: the core for it, and the back end.
    const VCPU_COUNTERS: usize = Counter::NAMES.len() + B::COUNTERS.len();

    pub(crate) fn new(vm: Vm<B>, vcpu: Option<usize>) -> Self {
        Self { vm, vcpu }
    }

    /// What a VM tells as a whole.
    pub fn of_vm(vm: Vm<B>) -> Self {
        Self::new(vm, None)
    }

    /// The file of a VM, then those of its vCPUs. Waits for none of them, as a request to a running vCPU would.
    pub fn all(vm: &Vm<B>) -> impl Iterator<Item = Self> {
        let vcpus = vm.vcpus().iter().count();
        core::iter::once(None).chain((0..vcpus).map(Some)).map(|vcpu| Self::new(vm.clone(), vcpu))
    }

    /// The VM that is counted.
    pub fn vm(&self) -> &Vm<B> {
        &self.vm
    }

    /// The names of what a VM tells, in the order of [`Self::value`].
    pub fn vm_names() -> impl Iterator<Item = &'static str> + Clone + use<B> {
        Self::names(true).map(|(name, _)| name)
    }

    fn names(of_vm: bool) -> impl Iterator<Item = (&'static str, u32)> + Clone + use<B> {
        let own = if of_vm { VM_NAMES } else { &[] };
        let counters = Counter::NAMES.iter().chain(B::COUNTERS).map(|name| (*name, KVM_STATS_TYPE_CUMULATIVE));
        let shadow = if of_vm { mmu::shadow::Counter::NAMES } else { &[] };
        let shadow = shadow.iter().map(|name| (*name, KVM_STATS_TYPE_CUMULATIVE));
        own.iter().map(|name| (*name, KVM_STATS_TYPE_INSTANT)).chain(counters).chain(shadow)
    }

    fn count(&self) -> usize {
        let own = if self.vcpu.is_none() { VM_NAMES.len() + mmu::shadow::Counter::NAMES.len() } else { 0 };
        Self::VCPU_COUNTERS + own
    }

    /// The present value of the statistic with this place among the names.
    pub fn value(&self, index: usize) -> u64 {
        let vcpus = self.vm.vcpus();
        match self.vcpu {
            Some(vcpu) => vcpus.get(vcpu).map_or(0, |v| v.stats.get(index)),
            None => self.vm_value(index),
        }
    }

    fn vm_value(&self, index: usize) -> u64 {
        let (vcpus, shadow) = (self.vm.vcpus(), &self.vm.shared().shadow);
        match index {
            0 => return vcpus.iter().count() as u64,
            1 => return shadow.as_ref().map_or(0, |shadow| shadow.usage().1 as u64),
            2 => return shadow.as_ref().map_or(0, |shadow| shadow.usage().0 as u64),
            _ => {}
        }
        let index = index - VM_NAMES.len();
        match index.checked_sub(Self::VCPU_COUNTERS) {
            Some(index) => shadow.as_ref().map_or(0, |shadow| shadow.counter(index)),
            None => vcpus.iter().fold(0, |sum: u64, v| sum.wrapping_add(v.stats.get(index))),
        }
    }

    fn data_offset(&self) -> usize {
        DESC_OFFSET + self.count() * DESC_SIZE
    }

    /// `pread`: fills `to` from `offset`, returns how many bytes; 0 at the end.
    pub fn read_at(&self, offset: u64, to: &mut [u8]) -> usize {
        let Ok(offset) = usize::try_from(offset) else { return 0 };
        let mut out = Window { skip: offset, to, filled: 0 };
        let header = KvmStatsHeader {
            flags: 0,
            name_size: NAME_SIZE as u32,
            num_desc: self.count() as u32,
            id_offset: ID_OFFSET as u32,
            desc_offset: DESC_OFFSET as u32,
            data_offset: self.data_offset() as u32,
        };
        out.push(header.bytes());
        let mut id = Name::default();
        // A name that does not fit is cut; there is nobody to tell.
        let _ = match self.vcpu.and_then(|v| self.vm.vcpus().get(v)) {
            Some(vcpu) => write!(id, "rekvm-{}/vcpu-{}", self.vm.number(), vcpu.id()),
            None => write!(id, "rekvm-{}", self.vm.number()),
        };
        out.push(&id.bytes);
        for (i, (name, kind)) in Self::names(self.vcpu.is_none()).enumerate() {
            let descriptor = KvmStatsDesc {
                flags: kind | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10,
                exponent: 0,
                size: 1,
                offset: (i * 8) as u32,
                bucket_size: 0,
            };
            out.push(descriptor.bytes());
            let mut text = Name::default();
            let _ = text.write_str(name);
            out.push(&text.bytes);
        }
        for i in 0..self.count() {
            out.push(&self.value(i).to_le_bytes());
        }
        out.filled
    }
}

/// A name with its padding.
struct Name {
    bytes: [u8; NAME_SIZE],
    len: usize,
}

impl Default for Name {
    fn default() -> Self {
        Self { bytes: [0; NAME_SIZE], len: 0 }
    }
}

impl Write for Name {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            // The last byte stays zero.
            if self.len + 1 < NAME_SIZE {
                self.bytes[self.len] = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}

/// The part of a stream of bytes that a reader asked for.
struct Window<'a> {
    skip: usize,
    to: &'a mut [u8],
    filled: usize,
}

impl Window<'_> {
    fn push(&mut self, bytes: &[u8]) {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        let rest = &bytes[skipped..];
        let room = &mut self.to[self.filled..];
        let n = rest.len().min(room.len());
        room[..n].copy_from_slice(&rest[..n]);
        self.filled += n;
    }
}
