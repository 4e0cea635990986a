//! The user-space Platform and /dev/kvm inside the client's own process.
