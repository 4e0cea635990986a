//! The proof of the CPU: random instructions with random state are executed by the software CPU and by the processor
//! that this runs on, and everything that they leave behind is compared bit for bit.
//!
//! A *form* is one of the decoder's instruction codes in 16-, 32- or 64-bit code, a *shape* a way to address its
//! operands ([`generate::Shape`]). For each of them [`generate`] makes instructions and states; [`native`] executes them
//! in a child process that can do nothing else; [`machine`] executes them on the software CPU, the whole of it, as a user
//! program under paging; [`compare`] tells what of the outcome is defined and whether it is the same; [`shrink`] makes a
//! difference small, and [`run`] counts. The program `prove-cpu` (`cargo xtask prove-cpu`) does all of it.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

pub mod case;
pub mod compare;
pub mod generate;
pub mod layout;
pub mod machine;
pub mod native;
pub mod run;
pub mod show;
pub mod shrink;
