//! virtio-vsock (virtio 1.2, 5.10), stream sockets between the guest and the host, with no name on the host.
//!
//! A guest's dial to an allowed port makes a socketpair: one end is the connection's, the other goes to whoever is
//! [`Dialled`]. So it works inside an empty root, and nothing on the host can connect. A dial to another port, or one
//! that is not taken, is reset.
//!
//! [`muxer`] and [`connection`] are the protocol and know no queues; [`worker`] is the queues; [`device`] ties both to
//! the event loop.

use std::os::fd::OwnedFd;

mod connection;
mod device;
mod muxer;
mod packet;
mod socket;
mod state;
mod worker;

pub use device::Vsock;
#[cfg(feature = "fuzzing")]
pub use muxer::fuzz;
pub use muxer::{LARGE_CONNECTIONS, LARGE_WINDOW, MAX_CONNECTIONS, MAX_RESETS, SMALL_WINDOW};
pub use state::State;

/// Where the host's ends of the guest's dials go.
pub trait Dialled {
    /// The guest dialled `port`, one of the allowed ones. `host_end` is a non-blocking stream socket. Must not block.
    ///
    /// # Errors
    /// Nobody takes it now: the dial is reset.
    fn dialled(&mut self, port: u32, host_end: OwnedFd) -> Result<(), Refused>;
}

/// Nobody took a guest's dial.
#[derive(Debug, thiserror::Error)]
#[error("the host does not take it: {0}")]
pub struct Refused(#[from] pub Box<dyn std::error::Error + Send + Sync>);
