//! A small virtual machine monitor: what `rekvm run` is made of.
//!
//! It is a client of `/dev/kvm` like any other: it opens the device, gives it
//! memory, creates processors, runs them, and plays the devices the guest
//! talks to. Read [`machine`] for what the guest's computer consists of,
//! [`vcpu_thread`] for how it runs, [`run`] for the program around it. The
//! device is the kernel's or the one inside this process; [`accel`] is the
//! line between them and [`choose`] decides.
//!
//! The guest is not trusted: what it writes to devices and rings may make no
//! sense, and must end nothing but itself.

pub mod accel;
pub mod acpi;
pub mod boot;
pub mod bus;
pub mod choose;
pub mod console;
pub mod control;
pub mod cpuid;
pub mod devices;
pub mod kvm;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod monitor;
pub mod probe;
pub mod report;
pub mod run;
pub mod signals;
pub mod vcpu_thread;
pub mod virtio;
