//! The queues of an active device: chains in, packets out, as few interrupts and notifications as possible.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::super::chain::Chain;
use super::super::queue::{Queue, QueueError};
use super::connection::{Payload, Room};
use super::muxer::{MAX_RESETS, Muxer};
use super::packet::{HEADER_LEN, Header};
use crate::memory::GuestRam;

/// Packets moved before the other devices of the event loop have their turn: at most 4 MiB of data, about a millisecond.
const BATCH: usize = 64;
// A guest that is held back by its resets is looked at again: giving it so many fills a batch, or its buffers run out,
// and then it notifies of new ones.
const _: () = assert!(MAX_RESETS > BATCH);
/// Largest size of the event queue: Linux keeps 8 buffers in it.
pub const EVENT_QUEUE_SIZE: u16 = 8;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (virtio 1.2, 5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// Where the event stands that tells a restored guest to reset its sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportReset {
    /// It waits for a buffer.
    Due,
    /// The guest has it, and has not given the buffer back yet.
    Sent {
        /// Buffers that were popped and not used.
        spare: u16,
    },
    /// Not needed, or over.
    Done,
}

/// The queues.
pub struct Worker {
    /// Packets for the guest.
    rx: Queue,
    /// Packets of the guest.
    tx: Queue,
    events: Queue,
    memory: Arc<GuestRam>,
    transport_reset: TransportReset,
}

impl Worker {
    /// Takes the queues.
    pub fn new(rx: Queue, tx: Queue, events: Queue, memory: Arc<GuestRam>, transport_reset: TransportReset) -> Self {
        Self { rx, tx, events, memory, transport_reset }
    }

    /// Sends the transport reset, if it is due and the guest has provided a buffer.
    ///
    /// # Errors
    /// The guest broke the queue.
    pub fn start(&mut self) -> Result<(), QueueError> {
        if self.transport_reset != TransportReset::Due {
            return Ok(());
        }
        // All buffers that are there are taken, so that the next one is news: with EVENT_IDX we hear of it only when
        // we are up to date, and it is how we know that the driver has handled the event.
        let mut first = None;
        let mut spare = 0;
        // One look more than there can be buffers; a guest that adds for ever is not followed.
        for _ in 0..=EVENT_QUEUE_SIZE {
            match self.events.pop()? {
                Some(chain) if first.is_none() => first = Some(chain),
                Some(_) => spare += 1,
                None if self.events.enable_notification()? => {}
                None => break,
            }
        }
        let Some(chain) = first else { return Ok(()) };
        if chain.write(&self.memory, 0, &TRANSPORT_RESET) < TRANSPORT_RESET.len() {
            return Err(QueueError::Request {
                index: self.events.index(),
                cause: "an event buffer without room for an event",
            });
        }
        self.events.add_used(chain.head(), 4)?;
        self.transport_reset = TransportReset::Sent { spare };
        self.events.signal_used()
    }

    /// The event queue was notified: by the guest when it provides buffers, at first or again after it took an event, or
    /// by a restore, which notifies all queues.
    ///
    /// # Errors
    /// The guest broke the queue.
    pub fn events_notified(&mut self) -> Result<(), QueueError> {
        match self.transport_reset {
            TransportReset::Due => self.start()?,
            TransportReset::Sent { spare } if self.events.has_available()? => {
                (0..spare).for_each(|_| self.events.undo_pop());
                self.transport_reset = TransportReset::Done;
            }
            TransportReset::Sent { .. } | TransportReset::Done => {}
        }
        Ok(())
    }

    /// Moves packets both ways, a batch at most in each direction, so that neither starves the other; the rest comes
    /// with the next round of the event loop.
    ///
    /// # Errors
    /// The guest broke a queue.
    pub fn run(&mut self, muxer: &mut Muxer) -> Result<(), QueueError> {
        let more_to_take = self.transmit(muxer)?;
        let more_to_give = self.receive(muxer)?;
        if more_to_take || more_to_give {
            // Fails only when the counter is full: then we are notified anyway.
            let _ = self.tx.kick().write(1);
        }
        self.tx.signal_used()?;
        self.rx.signal_used()
    }

