//! The pod's network on the host's side: what is between its network namespace and the guest.
//!
//! * [`namespace`]: work inside of the namespace;
//! * [`localhost`]: the namespace's loopback addresses reach listeners of the guest.

pub mod localhost;
pub mod namespace;
