//! What one instruction costs.
