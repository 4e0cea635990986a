//! What the vCPUs of one VM share.
use platform::{OutOfMemory, Platform, RawLock, Shared, lock::rank};

use crate::code_map::CodeMap;

/// A VM of the software CPU.
pub struct SoftVm<P: Platform>(pub(crate) Shared<Common<P>>);

impl<P: Platform> core::fmt::Debug for SoftVm<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SoftVm").field("code", &self.0.code).finish()
    }
}

pub(crate) struct Common<P: Platform> {
    /// Where decoded code is.
    pub(crate) code: CodeMap,
    /// Held during a locked operation that crosses a page: the host's processor cannot lock two places, so
    /// such operations are atomic towards each other only. The vendors' manuals discourage them.
    pub(crate) split: P::RawMutex,
}

impl<P: Platform> SoftVm<P> {
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        Ok(Self(Shared::try_new(Common { code: CodeMap::new()?, split: P::RawMutex::new(rank::MMU)? })?))
    }
}
