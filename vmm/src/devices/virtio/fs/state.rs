//! What is saved of the device.

use serde::{Deserialize, Serialize};

/// The device's own saved state, beside its queues: nothing. A template is saved before its guest mounts the file
/// system, so there is no session whose files somebody would have to open again; [`super::Fs::save`] refuses otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {}
