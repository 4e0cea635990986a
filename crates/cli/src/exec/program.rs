//! What the client is: where it lies, and whether it has a program loader that can put a library in front of it.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The client is no program that can be served.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// there is no program {0}
    #[error("there is no program {}", .0.display())]
    Missing(PathBuf),
    /// cannot read {0}: {1}
    #[error("cannot read {}: {}", .0.display(), .1)]
    Unreadable(PathBuf, io::Error),
    /// {0} is no program for x86-64 Linux
    #[error("{} is no program for x86-64 Linux", .0.display())]
    Foreign(PathBuf),
    /// {0} runs with rights of its own
    #[error("{} runs with rights of its own (setuid or setgid): the program loader takes no library for it", .0.display())]
    Privileged(PathBuf),
}

/// How a program is put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A program loader starts it (or it is a script, whose interpreter has one).
    Dynamic,
    /// It holds all of its code itself.
    Static,
}

/// The file that `name` means on a command line.
pub fn find(name: &OsStr) -> Result<PathBuf, ProgramError> {
    let path = Path::new(name);
    if name.as_encoded_bytes().contains(&b'/') {
        return if path.is_file() { Ok(path.into()) } else { Err(ProgramError::Missing(path.into())) };
    }
    let executable = |path: &PathBuf| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let folders = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let found = env::split_paths(&folders).map(|folder| folder.join(name)).find(executable);
    found.ok_or_else(|| ProgramError::Missing(path.into()))
}

/// Looks into a program's headers: ELF-64 (System V ABI, chapter 5: program header).
pub fn kind(path: &Path) -> Result<Kind, ProgramError> {
    let unreadable = |error| ProgramError::Unreadable(path.into(), error);
    let mut file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.permissions().mode() & 0o6000 != 0 {
        return Err(ProgramError::Privileged(path.into()));
    }
    let mut header = [0; 64];
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(64).read_to_end(&mut head).map_err(unreadable)?;
    if head.starts_with(b"#!") {
        return Ok(Kind::Dynamic);
    }
    let foreign = || ProgramError::Foreign(path.into());
    header.get_mut(..head.len()).ok_or_else(foreign)?.copy_from_slice(&head);
    // 64 bits, little-endian; for x86-64.
    if !header.starts_with(b"\x7fELF\x02\x01") || u16_at(&header, 18) != 62 {
        return Err(foreign());
    }
    let (offset, size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    if size < 56 {
        return Err(foreign());
    }
    for n in 0..u64::from(count) {
        let mut entry = [0; 4];
        let at = offset.saturating_add(n * u64::from(size));
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut entry)).map_err(unreadable)?;
        // PT_INTERP
        if u32::from_le_bytes(entry) == 3 {
            return Ok(Kind::Dynamic);
        }
    }
    Ok(Kind::Static)
}

fn u16_at(header: &[u8; 64], at: usize) -> u16 {
    u16::from_le_bytes([header[at], header[at + 1]])
}

fn u64_at(header: &[u8; 64], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[at..at + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_and_told_apart() {
        let shell = find("sh".as_ref()).unwrap();
        assert_eq!(kind(&shell).unwrap(), Kind::Dynamic);
        assert!(matches!(find("no-such-program-here".as_ref()), Err(ProgramError::Missing(_))));
        assert!(matches!(find("./no/such".as_ref()), Err(ProgramError::Missing(_))));
        let file = |bytes: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            file
        };
        assert_eq!(kind(file(b"#!/bin/sh\n").path()).unwrap(), Kind::Dynamic);
        for wrong in [&b""[..], b"\x7fELF", b"text", &[0x7f, b'E', b'L', b'F', 1, 1]] {
            assert!(matches!(kind(file(wrong).path()), Err(ProgramError::Foreign(_))), "{wrong:?}");
        }
        let mut header = vec![0; 64 + 56];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (header[18], header[32], header[54], header[56]) = (62, 64, 56, 1);
        assert_eq!(kind(file(&header).path()).unwrap(), Kind::Static);
        header[64] = 3;
        assert_eq!(kind(file(&header).path()).unwrap(), Kind::Dynamic);
    }
}
