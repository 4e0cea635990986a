//! What the lab's first process and the host that started it agree on: names of files, and the frames in which
//! the program's output and its end travel over a serial port that the kernel's own messages never use.
//!
//! A frame is one byte for its kind, two for the length of what follows (little endian), and that many bytes.

/// Modules to load, one a line in their order: the file's name in [`MODULE_DIR`], then its parameters.
pub const MODULES: &str = "/lab/modules.list";
/// Where the module files are.
pub const MODULE_DIR: &str = "/lab/modules";
/// The program and its arguments, each ended by a zero byte.
pub const ARGUMENTS: &str = "/lab/arguments";
/// Environment variables for it, `NAME=VALUE`, each ended by a zero byte.
pub const ENVIRONMENT: &str = "/lab/environment";
/// The serial port that carries the frames.
pub const PORT: &str = "/dev/ttyS1";
/// Bytes of a frame before what it carries.
const HEAD: usize = 3;

/// One message of the first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The first process runs; what kernel and processors it has found.
    Hello(Vec<u8>),
    /// The modules are loaded and the program starts.
    Start,
    /// The program wrote this to its standard output.
    Out(Vec<u8>),
    /// The program wrote this to its standard error.
    Err(Vec<u8>),
    /// Nothing new, but the kernel still schedules.
    Beat,
    /// The program ended, with the exit status that a shell would show.
    Exit(u8),
    /// The program could not be run, and why.
    Failed(Vec<u8>),
}

impl Frame {
    /// The most bytes that one frame carries.
    pub const MOST: usize = u16::MAX as usize;

    /// The frame's bytes; what it carries beyond [`Frame::MOST`] is cut off.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, data): (u8, &[u8]) = match self {
            Self::Hello(data) => (1, data),
            Self::Start => (2, &[]),
            Self::Out(data) => (3, data),
            Self::Err(data) => (4, data),
            Self::Beat => (5, &[]),
            Self::Exit(status) => (6, std::slice::from_ref(status)),
            Self::Failed(data) => (7, data),
        };
        let data = &data[..data.len().min(Self::MOST)];
        let mut bytes = vec![kind];
        bytes.extend((data.len() as u16).to_le_bytes());
        bytes.extend(data);
        bytes
    }

    /// Takes the first frame out of `bytes`; nothing if it is not all there yet.
    ///
    /// # Errors
    /// If what is there is no frame.
    pub fn take(bytes: &mut Vec<u8>) -> Result<Option<Self>, String> {
        let Some(head) = bytes.first_chunk::<HEAD>() else { return Ok(None) };
        let (kind, end) = (head[0], HEAD + usize::from(u16::from_le_bytes([head[1], head[2]])));
        if !(1..=7).contains(&kind) {
            return Err(format!("{kind:#x} begins no frame"));
        }
        if bytes.len() < end {
            return Ok(None);
        }
        let data: Vec<u8> = bytes.drain(..end).skip(HEAD).collect();
        Ok(Some(match kind {
            1 => Self::Hello(data),
            2 => Self::Start,
            3 => Self::Out(data),
            4 => Self::Err(data),
            5 => Self::Beat,
            6 => Self::Exit(*data.first().ok_or("an exit frame without a status")?),
            _ => Self::Failed(data),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::Frame;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let frames = [
            Frame::Hello(b"Linux".to_vec()),
            Frame::Start,
            Frame::Out(vec![0, 255, 3]),
            Frame::Err(Vec::new()),
            Frame::Beat,
            Frame::Failed(vec![7; Frame::MOST]),
            Frame::Exit(139),
        ];
        let stream: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for step in [1, 2, 5, 4096, stream.len()] {
            let (mut pending, mut got) = (Vec::new(), Vec::new());
            for piece in stream.chunks(step) {
                pending.extend(piece);
                while let Some(frame) = Frame::take(&mut pending).expect("a frame") {
                    got.push(frame);
                }
            }
            assert_eq!(got, frames);
            assert!(pending.is_empty());
        }
    }

    #[test]
    fn noise_is_no_frame() {
        assert!(Frame::take(&mut b"[    0.1] Linux".to_vec()).is_err());
        assert!(Frame::take(&mut vec![6, 0, 0]).is_err());
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let mut bytes = Frame::Out(vec![1; Frame::MOST + 9]).encode();
        assert_eq!(Frame::take(&mut bytes), Ok(Some(Frame::Out(vec![1; Frame::MOST]))));
        assert!(bytes.is_empty());
    }
}
