//! Shadow paging, case by case: a model of processors whose TLBs forget nothing by themselves, every access of which is held
//! against the walker, and the auditor after each step.
#![allow(clippy::precedence)] // addresses are put together of bits
mod ahead;
mod bounds;
mod common;
mod cves;
mod host;
mod logging;
mod modes;
mod races;
mod tables;
mod unsync;
mod writes;
