//! husk's virtual machine monitor: one process, one machine.
//!
//! [`control::serve`] is the whole program: it takes requests from the shim on an inherited socket and runs the machine.
//! Threads: the caller's runs the event loop with the control socket, vsock and rng; each vCPU has one ([`vcpu`]); the
//! file device has one, because file I/O blocks ([`devices::virtio::fs`]).

pub mod arch;
pub mod bus;
pub mod console;
pub mod control;
pub mod counters;
pub mod devices;
pub mod kvm;
pub mod logger;
pub mod machine;
pub mod memory;
pub mod vcpu;
