//! The queue of an active device.

use std::sync::Arc;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::super::chain::Chain;
use super::super::queue::{Queue, QueueError};
use crate::memory::GuestRam;

/// Most bytes for one request. A chain may be as large as the guest's memory, and filling it would hold up the other
/// devices of the event loop; a device may give less than there is room for (virtio 1.2, 5.4.6.1). Linux asks for
/// 64 bytes at a time.
pub const MAX_REQUEST: u32 = 64 * 1024;
/// Requests answered before the other devices have their turn: a MiB, some milliseconds.
const BATCH: usize = 16;

/// The queue.
pub struct Worker {
    requests: Queue,
    memory: Arc<GuestRam>,
}

impl Worker {
    /// Takes the queue.
    pub fn new(requests: Queue, memory: Arc<GuestRam>) -> Self {
        Self { requests, memory }
    }

    /// Answers what is asked; after a batch the rest comes with the next round of the event loop.
    ///
    /// # Errors
    /// The guest broke the queue.
    pub fn run(&mut self) -> Result<(), QueueError> {
        if self.answer()? {
            // Fails only when the counter is full: then we are notified anyway.
            let _ = self.requests.kick().write(1);
        }
        self.requests.signal_used()
    }

    /// True: the batch is full.
    fn answer(&mut self) -> Result<bool, QueueError> {
        self.requests.disable_notification()?;
        for _ in 0..BATCH {
            let Some(chain) = self.requests.pop()? else {
                if !self.requests.enable_notification()? {
                    return Ok(false);
                }
                continue;
            };
            let given = self.fill(&chain)?;
            self.requests.add_used(chain.head(), given)?;
        }
        Ok(true)
    }

    /// Fills a request's buffers; returns how many bytes they got.
    fn fill(&self, chain: &Chain) -> Result<u32, QueueError> {
        let wanted = chain.writable_len().min(MAX_REQUEST);
        if wanted == 0 || chain.readable_len() > 0 {
            return Err(self.error("a request for random bytes that has no room for them, or brings data"));
        }
        let mut given = 0;
        let mut chunk = [0; 4096];
        while given < wanted {
            let room = chunk.len().min((wanted - given) as usize);
            let count = match getrandom(&mut chunk[..room], GetRandomFlags::empty()) {
                Err(Errno::INTR) => continue,
                Err(_) => return Err(self.error("the host gives no random bytes")),
                Ok(count) => count,
            };
            let Ok(step @ 1..) = u32::try_from(chain.write(&self.memory, given, &chunk[..count])) else {
                return Err(self.error("a request's buffer is not there"));
            };
            given += step;
        }
        Ok(given)
    }

    fn error(&self, cause: &'static str) -> QueueError {
        QueueError::Request { index: self.requests.index(), cause }
    }
}
