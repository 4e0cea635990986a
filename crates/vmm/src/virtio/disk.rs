//! A file or block device that backs a virtual disk.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of a sector, the unit of capacity and position.
pub const SECTOR: u64 = 512;

/// A disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// disk {0}: {1}
    #[error("disk {0}: {1}")]
    Io(String, std::io::Error),
    /// disk {0}: it is neither a regular file nor a block device
    #[error("disk {0}: it is neither a regular file nor a block device")]
    Kind(String),
    /// disk {0}: it is smaller than one sector of 512 bytes
    #[error("disk {0}: it is smaller than one sector of 512 bytes")]
    TooSmall(String),
    /// disk {0}: another program has locked it
    #[error("disk {0}: another program has locked it")]
    Locked(String),
    /// '{0}': the only option after the path is ro
    #[error("'{0}': the only option after the path is ro")]
    Option(String),
}

/// A disk on the command line: a path, and `,ro` if the guest must not write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// The file or block device.
    pub path: PathBuf,
    /// The guest may only read.
    pub read_only: bool,
}

impl DiskConfig {
    /// Reads `PATH` or `PATH,ro`.
    ///
    /// # Errors
    /// [`DiskError::Option`] for anything else after a comma that is the path's last.
    pub fn parse(text: &str) -> Result<Self, DiskError> {
        let (path, read_only) = match text.rsplit_once(',') {
            Some((path, "ro")) => (path, true),
            // A file may well have a comma in its name.
            Some(_) if Path::new(text).exists() => (text, false),
            Some(_) => return Err(DiskError::Option(text.to_owned())),
            None => (text, false),
        };
        Ok(Self { path: path.into(), read_only })
    }
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    read_only: bool,
    sectors: u64,
    id: [u8; 20],
}

impl Disk {
    /// Opens and locks the disk: two guests must not write one file.
    ///
    /// # Errors
    /// [`DiskError`], with the disk's name.
    pub fn open(config: &DiskConfig) -> Result<Self, DiskError> {
        let name = config.path.display().to_string();
        let io = |e| DiskError::Io(name.clone(), e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(!config.read_only)
            // A FIFO must not block.
            .custom_flags(libc::O_NONBLOCK)
            .open(&config.path)
            .map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(DiskError::Kind(name));
        }
        let lock = if config.read_only { libc::LOCK_SH } else { libc::LOCK_EX };
        // SAFETY: no pointers are involved.
        if unsafe { libc::flock(file.as_raw_fd(), lock | libc::LOCK_NB) } != 0 {
            let error = std::io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EWOULDBLOCK) => Err(DiskError::Locked(name)),
                // File systems without locks exist; they are no reason to refuse.
                Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => {
                    Self::finish(file, config, &metadata, name)
                }
                _ => Err(DiskError::Io(name, error)),
            };
        }
        // A block device has its size only at its end.
        file.rewind().map_err(io)?;
        Self::finish(file, config, &metadata, name)
    }

    fn finish(
        mut file: File,
        config: &DiskConfig,
        metadata: &std::fs::Metadata,
        name: String,
    ) -> Result<Self, DiskError> {
        let len = file.seek(SeekFrom::End(0)).map_err(|e| DiskError::Io(name.clone(), e))?;
        if len < SECTOR {
            return Err(DiskError::TooSmall(name));
        }
        let mut id = [0; 20];
        let text = format!("rekvm-{:x}-{:x}", metadata.dev(), metadata.ino());
        for (to, from) in id.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        // What does not fill a sector at the end cannot be reached.
        Ok(Self { file, read_only: config.read_only, sectors: len / SECTOR, id })
    }

    /// The guest may only read.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Capacity in sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// What the guest is told as the disk's serial number.
    pub fn id(&self) -> &[u8; 20] {
        &self.id
    }

    /// Checks a transfer of `len` bytes at `sector` and moves the file there.
    ///
    /// # Errors
    /// Beyond the end, not whole sectors, or the file's own error.
    pub fn seek(&mut self, sector: u64, len: u64) -> std::io::Result<&mut File> {
        let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
        let end = sector.checked_add(len / SECTOR).ok_or_else(invalid)?;
        if !len.is_multiple_of(SECTOR) || end > self.sectors {
            return Err(invalid());
        }
        // Within the file's length, so the product fits.
        self.file.seek(SeekFrom::Start(sector * SECTOR))?;
        Ok(&mut self.file)
    }

    /// Waits until everything written is on the medium.
    ///
    /// # Errors
    /// The file's own.
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: &Path, read_only: bool) -> DiskConfig {
        DiskConfig { path: path.into(), read_only }
    }

    #[test]
    fn command_line() {
        let disk = |path: &str, read_only| DiskConfig { path: path.into(), read_only };
        assert_eq!(DiskConfig::parse("a.img").unwrap(), disk("a.img", false));
        assert_eq!(DiskConfig::parse("a,b,ro").unwrap(), disk("a,b", true));
        assert!(matches!(DiskConfig::parse("a.img,rw"), Err(DiskError::Option(_))));
    }

    #[test]
    fn transfers_stay_inside() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1024 + 100).unwrap();
        let mut disk = Disk::open(&config(file.path(), true)).unwrap();
        assert_eq!(disk.sectors(), 2);
        assert!(disk.seek(0, 1024).is_ok());
        assert!(disk.seek(2, 0).is_ok());
        for (sector, len) in [(1, 1024), (0, 100), (3, 0), (u64::MAX, 512), (1, u64::MAX - 511)] {
            assert!(disk.seek(sector, len).is_err(), "{sector} {len}");
        }
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let open = |path: &Path| Disk::open(&config(path, true)).unwrap_err();
        assert!(matches!(open(Path::new("/dev/null")), DiskError::Kind(_)));
        assert!(matches!(open(Path::new("/nonexistent")), DiskError::Io(..)));
        assert!(matches!(open(Path::new("/tmp")), DiskError::Kind(_)));
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(open(empty.path()), DiskError::TooSmall(_)));
    }

    #[test]
    fn a_disk_that_is_written_belongs_to_one_guest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(512).unwrap();
        let first = Disk::open(&config(file.path(), false)).unwrap();
        for read_only in [false, true] {
            let second = Disk::open(&config(file.path(), read_only));
            assert!(matches!(second, Err(DiskError::Locked(_))));
        }
        drop(first);
        let _a = Disk::open(&config(file.path(), true)).unwrap();
        let _b = Disk::open(&config(file.path(), true)).unwrap();
    }
}
