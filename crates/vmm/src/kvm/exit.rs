//! Why `KVM_RUN` returned.

use kvm_bindings::*;
use std::ptr::NonNull;

/// The elements of a string of port accesses, `size` bytes each.
#[derive(Debug, PartialEq, Eq)]
pub struct IoData<'a> {
    /// Bytes an element: 1, 2 or 4.
    pub size: usize,
    /// All elements, one after another.
    pub bytes: &'a mut [u8],
}

/// A reason to return from `KVM_RUN`, with what the monitor has to fill in or carry out.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit<'a> {
    /// A signal or `immediate_exit`.
    Interrupted,
    /// The guest reads a port; fill in every element.
    PortIn(u16, IoData<'a>),
    /// The guest writes a port.
    PortOut(u16, IoData<'a>),
    /// The guest reads memory that no slot covers.
    MmioRead(u64, &'a mut [u8]),
    /// The guest writes memory that no slot covers.
    MmioWrite(u64, &'a [u8]),
    /// HLT, when no interrupt controller is in the hypervisor.
    Hlt,
    /// Triple fault, or another condition that resets a processor.
    Shutdown,
    /// The processor refused to enter the guest.
    FailEntry {
        /// The processor's own reason code.
        reason: u64,
        /// The host's processor.
        cpu: u32,
    },
    /// The hypervisor cannot go on.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
        /// Data that goes with it.
        data: Vec<u64>,
    },
    /// `KVM_SYSTEM_EVENT_*`.
    SystemEvent(u32),
    /// An exit that this monitor never asked for.
    Other(u32),
    /// A port access whose data lies outside of the shared page.
    Malformed,
}

impl<'a> Exit<'a> {
    /// Reads the exit out of a `kvm_run` page.
    ///
    /// # Safety
    /// `base` must be valid for reads and writes of `size` bytes for `'a`, at least
    /// `size_of::<kvm_run>()`, aligned for it, and not used otherwise meanwhile.
    pub(super) unsafe fn decode(base: NonNull<u8>, size: usize) -> Self {
        let run = base.cast::<kvm_run>().as_ptr();
        // SAFETY: in range by the caller's promise; the union's variants are all plain
        // numbers, so any of them may be read.
        unsafe {
            let body = &raw mut (*run).__bindgen_anon_1;
            match (*run).exit_reason {
                KVM_EXIT_IO => {
                    let io = (*body).io;
                    let len = u64::from(io.size) * u64::from(io.count);
                    let fits = io.data_offset.checked_add(len).is_some_and(|e| e <= size as u64);
                    if !fits || !matches!(io.size, 1 | 2 | 4) {
                        return Self::Malformed;
                    }
                    let data = base.add(io.data_offset as usize).as_ptr();
                    let bytes = std::slice::from_raw_parts_mut(data, len as usize);
                    let data = IoData { size: usize::from(io.size), bytes };
                    match u32::from(io.direction) {
                        KVM_EXIT_IO_IN => Self::PortIn(io.port, data),
                        _ => Self::PortOut(io.port, data),
                    }
                }
                KVM_EXIT_MMIO => {
                    let mmio = &mut (*body).mmio;
                    let len = (mmio.len as usize).min(mmio.data.len());
                    if mmio.is_write != 0 {
                        Self::MmioWrite(mmio.phys_addr, &mmio.data[..len])
                    } else {
                        Self::MmioRead(mmio.phys_addr, &mut mmio.data[..len])
                    }
                }
                KVM_EXIT_HLT => Self::Hlt,
                KVM_EXIT_SHUTDOWN => Self::Shutdown,
                KVM_EXIT_INTR => Self::Interrupted,
                KVM_EXIT_FAIL_ENTRY => {
                    let fail = (*body).fail_entry;
                    Self::FailEntry { reason: fail.hardware_entry_failure_reason, cpu: fail.cpu }
                }
                KVM_EXIT_INTERNAL_ERROR => {
                    let internal = (*body).internal;
                    let n = (internal.ndata as usize).min(internal.data.len());
                    Self::InternalError { suberror: internal.suberror, data: internal.data[..n].to_vec() }
                }
                KVM_EXIT_SYSTEM_EVENT => Self::SystemEvent((*body).system_event.type_),
                other => Self::Other(other),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Box<[u64; 1024]> {
        Box::new([0; 1024])
    }

    fn with(page: &mut [u64; 1024], fill: impl FnOnce(&mut kvm_run)) -> Exit<'_> {
        let base = NonNull::from(&mut *page).cast::<u8>();
        // SAFETY: the array is larger than `kvm_run`, aligned, and borrowed for the result.
        unsafe {
            fill(base.cast::<kvm_run>().as_mut());
            Exit::decode(base, size_of_val(page))
        }
    }

    #[test]
    fn port_data_is_found_at_its_offset() {
        let mut page = page();
        page[512] = 0x1122_3344;
        let exit = with(&mut page, |run| {
            run.exit_reason = KVM_EXIT_IO;
            run.__bindgen_anon_1.io =
                kvm_run__bindgen_ty_1__bindgen_ty_4 { direction: 1, size: 2, port: 0x3f8, count: 2, data_offset: 4096 };
        });
        let mut bytes = [0x44, 0x33, 0x22, 0x11];
        assert_eq!(exit, Exit::PortOut(0x3f8, IoData { size: 2, bytes: &mut bytes }));
    }

    #[test]
    fn port_data_outside_of_the_page_is_refused() {
        for (size, count, data_offset) in
            [(4, 1, 8190), (1, 8193, 0), (4, u32::MAX, 4096), (1, 1, u64::MAX), (3, 1, 4096)]
        {
            let mut page = page();
            let exit = with(&mut page, |run| {
                run.exit_reason = KVM_EXIT_IO;
                run.__bindgen_anon_1.io =
                    kvm_run__bindgen_ty_1__bindgen_ty_4 { direction: 0, size, port: 1, count, data_offset };
            });
            assert_eq!(exit, Exit::Malformed);
        }
    }

    #[test]
    fn lengths_from_the_page_are_bounded() {
        let mut page = page();
        let exit = with(&mut page, |run| {
            run.exit_reason = KVM_EXIT_MMIO;
            run.__bindgen_anon_1.mmio =
                kvm_run__bindgen_ty_1__bindgen_ty_6 { phys_addr: 7, data: [0; 8], len: 4096, is_write: 1 };
        });
        assert_eq!(exit, Exit::MmioWrite(7, &[0; 8]));
    }
}
