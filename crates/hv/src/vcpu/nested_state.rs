//! KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE of a guest that is not offered virtualization: there is only the header,
//! which says so in the format of the guest's vendor.
use abi::{KVM_STATE_NESTED_FORMAT_SVM, KVM_STATE_NESTED_FORMAT_VMX, KVM_STATE_NESTED_GIF_SET, KvmNestedState, Pod};
use platform::Platform;
use x86::Features;

use super::Inner;
use crate::{Errno, Outcome, backend::Backend, uaccess};

type Mem<B> = <<B as Backend>::Platform as Platform>::Memory;

/// Bytes of the state: the header.
pub(crate) const SIZE: u32 = size_of::<KvmNestedState>() as u32;

impl<B: Backend> Inner<B> {
    /// AMD: interrupts are enabled globally. Intel: neither VMXON region nor VMCS.
    fn nested_state(&self) -> KvmNestedState {
        let mut state = KvmNestedState { size: SIZE, ..KvmNestedState::zeroed() };
        if self.features.contains(Features::AMD) {
            (state.format, state.flags) = (KVM_STATE_NESTED_FORMAT_SVM, KVM_STATE_NESTED_GIF_SET);
        } else {
            state.format = KVM_STATE_NESTED_FORMAT_VMX;
            state.hdr[..16].fill(0xff);
        }
        state
    }

    pub(super) fn get_nested_state(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        let mut header: KvmNestedState = KvmNestedState::zeroed();
        // Flags, format, and the size of the client's buffer.
        header.bytes_mut()[..8].copy_from_slice(&uaccess::get::<Mem<B>, [u8; 8]>(arg)?);
        if header.size < SIZE {
            header.size = SIZE;
            uaccess::put::<Mem<B>, [u8; 8]>(arg, &<[u8; 8]>::from_prefix(header.bytes()).unwrap_or_default())?;
            return Err(Errno::E2BIG);
        }
        uaccess::put::<Mem<B>, _>(arg, &self.nested_state())?;
        Ok(Outcome::OK)
    }

    /// Only what KVM_GET_NESTED_STATE answers can be set.
    pub(super) fn set_nested_state(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        let state: KvmNestedState = uaccess::get::<Mem<B>, _>(arg)?;
        let own = self.nested_state();
        let same_vmx = state.format != KVM_STATE_NESTED_FORMAT_VMX || state.hdr[..16] == own.hdr[..16];
        let same = (state.format, state.flags) == (own.format, own.flags) && same_vmx;
        if state.size >= SIZE && same { Ok(Outcome::OK) } else { Err(Errno::EINVAL) }
    }
}
