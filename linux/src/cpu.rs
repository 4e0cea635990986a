//! Which kind of processor guests run on. The module has a core for each; which one it is is decided when it is loaded, and from
//! then on each system call takes one branch for it.
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use hv::backend::Backend;
use platform::hardware::Processors;

use crate::platform::Linux;

/// AMD-V.
pub type Amd = svm::Amd<Linux>;
/// VT-x.
pub type Intel = vmx::Intel<Linux>;

/// A back end for the processor's own virtualization.
pub trait Cpu: Backend<Platform = Linux> + Processors + Clone {
    /// Whether guests get nested paging.
    fn nested(&self) -> bool;
}

impl Cpu for Amd {
    fn nested(&self) -> bool {
        self.nested()
    }
}

impl Cpu for Intel {
    fn nested(&self) -> bool {
        self.nested()
    }
}

/// Whether it is VT-x.
static INTEL: AtomicBool = AtomicBool::new(false);

/// Decides it, before any object is made.
pub fn choose(intel: bool) {
    INTEL.store(intel, Relaxed);
}

/// Whether it is VT-x.
#[inline]
pub fn is_intel() -> bool {
    INTEL.load(Relaxed)
}

/// Calls a function that has the back end for a type parameter.
macro_rules! with_cpu {
    ($function:ident($($argument:expr),*)) => {
        if $crate::cpu::is_intel() {
            $function::<$crate::cpu::Intel>($($argument),*)
        } else {
            $function::<$crate::cpu::Amd>($($argument),*)
        }
    };
}
pub(crate) use with_cpu;
