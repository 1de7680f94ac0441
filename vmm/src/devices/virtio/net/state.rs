//! What is saved of the device.

use serde::{Deserialize, Serialize};

/// The device's own saved state, beside its queues. Packets that wait in the tap are the host's, and rates are the shim's: a
/// restored device gets them anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The interface's address: the guest has read it.
    pub mac: [u8; 6],
    /// The largest MTU that the guest may set, in bytes.
    pub max_mtu: u16,
    /// Pairs of queues that the guest may use.
    pub pairs: u16,
    /// The tap segments UDP: it stands in the features that were offered.
    pub uso: bool,
    /// The interface has a carrier.
    pub carrier: bool,
    /// What the driver has set, if it works with the device.
    pub driver: Option<DriverState>,
}

/// What the driver has set by commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriverState {
    /// Pairs of queues in use.
    pub pairs: u16,
    /// Offloads that it takes, by the bits of the features.
    pub offloads: u64,
}
