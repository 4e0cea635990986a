//! A file is written, read back, mapped, renamed and removed.
use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    os::fd::AsRawFd,
};

use rekvm_selftest::pattern;

use crate::{Check, ensure};

const SIZE: usize = 1 << 20;

/// See the module.
pub fn check() -> Check {
    run().map_err(|e| e.to_string())?
}

fn run() -> std::io::Result<Check> {
    let data = pattern(SIZE, 1);
    let mut file = fs::File::create_new("/tmp/selftest")?;
    file.write_all(&data)?;
    drop(file);
    fs::rename("/tmp/selftest", "/tmp/selftest2")?;
    let mut file = fs::File::options().read(true).write(true).open("/tmp/selftest2")?;
    let mut back = Vec::new();
    file.read_to_end(&mut back)?;
    if back != data {
        return Ok(Err("what was read is not what was written".into()));
    }
    // SAFETY: a fresh shared mapping of an open file; it is unmapped below and no slice outlives it.
    let same = unsafe {
        let map = libc::mmap(
            std::ptr::null_mut(),
            SIZE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        if map == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let bytes = std::slice::from_raw_parts_mut(map.cast::<u8>(), SIZE);
        let same = bytes == data;
        bytes[SIZE - 1] ^= 0xff;
        libc::munmap(map, SIZE);
        same
    };
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    fs::remove_file("/tmp/selftest2")?;
    Ok((|| {
        ensure!(same, "a mapped file shows other bytes than read");
        ensure!(last[0] == !data[SIZE - 1], "a write through a mapping was lost");
        ensure!(fs::metadata("/tmp/selftest2").is_err(), "a removed file is still there");
        Ok(())
    })())
}
