//! Loading a program as the kernel's exec does: its segments, and the stack that it starts with (System V ABI for
//! AMD64, 3.4.1: initial stack and register state; 5.1: program header).
use std::{
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{fd::AsRawFd, unix::ffi::OsStrExt, unix::fs::FileExt},
    path::{Path, PathBuf},
};

use user::sys;

use crate::{Client, brk};

/// The client cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// cannot read {0}: {1}
    #[error("cannot read {}: {}", .0.display(), .1)]
    Read(PathBuf, io::Error),
    /// {0} is damaged
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf),
    /// {0} cannot be placed in memory: {1}
    #[error("{} cannot be placed in memory: {}", .0.display(), .1)]
    Place(PathBuf, io::Error),
    /// this kernel has no syscall user dispatch, which a statically linked client needs: {0}
    #[error("this kernel has no syscall user dispatch, which a statically linked client needs: {0}")]
    Dispatch(io::Error),
    /// cannot prepare the client's process: {0}
    #[error("cannot prepare the client's process: {0}")]
    Prepare(io::Error),
}

/// A loaded program.
pub(crate) struct Image {
    pub(crate) entry: usize,
    headers: usize,
    header_size: usize,
    header_count: usize,
}

const PAGE: usize = 4096;
const PT_LOAD: u32 = 1;
const ET_DYN: u16 = 3;

/// Where programs are placed that can be anywhere.
const ANYWHERE: usize = 0x6000_0000_0000;

struct Segment {
    flags: u32,
    offset: usize,
    at: usize,
    in_file: usize,
    in_memory: usize,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<usize> {
    let mut whole = [0; 8];
    whole.get_mut(..N)?.copy_from_slice(bytes.get(at..at.checked_add(N)?)?);
    usize::try_from(u64::from_le_bytes(whole)).ok()
}

/// The segments that are to be in memory, and where the headers and the entry point are.
fn parse(head: &[u8], table: &[u8], size: usize) -> Option<Vec<Segment>> {
    let count = number::<2>(head, 56)?;
    let mut segments = Vec::new();
    for header in table.chunks_exact(size).take(count) {
        if number::<4>(header, 0)? as u32 == PT_LOAD {
            segments.push(Segment {
                flags: number::<4>(header, 4)? as u32,
                offset: number::<8>(header, 8)?,
                at: number::<8>(header, 16)?,
                in_file: number::<8>(header, 32)?,
                in_memory: number::<8>(header, 40)?,
            });
        }
    }
    let fine = |s: &Segment| {
        s.in_file <= s.in_memory
            && s.at.checked_add(s.in_memory).is_some_and(|end| end < 1 << 46)
            && s.at % PAGE == s.offset % PAGE
    };
    (!segments.is_empty() && segments.iter().all(fine)).then_some(segments)
}

/// Puts the program at `path` into memory.
pub(crate) fn load(path: &Path) -> Result<Image, LoadError> {
    let read = |error| LoadError::Read(path.into(), error);
    let damaged = || LoadError::Damaged(path.into());
    let file = File::open(path).map_err(read)?;
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0).map_err(read)?;
    let field = |at| number::<8>(&head, at).ok_or_else(damaged);
    let (entry, table_at) = (field(24)?, field(32)?);
    let size = number::<2>(&head, 54).filter(|size| *size >= 56).ok_or_else(damaged)?;
    let count = number::<2>(&head, 56).ok_or_else(damaged)?;
    let mut table = vec![0; size * count];
    file.read_exact_at(&mut table, table_at as u64).map_err(read)?;
    let segments = parse(&head, &table, size).ok_or_else(damaged)?;

    let first = segments.iter().map(|s| s.at).min().unwrap_or(0) / PAGE * PAGE;
    let end = segments.iter().map(|s| s.at + s.in_memory).max().unwrap_or(0).next_multiple_of(PAGE);
    let movable = number::<2>(&head, 16) == Some(usize::from(ET_DYN));
    let wanted = if movable { ANYWHERE } else { first };
    // The whole span at first, so that nothing else is between the segments.
    let place = |error| LoadError::Place(path.into(), error);
    let base =
        map(wanted, end - first, libc::PROT_NONE, ANONYMOUS | libc::MAP_FIXED_NOREPLACE, -1, 0).map_err(place)?;
    let slide = base.wrapping_sub(first);
    for segment in &segments {
        place_segment(&file, segment, slide).map_err(place)?;
    }
    brk::start(base + (end - first));
    // The headers lie in the segment that begins with the file's first byte, as a rule.
    let holder = segments.iter().find(|s| s.offset <= table_at && table_at < s.offset + s.in_file);
    let headers = holder.map(|s| (s.at + slide) + (table_at - s.offset)).ok_or_else(damaged)?;
    Ok(Image { entry: entry.wrapping_add(slide), headers, header_size: size, header_count: count })
}

const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

