//! A queue of an active device.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;
use std::time::Instant;

use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use husk_protocol::files::{FileAccess, Shared};
use log::debug;

use super::super::queue::{Queue, QueueError};
use super::limits::Way;
use super::server::Files;
use crate::memory::GuestRam;

type Chain = virtio_queue::DescriptorChain<Arc<GuestRam>>;

/// Requests answered before the mailbox and the other queue have their turn.
const BATCH: usize = 64;
/// Requests that wait at most: what an honest driver can have outstanding.
const MOST_WAITING: usize = super::device::REQUESTS_SIZE as usize;

/// A queue whose requests go to the server.
pub struct Worker<A: FileAccess> {
    queue: Queue,
    memory: Arc<GuestRam>,
    server: Arc<Server<Files<A>>>,
    files: Files<A>,
    /// Requests that wait for the limits of their share, in the order in which they came.
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    chain: Chain,
    file: Shared,
    way: Way,
}

impl<A: FileAccess> Worker<A> {
    /// Takes the queue.
    pub fn new(queue: Queue, memory: Arc<GuestRam>, server: Arc<Server<Files<A>>>, files: Files<A>) -> Self {
        Self { queue, memory, server, files, waiting: VecDeque::new() }
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
        self.go_on()?;
        self.queue.disable_notification()?;
        for _ in 0..BATCH {
            let Some(chain) = self.queue.pop_raw()? else {
                if !self.queue.enable_notification()? {
                    return Ok(());
                }
                continue;
            };
            match self.has_to_wait(&chain) {
                None => self.answer(&chain)?,
                Some((file, way)) => {
                    // The ring does not count what is outstanding.
                    if self.waiting.len() >= MOST_WAITING {
                        let cause = "more requests are outstanding than the queue has room for";
                        return Err(QueueError::Request { index: self.queue.index(), cause });
                    }
                    self.waiting.push_back(Waiting { chain, file, way });
                }
            }
        }
        // Fails only when the counter is full: then we are notified anyway.
        let _ = self.queue.kick().write(1);
        Ok(())
    }

    /// Answers the requests that have waited long enough; after a batch the rest comes with the next round of the event loop.
    ///
    /// # Errors
    /// The guest broke the queue.
    pub fn go_on(&mut self) -> Result<(), QueueError> {
        let (now, mut answered) = (Instant::now(), 0);
        for _ in 0..self.waiting.len() {
            let Some(waiting) = self.waiting.pop_front() else { break };
            let ready = self.files.limits().ready_at(waiting.file, waiting.way);
            // To the end, also after a batch: they keep their order.
            if answered == BATCH || ready.is_some_and(|at| at > now) {
                self.waiting.push_back(waiting);
            } else {
                self.answer(&waiting.chain)?;
                answered += 1;
            }
        }
        if answered == BATCH {
            let _ = self.queue.kick().write(1);
        }
        Ok(())
    }

    /// When the first of the waiting requests may go on.
    pub fn next(&self) -> Option<Instant> {
        let limits = self.files.limits();
        let now = self.waiting.front().map(|_| Instant::now())?;
        self.waiting.iter().map(|waiting| limits.ready_at(waiting.file, waiting.way).unwrap_or(now)).min()
    }

    /// The file and way of a request that has to wait: its share's limits are used up, or others wait for them already.
    fn has_to_wait(&self, chain: &Chain) -> Option<(Shared, Way)> {
        if !self.files.limits().any() {
            return None;
        }
        let (handle, way) = transfer(&self.memory, chain)?;
        let file = self.files.share_of(handle)?;
        let ready = self.files.limits().ready_at(file, way);
        let waits = ready.is_some_and(|at| at > Instant::now())
            || self.waiting.iter().any(|waiting| waiting.file == file && waiting.way == way);
        waits.then_some((file, way))
    }

    fn answer(&mut self, chain: &Chain) -> Result<(), QueueError> {
        let written = answer(&self.server, &self.memory, chain);
        self.queue.add_used(chain.head_index(), written)?;
        // At once: requests may take long, and whoever waits for this one need not wait for the next.
        self.queue.signal_used()
    }
}

/// The open file that a request reads or writes, and which of it; none: it is another request, or no request at all. The guest
/// may say something else when the server looks.
fn transfer(memory: &GuestRam, chain: &Chain) -> Option<(u64, Way)> {
    let mut reader = Reader::from_descriptor_chain(memory, chain.clone()).ok()?;
    let header: InHeader = reader.read_obj().ok()?;
    let way = match header.opcode {
        opcode if opcode == Opcode::Read as u32 => Way::Read,
        opcode if opcode == Opcode::Write as u32 => Way::Write,
        _ => return None,
    };
    // Both begin with it (fuse.h, `fuse_read_in`, `fuse_write_in`).
    let mut handle = [0; 8];
    reader.read_exact(&mut handle).ok()?;
    Some((u64::from_ne_bytes(handle), way))
}

/// Bytes of a request, and of an answer, at most: the server's own limit for data, and room for headers. Descriptors of a
/// chain may name the same memory many times over, so a chain's length is no measure of what the guest has.
const LARGEST: usize = (1 << 20) + 4096;

/// Answers one request; returns the bytes of the answer. A request that the server cannot read is given back without
/// one: only a broken guest sends it, and it hurts nobody else.
fn answer<A: FileAccess>(server: &Server<Files<A>>, memory: &GuestRam, chain: &Chain) -> u32 {
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
