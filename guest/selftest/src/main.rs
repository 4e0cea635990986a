//! A short proof that a guest is a working machine: files, processes, signals, floating point, timers,
//! threads on every processor, and a disk. It runs inside the guest as `/selftest [DISK]`, prints a line for each
//! part and ends with status 0 only if all of them held. Its last line on success is `REKVM-SELFTEST-OK`.
#![allow(clippy::print_stdout)]

mod disk;
mod files;
mod float;
mod forks;
mod process;
mod signals;
mod threads;
mod timers;

/// What went wrong, in words.
pub type Check = Result<(), String>;

/// Turns a false condition into an error that says what was expected.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(format!($($message)*));
        }
    };
}

fn main() {
    let mut args = std::env::args().skip(1);
    let first = args.next();
    if first.as_deref() == Some(process::CHILD) {
        process::child();
    }
    match first.as_deref() {
        Some(forks::NOTHING) => return,
        Some(forks::MEASURE) => return forks::measure(),
        _ => {}
    }
    let parts: [(&str, &dyn Fn() -> Check); 7] = [
        ("files", &files::check),
        ("fork and exec", &process::check),
        ("signals", &signals::check),
        ("floating point", &float::check),
        ("timers", &timers::check),
        ("threads", &threads::check),
        ("disk", &|| disk::check(first.as_deref())),
    ];
    let mut failed = 0;
    for (name, part) in parts {
        match part() {
            Ok(()) => println!("selftest: {name}: ok"),
            Err(why) => {
                failed += 1;
                println!("selftest: {name}: FAILED: {why}");
            }
        }
    }
    if failed > 0 {
        std::process::exit(1);
    }
    println!("{}", rekvm_selftest::OK);
}
