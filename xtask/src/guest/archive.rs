//! Archives of the form that Linux unpacks as its initramfs.
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use cpio::newc::{Builder, trailer};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CONSOLE: u32 = 0o020_600;

/// An archive that is being written. It gets its name when it is complete.
pub struct Archive {
    out: BufWriter<File>,
    part: PathBuf,
    path: PathBuf,
    inode: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    pub fn create(path: &Path) -> Result<Self> {
        let part = path.with_extension(format!("part{}", std::process::id()));
        let file = File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
        let (out, path) = (BufWriter::new(file), path.to_owned());
        Ok(Self { out, part, path, inode: 0, directories: BTreeSet::new() })
    }

    /// A folder and those above it; once only, however often it is asked for.
    pub fn directory(&mut self, name: &str) -> Result<()> {
        let ends = name.match_indices('/').map(|(i, _)| i).chain([name.len()]);
        for end in ends.filter(|&end| end > 0) {
            if self.directories.insert(name[..end].to_owned()) {
                self.add(&name[..end], DIRECTORY, &[])?;
            }
        }
        Ok(())
    }

    /// A file that can be executed.
    pub fn program(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.add(name, PROGRAM, content)
    }

    /// Any other file.
    pub fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.add(name, FILE, content)
    }

    /// The device that the first process's messages go to.
    pub fn console(&mut self) -> Result<()> {
        self.inode += 1;
        let builder = Builder::new("dev/console").ino(self.inode).mode(CONSOLE).nlink(1);
        builder.rdev_major(5).rdev_minor(1).write(&mut self.out, 0).finish()?;
        Ok(())
    }

    pub fn finish(self) -> Result<()> {
        trailer(self.out)?.flush()?;
        fs::rename(&self.part, &self.path).with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large for an initramfs"))?;
        let mut entry = Builder::new(name).ino(self.inode).mode(mode).nlink(1).write(&mut self.out, size);
        entry.write_all(content)?;
        entry.finish()?;
        Ok(())
    }
}

/// The content of a file that goes into an archive.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