fn map(at: usize, len: usize, prot: i32, flags: i32, fd: i32, offset: usize) -> io::Result<usize> {
    let args = [at, len, prot as usize, flags as usize, fd as usize, offset];
    // SAFETY: a new mapping, or one that replaces a part of the span that was reserved for the program.
    unsafe { sys::call(libc::SYS_mmap, args) }.map_err(|error| io::Error::from_raw_os_error(error.0))
}

/// Maps one segment's part of the file, and zeroes behind it.
fn place_segment(file: &File, segment: &Segment, slide: usize) -> io::Result<()> {
    let at = segment.at.wrapping_add(slide);
    let start = at / PAGE * PAGE;
    let (file_end, end) = (at + segment.in_file, (at + segment.in_memory).next_multiple_of(PAGE));
    // PF_R, PF_W, PF_X
    let right = |flag: u32, prot: i32| if segment.flags & flag != 0 { prot } else { 0 };
    let prot = right(4, libc::PROT_READ) | right(2, libc::PROT_WRITE) | right(1, libc::PROT_EXEC);
    let mapped = file_end.next_multiple_of(PAGE);
    if segment.in_file > 0 {
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        map(start, file_end - start, prot, flags, file.as_raw_fd(), segment.offset - (at - start))?;
        if segment.flags & 2 != 0 && file_end < mapped {
            // SAFETY: the rest of the last page, just mapped for writing.
            unsafe {
                std::ptr::write_bytes(std::ptr::with_exposed_provenance_mut::<u8>(file_end), 0, mapped - file_end)
            };
        }
    }
    let zeroes = if segment.in_file > 0 { mapped } else { start };
    if zeroes < end {
        map(zeroes, end - zeroes, prot, ANONYMOUS | libc::MAP_FIXED, -1, 0)?;
    }
    Ok(())
}

/// Bytes of the stack that the client starts on.
const STACK: usize = 8 << 20;

/// Entries of the auxiliary vector that are this process's own and fit the client as well.
const SAME: [u64; 14] = [
    libc::AT_UID,
    libc::AT_EUID,
    libc::AT_GID,
    libc::AT_EGID,
    libc::AT_SECURE,
    libc::AT_CLKTCK,
    libc::AT_HWCAP,
    libc::AT_HWCAP2,
    libc::AT_PAGESZ,
    libc::AT_SYSINFO_EHDR,
    libc::AT_PLATFORM,
    libc::AT_MINSIGSTKSZ,
    // AT_RSEQ_FEATURE_SIZE and AT_RSEQ_ALIGN
    27,
    28,
];

/// Makes the stack that the program starts with; where its pointer is to be.
pub(crate) fn stack(image: &Image, client: &Client) -> Result<usize, LoadError> {
    let flags = ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
    let base = map(0, STACK, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0).map_err(LoadError::Prepare)?;
    let mut stack = Stack { top: base + STACK };
    let name = stack.text(client.path.as_os_str());
    let arguments: Vec<_> = client.arguments.iter().map(|text| stack.bytes(text.as_bytes_with_nul())).collect();
    let environment: Vec<_> = std::env::vars_os()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            stack.text(&name)
        })
        .collect();
    let mut random = [0; 16];
    // SAFETY: the buffer is as long as told.
    unsafe { libc::getrandom(random.as_mut_ptr().cast(), random.len(), 0) };
    let random = stack.bytes(&random);

    // SAFETY: asks only.
    let mut auxiliary: Vec<_> = SAME.iter().map(|kind| (*kind, unsafe { libc::getauxval(*kind) } as usize)).collect();
    auxiliary.retain(|(kind, value)| *value != 0 || matches!(*kind, libc::AT_UID..=libc::AT_EGID | libc::AT_SECURE));
    auxiliary.extend([
        (libc::AT_PHDR, image.headers),
        (libc::AT_PHENT, image.header_size),
        (libc::AT_PHNUM, image.header_count),
        (libc::AT_ENTRY, image.entry),
        (libc::AT_RANDOM, random),
        (libc::AT_EXECFN, name),
        (libc::AT_NULL, 0),
    ]);
    let mut words = vec![arguments.len()];
    words.extend(arguments.into_iter().chain([0]).chain(environment).chain([0]));
    words.extend(auxiliary.into_iter().flat_map(|(kind, value)| [kind as usize, value]));
    Ok(stack.words(&words))
}

/// A stack that grows down as things are put on it.
struct Stack {
    top: usize,
}

impl Stack {
    fn bytes(&mut self, bytes: &[u8]) -> usize {
        self.top -= bytes.len();
        // SAFETY: within the mapping, which is larger than what the kernel lets a command line have.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), std::ptr::with_exposed_provenance_mut(self.top), bytes.len());
        }
        self.top
    }

    fn text(&mut self, text: &OsStr) -> usize {
        // What comes from a command line or an environment holds no zero byte.
        self.bytes(CString::new(text.as_bytes()).unwrap_or_default().as_bytes_with_nul())
    }

    fn words(&mut self, words: &[usize]) -> usize {
        self.top = (self.top - size_of_val(words)) / 16 * 16 + size_of_val(words);
        let bytes: Vec<_> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.bytes(&bytes)
    }
}
