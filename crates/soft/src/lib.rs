//! The software CPU: a Backend that needs no hardware virtualization.
