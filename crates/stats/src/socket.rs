//! Where machines offer their statistics: a socket for each, in a directory
//! that only its user can enter.

use super::Snapshot;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Statistics of another process cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// {0} is not a directory that only this user can enter
    #[error("{0} is not a directory that only this user can enter")]
    Unsafe(String),
    /// cannot use the directory {0}: {1}
    #[error("cannot use the directory {0}: {1}")]
    Directory(String, io::Error),
    /// no rekvm runs with process id {0}
    #[error("no rekvm runs with process id {0}")]
    NoSuch(u32),
    /// cannot read the statistics of process {0}: {1}
    #[error("cannot read the statistics of process {0}: {1}")]
    Read(u32, io::Error),
    /// process {0} answers what this version does not understand: {1}
    #[error("process {0} answers what this version does not understand: {1}")]
    Format(u32, serde_json::Error),
}

/// Answers longer than this are not statistics.
const MAX_ANSWER: u64 = 64 << 20;

/// The directory's path: in the user's runtime directory, or below `/tmp`.
fn path() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if Path::new(&dir).is_absolute() => Path::new(&dir).join("rekvm"),
        // SAFETY: the call cannot fail and takes nothing.
        _ => PathBuf::from(format!("/tmp/rekvm-{}", unsafe { libc::geteuid() })),
    }
}

/// Refuses a directory that somebody else could have put there or can enter.
fn check(path: &Path) -> Result<(), SocketError> {
    let metadata =
        std::fs::symlink_metadata(path).map_err(|e| SocketError::Directory(path.display().to_string(), e))?;
    // SAFETY: the call cannot fail and takes nothing.
    let own = metadata.uid() == unsafe { libc::geteuid() };
    if metadata.is_dir() && own && metadata.permissions().mode() & 0o077 == 0 {
        Ok(())
    } else {
        Err(SocketError::Unsafe(path.display().to_string()))
    }
}

/// Where this process is to have its socket; nothing is there.
///
/// # Errors
/// When the directory cannot be made or is not safe to use.
pub fn place() -> Result<PathBuf, SocketError> {
    let directory = directory_at(path())?;
    let place = directory.join(format!("{}.sock", std::process::id()));
    // A file of this name is left over from a process that is no more.
    match std::fs::remove_file(&place) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(SocketError::Directory(directory.display().to_string(), e))
        }
        _ => Ok(place),
    }
}

/// The directory, made if need be.
fn directory_at(path: PathBuf) -> Result<PathBuf, SocketError> {
    match std::fs::DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(SocketError::Directory(path.display().to_string(), e)),
    }
    check(&path)?;
    Ok(path)
}

/// Process ids of this user's running machines, ascending. Sockets that nobody
/// answers at any more are removed.
///
/// # Errors
/// When the directory is not safe to use.
pub fn running() -> Result<Vec<u32>, SocketError> {
    let path = path();
    if !path.exists() {
        return Ok(Vec::new());
    }
    check(&path)?;
    let entries = std::fs::read_dir(&path).map_err(|e| SocketError::Directory(path.display().to_string(), e))?;
    let mut pids: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let pid = name.to_str()?.strip_suffix(".sock")?.parse().ok()?;
            match UnixStream::connect(entry.path()) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    let _ = std::fs::remove_file(entry.path());
                    None
                }
                _ => Some(pid),
            }
        })
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

/// Asks a machine for its statistics.
///
/// # Errors
/// When it is not there, does not answer within two seconds, or answers nonsense.
pub fn fetch(pid: u32) -> Result<Snapshot, SocketError> {
    let directory = path();
    if !directory.exists() {
        return Err(SocketError::NoSuch(pid));
    }
    check(&directory)?;
    let read = |e| SocketError::Read(pid, e);
    let stream = UnixStream::connect(directory.join(format!("{pid}.sock"))).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => SocketError::NoSuch(pid),
        _ => read(e),
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).map_err(read)?;
    let mut text = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut text).map_err(read)?;
    serde_json::from_str(&text).map_err(|e| SocketError::Format(pid, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_private_or_refused() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("rekvm");
        assert_eq!(directory_at(path.clone()).unwrap(), path);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        directory_at(path.clone()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert!(matches!(directory_at(path), Err(SocketError::Unsafe(_))));
        let link = base.path().join("link");
        std::os::unix::fs::symlink(base.path(), &link).unwrap();
        assert!(matches!(directory_at(link), Err(SocketError::Unsafe(_))));
    }
}
