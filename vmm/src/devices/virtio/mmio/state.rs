//! What is saved of a transport.

use serde::{Deserialize, Serialize};

use super::super::device::DeviceState;

/// The registers that are not constant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// DeviceFeaturesSel.
    pub device_features_sel: u32,
    /// DriverFeaturesSel.
    pub driver_features_sel: u32,
    /// QueueSel.
    pub queue_sel: u32,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub generation: u32,
    /// What every transport has.
    pub device: DeviceState,
}
