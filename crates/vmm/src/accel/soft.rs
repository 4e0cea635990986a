//! The device inside this process: rekvm's own core on the software CPU.

use std::sync::Arc;

use super::Sys;

/// This build has no software CPU.
#[derive(Debug, thiserror::Error)]
#[error("this build of rekvm contains no software CPU")]
pub struct Unavailable;

/// Makes an in-process device.
///
/// # Errors
/// [`Unavailable`] when the program was built without one.
pub fn device() -> Result<Arc<dyn Sys>, Unavailable> {
    Err(Unavailable)
}
