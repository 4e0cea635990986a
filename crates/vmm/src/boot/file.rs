//! Opening a file that is to be loaded whole.

use std::fs::File;
use std::path::Path;

/// A file cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// cannot open it: {0}
    #[error("cannot open it: {0}")]
    Open(std::io::Error),
    /// it is not a regular file
    #[error("it is not a regular file")]
    NotRegular,
}

/// Opens a regular file; answers its length too. What is no regular file (a
/// directory, a FIFO that would block) is refused before it is opened.
pub(super) fn open(path: &Path) -> Result<(File, u64), FileError> {
    if !std::fs::metadata(path).map_err(FileError::Open)?.is_file() {
        return Err(FileError::NotRegular);
    }
    let file = File::open(path).map_err(FileError::Open)?;
    let len = file.metadata().map_err(FileError::Open)?.len();
    Ok((file, len))
}
