//! Statistics.
use crate::{Vm, backend::Backend};

/// What the descriptor of KVM_GET_STATS_FD reads: the binary format of `abi::stats`, values taken when they are read.
#[derive(Debug)]
pub struct StatsFile<B: Backend> {
    vm: Vm<B>,
}

impl<B: Backend> StatsFile<B> {
    /// The VM that is counted.
    pub fn vm(&self) -> &Vm<B> {
        &self.vm
    }

    /// `pread`: fills `to` from `offset`, returns how many bytes; 0 at the end.
    pub fn read_at(&self, _offset: u64, _to: &mut [u8]) -> usize {
        0
    }
}
