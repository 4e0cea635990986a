//! `rekvm stat`: which machines run, and what their exit statistics are.

mod screen;
mod table;

use crate::args::Stat;
use stats::SocketError;
use std::io::Write;

/// Statistics cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum StatError {
    /// no guest is running
    #[error("no guest is running")]
    Nothing,
    /// A machine cannot be asked.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// cannot use the terminal: {0}
    #[error("cannot use the terminal: {0}")]
    Terminal(#[from] std::io::Error),
}

/// Shows one machine, or lists them if there are several to choose from.
pub fn stat(arguments: &Stat) -> Result<(), StatError> {
    let pid = match arguments.pid {
        Some(pid) => pid,
        None => match stats::running()?[..] {
            [] => return Err(StatError::Nothing),
            [pid] => pid,
            ref several => return list(several),
        },
    };
    if arguments.once || !std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        return print(&table::text(&stats::fetch(pid)?));
    }
    screen::run(pid)
}

fn list(pids: &[u32]) -> Result<(), StatError> {
    let mut text = String::from("several guests are running; give the process id of one:\n");
    for &pid in pids {
        match stats::fetch(pid) {
            Ok(snapshot) => text.push_str(&table::heading(&snapshot)),
            // It may have ended just now.
            Err(error) => text.push_str(&error.to_string()),
        }
        text.push('\n');
    }
    print(&text)
}

/// Prints; a reader that has gone away, such as `head`, is no error.
fn print(text: &str) -> Result<(), StatError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
