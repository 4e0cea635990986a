//! Every structure, number and request compared with `kvm-bindings` or with the literal of the interface.

use core::mem::{align_of, offset_of, size_of};

use abi::{Pod, *};
use kvm_bindings as k;

/// Same size, alignment and offsets of the fields named.
macro_rules! same {
    ($ours:ident, $theirs:ident: $($field:ident),*) => {
        assert_eq!(size_of::<$ours>(), size_of::<k::$theirs>(), stringify!($ours));
        assert!(align_of::<$ours>() <= align_of::<k::$theirs>(), stringify!($ours));
        $(assert_eq!(offset_of!($ours, $field), offset_of!(k::$theirs, $field), stringify!($ours::$field));)*
    };
}

#[test]
fn structures() {
    same!(KvmCpuid, kvm_cpuid: nent, padding);
    same!(KvmCpuidEntry, kvm_cpuid_entry: function, eax, ebx, ecx, edx, padding);
    same!(KvmCpuid2, kvm_cpuid2: nent, padding);
    same!(KvmCpuidEntry2, kvm_cpuid_entry2: function, index, flags, eax, ebx, ecx, edx, padding);
    same!(KvmGuestDebug, kvm_guest_debug: control, pad);
    same!(KvmDebugExitArch, kvm_debug_exit_arch: exception, pad, pc, dr6, dr7);
    same!(KvmCreateDevice, kvm_create_device: type_, fd, flags);
    same!(KvmDeviceAttr, kvm_device_attr: flags, group, attr, addr);
    same!(KvmOneReg, kvm_one_reg: id, addr);
    same!(KvmRegList, kvm_reg_list: n);
    same!(KvmEventException, kvm_vcpu_events__bindgen_ty_1: injected, nr, has_error_code, pending, error_code);
    same!(KvmEventInterrupt, kvm_vcpu_events__bindgen_ty_2: injected, nr, soft, shadow);
    same!(KvmEventNmi, kvm_vcpu_events__bindgen_ty_3: injected, pending, masked, pad);
    same!(KvmEventSmi, kvm_vcpu_events__bindgen_ty_4: smm, pending, smm_inside_nmi, latched_init);
    same!(KvmVcpuEvents, kvm_vcpu_events: exception, interrupt, nmi, sipi_vector, flags, smi, triple_fault, reserved, exception_has_payload, exception_payload);
    same!(KvmMpState, kvm_mp_state: mp_state);
    same!(KvmX86Mce, kvm_x86_mce: status, addr, misc, mcg_status, bank, pad1, pad2);
    same!(KvmRun, kvm_run: request_interrupt_window, immediate_exit, padding1, exit_reason, ready_for_interrupt_injection, if_flag, flags, cr8, apic_base, kvm_valid_regs, kvm_dirty_regs, s);
    same!(KvmRunHw, kvm_run__bindgen_ty_1__bindgen_ty_1: hardware_exit_reason);
    same!(KvmRunFailEntry, kvm_run__bindgen_ty_1__bindgen_ty_2: hardware_entry_failure_reason, cpu);
    same!(KvmRunEx, kvm_run__bindgen_ty_1__bindgen_ty_3: exception, error_code);
    same!(KvmRunIo, kvm_run__bindgen_ty_1__bindgen_ty_4: direction, size, port, count, data_offset);
    same!(KvmRunDebug, kvm_run__bindgen_ty_1__bindgen_ty_5: arch);
    same!(KvmRunMmio, kvm_run__bindgen_ty_1__bindgen_ty_6: phys_addr, data, len, is_write);
    same!(KvmRunHypercall, kvm_run__bindgen_ty_1__bindgen_ty_8: nr, args, ret);
    same!(KvmRunTprAccess, kvm_run__bindgen_ty_1__bindgen_ty_9: rip, is_write, pad);
    same!(KvmRunEoi, kvm_run__bindgen_ty_1__bindgen_ty_21: vector);
    same!(KvmRunMsr, kvm_run__bindgen_ty_1__bindgen_ty_23: error, pad, reason, index, data);
    same!(KvmRunNotify, kvm_run__bindgen_ty_1__bindgen_ty_26: flags);
    same!(KvmRunMemoryFault, kvm_run__bindgen_ty_1__bindgen_ty_27: flags, gpa, size);
    same!(KvmIrqLevel, kvm_irq_level: level);
    same!(KvmIrqchip, kvm_irqchip: chip_id, pad, chip);
    same!(KvmPicState, kvm_pic_state: last_irr, irr, imr, isr, priority_add, irq_base, read_reg_select, poll, special_mask, init_state, auto_eoi, rotate_on_auto_eoi, special_fully_nested_mode, init4, elcr, elcr_mask);
    same!(KvmIoapicState, kvm_ioapic_state: base_address, ioregsel, id, irr, pad, redirtbl);
    same!(KvmLapicState, kvm_lapic_state: regs);
    same!(KvmIrqRouting, kvm_irq_routing: nr, flags);
    same!(KvmIrqRoutingEntry, kvm_irq_routing_entry: gsi, type_, flags, pad, u);
    same!(KvmMsi, kvm_msi: address_lo, address_hi, data, flags, devid, pad);
    same!(KvmIrqfd, kvm_irqfd: fd, gsi, flags, resamplefd, pad);
    same!(KvmIoeventfd, kvm_ioeventfd: datamatch, addr, len, fd, flags, pad);
    same!(KvmInterrupt, kvm_interrupt: irq);
    same!(KvmTprAccessCtl, kvm_tpr_access_ctl: enabled, flags, reserved);
    same!(KvmVapicAddr, kvm_vapic_addr: vapic_addr);
    same!(KvmHypervEventfd, kvm_hyperv_eventfd: conn_id, fd, flags, padding);
    same!(KvmUserspaceMemoryRegion, kvm_userspace_memory_region: slot, flags, guest_phys_addr, memory_size, userspace_addr);
    same!(KvmUserspaceMemoryRegion2, kvm_userspace_memory_region2: slot, flags, guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset, guest_memfd, pad1, pad2);
    same!(KvmMemoryAttributes, kvm_memory_attributes: address, size, attributes, flags);
    same!(KvmCreateGuestMemfd, kvm_create_guest_memfd: size, flags, reserved);
    same!(KvmPreFaultMemory, kvm_pre_fault_memory: gpa, size, flags, padding);
    same!(KvmDirtyLog, kvm_dirty_log: slot, padding1);
    same!(KvmClearDirtyLog, kvm_clear_dirty_log: slot, num_pages, first_page);
    same!(KvmTranslation, kvm_translation: linear_address, physical_address, valid, writeable, usermode, pad);
    same!(KvmCoalescedMmioZone, kvm_coalesced_mmio_zone: addr, size);
    same!(KvmCoalescedMmio, kvm_coalesced_mmio: phys_addr, len, data);
    same!(KvmCoalescedMmioRing, kvm_coalesced_mmio_ring: first, last);
    same!(KvmEncRegion, kvm_enc_region: addr, size);
    same!(KvmSignalMask, kvm_signal_mask: len);
    same!(KvmClockData, kvm_clock_data: clock, flags, pad0, realtime, host_tsc, pad);
    same!(KvmEnableCap, kvm_enable_cap: cap, flags, args, pad);
    same!(KvmNestedState, kvm_nested_state: flags, format, size, hdr);
    same!(KvmPmuEventFilter, kvm_pmu_event_filter: action, nevents, fixed_counter_bitmap, flags, pad);
    same!(KvmXenHvmConfig, kvm_xen_hvm_config: flags, msr, blob_addr_32, blob_addr_64, blob_size_32, blob_size_64, pad2);
    same!(KvmMsrList, kvm_msr_list: nmsrs);
    same!(KvmMsrs, kvm_msrs: nmsrs, pad);
    same!(KvmMsrEntry, kvm_msr_entry: index, reserved, data);
    same!(KvmMsrFilterRange, kvm_msr_filter_range: flags, nmsrs, base, bitmap);
    same!(KvmMsrFilter, kvm_msr_filter: flags, ranges);
    same!(KvmPitChannelState, kvm_pit_channel_state: count, latched_count, count_latched, status_latched, status, read_state, write_state, write_latch, rw_mode, mode, bcd, gate, count_load_time);
    same!(KvmPitState, kvm_pit_state: channels);
    same!(KvmPitState2, kvm_pit_state2: channels, flags, reserved);
    same!(KvmPitConfig, kvm_pit_config: flags, pad);
    same!(KvmReinjectControl, kvm_reinject_control: pit_reinject, reserved);
    same!(KvmRegs, kvm_regs: rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags);
    same!(KvmSegment, kvm_segment: base, limit, selector, type_, present, dpl, db, s, l, g, avl, unusable, padding);
    same!(KvmDtable, kvm_dtable: base, limit, padding);
    same!(KvmSregs, kvm_sregs: cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, interrupt_bitmap);
    same!(KvmSregs2, kvm_sregs2: cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, flags, pdptrs);
    same!(KvmFpu, kvm_fpu: fpr, fcw, fsw, ftwx, pad1, last_opcode, last_ip, last_dp, xmm, mxcsr, pad2);
    same!(KvmXsave, kvm_xsave: region);
    same!(KvmXcr, kvm_xcr: xcr, reserved, value);
    same!(KvmXcrs, kvm_xcrs: nr_xcrs, flags, xcrs, padding);
    same!(KvmDebugregs, kvm_debugregs: db, dr6, dr7, flags, reserved);
    same!(KvmSyncRegs, kvm_sync_regs: regs, sregs, events);
    same!(KvmStatsHeader, kvm_stats_header: flags, name_size, num_desc, id_offset, desc_offset, data_offset);
    same!(KvmStatsDesc, kvm_stats_desc: flags, exponent, size, offset, bucket_size);
}