    /// Takes packets from the guest. True: the batch is full.
    fn transmit(&mut self, muxer: &mut Muxer) -> Result<bool, QueueError> {
        self.tx.disable_notification()?;
        for _ in 0..BATCH {
            if !muxer.accepts() {
                return Ok(false);
            }
            let Some(chain) = self.tx.pop()? else {
                if !self.tx.enable_notification()? {
                    return Ok(false);
                }
                // More came meanwhile. It counts, so a guest that moves the index to and fro gets nowhere.
                continue;
            };
            let mut bytes = [0; HEADER_LEN as usize];
            if chain.read(&self.memory, 0, &mut bytes) < bytes.len() {
                return Err(QueueError::Request { index: self.tx.index(), cause: "a packet without a header" });
            }
            let header = Header::parse(&bytes);
            if header.len > chain.readable_len() - HEADER_LEN {
                return Err(QueueError::Request {
                    index: self.tx.index(),
                    cause: "a packet that is shorter than its header says",
                });
            }
            muxer.receive(&header, &ChainPayload { chain: &chain, memory: &self.memory, len: header.len });
            self.tx.add_used(chain.head(), 0)?;
        }
        Ok(true)
    }

    /// Gives packets to the guest. True: the batch is full.
    fn receive(&mut self, muxer: &mut Muxer) -> Result<bool, QueueError> {
        // A restored guest drops what comes before it has reset its sockets, or takes it for an old connection's.
        if self.transport_reset != TransportReset::Done {
            return Ok(false);
        }
        self.rx.disable_notification()?;
        for _ in 0..BATCH {
            if !muxer.has_packets() {
                return Ok(false);
            }
            let Some(chain) = self.rx.pop()? else {
                // Only now is a notification worth its exit: there is something to send and nowhere to put it.
                if !self.rx.enable_notification()? {
                    return Ok(false);
                }
                continue;
            };
            if chain.writable_len() <= HEADER_LEN {
                return Err(QueueError::Request {
                    index: self.rx.index(),
                    cause: "a receive buffer without room for a header and data",
                });
            }
            let mut room = ChainRoom { chain: &chain, memory: &self.memory };
            let Some(header) = muxer.next(&mut room) else {
                // The sockets had nothing after all.
                self.rx.undo_pop();
                return Ok(false);
            };
            if chain.write(&self.memory, 0, &header.to_bytes()) < HEADER_LEN as usize {
                return Err(QueueError::Request {
                    index: self.rx.index(),
                    cause: "a receive buffer that is not there",
                });
            }
            self.rx.add_used(chain.head(), HEADER_LEN + header.len)?;
        }
        Ok(true)
    }
}

/// The data of a packet in the guest's memory.
struct ChainPayload<'a> {
    chain: &'a Chain,
    memory: &'a GuestRam,
    len: u32,
}

impl Payload for ChainPayload<'_> {
    fn len(&self) -> u32 {
        self.len
    }

    fn write_to(&self, mut socket: BorrowedFd<'_>) -> io::Result<usize> {
        // write(2) on a socket: the process ignores SIGPIPE, as every Rust program does unless it asks not to.
        self.chain.write_to(self.memory, HEADER_LEN, self.len, &mut socket)
    }

    fn copy(&self, offset: u32, to: &mut [u8]) -> usize {
        self.chain.read(self.memory, HEADER_LEN + offset, to)
    }
}

/// The guest's buffer for a packet.
struct ChainRoom<'a> {
    chain: &'a Chain,
    memory: &'a GuestRam,
}

impl Room for ChainRoom<'_> {
    fn len(&self) -> u32 {
        self.chain.writable_len() - HEADER_LEN
    }

    fn read_from(&mut self, count: u32, mut socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.chain.read_from(self.memory, HEADER_LEN, count, &mut socket)
    }
}
