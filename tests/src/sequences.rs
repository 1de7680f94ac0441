//! Random sequences of the calls of containerd's task interface, legal and illegal, against two shims.

pub mod execute;
pub mod model;
pub mod server;
pub mod shim;
pub mod step;
pub mod words;