#[test]
fn structures_whose_fields_are_named_differently() {
    assert_eq!(offset_of!(KvmGuestDebug, debugreg), offset_of!(k::kvm_guest_debug, arch));
    assert_eq!(offset_of!(KvmRun, exit), offset_of!(k::kvm_run, __bindgen_anon_1));
    assert_eq!(size_of::<KvmRun>(), size_of::<k::kvm_run>());
    assert_eq!(offset_of!(KvmIrqLevel, irq), 0);
    assert_eq!(offset_of!(KvmDirtyLog, dirty_bitmap), 8);
    assert_eq!(offset_of!(KvmClearDirtyLog, dirty_bitmap), 16);
    assert_eq!(offset_of!(KvmCoalescedMmioZone, pio), 12);
    assert_eq!(offset_of!(KvmCoalescedMmio, pio), 12);
    assert_eq!(offset_of!(KvmVcpuEvents, triple_fault), offset_of!(k::kvm_vcpu_events, triple_fault));
    assert_eq!(offset_of!(KvmRunHypercall, flags), 64);
    assert_eq!(size_of::<KvmRunInternal>(), 136);
    assert_eq!(offset_of!(KvmRunEmulationFailure, insn_bytes), 17);
    assert_eq!(size_of::<KvmRunSystemEvent>(), 136);
}

