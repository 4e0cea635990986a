//! Runs cases and reports.
//!
//! `run` starts each case in a child process of its own (this program again, with `one`) under a time limit, so that a
//! crash or a hang is that case's failure. The child's exit status is the protocol: 0 passed, [`LACKS`] and
//! [`NOT_APPLICABLE`] with the reason on standard output, anything else failed with what it wrote.
mod case;
mod child;
mod report;
mod target;

use case::Instead;
pub use case::{Case, Except, Why, case};
pub use child::{Options, run};
pub use report::{Format, Outcome, Report};
pub use target::Target;

/// A folder of cases with its name.
pub type Folder = (&'static str, &'static [Case]);

/// Exit status of a child whose device lacks a capability.
pub const LACKS: i32 = 76;
/// Exit status of a child whose case does not apply to what it found.
pub const NOT_APPLICABLE: i32 = 77;

/// Ends the case: the device lacks `cap`, and says so.
pub fn lacks(cap: &str) -> ! {
    println!("{cap}");
    std::process::exit(LACKS)
}

/// Ends the case: it does not apply to this machine, for a reason that the table shows.
pub fn not_applicable(reason: &str) -> ! {
    println!("{reason}");
    std::process::exit(NOT_APPLICABLE)
}

/// Runs one case in this process.
pub fn run_here(case: &Case, device: &crate::Device) {
    case.needs.iter().flatten().for_each(|cap| {
        device.need(*cap);
    });
    (case.run)(device);
}

/// Every case with its full name, `folder/name`.
pub fn all(folders: &'static [Folder]) -> impl Iterator<Item = (String, &'static Case)> {
    folders.iter().flat_map(|(folder, cases)| cases.iter().map(move |case| (format!("{folder}/{}", case.name), case)))
}
