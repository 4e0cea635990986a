//! What tests and fuzz targets of shadow and nested paging stand on: a model of processors that walk such tables and forget
//! nothing unless they are told to ([`Machine`]), and random operations on it ([`random`], [`random_nested`]).
mod machine;
mod processor;
pub mod random;
pub mod random_nested;

pub use machine::{Access, End, Machine};