#[test]
fn structures_of_2007() {
    assert_eq!(size_of::<KvmMemoryRegion>(), 24);
    assert_eq!(size_of::<KvmMemoryAlias>(), 32);
    assert_eq!(size_of::<KvmBreakpoint>(), 16);
    assert_eq!(size_of::<KvmDebugGuest>(), 80);
    assert_eq!(offset_of!(KvmDebugGuest, singlestep), 72);
    assert_eq!(offset_of!(KvmVcpuPara, hypercall_gpa), 16);
    assert_eq!(offset_of!(KvmRunHypercall2007, longmode), 56);
    // 2007's kvm_run kept every offset.
    assert_eq!(offset_of!(KvmRun, exit), 32);
}

#[test]
fn run_offsets() {
    assert_eq!(KVM_RUN_REQUEST_INTERRUPT_WINDOW_OFFSET, offset_of!(k::kvm_run, request_interrupt_window));
    assert_eq!(KVM_RUN_IMMEDIATE_EXIT_OFFSET, offset_of!(k::kvm_run, immediate_exit));
    assert_eq!(KVM_RUN_EXIT_REASON_OFFSET, offset_of!(k::kvm_run, exit_reason));
    assert_eq!(KVM_RUN_READY_FOR_INTERRUPT_INJECTION_OFFSET, offset_of!(k::kvm_run, ready_for_interrupt_injection));
    assert_eq!(KVM_RUN_IF_FLAG_OFFSET, offset_of!(k::kvm_run, if_flag));
    assert_eq!(KVM_RUN_FLAGS_OFFSET, offset_of!(k::kvm_run, flags));
    assert_eq!(KVM_RUN_CR8_OFFSET, offset_of!(k::kvm_run, cr8));
    assert_eq!(KVM_RUN_APIC_BASE_OFFSET, offset_of!(k::kvm_run, apic_base));
    assert_eq!(KVM_RUN_UNION_OFFSET, offset_of!(k::kvm_run, __bindgen_anon_1));
    assert_eq!(KVM_RUN_VALID_REGS_OFFSET, offset_of!(k::kvm_run, kvm_valid_regs));
    assert_eq!(KVM_RUN_DIRTY_REGS_OFFSET, offset_of!(k::kvm_run, kvm_dirty_regs));
    assert_eq!(KVM_RUN_SYNC_REGS_OFFSET, offset_of!(k::kvm_run, s));
    assert_eq!(KVM_RUN_SIZE, size_of::<k::kvm_run>());
    assert!(size_of::<KvmSyncRegs>() <= KVM_RUN_SYNC_REGS_SIZE);
}

macro_rules! numbers {
    ($($name:ident),* $(,)?) => {$(assert_eq!($name as i128, k::$name as i128, stringify!($name));)*};
}

