//! A small virtual machine monitor on rust-vmm's parts.
