//! A panic is a bug of ours. It is never unwound: the kernel reports it as it does its own, and ends the thread.
use core::panic::PanicInfo;

use crate::glue;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let (file, line) = info.location().map_or(("?", 0), |at| (at.file(), at.line()));
    // SAFETY: the name is valid for its length; UD2 is what the kernel reports as a bug.
    unsafe {
        glue::rekvm_panic(file.as_ptr(), file.len() as i32, line);
        core::arch::asm!("ud2", options(noreturn, nomem, nostack));
    }
}
