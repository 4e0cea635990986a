//! What stubs exchange with Rust besides the guest's registers.
use std::mem::offset_of;

/// The buffers of one vector unit; stubs address it by the offsets below.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(super) struct Context {
    /// The memory operand. At offset 0, so that a stub's memory operand is plain `[rsi]`.
    pub memory: [u128; 2],
    /// MXCSR that the instruction runs with: the guest's modes, all exceptions masked, none flagged.
    pub mxcsr: u32,
    /// MXCSR of the host.
    pub host_mxcsr: u32,
    /// MXCSR after the instruction: the exceptions that it raised.
    pub raised: u32,
    /// Raised exceptions that keep results from being written back.
    pub fatal: u32,
    /// RFLAGS after the instruction; before it, for FCMOVcc.
    pub flags: u64,
    /// x87 status word after the instruction.
    pub fsw: u16,
    /// x87 control word of the host.
    pub host_fcw: u16,
    /// FXSAVE image for x87 instructions.
    pub fx: FxImage,
}

/// An FXSAVE image.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(super) struct FxImage(pub [u64; 64]);

pub(super) const MEMORY: usize = offset_of!(Context, memory);
pub(super) const MXCSR: usize = offset_of!(Context, mxcsr);
pub(super) const HOST_MXCSR: usize = offset_of!(Context, host_mxcsr);
pub(super) const RAISED: usize = offset_of!(Context, raised);
pub(super) const FATAL: usize = offset_of!(Context, fatal);
pub(super) const FLAGS: usize = offset_of!(Context, flags);
pub(super) const FSW: usize = offset_of!(Context, fsw);
pub(super) const HOST_FCW: usize = offset_of!(Context, host_fcw);
pub(super) const FX: usize = offset_of!(Context, fx);

const _: () = assert!(MEMORY == 0);

impl Default for Context {
    fn default() -> Self {
        Self {
            memory: [0; 2],
            mxcsr: 0x1f80,
            host_mxcsr: 0x1f80,
            raised: 0,
            fatal: 0,
            flags: 0,
            fsw: 0,
            host_fcw: 0x37f,
            fx: FxImage([0; 64]),
        }
    }
}
