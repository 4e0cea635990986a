//! What `rekvm exec` has asked for, before the client's `main`; and what is left to do at its end.
//!
//! The loader's variables are taken back before the client runs, unless child processes are to be served too: they must
//! not find rekvm where their parent did not ask for it.
use std::{
    env,
    ffi::{OsStr, OsString},
};

use serve::wishes::{LIBRARY, LOADER, VARIABLE, Wishes};

/// Reads the wishes.
fn start() {
    let wishes = Wishes::read(&env::var(VARIABLE).unwrap_or_default());
    serve::wish(wishes);
    serve::prepare();
    if !wishes.children {
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
        env::remove_var(VARIABLE);
        match others.is_empty() {
            true => env::remove_var(LOADER),
            false => env::set_var(LOADER, OsString::from(OsStr::from_encoded_bytes_unchecked(&others))),
        }
    }
}

fn ours(path: &[u8]) -> bool {
    path.ends_with(LIBRARY.as_bytes())
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

/// Called when the process ends by `exit`.
#[used]
#[unsafe(link_section = ".fini_array")]
static END: extern "C" fn() = {
    extern "C" fn run() {
        serve::statistics::end();
    }
    run
};
