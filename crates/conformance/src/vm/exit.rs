//! Why KVM_RUN returned, as a value that a case can compare.
use abi::*;

use super::RunPage;

/// An exit with what it tells. Data of a read is not part of it: the client fills that in ([`super::Vcpu::answer`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// IN, INS: `count` items of `size` bytes.
    In {
        /// The port.
        port: u16,
        /// Bytes of an item.
        size: u8,
        /// Items.
        count: u32,
    },
    /// OUT, OUTS: all items' bytes.
    Out {
        /// The port.
        port: u16,
        /// Bytes of an item.
        size: u8,
        /// The items.
        data: Vec<u8>,
    },
    /// A read where no memory is.
    Read {
        /// Where.
        gpa: u64,
        /// Bytes.
        len: u32,
    },
    /// A write where no memory is.
    Write {
        /// Where.
        gpa: u64,
        /// What.
        data: Vec<u8>,
    },
    /// HLT.
    Hlt,
    /// An interrupt can be injected.
    IrqWindow,
    /// A triple fault.
    Shutdown,
    /// Guest debugging.
    Debug {
        /// Vector.
        exception: u32,
        /// Linear address of the instruction.
        pc: u64,
        /// DR6 as the exit tells it.
        dr6: u64,
    },
    /// A hypercall for the client, with its number.
    Hypercall(KvmRunHypercall),
    /// The hypervisor cannot go on.
    InternalError(u32),
    /// CR8 was lowered.
    SetTpr,
    /// The guest touched its TPR.
    TprAccess {
        /// Where the instruction is.
        rip: u64,
        /// Whether it writes.
        write: bool,
    },
    /// A level interrupt of the client's I/O APIC ended.
    IoapicEoi(u8),
    /// RDMSR for the client.
    ReadMsr {
        /// Why.
        reason: u32,
        /// Which.
        index: u32,
    },
    /// WRMSR for the client.
    WriteMsr {
        /// Why.
        reason: u32,
        /// Which.
        index: u32,
        /// What.
        data: u64,
    },
    /// Any other reason.
    Other(u32),
}

impl Exit {
    /// OUT of one byte.
    pub fn out8(port: u16, byte: u8) -> Self {
        Self::Out { port, size: 1, data: vec![byte] }
    }

    /// IN of one item.
    pub fn input(port: u16, size: u8) -> Self {
        Self::In { port, size, count: 1 }
    }

    /// A write of `data` where no memory is.
    pub fn write(gpa: u64, data: &[u8]) -> Self {
        Self::Write { gpa, data: data.to_vec() }
    }

    /// Reads the exit out of the shared page.
    ///
    /// # Panics
    /// If the page contradicts itself.
    pub fn of(page: RunPage) -> Self {
        match page.exit_reason() {
            KVM_EXIT_IO => {
                let io: KvmRunIo = page.payload();
                assert!(matches!(io.size, 1 | 2 | 4), "an item of {} bytes", io.size);
                match io.direction {
                    KVM_EXIT_IO_IN => Self::In { port: io.port, size: io.size, count: io.count },
                    KVM_EXIT_IO_OUT => {
                        let data = page.0.read(io.data_offset as usize, usize::from(io.size) * io.count as usize);
                        Self::Out { port: io.port, size: io.size, data }
                    }
                    other => panic!("direction {other} of a port access"),
                }
            }
            KVM_EXIT_MMIO => {
                let mmio: KvmRunMmio = page.payload();
                assert!((1..=8).contains(&mmio.len), "MMIO of {} bytes", mmio.len);
                match mmio.is_write {
                    0 => Self::Read { gpa: mmio.phys_addr, len: mmio.len },
                    _ => Self::write(mmio.phys_addr, &mmio.data[..mmio.len as usize]),
                }
            }
            KVM_EXIT_HLT => Self::Hlt,
            KVM_EXIT_IRQ_WINDOW_OPEN => Self::IrqWindow,
            KVM_EXIT_SHUTDOWN => Self::Shutdown,
            KVM_EXIT_DEBUG => {
                let KvmDebugExitArch { exception, pc, dr6, .. } = page.payload::<KvmRunDebug>().arch;
                Self::Debug { exception, pc, dr6 }
            }
            KVM_EXIT_HYPERCALL => Self::Hypercall(page.payload()),
            KVM_EXIT_INTERNAL_ERROR => Self::InternalError(page.payload::<KvmRunInternal>().suberror),
            KVM_EXIT_SET_TPR => Self::SetTpr,
            KVM_EXIT_TPR_ACCESS => {
                let access: KvmRunTprAccess = page.payload();
                Self::TprAccess { rip: access.rip, write: access.is_write != 0 }
            }
            KVM_EXIT_IOAPIC_EOI => Self::IoapicEoi(page.payload::<KvmRunEoi>().vector),
            KVM_EXIT_X86_RDMSR => {
                let msr: KvmRunMsr = page.payload();
                Self::ReadMsr { reason: msr.reason, index: msr.index }
            }
            KVM_EXIT_X86_WRMSR => {
                let msr: KvmRunMsr = page.payload();
                Self::WriteMsr { reason: msr.reason, index: msr.index, data: msr.data }
            }
            other => Self::Other(other),
        }
    }
}
