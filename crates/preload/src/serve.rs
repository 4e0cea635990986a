//! What `rekvm exec` has asked for, and the device as the client's first open finds it.
//!
//! The loader's variables are taken back before the client runs, unless child processes are to be served too: they must
//! not find rekvm where their parent did not ask for it.
use std::{
    env,
    ffi::{OsStr, OsString},
    io::Write,
    sync::OnceLock,
};

use libc::c_int;
use user::{device, signals};

/// The variable in which `rekvm exec` says what it wants: words with spaces between them.
const WISHES: &str = "REKVM_EXEC";
/// The program loader's list of libraries.
const LOADER: &str = "LD_PRELOAD";

/// What `rekvm exec` wants.
struct Wishes {
    options: device::Options,
    quiet: bool,
}

static ASKED: OnceLock<Wishes> = OnceLock::new();

/// Reads the wishes, before the client's `main`.
fn start() {
    let text = env::var(WISHES).unwrap_or_default();
    let has = |word: &str| text.split(' ').any(|found| found == word);
    let options = text.split(' ').find_map(device::Options::named).unwrap_or_default();
    let _ = ASKED.set(Wishes { options, quiet: has("quiet") });
    if !has("children") {
        // SAFETY: no thread of the client's has started yet.
        unsafe { leave_environment() };
    }
}

/// Takes our variables out of the environment.
///
/// # Safety
/// No other thread looks at the environment.
unsafe fn leave_environment() {
    let loader = env::var_os(LOADER).unwrap_or_default();
    let others: Vec<_> =
        loader.as_encoded_bytes().split(|b| b" :".contains(b)).filter(|path| !path.is_empty() && !ours(path)).collect();
    let others = others.join(&b':');
    // SAFETY: as the caller promises; the bytes come from the environment and are cut at ASCII characters.
    unsafe {
        env::remove_var(WISHES);
        match others.is_empty() {
            true => env::remove_var(LOADER),
            false => env::set_var(LOADER, OsString::from(OsStr::from_encoded_bytes_unchecked(&others))),
        }
    }
}

fn ours(path: &[u8]) -> bool {
    path.ends_with(b"librekvm_preload.so")
}

/// Called by the program loader when the library has been loaded.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = {
    extern "C" fn run() {
        start();
    }
    run
};

/// `open` of /dev/kvm.
pub(crate) fn open(flags: c_int) -> Result<c_int, c_int> {
    let wishes = ASKED.get();
    let options = wishes.map_or_else(device::Options::default, |wishes| wishes.options);
    static LOG: OnceLock<()> = OnceLock::new();
    LOG.get_or_init(|| {
        let filter = tracing_subscriber::EnvFilter::try_from_env("REKVM_LOG").unwrap_or_else(|_| "error".into());
        // A client with a subscriber of its own keeps it.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
        if !wishes.is_some_and(|wishes| wishes.quiet) {
            // A client without standard error does not need the sentence.
            let _ = writeln!(
                std::io::stderr(),
                "rekvm: /dev/kvm is served by the software CPU in process {}{options}",
                std::process::id()
            );
        }
    });
    signals::take_over().map_err(|error| error.0)?;
    let fd = device::open_with(options).map_err(|error| error.0)?;
    if flags & libc::O_CLOEXEC == 0 {
        // SAFETY: our own new descriptor.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    }
    Ok(fd)
}
