//! virtio-net (virtio 1.2, 5.1): an interface of the guest on the queues of a tap.
//!
//! Packets go between the tap's descriptors and the guest's memory by one system call each, without a copy of our own. Checksums
//! and segmentation are whoever's can do them: the tap's header says what a packet still needs (`IFF_VNET_HDR`), and it is the same as
//! the guest's. Each device has a thread of its own.
//!
//! [`header`] and [`features`] are the rules, [`transmit`] and [`receive`] a queue each, [`control`] the guest's wishes, [`tap`] the host's
//! side, [`device`] ties them to the event loop, [`handle`] is what the rest of the VMM has of it. Who moves the packets is [`datapath`]'s: the
//! device's thread, or the host's kernel ([`vhost`]).

mod control;
mod counts;
mod datapath;
mod device;
mod features;
mod handle;
mod header;
mod limits;
mod receive;
mod state;
mod tap;
mod transmit;
mod vhost;

#[cfg(feature = "fuzzing")]
pub use device::fuzz;
pub use device::{MAX_PAIRS, Net};
pub use handle::{NetError, NetHandle};
pub use state::State;
pub use tap::TapError;
pub use vhost::VhostError;

use std::time::Instant;

/// Bytes of a frame at most. The largest that there is has 65,535 bytes of IP behind an Ethernet header and a VLAN's tag; the specification's
/// largest buffer (5.1.6.3.1) has so many with virtio's header.
const MAX_FRAME: u32 = 65_562;
/// Bytes of a frame at least: an Ethernet header.
const MIN_FRAME: u32 = 14;

/// How far a queue got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nothing is left to do until something happens.
    Idle,
    /// Its batch is over.
    More,
    /// A limit holds it back until then.
    Wait(Instant),
    /// The tap is gone.
    Gone,
}

#[cfg(any(test, feature = "fuzzing"))]
mod bench;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod namespace;
