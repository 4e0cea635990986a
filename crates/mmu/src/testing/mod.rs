//! What tests and fuzz targets of shadow paging stand on: a model of processors that walk shadow tables and forget
//! nothing unless they are told to ([`Machine`]), and random operations on it ([`random`]).
mod machine;
mod processor;
pub mod random;

pub use machine::{Access, End, Machine};
