//! What a virtio device is.

use std::sync::Arc;

use event_manager::{EventOps, Events};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{Queue, QueueError};
use crate::memory::GuestRam;

/// Feature bit: the device offers virtio 1 (virtio 1.2, 6).
pub const VIRTIO_F_VERSION_1: u64 = 1 << 32;
/// Feature bit: used_event and avail_event (virtio 1.2, 2.7.10).
pub const VIRTIO_F_EVENT_IDX: u64 = 1 << 29;
/// Feature bit: indirect descriptors (virtio 1.2, 2.7.5.3).
pub const VIRTIO_F_INDIRECT_DESC: u64 = 1 << 28;
/// What every device of ours offers.
pub const COMMON_FEATURES: u64 = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC;

/// What the transport tells the guest of a device: fixed when the device is made.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Device type (virtio 1.2, 5).
    pub kind: u32,
    /// Feature bits offered, [`COMMON_FEATURES`] among them.
    pub features: u64,
    /// Largest size of each queue: a power of two.
    pub queue_sizes: Vec<u16>,
    /// The configuration space's bytes, as they are at first; read-only for the guest.
    pub config: Vec<u8>,
}

/// What a device signals through: the transport's interrupt. May be used from any thread.
pub trait Signal: Send + Sync {
    /// Used buffers are in queue `index`.
    fn queue(&self, index: u16);
    /// The event whose count is the interrupt of queue `index`, for who serves the queue outside of this process; none: it has none.
    fn line(&self, _index: u16) -> Option<&EventFd> {
        None
    }
    /// The configuration space's bytes from `offset` on are `bytes` now, and the driver is told.
    fn config(&self, offset: u64, bytes: &[u8]);
    /// The device cannot go on until the driver resets it (virtio 1.2, 2.1.2: DEVICE_NEEDS_RESET).
    fn needs_reset(&self);
}

/// What a device gets when the driver sets DRIVER_OK.
pub struct Activation {
    /// The guest's memory.
    pub memory: Arc<GuestRam>,
    /// Features that the driver accepted: a subset of the offered ones.
    pub features: u64,
    /// All queues, in the order of [`Identity::queue_sizes`]; a queue that the driver did not set up is not ready.
    pub queues: Vec<Queue>,
    /// Where to signal.
    pub signal: Arc<dyn Signal>,
}

/// Why a device could not be activated.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left out a queue that the device cannot work without.
    #[error("queue {0} was not set up by the driver")]
    QueueNotReady(u16),
    /// An event could not be registered.
    #[error("cannot register an event: {0}")]
    Event(#[from] event_manager::Error),
    /// A resource of the host is missing.
    #[error("{0}")]
    Host(#[from] std::io::Error),
}

/// A device's side that runs in an event loop. All methods are called on that loop's thread.
pub trait Device: Send {
    /// The driver is ready: take the queues. Descriptors of the device's own are registered with `ops` under data
    /// values from [`super::runner::DEVICE_EVENTS`] on.
    ///
    /// # Errors
    /// The device cannot work with what the driver set up; it is then marked as needing a reset.
    fn activate(&mut self, activation: Activation, ops: &mut EventOps<'_>) -> Result<(), ActivateError>;

    /// The driver resets the device: drop the queues and everything that came from the guest, deregister the device's
    /// own descriptors. Also called for a device that is not active.
    fn reset(&mut self, ops: &mut EventOps<'_>);

    /// The driver notified queue `index`.
    ///
    /// # Errors
    /// The guest broke the queue: the device is marked as needing a reset and gets no more notifications.
    fn queue_event(&mut self, index: u16, ops: &mut EventOps<'_>) -> Result<(), QueueError>;

    /// One of the device's own descriptors is ready (`events.data()` tells which).
    ///
    /// # Errors
    /// As [`Device::queue_event`].
    fn event(&mut self, events: Events, ops: &mut EventOps<'_>) -> Result<(), QueueError>;

    /// Whether queue `index` of an active device is served outside of its event loop, which then does not hear its notifications.
    fn served_elsewhere(&self, _index: u16) -> bool {
        false
    }

    /// Somebody woke the device up ([`super::runner::Mailbox::wake`]); it may be inactive.
    ///
    /// # Errors
    /// As [`Device::queue_event`].
    fn woken(&mut self, _ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        Ok(())
    }
}

/// A transport's and its queues' part of a device's saved state; each device adds its own `State` (see its `state.rs`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Features that the driver accepted.
    pub features: u64,
    /// Device status (virtio 1.2, 2.1).
    pub status: u32,
    /// The queues.
    pub queues: Vec<super::queue::QueueState>,
}