#[test]
fn numbers() {
    numbers!(
        KVM_CAP_IRQCHIP,
        KVM_CAP_HLT,
        KVM_CAP_MMU_SHADOW_CACHE_CONTROL,
        KVM_CAP_USER_MEMORY,
        KVM_CAP_SET_TSS_ADDR,
        KVM_CAP_VAPIC,
        KVM_CAP_EXT_CPUID,
        KVM_CAP_CLOCKSOURCE,
        KVM_CAP_NR_VCPUS,
        KVM_CAP_NR_MEMSLOTS,
        KVM_CAP_PIT,
        KVM_CAP_NOP_IO_DELAY,
        KVM_CAP_PV_MMU,
        KVM_CAP_MP_STATE,
        KVM_CAP_COALESCED_MMIO,
        KVM_CAP_SYNC_MMU,
        KVM_CAP_IOMMU,
        KVM_CAP_DESTROY_MEMORY_REGION_WORKS,
        KVM_CAP_USER_NMI,
        KVM_CAP_SET_GUEST_DEBUG,
        KVM_CAP_REINJECT_CONTROL,
        KVM_CAP_IRQ_ROUTING,
        KVM_CAP_IRQ_INJECT_STATUS,
        KVM_CAP_ASSIGN_DEV_IRQ,
        KVM_CAP_JOIN_MEMORY_REGIONS_WORKS,
        KVM_CAP_MCE,
        KVM_CAP_IRQFD,
        KVM_CAP_PIT2,
        KVM_CAP_SET_BOOT_CPU_ID,
        KVM_CAP_PIT_STATE2,
        KVM_CAP_IOEVENTFD,
        KVM_CAP_SET_IDENTITY_MAP_ADDR,
        KVM_CAP_XEN_HVM,
        KVM_CAP_ADJUST_CLOCK,
        KVM_CAP_INTERNAL_ERROR_DATA,
        KVM_CAP_VCPU_EVENTS,
        KVM_CAP_HYPERV,
        KVM_CAP_HYPERV_VAPIC,
        KVM_CAP_HYPERV_SPIN,
        KVM_CAP_PCI_SEGMENT,
        KVM_CAP_INTR_SHADOW,
        KVM_CAP_DEBUGREGS,
        KVM_CAP_X86_ROBUST_SINGLESTEP,
        KVM_CAP_ENABLE_CAP,
        KVM_CAP_XSAVE,
        KVM_CAP_XCRS,
        KVM_CAP_ASYNC_PF,
        KVM_CAP_TSC_CONTROL,
        KVM_CAP_GET_TSC_KHZ,
        KVM_CAP_MAX_VCPUS,
        KVM_CAP_ONE_REG,
        KVM_CAP_TSC_DEADLINE_TIMER,
        KVM_CAP_SYNC_REGS,
        KVM_CAP_PCI_2_3,
        KVM_CAP_KVMCLOCK_CTRL,
        KVM_CAP_SIGNAL_MSI,
        KVM_CAP_READONLY_MEM,
        KVM_CAP_IRQFD_RESAMPLE,
        KVM_CAP_DEVICE_CTRL,
        KVM_CAP_EXT_EMUL_CPUID,
        KVM_CAP_HYPERV_TIME,
        KVM_CAP_IOAPIC_POLARITY_IGNORED,
        KVM_CAP_ENABLE_CAP_VM,
        KVM_CAP_IOEVENTFD_NO_LENGTH,
        KVM_CAP_VM_ATTRIBUTES,
        KVM_CAP_CHECK_EXTENSION_VM,
        KVM_CAP_DISABLE_QUIRKS,
        KVM_CAP_X86_SMM,
        KVM_CAP_MULTI_ADDRESS_SPACE,
        KVM_CAP_GUEST_DEBUG_HW_BPS,
        KVM_CAP_GUEST_DEBUG_HW_WPS,
        KVM_CAP_SPLIT_IRQCHIP,
        KVM_CAP_IOEVENTFD_ANY_LENGTH,
        KVM_CAP_HYPERV_SYNIC,
        KVM_CAP_VCPU_ATTRIBUTES,
        KVM_CAP_MAX_VCPU_ID,
        KVM_CAP_X2APIC_API,
        KVM_CAP_MSI_DEVID,
        KVM_CAP_IMMEDIATE_EXIT,
        KVM_CAP_X86_DISABLE_EXITS,
        KVM_CAP_HYPERV_SYNIC2,
        KVM_CAP_HYPERV_VP_INDEX,
        KVM_CAP_GET_MSR_FEATURES,
        KVM_CAP_HYPERV_EVENTFD,
        KVM_CAP_HYPERV_TLBFLUSH,
        KVM_CAP_NESTED_STATE,
        KVM_CAP_MSR_PLATFORM_INFO,
        KVM_CAP_HYPERV_SEND_IPI,
        KVM_CAP_COALESCED_PIO,
        KVM_CAP_HYPERV_ENLIGHTENED_VMCS,
        KVM_CAP_EXCEPTION_PAYLOAD,
        KVM_CAP_MANUAL_DIRTY_LOG_PROTECT,
        KVM_CAP_HYPERV_CPUID,
        KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        KVM_CAP_PMU_EVENT_FILTER,
        KVM_CAP_HYPERV_DIRECT_TLBFLUSH,
        KVM_CAP_HALT_POLL,
        KVM_CAP_ASYNC_PF_INT,
        KVM_CAP_LAST_CPU,
        KVM_CAP_SMALLER_MAXPHYADDR,
        KVM_CAP_STEAL_TIME,
        KVM_CAP_X86_USER_SPACE_MSR,
        KVM_CAP_X86_MSR_FILTER,
        KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
        KVM_CAP_SYS_HYPERV_CPUID,
        KVM_CAP_DIRTY_LOG_RING,
        KVM_CAP_X86_BUS_LOCK_EXIT,
        KVM_CAP_SET_GUEST_DEBUG2,
        KVM_CAP_SGX_ATTRIBUTE,
        KVM_CAP_VM_COPY_ENC_CONTEXT_FROM,
        KVM_CAP_PTP_KVM,
        KVM_CAP_HYPERV_ENFORCE_CPUID,
        KVM_CAP_SREGS2,
        KVM_CAP_EXIT_HYPERCALL,
        KVM_CAP_BINARY_STATS_FD,
        KVM_CAP_EXIT_ON_EMULATION_FAILURE,
        KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM,
        KVM_CAP_VM_GPA_BITS,
        KVM_CAP_XSAVE2,
        KVM_CAP_SYS_ATTRIBUTES,
        KVM_CAP_PMU_CAPABILITY,
        KVM_CAP_DISABLE_QUIRKS2,
        KVM_CAP_VM_TSC_CONTROL,
        KVM_CAP_SYSTEM_EVENT_DATA,
        KVM_CAP_X86_TRIPLE_FAULT_EVENT,
        KVM_CAP_X86_NOTIFY_VMEXIT,
        KVM_CAP_VM_DISABLE_NX_HUGE_PAGES,
        KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
        KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP,
        KVM_CAP_PMU_EVENT_MASKED_EVENTS,
        KVM_CAP_COUNTER_OFFSET,
        KVM_CAP_USER_MEMORY2,
        KVM_CAP_MEMORY_FAULT_INFO,
        KVM_CAP_MEMORY_ATTRIBUTES,
        KVM_CAP_GUEST_MEMFD,
        KVM_CAP_VM_TYPES,
        KVM_CAP_PRE_FAULT_MEMORY,
        KVM_CAP_X86_APIC_BUS_CYCLES_NS,
        KVM_CAP_X86_GUEST_MODE,
        KVM_X86_DISABLE_EXITS_MWAIT,
        KVM_X86_DISABLE_EXITS_HLT,
        KVM_X86_DISABLE_EXITS_PAUSE,
        KVM_X86_DISABLE_EXITS_CSTATE,
        KVM_X2APIC_API_USE_32BIT_IDS,
        KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
        KVM_X86_QUIRK_LINT0_REENABLED,
        KVM_X86_QUIRK_CD_NW_CLEARED,
        KVM_X86_QUIRK_LAPIC_MMIO_HOLE,
        KVM_X86_QUIRK_OUT_7E_INC_RIP,
        KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT,
        KVM_X86_QUIRK_FIX_HYPERCALL_INSN,
        KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS,
        KVM_X86_QUIRK_SLOT_ZAP_ALL,
        KVM_X86_QUIRK_STUFF_FEATURE_MSRS,
        KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
        KVM_DIRTY_LOG_INITIALLY_SET,
        KVM_BUS_LOCK_DETECTION_OFF,
        KVM_BUS_LOCK_DETECTION_EXIT,
        KVM_PMU_CAP_DISABLE,
        KVM_X86_DEFAULT_VM,
        KVM_X86_SW_PROTECTED_VM,
        KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        KVM_CPUID_FLAG_STATEFUL_FUNC,
        KVM_CPUID_FLAG_STATE_READ_NEXT,
        KVM_GUESTDBG_ENABLE,
        KVM_GUESTDBG_SINGLESTEP,
        KVM_GUESTDBG_USE_SW_BP,
        KVM_GUESTDBG_USE_HW_BP,
        KVM_GUESTDBG_INJECT_DB,
        KVM_GUESTDBG_INJECT_BP,
        KVM_GUESTDBG_BLOCKIRQ,
        KVM_CREATE_DEVICE_TEST,
        KVM_VCPU_TSC_CTRL,
        KVM_VCPU_TSC_OFFSET,
        KVM_X86_XCOMP_GUEST_SUPP,
        KVM_VCPUEVENT_VALID_NMI_PENDING,
        KVM_VCPUEVENT_VALID_SIPI_VECTOR,
        KVM_VCPUEVENT_VALID_SHADOW,
        KVM_VCPUEVENT_VALID_SMM,
        KVM_VCPUEVENT_VALID_PAYLOAD,
        KVM_VCPUEVENT_VALID_TRIPLE_FAULT,
        KVM_X86_SHADOW_INT_MOV_SS,
        KVM_X86_SHADOW_INT_STI,
        KVM_MP_STATE_RUNNABLE,
        KVM_MP_STATE_UNINITIALIZED,
        KVM_MP_STATE_INIT_RECEIVED,
        KVM_MP_STATE_HALTED,
        KVM_MP_STATE_SIPI_RECEIVED,
        KVM_MP_STATE_AP_RESET_HOLD,
        KVM_EXIT_UNKNOWN,
        KVM_EXIT_EXCEPTION,
        KVM_EXIT_IO,
        KVM_EXIT_HYPERCALL,
        KVM_EXIT_DEBUG,
        KVM_EXIT_HLT,
        KVM_EXIT_MMIO,
        KVM_EXIT_IRQ_WINDOW_OPEN,
        KVM_EXIT_SHUTDOWN,
        KVM_EXIT_FAIL_ENTRY,
        KVM_EXIT_INTR,
        KVM_EXIT_SET_TPR,
        KVM_EXIT_TPR_ACCESS,
        KVM_EXIT_NMI,
        KVM_EXIT_INTERNAL_ERROR,
        KVM_EXIT_WATCHDOG,
        KVM_EXIT_SYSTEM_EVENT,
        KVM_EXIT_IOAPIC_EOI,
        KVM_EXIT_HYPERV,
        KVM_EXIT_X86_RDMSR,
        KVM_EXIT_X86_WRMSR,
        KVM_EXIT_DIRTY_RING_FULL,
        KVM_EXIT_AP_RESET_HOLD,
        KVM_EXIT_X86_BUS_LOCK,
        KVM_EXIT_XEN,
        KVM_EXIT_NOTIFY,
        KVM_EXIT_MEMORY_FAULT,
        KVM_EXIT_IO_IN,
        KVM_EXIT_IO_OUT,
        KVM_INTERNAL_ERROR_EMULATION,
        KVM_INTERNAL_ERROR_SIMUL_EX,
        KVM_INTERNAL_ERROR_DELIVERY_EV,
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
        KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
        KVM_SYSTEM_EVENT_SHUTDOWN,
        KVM_SYSTEM_EVENT_RESET,
        KVM_SYSTEM_EVENT_CRASH,
        KVM_SYSTEM_EVENT_WAKEUP,
        KVM_SYSTEM_EVENT_SUSPEND,
        KVM_MEMORY_EXIT_FLAG_PRIVATE,
        KVM_NOTIFY_CONTEXT_INVALID,
        KVM_RUN_X86_SMM,
        KVM_RUN_X86_BUS_LOCK,
        KVM_RUN_X86_GUEST_MODE,
        KVM_IOAPIC_NUM_PINS,
        KVM_IRQCHIP_PIC_MASTER,
        KVM_IRQCHIP_PIC_SLAVE,
        KVM_IRQCHIP_IOAPIC,
        KVM_NR_IRQCHIPS,
        KVM_APIC_REG_SIZE,
        KVM_IRQ_ROUTING_IRQCHIP,
        KVM_IRQ_ROUTING_MSI,
        KVM_IRQ_ROUTING_HV_SINT,
        KVM_IRQ_ROUTING_XEN_EVTCHN,
        KVM_MSI_VALID_DEVID,
        KVM_IRQFD_FLAG_DEASSIGN,
        KVM_IRQFD_FLAG_RESAMPLE,
        KVM_API_VERSION,
        KVM_MEM_LOG_DIRTY_PAGES,
        KVM_MEM_READONLY,
        KVM_MEM_GUEST_MEMFD,
        KVM_MEMORY_ATTRIBUTE_PRIVATE,
        KVM_PIO_PAGE_OFFSET,
        KVM_COALESCED_MMIO_PAGE_OFFSET,
        KVM_DIRTY_LOG_PAGE_OFFSET,
        KVM_CLOCK_TSC_STABLE,
        KVM_CLOCK_REALTIME,
        KVM_CLOCK_HOST_TSC,
        KVM_PMU_EVENT_ALLOW,
        KVM_PMU_EVENT_DENY,
        KVM_MSR_FILTER_READ,
        KVM_MSR_FILTER_WRITE,
        KVM_MSR_FILTER_RANGE_VALID_MASK,
        KVM_MSR_FILTER_DEFAULT_ALLOW,
        KVM_MSR_FILTER_DEFAULT_DENY,
        KVM_MSR_FILTER_VALID_MASK,
        KVM_MSR_FILTER_MAX_RANGES,
        KVM_MSR_FILTER_MAX_BITMAP_SIZE,
        KVM_MSR_EXIT_REASON_INVAL,
        KVM_MSR_EXIT_REASON_UNKNOWN,
        KVM_MSR_EXIT_REASON_FILTER,
        KVM_MSR_EXIT_REASON_VALID_MASK,
        KVM_PIT_SPEAKER_DUMMY,
        KVM_PIT_FLAGS_HPET_LEGACY,
        KVM_PIT_FLAGS_SPEAKER_DATA_ON,
        KVM_NR_INTERRUPTS,
        KVM_SREGS2_FLAGS_PDPTRS_VALID,
        KVM_MAX_XCRS,
        KVM_SYNC_X86_REGS,
        KVM_SYNC_X86_SREGS,
        KVM_SYNC_X86_EVENTS,
        KVM_SYNC_X86_VALID_FIELDS,
        KVM_STATS_TYPE_SHIFT,
        KVM_STATS_TYPE_MASK,
        KVM_STATS_TYPE_CUMULATIVE,
        KVM_STATS_TYPE_INSTANT,
        KVM_STATS_TYPE_PEAK,
        KVM_STATS_TYPE_LINEAR_HIST,
        KVM_STATS_TYPE_LOG_HIST,
        KVM_STATS_TYPE_MAX,
        KVM_STATS_UNIT_SHIFT,
        KVM_STATS_UNIT_MASK,
        KVM_STATS_UNIT_NONE,
        KVM_STATS_UNIT_BYTES,
        KVM_STATS_UNIT_SECONDS,
        KVM_STATS_UNIT_CYCLES,
        KVM_STATS_UNIT_BOOLEAN,
        KVM_STATS_UNIT_MAX,
        KVM_STATS_BASE_SHIFT,
        KVM_STATS_BASE_MASK,
        KVM_STATS_BASE_POW10,
        KVM_STATS_BASE_POW2,
        KVM_STATS_BASE_MAX
    );
    assert_eq!(KVM_IOEVENTFD_FLAG_DATAMATCH, 1 << k::kvm_ioeventfd_flag_nr_datamatch);
    assert_eq!(KVM_IOEVENTFD_FLAG_PIO, 1 << k::kvm_ioeventfd_flag_nr_pio);
    assert_eq!(KVM_IOEVENTFD_FLAG_DEASSIGN, 1 << k::kvm_ioeventfd_flag_nr_deassign);
    assert_eq!(KVM_DEV_TYPE_VFIO, k::kvm_device_type_KVM_DEV_TYPE_VFIO);
}

