//! A device in a thread and an event loop of its own: what it does holds up no other.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use event_manager::{EventManager, SubscriberOps};
use log::error;

use super::device::Device;
use super::runner::{Mailbox, Runner};

/// Why there is no thread.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// No descriptors, no thread.
    #[error("cannot make its thread: {0}")]
    Host(#[from] io::Error),
    /// No event loop.
    #[error("cannot make its event loop: {0}")]
    Loop(#[from] event_manager::Error),
}

/// Holds a device's thread; it ends, and the device with it, soon after this is dropped.
pub struct DeviceThread {
    stop: Arc<AtomicBool>,
    mailbox: Mailbox,
}

impl DeviceThread {
    /// Starts a thread for `device`, which is called `name` there and in log lines.
    ///
    /// # Errors
    /// The host has no descriptors or threads left.
    pub fn spawn<D: Device + 'static>(name: &'static str, device: D) -> Result<Self, ThreadError> {
        let (runner, mailbox) = Runner::new(name, device)?;
        let mut events = EventManager::new()?;
        events.add_subscriber(runner);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                if let Err(cause) = events.run() {
                    // The guest's requests stay unanswered, which the agent's callers find out by their limits.
                    error!("{name}: the event loop ended: {cause}");
                    return;
                }
            }
        })?;
        Ok(Self { stop, mailbox })
    }

    /// The way to the device.
    #[must_use]
    pub fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.mailbox.wake();
    }
}
