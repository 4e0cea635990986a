//! Serves the statistics: whoever connects gets one snapshot as JSON.

use super::socket::{self, SocketError};
use super::{Group, Teller};
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

/// A client that reads nothing is given up after this time.
const PATIENCE: Duration = Duration::from_secs(1);

/// A socket that exists as long as this object.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
}

impl Server {
    /// Starts serving what `teller` tells on a thread of its own.
    ///
    /// # Errors
    /// When the socket or thread cannot be made.
    pub fn start<L>(teller: Teller<L>) -> Result<Self, SocketError>
    where
        L: Fn() -> Result<Vec<Group>, String> + Send + 'static,
    {
        let path = socket::place()?;
        let failed = |e| SocketError::Directory(path.display().to_string(), e);
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let serve = move || {
            for stream in listener.incoming() {
                match stream {
                    // A client that goes away early is its own affair.
                    Ok(stream) => drop(answer(&stream, &teller.tell())),
                    // Out of descriptors, most likely: do not spin.
                    Err(_) => std::thread::sleep(PATIENCE),
                }
            }
        };
        std::thread::Builder::new().name("statistics".to_owned()).spawn(serve).map_err(failed)?;
        Ok(Self { path })
    }
}

fn answer(mut stream: &UnixStream, text: &[u8]) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(text)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