/// Request numbers as a C compiler makes them from Linux's header on x86-64.
const REQUESTS: &[(u32, u32)] = &[
    (abi::KVM_GET_API_VERSION, 0x0000ae00),
    (abi::KVM_CREATE_VM, 0x0000ae01),
    (abi::KVM_GET_MSR_INDEX_LIST, 0xc004ae02),
    (abi::KVM_CHECK_EXTENSION, 0x0000ae03),
    (abi::KVM_GET_VCPU_MMAP_SIZE, 0x0000ae04),
    (abi::KVM_GET_SUPPORTED_CPUID, 0xc008ae05),
    (abi::KVM_GET_EMULATED_CPUID, 0xc008ae09),
    (abi::KVM_GET_MSR_FEATURE_INDEX_LIST, 0xc004ae0a),
    (abi::KVM_SET_MEMORY_REGION, 0x4018ae40),
    (abi::KVM_CREATE_VCPU, 0x0000ae41),
    (abi::KVM_GET_DIRTY_LOG, 0x4010ae42),
    (abi::KVM_SET_MEMORY_ALIAS, 0x4020ae43),
    (abi::KVM_SET_NR_MMU_PAGES, 0x0000ae44),
    (abi::KVM_GET_NR_MMU_PAGES, 0x0000ae45),
    (abi::KVM_SET_USER_MEMORY_REGION, 0x4020ae46),
    (abi::KVM_SET_TSS_ADDR, 0x0000ae47),
    (abi::KVM_SET_IDENTITY_MAP_ADDR, 0x4008ae48),
    (abi::KVM_CREATE_IRQCHIP, 0x0000ae60),
    (abi::KVM_IRQ_LINE, 0x4008ae61),
    (abi::KVM_GET_IRQCHIP, 0xc208ae62),
    (abi::KVM_SET_IRQCHIP, 0x8208ae63),
    (abi::KVM_CREATE_PIT, 0x0000ae64),
    (abi::KVM_GET_PIT, 0xc048ae65),
    (abi::KVM_SET_PIT, 0x8048ae66),
    (abi::KVM_IRQ_LINE_STATUS, 0xc008ae67),
    (abi::KVM_REGISTER_COALESCED_MMIO, 0x4010ae67),
    (abi::KVM_UNREGISTER_COALESCED_MMIO, 0x4010ae68),
    (abi::KVM_SET_GSI_ROUTING, 0x4008ae6a),
    (abi::KVM_REINJECT_CONTROL, 0x0000ae71),
    (abi::KVM_IRQFD, 0x4020ae76),
    (abi::KVM_CREATE_PIT2, 0x4040ae77),
    (abi::KVM_SET_BOOT_CPU_ID, 0x0000ae78),
    (abi::KVM_IOEVENTFD, 0x4040ae79),
    (abi::KVM_XEN_HVM_CONFIG, 0x4038ae7a),
    (abi::KVM_SET_CLOCK, 0x4030ae7b),
    (abi::KVM_GET_CLOCK, 0x8030ae7c),
    (abi::KVM_GET_PIT2, 0x8070ae9f),
    (abi::KVM_SET_PIT2, 0x4070aea0),
    (abi::KVM_SET_TSC_KHZ, 0x0000aea2),
    (abi::KVM_GET_TSC_KHZ, 0x0000aea3),
    (abi::KVM_SIGNAL_MSI, 0x4020aea5),
    (abi::KVM_SET_PMU_EVENT_FILTER, 0x4020aeb2),
    (abi::KVM_MEMORY_ENCRYPT_OP, 0xc008aeba),
    (abi::KVM_MEMORY_ENCRYPT_REG_REGION, 0x8010aebb),
    (abi::KVM_MEMORY_ENCRYPT_UNREG_REGION, 0x8010aebc),
    (abi::KVM_HYPERV_EVENTFD, 0x4018aebd),
    (abi::KVM_CLEAR_DIRTY_LOG, 0xc018aec0),
    (abi::KVM_GET_SUPPORTED_HV_CPUID, 0xc008aec1),
    (abi::KVM_X86_SET_MSR_FILTER, 0x4188aec6),
    (abi::KVM_RESET_DIRTY_RINGS, 0x0000aec7),
    (abi::KVM_CREATE_DEVICE, 0xc00caee0),
    (abi::KVM_SET_DEVICE_ATTR, 0x4018aee1),
    (abi::KVM_GET_DEVICE_ATTR, 0x4018aee2),
    (abi::KVM_HAS_DEVICE_ATTR, 0x4018aee3),
    (abi::KVM_RUN, 0x0000ae80),
    (abi::KVM_GET_REGS, 0x8090ae81),
    (abi::KVM_SET_REGS, 0x4090ae82),
    (abi::KVM_GET_SREGS, 0x8138ae83),
    (abi::KVM_SET_SREGS, 0x4138ae84),
    (abi::KVM_TRANSLATE, 0xc018ae85),
    (abi::KVM_INTERRUPT, 0x4004ae86),
    (abi::KVM_DEBUG_GUEST, 0x4050ae87),
    (abi::KVM_GET_MSRS, 0xc008ae88),
    (abi::KVM_SET_MSRS, 0x4008ae89),
    (abi::KVM_SET_CPUID, 0x4008ae8a),
    (abi::KVM_SET_SIGNAL_MASK, 0x4004ae8b),
    (abi::KVM_GET_FPU, 0x81a0ae8c),
    (abi::KVM_SET_FPU, 0x41a0ae8d),
    (abi::KVM_GET_LAPIC, 0x8400ae8e),
    (abi::KVM_SET_LAPIC, 0x4400ae8f),
    (abi::KVM_SET_CPUID2, 0x4008ae90),
    (abi::KVM_GET_CPUID2, 0xc008ae91),
    (abi::KVM_TPR_ACCESS_REPORTING, 0xc028ae92),
    (abi::KVM_SET_VAPIC_ADDR, 0x4008ae93),
    (abi::KVM_GET_MP_STATE, 0x8004ae98),
    (abi::KVM_SET_MP_STATE, 0x4004ae99),
    (abi::KVM_NMI, 0x0000ae9a),
    (abi::KVM_SET_GUEST_DEBUG, 0x4048ae9b),
    (abi::KVM_X86_SETUP_MCE, 0x4008ae9c),
    (abi::KVM_X86_GET_MCE_CAP_SUPPORTED, 0x8008ae9d),
    (abi::KVM_X86_SET_MCE, 0x4040ae9e),
    (abi::KVM_GET_VCPU_EVENTS, 0x8040ae9f),
    (abi::KVM_SET_VCPU_EVENTS, 0x4040aea0),
    (abi::KVM_GET_DEBUGREGS, 0x8080aea1),
    (abi::KVM_SET_DEBUGREGS, 0x4080aea2),
    (abi::KVM_ENABLE_CAP, 0x4068aea3),
    (abi::KVM_GET_XSAVE, 0x9000aea4),
    (abi::KVM_SET_XSAVE, 0x5000aea5),
    (abi::KVM_GET_XCRS, 0x8188aea6),
    (abi::KVM_SET_XCRS, 0x4188aea7),
    (abi::KVM_GET_ONE_REG, 0x4010aeab),
    (abi::KVM_SET_ONE_REG, 0x4010aeac),
    (abi::KVM_KVMCLOCK_CTRL, 0x0000aead),
    (abi::KVM_GET_REG_LIST, 0xc008aeb0),
    (abi::KVM_SMI, 0x0000aeb7),
    (abi::KVM_GET_NESTED_STATE, 0xc080aebe),
    (abi::KVM_SET_NESTED_STATE, 0x4080aebf),
    (abi::KVM_GET_SREGS2, 0x8140aecc),
    (abi::KVM_SET_SREGS2, 0x4140aecd),
    (abi::KVM_GET_STATS_FD, 0x0000aece),
    (abi::KVM_GET_XSAVE2, 0x9000aecf),
    // Newer than that header, and 2007's.
    (abi::KVM_SET_USER_MEMORY_REGION2, 0x40a0ae49),
    (abi::KVM_SET_MEMORY_ATTRIBUTES, 0x4020aed2),
    (abi::KVM_CREATE_GUEST_MEMFD, 0xc040aed4),
    (abi::KVM_PRE_FAULT_MEMORY, 0xc040aed5),
    (abi::KVM_DEBUG_GUEST, 0x4050ae87),
    (abi::KVM_SET_MEMORY_ALIAS, 0x4020ae43),
];

