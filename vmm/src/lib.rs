//! husk's virtual machine monitor: one process, one machine.
//!
//! [`control::serve`] is the whole program: it takes requests from the shim on an inherited socket and runs the machine.
//! Threads: the caller's runs the event loop with the control socket, vsock and rng; each vCPU has one ([`vcpu`]); the
//! file device has one, because file I/O blocks ([`devices::virtio::fs`]); each network device has one, so that a flood
//! of packets holds up nothing else ([`devices::virtio::net`]).

// A fuzzer takes a part of the tests along (tests/fuzz), in modules that clippy does not see as tests.
#![cfg_attr(any(test, feature = "fuzzing"), allow(clippy::unwrap_used, clippy::panic, reason = "tests"))]
#![cfg_attr(all(feature = "fuzzing", not(test)), allow(dead_code, unused_imports, reason = "a part of them"))]

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
pub mod nets;
pub mod slots;
pub mod vcpu;
