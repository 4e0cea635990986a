//! Random code in a random state, through the core's emulation and on the software CPU. See `targets::emulator`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: targets::start(), |data: &[u8]| targets::emulator::run(data));
