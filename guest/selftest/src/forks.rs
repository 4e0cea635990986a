//! `--forks` measures, instead of testing, what processes cost by the guest's own clock: a line for each row.
use std::time::Instant;

/// The argument that makes this program measure.
pub const MEASURE: &str = "--forks";
/// The argument with which it does nothing.
pub const NOTHING: &str = "--nothing";
/// How many processes each row starts.
const TIMES: u32 = 300;

/// See the module.
pub fn measure() {
    for (name, execs) in [("fork", false), ("fork and exec", true)] {
        let start = Instant::now();
        let born = (0..TIMES).filter(|_| one(execs)).count();
        let took = start.elapsed().as_micros();
        if born == TIMES as usize {
            println!("{} {TIMES} x {name}, microseconds: {took}", rekvm_selftest::COST);
        }
    }
}

/// A child that ends at once, or as another program; whether all went well.
fn one(execs: bool) -> bool {
    let mut status = 0;
    // SAFETY: the child has one thread, and only becomes another program or ends; the strings end with a zero; `status` is a
    // valid place.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            if execs {
                let arguments = [c"selftest".as_ptr(), c"--nothing".as_ptr(), std::ptr::null()];
                libc::execv(c"/proc/self/exe".as_ptr(), arguments.as_ptr());
            }
            libc::_exit(i32::from(execs));
        }
        pid > 0 && libc::waitpid(pid, &mut status, 0) == pid && status == 0
    }
}
