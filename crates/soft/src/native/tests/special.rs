//! Single cases that the comparison with the hardware does not reach.
