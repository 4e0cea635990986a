//! Which back end runs the guest, and why. What was chosen is always told.

use crate::accel::{Sys, kernel::Kernel, soft::Soft};
use crate::probe::{self, ProbeError};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use user::device::Options;

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The device if it works, else the software CPU.
    Auto,
    /// The software CPU in this process.
    Soft,
    /// The device, or nothing.
    Kvm,
}

/// No back end can run the guest.
#[derive(Debug, thiserror::Error)]
pub enum ChooseError {
    /// The device was demanded and does not work.
    #[error("{0}; --accel soft runs without it")]
    Device(#[from] ProbeError),
    /// the device's path contains a NUL character
    #[error("the device's path contains a NUL character")]
    Path,
}

/// A back end, ready to be opened.
pub struct BackEnd {
    /// The system whose device it is.
    pub sys: Arc<dyn Sys>,
    /// The device node's path.
    pub path: CString,
    /// What it is and why it was chosen, for the user.
    pub description: String,
}

/// Chooses; `options` are for the software CPU. Must be called while the process has one thread: it may fork.
///
/// # Errors
/// [`ChooseError`] when what was asked for cannot be had.
pub fn choose(accel: Accel, options: Options, device: &Path) -> Result<BackEnd, ChooseError> {
    let path = CString::new(device.as_os_str().as_bytes()).map_err(|_| ChooseError::Path)?;
    let software = |path, reason: &dyn std::fmt::Display| BackEnd {
        sys: Arc::new(Soft(options)),
        path,
        description: format!("software CPU (in process{options}); {reason}"),
    };
    if accel == Accel::Soft {
        return Ok(software(path, &"asked for by --accel soft"));
    }
    let sys: Arc<dyn Sys> = Arc::new(Kernel);
    match probe::probe(sys.clone(), &path) {
        Ok(took) => {
            let device = device.display();
            let description = format!("{device} (the kernel's); it ran a test guest in {} ms", took.as_millis());
            Ok(BackEnd { sys, path, description })
        }
        Err(why) if accel == Accel::Kvm => Err(why.into()),
        Err(why) => Ok(software(path, &why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_never_becomes_soft() {
        let error = choose(Accel::Kvm, Options::default(), Path::new("/nonexistent")).err().unwrap();
        assert!(matches!(error, ChooseError::Device(_)), "{error}");
    }

    #[test]
    fn auto_says_why_it_is_soft() {
        let back_end = choose(Accel::Auto, Options::default(), Path::new("/nonexistent")).unwrap();
        assert!(back_end.description.starts_with("software CPU (in process); /nonexistent cannot be opened"));
    }
}
