//! /dev/kvm inside this process, behind a boundary that looks like the system call's.
