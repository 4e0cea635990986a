//! The guest's vector instructions against the host's processor: the same bytes run on the same state by both, then all
//! registers and the memory operand are compared.
mod forms;
mod hardware;
mod machine;
mod special;
mod speed;
