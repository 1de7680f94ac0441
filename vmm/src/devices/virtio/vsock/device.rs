//! The device in its event loop.

use std::io;

use event_manager::{EventOps, EventSet, Events};
use log::{error, warn};

use super::super::device::{ActivateError, Activation, COMMON_FEATURES, Device, Identity};
use super::super::queue::QueueError;
use super::super::runner::DEVICE_EVENTS;
use super::Dialled;
use super::muxer::Muxer;
use super::state::State;
use super::worker::{EVENT_QUEUE_SIZE, TransportReset, Worker};

/// Device type (virtio 1.2, 5.10.1).
const KIND: u32 = 19;
/// The queues are: packets for the guest, packets of the guest, events.
const EVENTS: u16 = 2;
/// Linux fills the receive queue with buffers of 4 KiB when it starts and refills it when half are used, and each takes
/// 8 KiB of the guest's memory: 64 are half a MiB, and one connection's whole credit. A packet of the guest is one
/// indirect descriptor.
const QUEUE_SIZES: &[u16] = &[64, 128, EVENT_QUEUE_SIZE];

/// virtio-vsock without Unix paths: see [`super`].
pub struct Vsock {
    guest_cid: u32,
    muxer: Muxer,
    /// Present while the device is active.
    worker: Option<Worker>,
    /// The device was restored and not active since.
    restored: bool,
    /// The muxer's descriptor is in the event loop.
    registered: bool,
}

impl Vsock {
    /// A device for the guest `guest_cid`, which may dial the ports `allowed`; the host's ends of its dials go to
    /// `dialled`.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new(guest_cid: u32, allowed: &[u32], dialled: Box<dyn Dialled + Send>) -> io::Result<Self> {
        let muxer = Muxer::new(guest_cid, allowed, dialled)?;
        Ok(Self { guest_cid, muxer, worker: None, restored: false, registered: false })
    }

    /// A device that goes on from `state`; what is not the guest's is given as in [`Vsock::new`].
    ///
    /// # Errors
    /// No descriptors left.
    pub fn restore(state: &State, allowed: &[u32], dialled: Box<dyn Dialled + Send>) -> io::Result<Self> {
        Ok(Self { restored: true, ..Self::new(state.guest_cid, allowed, dialled)? })
    }

    /// What is saved.
    #[must_use]
    pub fn save(&self) -> State {
        State { guest_cid: self.guest_cid }
    }

    /// What the transport tells the guest.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            kind: KIND,
            features: COMMON_FEATURES,
            queue_sizes: QUEUE_SIZES.to_vec(),
            config: u64::from(self.guest_cid).to_le_bytes().to_vec(),
        }
    }

    fn run(&mut self) -> Result<(), QueueError> {
        match &mut self.worker {
            Some(worker) => worker.run(&mut self.muxer),
            None => Ok(()),
        }
    }
}

impl Device for Vsock {
    fn activate(&mut self, activation: Activation, ops: &mut EventOps<'_>) -> Result<(), ActivateError> {
        let Activation { memory, queues, .. } = activation;
        if let Some(missing) = queues.iter().find(|queue| !queue.ready()) {
            return Err(ActivateError::QueueNotReady(missing.index()));
        }
        let [rx, tx, events] =
            <[_; QUEUE_SIZES.len()]>::try_from(queues).map_err(|_| ActivateError::QueueNotReady(EVENTS))?;
        ops.add(Events::with_data(&self.muxer, DEVICE_EVENTS, EventSet::IN))?;
        self.registered = true;
        let transport_reset =
            if std::mem::take(&mut self.restored) { TransportReset::Due } else { TransportReset::Done };
        let mut worker = Worker::new(rx, tx, events, memory, transport_reset);
        worker.start().map_err(|cause| ActivateError::Host(io::Error::other(cause)))?;
        self.worker = Some(worker);
        Ok(())
    }

    fn reset(&mut self, ops: &mut EventOps<'_>) {
        self.worker = None;
        self.restored = false;
        self.muxer.clear();
        if !std::mem::take(&mut self.registered) {
            return;
        }
        if let Err(cause) = ops.remove(Events::empty(&self.muxer)) {
            warn!("vsock: cannot stop watching the sockets: {cause}");
        }
    }

    fn queue_event(&mut self, index: u16, _ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        match &mut self.worker {
            Some(worker) if index == EVENTS => worker.events_notified()?,
            _ => {}
        }
        self.run()
    }

    fn event(&mut self, _events: Events, _ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        if let Err(cause) = self.muxer.sockets_ready() {
            // Only a descriptor that is no epoll instance, or memory that is not ours, fails here.
            error!("vsock: cannot look at the sockets: {cause}");
        }
        self.run()
    }
}

#[cfg(test)]
mod tests;
