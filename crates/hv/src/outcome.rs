//! What an ioctl that succeeded leaves packaging to do.
use crate::{StatsFile, Vcpu, Vm, backend::Backend};

/// The answer of an ioctl.
pub enum Outcome<B: Backend> {
    /// The system call returns this number, never negative.
    Value(i32),
    /// A new descriptor for this VM is the system call's value.
    NewVm(Vm<B>),
    /// A new descriptor for this vCPU is the system call's value. Packaging first gives the vCPU its shared pages
    /// with [`Vcpu::set_run_pages`].
    NewVcpu(Vcpu<B>),
    /// A new descriptor that can be read at any offset.
    NewStats(StatsFile<B>),
}

impl<B: Backend> Outcome<B> {
    /// The usual answer.
    pub const OK: Self = Self::Value(0);
}

impl<B: Backend> core::fmt::Debug for Outcome<B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Value(value) => write!(f, "Value({value})"),
            Self::NewVm(vm) => vm.fmt(f),
            Self::NewVcpu(vcpu) => vcpu.fmt(f),
            Self::NewStats(stats) => stats.fmt(f),
        }
    }
}
