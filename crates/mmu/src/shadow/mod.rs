//! Shadow paging: tables for the processor to walk, made of the guest's tables.
mod root;

pub use root::Root;
