//! Random guests on shadow tables: their accesses, writes to their tables, and what the host does meanwhile, against
//! the reference walker, with the auditor after each step. See `mmu::testing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmu::testing::random::run(data));
