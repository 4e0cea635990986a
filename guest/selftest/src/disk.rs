//! A disk is written past the page cache and read back; the pattern stays on it for the host to look at.
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    os::fd::AsRawFd,
};

use rekvm_selftest::{DISK_BYTES, DISK_SEED, pattern};

use crate::{Check, ensure};

/// See the module. Without a disk there is nothing to prove.
pub fn check(path: Option<&str>) -> Check {
    let Some(path) = path else { return Ok(()) };
    let mut disk = File::options().read(true).write(true).open(path).map_err(|e| format!("{path}: {e}"))?;
    let data = pattern(DISK_BYTES, DISK_SEED);
    disk.write_all(&data).map_err(|e| format!("write: {e}"))?;
    disk.sync_all().map_err(|e| format!("flush: {e}"))?;
    // Drops the page cache of the disk, so that the read below comes from the device.
    // SAFETY: BLKFLSBUF takes no argument.
    let dropped = unsafe { libc::ioctl(disk.as_raw_fd(), 0x1261, 0) };
    ensure!(dropped == 0, "could not drop the disk's cache");
    disk.seek(SeekFrom::Start(0)).map_err(|e| format!("seek: {e}"))?;
    let mut back = vec![0; DISK_BYTES];
    disk.read_exact(&mut back).map_err(|e| format!("read: {e}"))?;
    ensure!(back == data, "the disk gives back other bytes than were written");
    Ok(())
}
