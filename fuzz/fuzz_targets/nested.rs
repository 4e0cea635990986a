//! Random accesses on nested tables, and what host and client do meanwhile, against the slots, with the auditor after each
//! step. See `mmu::testing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmu::testing::random_nested::run(data));
