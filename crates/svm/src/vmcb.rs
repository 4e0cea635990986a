//! The virtual machine control block: the page in which the processor finds the guest's state and what to intercept, and
//! in which it says why the guest stopped. Layout and names are APM vol. 2, appendix B.
use core::mem::{offset_of, size_of};

/// A segment register as the processor stores it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VmcbSegment {
    /// The visible selector.
    pub selector: u16,
    /// Bits 47:40 and 55:52 of the descriptor, side by side.
    pub attributes: u16,
    /// In bytes, granularity applied.
    pub limit: u32,
    /// Linear base address.
    pub base: u64,
}

/// The control area: what is intercepted, and why the guest stopped.
#[derive(Debug)]
#[repr(C)]
pub struct Control {
    /// The intercept vectors of offsets 0 to 0x17, see [`crate::intercept`].
    pub intercepts: [u32; 6],
    reserved_18: [u8; 0x24],
    /// PAUSEs less than so many cycles apart count as one loop.
    pub pause_filter_threshold: u16,
    /// PAUSEs of a loop that go unnoticed.
    pub pause_filter_count: u16,
    /// Host-physical address of the I/O permission map.
    pub iopm_base: u64,
    /// Host-physical address of the MSR permission map.
    pub msrpm_base: u64,
    /// Added to the (scaled) time-stamp counter.
    pub tsc_offset: u64,
    /// Address-space identifier; 0 is the host's.
    pub asid: u32,
    /// What VMRUN flushes, see [`tlb_control`].
    pub tlb_control: u32,
    /// Virtual interrupts, see [`int_control`].
    pub int_control: u64,
    /// Bit 0: the guest is in an interrupt shadow. Bit 1: the guest's RFLAGS.IF.
    pub int_state: u64,
    /// Why the guest stopped, see [`crate::exit::code`].
    pub exit_code: u64,
    /// More about it.
    pub exit_info_1: u64,
    /// More about it.
    pub exit_info_2: u64,
    /// The event whose delivery the exit cut short, in the form of `event_inject`.
    pub exit_int_info: u64,
    /// Bit 0: nested paging.
    pub nested_control: u64,
    reserved_98: [u8; 0x10],
    /// The event to be delivered at the next VMRUN, see [`crate::inject`].
    pub event_inject: u64,
    /// Root of the nested page tables.
    pub nested_cr3: u64,
    /// Bit 0: last-branch records are the guest's.
    pub lbr_control: u64,
    /// Which parts the processor may use from its cache, see [`clean`].
    pub clean: u64,
    /// With NRIP save: where the instruction ends that caused the exit.
    pub next_rip: u64,
    /// With decode assists: how many of `instruction` are valid.
    pub instruction_len: u8,
    /// With decode assists: the bytes at the instruction pointer.
    pub instruction: [u8; 15],
    reserved_e0: [u8; 0x320],
}

/// The state save area.
#[derive(Debug)]
#[repr(C)]
pub struct Save {
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [VmcbSegment; 6],
    /// Only base and limit.
    pub gdtr: VmcbSegment,
    /// Local descriptor table.
    pub ldtr: VmcbSegment,
    /// Only base and limit.
    pub idtr: VmcbSegment,
    /// Task register.
    pub tr: VmcbSegment,
    reserved_a0: [u8; 0x2b],
    /// Current privilege level.
    pub cpl: u8,
    reserved_cc: [u8; 4],
    /// EFER; SVME must be set.
    pub efer: u64,
    reserved_d8: [u8; 0x70],
    /// CR4.
    pub cr4: u64,
    /// CR3.
    pub cr3: u64,
    /// CR0.
    pub cr0: u64,
    /// DR7.
    pub dr7: u64,
    /// DR6.
    pub dr6: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// RIP.
    pub rip: u64,
    reserved_180: [u8; 0x58],
    /// RSP.
    pub rsp: u64,
    reserved_1e0: [u8; 0x18],
    /// RAX.
    pub rax: u64,
    /// STAR.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// SFMASK.
    pub sfmask: u64,
    /// KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// SYSENTER_CS.
    pub sysenter_cs: u64,
    /// SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// CR2.
    pub cr2: u64,
    reserved_248: [u8; 0x20],
    /// The guest's PAT, with nested paging.
    pub pat: u64,
    /// DEBUGCTL.
    pub debugctl: u64,
    reserved_278: [u8; 0x988],
}

