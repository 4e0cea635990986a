//! Random cases: an instruction of a wanted form and shape, and a state in which it does something worth comparing.
mod encode;
pub mod form;
mod random;
mod shape;
mod special;
mod state;

pub use encode::{Encoded, Setting, encode};
pub use random::Random;
pub use shape::Shape;
pub use state::{image, state};
