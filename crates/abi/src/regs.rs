//! Registers: general, system, FPU, XSAVE, XCR, debug registers.
#![allow(missing_docs)] // the fields' names are the interface's own

/// Bits of the interrupt bitmap in [`KvmSregs`].
pub const KVM_NR_INTERRUPTS: usize = 256;
/// [`KvmSregs2::flags`]: `pdptrs` holds valid values.
pub const KVM_SREGS2_FLAGS_PDPTRS_VALID: u64 = 1;
/// Elements of [`KvmXcrs::xcrs`].
pub const KVM_MAX_XCRS: usize = 16;
/// `kvm_valid_regs` and `kvm_dirty_regs`: general registers.
pub const KVM_SYNC_X86_REGS: u64 = 1 << 0;
/// `kvm_valid_regs` and `kvm_dirty_regs`: system registers.
pub const KVM_SYNC_X86_SREGS: u64 = 1 << 1;
/// `kvm_valid_regs` and `kvm_dirty_regs`: events.
pub const KVM_SYNC_X86_EVENTS: u64 = 1 << 2;
/// All classes of `kvm_valid_regs` and `kvm_dirty_regs`.
pub const KVM_SYNC_X86_VALID_FIELDS: u64 = 7;

wire! {
    /// `kvm_regs`: general registers, RIP and RFLAGS.
    pub struct KvmRegs {
        pub rax: u64,
        pub rbx: u64,
        pub rcx: u64,
        pub rdx: u64,
        pub rsi: u64,
        pub rdi: u64,
        pub rsp: u64,
        pub rbp: u64,
        pub r8: u64,
        pub r9: u64,
        pub r10: u64,
        pub r11: u64,
        pub r12: u64,
        pub r13: u64,
        pub r14: u64,
        pub r15: u64,
        pub rip: u64,
        pub rflags: u64,
    }

    /// `kvm_segment`: a segment register with its hidden part. `limit` is in bytes, already scaled by `g`.
    pub struct KvmSegment {
        pub base: u64,
        pub limit: u32,
        pub selector: u16,
        pub type_: u8,
        pub present: u8,
        pub dpl: u8,
        pub db: u8,
        pub s: u8,
        pub l: u8,
        pub g: u8,
        pub avl: u8,
        pub unusable: u8,
        pub padding: u8,
    }

    /// `kvm_dtable`: GDTR or IDTR.
    pub struct KvmDtable {
        pub base: u64,
        pub limit: u16,
        pub padding: [u16; 3],
    }

    /// `kvm_sregs`: segments, tables, control registers. `interrupt_bitmap` holds at most one pending vector.
    pub struct KvmSregs {
        pub cs: KvmSegment,
        pub ds: KvmSegment,
        pub es: KvmSegment,
        pub fs: KvmSegment,
        pub gs: KvmSegment,
        pub ss: KvmSegment,
        pub tr: KvmSegment,
        pub ldt: KvmSegment,
        pub gdt: KvmDtable,
        pub idt: KvmDtable,
        pub cr0: u64,
        pub cr2: u64,
        pub cr3: u64,
        pub cr4: u64,
        pub cr8: u64,
        pub efer: u64,
        pub apic_base: u64,
        pub interrupt_bitmap: [u64; 4],
    }

    /// `kvm_sregs2`: as [`KvmSregs`], with the PAE page-directory pointers in place of the bitmap.
    pub struct KvmSregs2 {
        pub cs: KvmSegment,
        pub ds: KvmSegment,
        pub es: KvmSegment,
        pub fs: KvmSegment,
        pub gs: KvmSegment,
        pub ss: KvmSegment,
        pub tr: KvmSegment,
        pub ldt: KvmSegment,
        pub gdt: KvmDtable,
        pub idt: KvmDtable,
        pub cr0: u64,
        pub cr2: u64,
        pub cr3: u64,
        pub cr4: u64,
        pub cr8: u64,
        pub efer: u64,
        pub apic_base: u64,
        pub flags: u64,
        pub pdptrs: [u64; 4],
    }

    /// `kvm_fpu`: x87 and SSE state. `ftwx` is the tag word in FXSAVE's short form.
    pub struct KvmFpu {
        pub fpr: [[u8; 16]; 8],
        pub fcw: u16,
        pub fsw: u16,
        pub ftwx: u8,
        pub pad1: u8,
        pub last_opcode: u16,
        pub last_ip: u64,
        pub last_dp: u64,
        pub xmm: [[u8; 16]; 16],
        pub mxcsr: u32,
        pub pad2: u32,
    }

    /// `kvm_xsave`: the first 4096 bytes of an XSAVE area in standard form. With `KVM_CAP_XSAVE2` more may follow.
    pub struct KvmXsave {
        pub region: [u32; 1024],
    }

    /// `kvm_xcr`: one extended control register.
    pub struct KvmXcr {
        pub xcr: u32,
        pub reserved: u32,
        pub value: u64,
    }

    /// `kvm_xcrs`: the extended control registers.
    pub struct KvmXcrs {
        pub nr_xcrs: u32,
        pub flags: u32,
        pub xcrs: [KvmXcr; KVM_MAX_XCRS],
        pub padding: [u64; 16],
    }

    /// `kvm_debugregs`: DR0 to DR3, DR6, DR7.
    pub struct KvmDebugregs {
        pub db: [u64; 4],
        pub dr6: u64,
        pub dr7: u64,
        pub flags: u64,
        pub reserved: [u64; 9],
    }

    /// `kvm_sync_regs`: registers shared through [`crate::exit::KvmRun`].
    pub struct KvmSyncRegs {
        pub regs: KvmRegs,
        pub sregs: KvmSregs,
        pub events: crate::events::KvmVcpuEvents,
    }
}