/// The page.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    /// Offset 0.
    pub control: Control,
    /// Offset 0x400.
    pub save: Save,
}

/// [`Control::tlb_control`].
pub mod tlb_control {
    /// Nothing is flushed.
    pub const NOTHING: u32 = 0;
    /// Every translation of every address space, the host's global ones too.
    pub const EVERYTHING: u32 = 1;
    /// With FlushByAsid: the translations of this address space.
    pub const THIS_ASID: u32 = 3;
}

/// [`Control::int_control`].
pub mod int_control {
    /// The guest's CR8.
    pub const V_TPR: u64 = 0xf;
    /// A virtual interrupt waits.
    pub const V_IRQ: u64 = 1 << 8;
    /// Its priority.
    pub const V_INTR_PRIO: u64 = 0xf << 16;
    /// It does not obey V_TPR.
    pub const V_IGN_TPR: u64 = 1 << 20;
    /// The guest's IF and CR8 are its own; the host's IF at VMRUN says whether physical interrupts come through.
    pub const V_INTR_MASKING: u64 = 1 << 24;
}

/// [`Control::clean`]: a set bit says that this part is as the last VMRUN on this processor left it (APM 15.15.3).
pub mod clean {
    /// Intercepts, TSC offset, pause filter.
    pub const INTERCEPTS: u64 = 1 << 0;
    /// Addresses of the permission maps.
    pub const MAPS: u64 = 1 << 1;
    /// ASID.
    pub const ASID: u64 = 1 << 2;
    /// Virtual interrupts.
    pub const TPR: u64 = 1 << 3;
    /// Nested paging and PAT.
    pub const NESTED: u64 = 1 << 4;
    /// CR0, CR3, CR4, EFER.
    pub const CRX: u64 = 1 << 5;
    /// DR6 and DR7.
    pub const DRX: u64 = 1 << 6;
    /// GDTR and IDTR.
    pub const TABLES: u64 = 1 << 7;
    /// CS, DS, SS, ES and CPL.
    pub const SEGMENTS: u64 = 1 << 8;
    /// CR2.
    pub const CR2: u64 = 1 << 9;
    /// All of these, and the last-branch records, which are never used.
    pub const ALL: u64 = 0x7ff;
}

/// [`Control::int_state`]: interrupt shadow.
pub const SHADOW: u64 = 1;
/// [`Control::nested_control`]: nested paging.
pub const NESTED_PAGING: u64 = 1;

const _: () = {
    assert!(size_of::<Vmcb>() == 4096 && size_of::<VmcbSegment>() == 16);
    assert!(offset_of!(Control, pause_filter_threshold) == 0x3c);
    assert!(offset_of!(Control, iopm_base) == 0x40);
    assert!(offset_of!(Control, msrpm_base) == 0x48);
    assert!(offset_of!(Control, tsc_offset) == 0x50);
    assert!(offset_of!(Control, asid) == 0x58);
    assert!(offset_of!(Control, tlb_control) == 0x5c);
    assert!(offset_of!(Control, int_control) == 0x60);
    assert!(offset_of!(Control, int_state) == 0x68);
    assert!(offset_of!(Control, exit_code) == 0x70);
    assert!(offset_of!(Control, exit_int_info) == 0x88);
    assert!(offset_of!(Control, nested_control) == 0x90);
    assert!(offset_of!(Control, event_inject) == 0xa8);
    assert!(offset_of!(Control, nested_cr3) == 0xb0);
    assert!(offset_of!(Control, clean) == 0xc0);
    assert!(offset_of!(Control, next_rip) == 0xc8);
    assert!(offset_of!(Control, instruction_len) == 0xd0);
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(Save, gdtr) == 0x60);
    assert!(offset_of!(Save, tr) == 0x90);
    assert!(offset_of!(Save, cpl) == 0xcb);
    assert!(offset_of!(Save, efer) == 0xd0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, cr0) == 0x158);
    assert!(offset_of!(Save, dr6) == 0x168);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, rax) == 0x1f8);
    assert!(offset_of!(Save, star) == 0x200);
    assert!(offset_of!(Save, sysenter_eip) == 0x238);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, pat) == 0x268);
    assert!(offset_of!(Save, debugctl) == 0x270);
};
