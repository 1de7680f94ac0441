//! The device in its event loop.

use event_manager::{EventOps, Events};

use super::super::device::{ActivateError, Activation, COMMON_FEATURES, Device, Identity};
use super::super::queue::QueueError;
use super::state::State;
use super::worker::Worker;

/// Device type (virtio 1.2, 5.4.1).
const KIND: u32 = 4;
/// Linux has one request under way.
const QUEUE_SIZES: &[u16] = &[8];

/// virtio-rng: see [`super`].
#[derive(Default)]
pub struct Rng {
    /// Present while the device is active.
    worker: Option<Worker>,
}

impl Rng {
    /// A device.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A device that goes on from `state`.
    #[must_use]
    pub fn restore(State {}: &State) -> Self {
        Self::default()
    }

    /// What is saved.
    #[must_use]
    pub fn save(&self) -> State {
        State {}
    }

    /// What the transport tells the guest.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity { kind: KIND, features: COMMON_FEATURES, queue_sizes: QUEUE_SIZES.to_vec(), config: Vec::new() }
    }
}

impl Device for Rng {
    fn activate(&mut self, activation: Activation, _ops: &mut EventOps<'_>) -> Result<(), ActivateError> {
        let requests = activation.queues.into_iter().find(|queue| queue.index() == 0 && queue.ready());
        let requests = requests.ok_or(ActivateError::QueueNotReady(0))?;
        self.worker = Some(Worker::new(requests, activation.memory));
        Ok(())
    }

    fn reset(&mut self, _ops: &mut EventOps<'_>) {
        self.worker = None;
    }

    fn queue_event(&mut self, _index: u16, _ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        self.worker.as_mut().map_or(Ok(()), Worker::run)
    }

    fn event(&mut self, _events: Events, _ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        // It registers no descriptors of its own.
        Ok(())
    }
}

#[cfg(test)]
mod tests;
