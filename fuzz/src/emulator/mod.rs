//! Random code, registers, tables and memory. The same machine is run twice: each instruction by the core's emulation
//! (as a processor that cannot run anything by itself makes it do), and on the software CPU, first step by step, then in
//! blocks. Nothing panics or hangs, no access leaves the guest's memory, and after each instruction the registers are
//! such as a processor can have ([`crate::invariants`]).
mod core_run;
mod machine;
mod software;

use crate::input::Input;
use machine::Machine;

/// One input: a machine, then its code.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let machine = Machine::new(&mut input);
    core_run::run(&machine);
    machine.reset_memory();
    software::run(&machine);
}
