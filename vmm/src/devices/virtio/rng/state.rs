//! What is saved of the device.

use serde::{Deserialize, Serialize};

/// The device's own saved state, beside its queue: nothing. Random bytes above all must not be saved, or clones of one
/// template would share them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {}
