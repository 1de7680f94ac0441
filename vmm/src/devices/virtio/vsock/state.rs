//! What is saved of the device.

use serde::{Deserialize, Serialize};

/// The device's own saved state, beside its queues.
///
/// Connections are not in it: their host ends belong to processes that a restored machine does not have. The guest
/// resets its sockets when it gets the event VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (virtio 1.2, 5.10.6.7), which a restored
/// device owes it before anything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The guest's context id: it stands in the guest's sockets.
    pub guest_cid: u32,
}
