//! `rekvm exec`: becomes the client, with a library in front of its C library that provides /dev/kvm; or, where there is
//! nothing to put it in front of, loads the client and serves its system calls.

mod program;

use std::convert::Infallible;
use std::env;
use std::ffi::{CString, NulError, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::args::Exec;
use program::{Kind, ProgramError};
use serve::wishes::{LIBRARY, LOADER, VARIABLE};

/// Where the library is looked for: folders relative to that of this program.
const FOLDERS: [&str; 2] = [".", "../lib/rekvm"];
/// The client cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The client is no program that can be served.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// librekvm_preload.so is not in {0}
    #[error("{LIBRARY} is not in {}", .0.display())]
    NoLibrary(PathBuf),
    /// cannot find myself: {0}
    #[error("cannot find myself: {0}")]
    Myself(io::Error),
    /// {0} holds a space or a colon, with which the program loader cannot cope
    #[error("{} holds a space or a colon, with which the program loader cannot cope", .0.display())]
    Separators(PathBuf),
    /// The client has no program loader, and cannot be loaded by us.
    #[error(transparent)]
    Load(#[from] dispatch::LoadError),
    /// an argument holds a zero byte
    #[error("an argument holds a zero byte")]
    Zero(#[from] NulError),
    /// cannot start {0}: {1}
    #[error("cannot start {}: {}", .0.display(), .1)]
    Start(PathBuf, io::Error),
}

impl ExecError {
    /// The exit status, as a shell has it.
    pub fn status(&self) -> u8 {
        match self {
            Self::Program(ProgramError::Missing(_)) => 127,
            Self::Program(_) | Self::Load(_) | Self::Start(..) => 126,
            _ => 1,
        }
    }
}

/// Becomes the client; returns only if that fails.
pub fn exec(arguments: &Exec) -> ExecError {
    let Err(error) = run(arguments);
    error
}

fn run(arguments: &Exec) -> Result<Infallible, ExecError> {
    let (name, rest) = arguments.client.split_first().expect("clap demands a client");
    let client = program::find(name)?;
    if program::kind(&client)? == Kind::Static {
        return load(arguments, client);
    }
    let mut command = Command::new(&client);
    command.arg0(name).args(rest).env(VARIABLE, arguments.wishes().text()).env(LOADER, loader(&library()?));
    Err(ExecError::Start(client, command.exec()))
}

/// Becomes a client that has no program loader.
fn load(arguments: &Exec, client: PathBuf) -> Result<Infallible, ExecError> {
    serve::wish(arguments.wishes());
    let words = arguments.client.iter().map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>()?;
    let children = if arguments.children { Some(again(arguments)?) } else { None };
    let path = client.canonicalize().map_err(|error| ExecError::Start(client, error))?;
    Ok(dispatch::run(&dispatch::Client { path, arguments: words, children })?)
}

/// The words by which a child program is run as its parent is.
fn again(arguments: &Exec) -> Result<Vec<CString>, ExecError> {
    let myself = env::current_exe().map_err(ExecError::Myself)?;
    let mut words = vec![CString::new(myself.as_os_str().as_bytes())?];
    for word in arguments.words() {
        words.push(CString::new(word)?);
    }
    Ok(words)
}

/// The library, by its whole path.
fn library() -> Result<PathBuf, ExecError> {
    let myself = env::current_exe().map_err(ExecError::Myself)?;
    let folder = myself.parent().unwrap_or(Path::new("/"));
    let found = FOLDERS.iter().map(|there| folder.join(there).join(LIBRARY)).find(|path| path.is_file());
    let library = found.and_then(|path| path.canonicalize().ok()).ok_or_else(|| ExecError::NoLibrary(folder.into()))?;
    let separated = library.as_os_str().as_encoded_bytes().iter().any(|b| b" :".contains(b));
    if separated { Err(ExecError::Separators(library)) } else { Ok(library) }
}

/// The loader's list with the library in front of what the user has there.
fn loader(library: &Path) -> OsString {
    let mut list = library.as_os_str().to_owned();
    if let Some(others) = env::var_os(LOADER).filter(|others| !others.is_empty()) {
        list.push(":");
        list.push(others);
    }
    list
}
