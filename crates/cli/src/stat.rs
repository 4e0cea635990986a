//! `rekvm stat`.

use crate::args::Stat;
use vmm::stats::{self, SocketError};

pub fn stat(_a: &Stat) -> Result<(), SocketError> {
    let _ = stats::running()?;
    Ok(())
}
