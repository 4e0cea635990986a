//! The fields of a vCPU's control structure that change while it runs, and those that are written once.
use crate::{
    backend::Common,
    controls::primary,
    fields::*,
    instructions::Instructions,
    vmcs::{Current, Known},
};
use platform::Hardware;

/// A loop of PAUSEs is noticed after so many cycles, if they are not further apart than so many.
const PAUSE_CYCLES: u32 = 4096;
const PAUSE_DISTANCE: u32 = 128;

/// What is known to be in the fields that change.
#[derive(Debug)]
pub(crate) struct Fields {
    /// The others have been written.
    pub(crate) started: bool,
    pub(crate) rip: Known<Natural>,
    pub(crate) rsp: Known<Natural>,
    pub(crate) rflags: Known<Natural>,
    pub(crate) interruptibility: Known<Bits32>,
    pub(crate) pending_debug: Known<Natural>,
    pub(crate) activity: Known<Bits32>,
    pub(crate) cr0: Known<Natural>,
    pub(crate) cr0_shadow: Known<Natural>,
    pub(crate) cr3: Known<Natural>,
    pub(crate) cr4: Known<Natural>,
    pub(crate) cr4_shadow: Known<Natural>,
    pub(crate) efer: Known<Bits64>,
    pub(crate) dr7: Known<Natural>,
    pub(crate) primary: Known<Bits32>,
    pub(crate) secondary: Known<Bits32>,
    pub(crate) entry: Known<Bits32>,
    pub(crate) exceptions: Known<Bits32>,
    pub(crate) event: Known<Bits32>,
    pub(crate) tsc_offset: Known<Bits64>,
    pub(crate) tsc_multiplier: Known<Bits64>,
    pub(crate) ept_pointer: Known<Bits64>,
    pub(crate) vpid: Known<Bits16>,
    pub(crate) host_cr3: Known<Natural>,
    pub(crate) host_cr4: Known<Natural>,
    pub(crate) host_fs_base: Known<Natural>,
}

impl Fields {
    pub(crate) const fn new() -> Self {
        Self {
            started: false,
            rip: Known::new(GUEST_RIP),
            rsp: Known::new(GUEST_RSP),
            rflags: Known::new(GUEST_RFLAGS),
            interruptibility: Known::new(GUEST_INTERRUPTIBILITY),
            pending_debug: Known::new(GUEST_PENDING_DEBUG),
            activity: Known::new(GUEST_ACTIVITY),
            cr0: Known::new(GUEST_CR0),
            cr0_shadow: Known::new(CR0_SHADOW),
            cr3: Known::new(GUEST_CR3),
            cr4: Known::new(GUEST_CR4),
            cr4_shadow: Known::new(CR4_SHADOW),
            efer: Known::new(GUEST_EFER),
            dr7: Known::new(GUEST_DR7),
            primary: Known::new(PRIMARY_CONTROLS),
            secondary: Known::new(SECONDARY_CONTROLS),
            entry: Known::new(ENTRY_CONTROLS),
            exceptions: Known::new(EXCEPTIONS),
            event: Known::new(ENTRY_EVENT),
            tsc_offset: Known::new(TSC_OFFSET),
            tsc_multiplier: Known::new(TSC_MULTIPLIER),
            ept_pointer: Known::new(EPT_POINTER),
            vpid: Known::new(VPID),
            host_cr3: Known::new(HOST_CR3),
            host_cr4: Known::new(HOST_CR4),
            host_fs_base: Known::new(HOST_FS_BASE),
        }
    }

    /// The fields that stay as they are. `virtual_apic` is the page where the guest reads CR8.
    pub(crate) fn start<P: Hardware, I: Instructions>(
        &mut self,
        common: &Common<P>,
        vmcs: &mut Current<I>,
        virtual_apic: Option<u64>,
    ) {
        if core::mem::replace(&mut self.started, true) {
            return;
        }
        let processor = &common.processor;
        vmcs.write(PIN_CONTROLS, processor.pin_controls());
        vmcs.write(EXIT_CONTROLS, processor.exit);
        if processor.pause_loops {
            vmcs.write(PAUSE_GAP, PAUSE_DISTANCE);
            vmcs.write(PAUSE_WINDOW, PAUSE_CYCLES);
        }
        if processor.primary & primary::MSR_BITMAP != 0 {
            vmcs.write(MSR_BITMAP, common.msr_map.hpa());
        }
        if let Some(page) = virtual_apic {
            vmcs.write(VIRTUAL_APIC, page);
            // Writes of CR8 exit anyway.
            vmcs.write(TPR_THRESHOLD, 0);
        }
        // All page faults, if any.
        vmcs.write(PAGE_FAULT_MASK, 0);
        vmcs.write(PAGE_FAULT_MATCH, 0);
        vmcs.write(CR3_TARGETS, 0);
        vmcs.write(EXIT_MSR_STORES, 0);
        vmcs.write(EXIT_MSR_LOADS, 0);
        vmcs.write(ENTRY_MSR_LOADS, 0);
        vmcs.write(LINK_POINTER, u64::MAX);
        vmcs.write(GUEST_DEBUGCTL, 0);
        vmcs.write(CR0_MASK, !common.cr0_free());
        vmcs.write(CR4_MASK, u64::MAX);
        // Null selectors in all of the host's but these, which do not change: what user mode has there is loaded afterwards.
        for field in [HOST_ES, HOST_DS, HOST_FS, HOST_GS] {
            vmcs.write(field, 0);
        }
    }
}
