//! virtio devices (virtio 1.2) and the seam between a device and its transport.
//!
//! A device is one folder. It knows its queues, features and configuration bytes and signals through [`Signal`]; it
//! runs in an event loop as a [`Device`] inside a [`Runner`], and talks to its transport (today [`mmio`]) by messages
//! through a mailbox, so that no lock is shared between a vCPU and a device.

pub mod chain;
pub mod device;
#[cfg(any(test, feature = "fuzzing"))]
mod dice;
pub mod fs;
pub mod mmio;
pub mod net;
pub mod pace;
pub mod queue;
pub mod rng;
pub mod runner;
pub mod thread;
pub mod vectors;
pub mod vsock;

pub use chain::{Chain, ChainError};
pub use device::{ActivateError, Activation, Device, DeviceState, Identity, Signal};
pub use queue::{Queue, QueueError};
pub use runner::{Mailbox, Runner};
pub use thread::{DeviceThread, ThreadError};
pub use vectors::Vectors;
