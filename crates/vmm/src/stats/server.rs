//! Serves the statistics: whoever connects gets one snapshot as JSON.

use super::socket::{self, SocketError};
use super::{Snapshot, Source};
use crate::memory::GuestRam;
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A client that reads nothing is given up after this time.
const PATIENCE: Duration = Duration::from_secs(1);

/// A socket that exists as long as this object.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
}

impl Server {
    /// Starts serving `sources` (or the reason why there are none) on a thread of its own.
    /// `ram` stays mapped as long as that thread holds descriptors of the VM.
    ///
    /// # Errors
    /// When the socket or thread cannot be made.
    pub fn start(
        back_end: String,
        sources: Result<Vec<Source>, String>,
        ram: Arc<GuestRam>,
    ) -> Result<Self, SocketError> {
        let directory = socket::directory()?;
        let failed = |e| SocketError::Directory(directory.display().to_string(), e);
        let pid = std::process::id();
        let path = directory.join(format!("{pid}.sock"));
        // A file of this name is left over from a process that is no more.
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let server = Self { path };
        let start = Instant::now();
        std::thread::Builder::new()
            .name("statistics".to_owned())
            .spawn(move || {
                let _ram = ram;
                for stream in listener.incoming() {
                    match stream {
                        // A client that goes away early is its own affair.
                        Ok(stream) => drop(answer(&stream, pid, &back_end, &sources, start)),
                        // Out of descriptors, most likely: do not spin.
                        Err(_) => std::thread::sleep(PATIENCE),
                    }
                }
            })
            .map_err(failed)?;
        Ok(server)
    }
}

fn answer(
    mut stream: &UnixStream,
    pid: u32,
    back_end: &str,
    sources: &Result<Vec<Source>, String>,
    start: Instant,
) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let (groups, absent) = match sources {
        Ok(sources) => match sources.iter().map(Source::group).collect() {
            Ok(groups) => (groups, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        },
        Err(reason) => (Vec::new(), Some(reason.clone())),
    };
    let snapshot = Snapshot {
        pid,
        back_end: back_end.to_owned(),
        uptime_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        absent,
        groups,
    };
    stream.write_all(&serde_json::to_vec(&snapshot)?)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
