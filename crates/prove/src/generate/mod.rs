//! Random cases: an instruction of a wanted form and shape, and a state in which it does something worth comparing.
mod encode;
pub mod form;
mod shape;
mod special;
mod state;

pub use emulate::testing::Random;
pub use encode::{Encoded, Setting, encode};
pub use shape::Shape;
pub use state::{image, state};
