//! What `rekvm exec` has asked for, before the client's `main`.
//!
//! The loader's variables are taken back before the client runs, unless child processes are to be served too: they must
//! not find rekvm where their parent did not ask for it.
use std::{
    env,
    ffi::{OsStr, OsString},
};

use serve::Wishes;
use user::device;

/// The variable in which `rekvm exec` says what it wants: words with spaces between them.
const WISHES: &str = "REKVM_EXEC";
/// The program loader's list of libraries.
const LOADER: &str = "LD_PRELOAD";

/// Reads the wishes.
fn start() {
    let text = env::var(WISHES).unwrap_or_default();
    let has = |word: &str| text.split(' ').any(|found| found == word);
    let options = text.split(' ').find_map(device::Options::named).unwrap_or_default();
    serve::wish(Wishes { options, quiet: has("quiet") });
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
