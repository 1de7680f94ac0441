//! A queue of an active device.

use std::sync::Arc;

use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use husk_protocol::files::FileAccess;
use log::debug;

use super::super::queue::{Queue, QueueError};
use super::server::Files;
use crate::memory::GuestRam;

/// Requests answered before the mailbox and the other queue have their turn.
const BATCH: usize = 64;

/// A queue whose requests go to the server.
pub struct Worker<A: FileAccess> {
    queue: Queue,
    memory: Arc<GuestRam>,
    server: Arc<Server<Files<A>>>,
}

impl<A: FileAccess> Worker<A> {
    /// Takes the queue.
    pub fn new(queue: Queue, memory: Arc<GuestRam>, server: Arc<Server<Files<A>>>) -> Self {
        Self { queue, memory, server }
    }

    /// The queue's number.
    pub fn index(&self) -> u16 {
        self.queue.index()
    }

    /// Answers what is asked; after a batch the rest comes with the next round of the event loop.
    ///
    /// # Errors
    /// The guest broke the queue.
    pub fn run(&mut self) -> Result<(), QueueError> {
        self.queue.disable_notification()?;
        for _ in 0..BATCH {
            let Some(chain) = self.queue.pop_raw()? else {
                if !self.queue.enable_notification()? {
                    return Ok(());
                }
                continue;
            };
            let head = chain.head_index();
            let written = answer(&self.server, &self.memory, &chain);
            self.queue.add_used(head, written)?;
            // At once: requests may take long, and whoever waits for this one need not wait for the next.
            self.queue.signal_used()?;
        }
        // Fails only when the counter is full: then we are notified anyway.
        let _ = self.queue.kick().write(1);
        Ok(())
    }
}

/// Bytes of a request, and of an answer, at most: the server's own limit for data, and room for headers. Descriptors of a
/// chain may name the same memory many times over, so a chain's length is no measure of what the guest has.
const LARGEST: usize = (1 << 20) + 4096;

/// Answers one request; returns the bytes of the answer. A request that the server cannot read is given back without
/// one: only a broken guest sends it, and it hurts nobody else.
fn answer<A: FileAccess>(
    server: &Server<Files<A>>,
    memory: &GuestRam,
    chain: &virtio_queue::DescriptorChain<&GuestRam>,
) -> u32 {
    let reader = Reader::from_descriptor_chain(memory, chain.clone());
    let writer = VirtioFsWriter::new(memory, chain.clone());
    let (reader, writer) = match (reader, writer) {
        (Ok(mut reader), Ok(mut writer)) => {
            // The rest of a longer request is cut off; an error means that it is shorter.
            let _ = reader.split_at(LARGEST);
            let _ = writer.split_at(LARGEST);
            (reader, Writer::VirtioFs(writer))
        }
        (Err(cause), _) | (_, Err(cause)) => {
            debug!("fs: a request outside of memory: {cause}");
            return 0;
        }
    };
    match server.handle_message(reader, writer, None, None) {
        Ok(written) => u32::try_from(written).unwrap_or(u32::MAX),
        Err(cause) => {
            debug!("fs: a request that is none: {cause}");
            0
        }
    }
}
