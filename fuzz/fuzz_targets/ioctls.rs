//! A hostile client of the in-process device. See `targets::ioctls`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: targets::start(), |data: &[u8]| targets::ioctls::run(data));
