//! The device in its event loop.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events};
use fuse_backend_rs::api::server::Server;
use husk_protocol::files::FileAccess;
use log::error;

use super::super::device::{ActivateError, Activation, COMMON_FEATURES, Device, Identity};
use super::super::queue::QueueError;
use super::super::runner::DEVICE_EVENTS;
use super::limits::Limits;
use super::server::Files;
use super::state::State;
use super::worker::Worker;

/// Device type (virtio 1.2, 5.11.1).
const KIND: u32 = 26;
/// The name that the guest mounts.
const TAG: &[u8] = b"husk";
/// Bytes of the tag in the configuration space (virtio 1.2, 5.11.4), padded with zeros.
const TAG_SIZE: usize = 36;
/// Queues for requests, beside the one for those of high priority.
const REQUEST_QUEUES: u32 = 1;
/// High priority, requests. Linux's largest request is one descriptor per page and four more, whatever indirect tables
/// would allow (`virtio_fs.c`, `FUSE_HEADER_OVERHEAD`): 512 lets through the MiB that the server takes.
const QUEUE_SIZES: &[u16] = &[64, REQUESTS_SIZE];
/// Largest size of the queue for requests.
pub(super) const REQUESTS_SIZE: u16 = 512;

/// The queue for requests.
const REQUESTS: u16 = 1;

/// virtio-fs: see [`super`].
pub struct Fs<A: FileAccess> {
    server: Arc<Server<Files<A>>>,
    files: Files<A>,
    /// Present while the device is active, by queue.
    workers: Vec<Worker<A>>,
    /// The timer of the limits is in the event loop.
    watched: bool,
}

impl<A: FileAccess> Fs<A> {
    /// A device whose files `access` opens.
    #[must_use]
    pub fn new(access: Arc<A>) -> Self {
        let files = Files::new(access);
        Self { server: Arc::new(Server::new(files.clone())), files, workers: Vec::new(), watched: false }
    }

    /// A device that goes on from `state`.
    #[must_use]
    pub fn restore(access: Arc<A>, State {}: &State) -> Self {
        Self::new(access)
    }

    /// What limits reading and writing.
    pub(super) fn limits(&self) -> Arc<Limits> {
        Arc::clone(self.files.limits())
    }

    /// Sets the timer for the first request that waits.
    fn schedule(&self) -> Result<(), QueueError> {
        let Some(next) = self.workers.iter().filter_map(Worker::next).min() else { return Ok(()) };
        self.files.limits().ring_at(next).map_err(|cause| {
            error!("fs: cannot wait for a limit: {cause}");
            QueueError::Request { index: REQUESTS, cause: "the host cannot wait for the limits of its share" }
        })
    }

    /// Watches the timer, once there is one.
    fn watch_timer(&mut self, ops: &mut EventOps<'_>) {
        if let Some(timer) = self.files.limits().timer().filter(|_| !self.watched) {
            match ops.add(Events::with_data(timer, DEVICE_EVENTS, EventSet::IN)) {
                Ok(()) => self.watched = true,
                Err(cause) => error!("fs: requests that wait for a limit wait for the next request: {cause}"),
            }
        }
    }

    /// What is saved; nothing can be once the guest has mounted the file system.
    #[must_use]
    pub fn save(&self) -> Option<State> {
        (!self.files.mounted()).then_some(State {})
    }

    /// What the transport tells the guest.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let mut config = vec![0; TAG_SIZE];
        config[..TAG.len()].copy_from_slice(TAG);
        config.extend(REQUEST_QUEUES.to_le_bytes());
        Identity { kind: KIND, features: COMMON_FEATURES, queue_sizes: QUEUE_SIZES.to_vec(), config }
    }
}

impl<A: FileAccess> Device for Fs<A> {
    fn activate(&mut self, activation: Activation, _ops: &mut EventOps<'_>) -> Result<(), ActivateError> {
        let workers: Vec<_> = activation
            .queues
            .into_iter()
            .filter(|queue| queue.ready())
            .map(|queue| {
                Worker::new(queue, Arc::clone(&activation.memory), Arc::clone(&self.server), self.files.clone())
            })
            .collect();
        if workers.len() < QUEUE_SIZES.len() {
            let missing = (0..).find(|index| workers.iter().all(|worker| worker.index() != *index));
            return Err(ActivateError::QueueNotReady(missing.unwrap_or_default()));
        }
        self.workers = workers;
        Ok(())
    }

    fn reset(&mut self, ops: &mut EventOps<'_>) {
        if let Some(timer) = self.files.limits().timer().filter(|_| self.watched) {
            self.watched = false;
            if let Err(cause) = ops.remove(Events::empty(timer)) {
                error!("fs: cannot stop watching the timer: {cause}");
            }
        }
        self.workers.clear();
        self.files.close_all();
    }

    fn queue_event(&mut self, index: u16, _ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        self.workers.iter_mut().find(|worker| worker.index() == index).map_or(Ok(()), Worker::run)?;
        self.schedule()
    }

    fn event(&mut self, _events: Events, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        if let Some(timer) = self.files.limits().timer() {
            timer.heard();
        }
        self.woken(ops)
    }

    fn woken(&mut self, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        self.watch_timer(ops);
        self.workers.iter_mut().try_for_each(Worker::go_on)?;
        self.schedule()
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
