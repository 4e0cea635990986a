//! The host's processor: a child process that executes instructions natively, in batches that lie in shared memory.
//!
//! The child has nothing that an instruction could harm: its own address space, no system calls. An instruction that
//! kills it is reported as such, and the next batch gets a new child.
mod child;
mod enter;

use std::{io, time::Duration};

use crate::{
    case::{BATCH, Case, Image, Outcome, Shared, end},
    layout::DATA_BYTES,
};

/// How long a batch may take before the child is taken for lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// The host's processor.
#[derive(Debug)]
pub struct Native {
    shared: *mut Shared,
    child: Option<Child>,
}

#[derive(Debug)]
struct Child {
    pid: i32,
    commands: i32,
    answers: i32,
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our own child and descriptors.
        unsafe {
            libc::close(self.commands);
            libc::close(self.answers);
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

impl Native {
    /// Makes the shared memory and starts the child; the page of `image` that cannot be written stays as it is there.
    pub fn new(image: &Image) -> io::Result<Self> {
        // SAFETY: a new mapping.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Shared>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut native = Self { shared: at.cast(), child: None };
        native.set_image(image);
        native.start()?;
        Ok(native)
    }

    fn start(&mut self) -> io::Result<()> {
        let (mut commands, mut answers) = ([0; 2], [0; 2]);
        // SAFETY: the arrays are valid; the child calls nothing that another thread of this process could have locked.
        unsafe {
            if libc::pipe2(commands.as_mut_ptr(), libc::O_CLOEXEC) != 0
                || libc::pipe2(answers.as_mut_ptr(), libc::O_CLOEXEC) != 0
            {
                return Err(io::Error::last_os_error());
            }
            let pid = libc::fork();
            if pid < 0 {
                return Err(io::Error::last_os_error());
            }
            if pid == 0 {
                libc::close(commands[1]);
                libc::close(answers[0]);
                child::serve(self.shared, commands[0], answers[1]);
            }
            libc::close(commands[0]);
            libc::close(answers[1]);
            self.child = Some(Child { pid, commands: commands[1], answers: answers[0] });
        }
        Ok(())
    }

    fn set_image(&mut self, image: &Image) {
        // SAFETY: the child is not executing.
        unsafe { std::ptr::copy_nonoverlapping(image.0.as_ptr(), (&raw mut (*self.shared).image).cast(), DATA_BYTES) };
    }

    /// Starts executing `cases` (at most [`BATCH`]) on the data `image`; [`Native::finish`] waits for them.
    pub fn begin(&mut self, image: &Image, cases: &[Case]) -> io::Result<()> {
        let count = cases.len().min(BATCH);
        if self.child.is_none() {
            self.start()?;
        }
        self.set_image(image);
        // SAFETY: the child is not executing.
        unsafe {
            (&raw mut (*self.shared).count).write_volatile(count as u64);
            (&raw mut (*self.shared).done).write_volatile(0);
            (&mut (*self.shared).cases)[..count].clone_from_slice(&cases[..count]);
        }
        let Some(child) = &self.child else { return Ok(()) };
        // SAFETY: the byte is valid. A child that is gone is noticed when its answer is missing.
        unsafe { libc::write(child.commands, [1u8].as_ptr().cast(), 1) };
        Ok(())
    }

    /// Waits for the batch. Cases that the child did not survive have [`end::DIED`] as their end.
    pub fn finish(&mut self) -> io::Result<&[Outcome]> {
        let answered = self.child.as_ref().is_some_and(|child| {
            let mut wait = libc::pollfd { fd: child.answers, events: libc::POLLIN, revents: 0 };
            let mut byte = 0u8;
            // SAFETY: both are valid.
            unsafe {
                libc::poll(&mut wait, 1, PATIENCE.as_millis() as i32) == 1
                    && libc::read(child.answers, (&raw mut byte).cast(), 1) == 1
            }
        });
        // SAFETY: the child has answered, or is ended here.
        unsafe {
            let count = (*self.shared).count as usize;
            if !answered {
                self.child = None;
                let done = (&raw const (*self.shared).done).read_volatile() as usize;
                for outcome in &mut (&mut (*self.shared).outcomes)[done..count] {
                    outcome.end = end::DIED;
                }
            }
            Ok(&(&(*self.shared).outcomes)[..count])
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.child = None;
        // SAFETY: mapped in `new`.
        unsafe { libc::munmap(self.shared.cast(), size_of::<Shared>()) };
    }
}