#[test]
fn request_numbers() {
    for &(ours, literal) in REQUESTS {
        assert_eq!(ours, literal, "{:?}", ioctl_name(ours));
    }
    for &(request, name) in KVM_IOCTL_NAMES {
        assert!(REQUESTS.iter().any(|r| r.0 == request), "{name} has no literal to compare with");
        assert_eq!(ioc_type(request), KVMIO);
    }
}

#[test]
fn request_builder_agrees_with_libc() {
    assert_eq!(KVM_RUN, libc::_IO(KVMIO, 0x80) as u32);
    assert_eq!(KVM_GET_REGS, libc::_IOR::<k::kvm_regs>(KVMIO, 0x81) as u32);
    assert_eq!(KVM_SET_REGS, libc::_IOW::<k::kvm_regs>(KVMIO, 0x82) as u32);
    assert_eq!(KVM_TRANSLATE, libc::_IOWR::<k::kvm_translation>(KVMIO, 0x85) as u32);
    assert_eq!((ioc_nr(KVM_GET_REGS), ioc_size(KVM_GET_REGS), ioc_dir(KVM_GET_REGS)), (0x81, 144, IOC_READ));
}

#[test]
fn names() {
    assert_eq!(ioctl_name(0xae80), Some("KVM_RUN"));
    assert_eq!(cap_name(3), Some("KVM_CAP_USER_MEMORY"));
    assert_eq!(exit_name(2), Some("KVM_EXIT_IO"));
    assert_eq!(exit_name(9999), None);
    for (i, (number, name)) in KVM_CAP_NAMES.iter().enumerate() {
        assert!(KVM_CAP_NAMES[..i].iter().all(|(n, _)| n != number), "{name} is there twice");
    }
}

#[test]
fn bytes_and_back() {
    let mut regs = KvmRegs { rip: 0x1122_3344_5566_7788, ..KvmRegs::default() };
    assert_eq!(regs.bytes()[128..136], 0x1122_3344_5566_7788u64.to_le_bytes());
    regs.bytes_mut()[0] = 5;
    assert_eq!(regs.rax, 5);
    assert_eq!(KvmRegs::from_prefix(regs.bytes()), Some(regs));
    assert_eq!(KvmRegs::from_prefix(&regs.bytes()[1..]), None);
    assert_eq!(KvmIrqchip::zeroed().bytes().len(), 520);
}
