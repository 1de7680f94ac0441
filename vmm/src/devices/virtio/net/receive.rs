//! Packets for the guest.
//!
//! How long a packet is shows only when it is read. So the guest's buffers are popped before that, as many as the last packets
//! took, and what a longer packet has beyond them comes into a buffer of ours, the spill, in the same system call. Buffers that a packet
//! does not take stay for the next one.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::super::chain::Chain;
use super::super::queue::{Queue, QueueError};
use super::super::vectors::Vectors;
use super::counts::Shared;
use super::features;
use super::header::{self, Header};
use super::limits::Limits;
use super::tap::{Failed, Tap};
use super::{MAX_FRAME, Progress};
use crate::memory::GuestRam;

/// Packets given before the other direction and the other queues have their turn: at most 4 MiB, about a millisecond.
const BATCH: usize = 64;

/// A queue of packets for the guest.
pub(super) struct Receiver {
    queue: Queue,
    memory: Arc<GuestRam>,
    /// A packet may take several buffers.
    mergeable: bool,
    /// Buffers that were popped and not used, in order.
    chains: VecDeque<Chain>,
    /// Their bytes.
    room: u64,
    places: Vectors,
    spill: Vec<u8>,
    /// Bytes that the next packet will have, most likely.
    expected: u32,
    /// A packet that lacks buffers.
    held: Option<Held>,
    used: Vec<(u16, u32)>,
    /// The tap may have packets; it says when it has.
    readable: bool,
}

/// A packet that was read: its first bytes are in the guest's buffers, behind the room for its header, the others in the spill.
struct Held {
    header: Header,
    /// Bytes of the frame.
    len: u32,
    /// How many of them are in the guest's buffers.
    placed: u32,
}

impl Receiver {
    /// Takes the queue of a driver that has accepted `features`.
    pub(super) fn new(queue: Queue, memory: Arc<GuestRam>, features: u64) -> Self {
        Self {
            queue,
            memory,
            mergeable: features & features::MRG_RXBUF != 0,
            chains: VecDeque::new(),
            room: 0,
            places: Vectors::default(),
            // Zeroes that nobody has touched are no memory yet. One more, so that a frame that is too long is seen as one.
            spill: vec![0; MAX_FRAME as usize + 1],
            expected: 0,
            held: None,
            used: Vec::new(),
            readable: false,
        }
    }

    /// The tap may have packets.
    pub(super) fn readable(&mut self) {
        self.readable = true;
    }

    /// Gives all buffers back to the ring, for its state to be saved, or because its device ends; a packet that lacked some is lost.
    pub(super) fn give_back(&mut self, shared: &Shared) {
        if self.held.take().is_some() {
            shared.received.dropped.add(1);
        }
        self.chains.drain(..).for_each(|_| self.queue.undo_pop());
        self.room = 0;
    }

    /// Gives the guest what the tap has, a batch at most.
    ///
    /// # Errors
    /// The guest broke the queue.
    pub(super) fn run(
        &mut self,
        tap: &Tap,
        offloads: u64,
        limits: &mut Limits,
        shared: &Shared,
    ) -> Result<Progress, QueueError> {
        let progress = self.give_batch(tap, offloads, limits, shared)?;
        self.queue.signal_used()?;
        Ok(progress)
    }

    fn give_batch(
        &mut self,
        tap: &Tap,
        offloads: u64,
        limits: &mut Limits,
        shared: &Shared,
    ) -> Result<Progress, QueueError> {
        self.queue.disable_notification()?;
        for _ in 0..BATCH {
            if self.held.is_none() {
                if !self.readable {
                    return Ok(Progress::Idle);
                }
                if let Some(until) = limits.wait(&shared.held_back) {
                    return Ok(Progress::Wait(until));
                }
                self.gather(u64::from(header::LEN) + u64::from(self.expected))?;
                if self.chains.is_empty() {
                    // Only now is a notification worth its exit: there is something to give, and nowhere to put it.
                    if !self.queue.enable_notification()? {
                        return Ok(Progress::Idle);
                    }
                    // Buffers came meanwhile. It counts, so a guest that moves the index to and fro gets nowhere.
                    continue;
                }
                match self.read(tap) {
                    Ok(read) => self.hold(read, offloads, limits, shared),
                    Err(cause) => match Failed::reading(&cause) {
                        Failed::WouldBlock => {
                            self.readable = false;
                            return Ok(Progress::Idle);
                        }
                        Failed::Packet => shared.received.dropped.add(1),
                        Failed::Gone => return Ok(Progress::Gone),
                    },
                }
            }
            if let Some(held) = self.held.take() {
                self.held = self.deliver(held, shared)?;
                if self.held.is_some() && !self.queue.enable_notification()? {
                    return Ok(Progress::Idle);
                }
            }
        }
        Ok(Progress::More)
    }

    /// Takes a packet that was read, if it is one that the guest takes.
    fn hold(&mut self, read: Held, offloads: u64, limits: &mut Limits, shared: &Shared) {
        // As it falls slowly, small packets between large ones do not send each large one through the spill.
        self.expected = read.len.min(MAX_FRAME).max(self.expected - self.expected.div_ceil(16));
        match read.header.for_guest(offloads).filter(|_| read.len <= MAX_FRAME) {
            Some(header) => {
                limits.take(read.len);
                self.held = Some(Held { header, ..read });
            }
            None => shared.received.dropped.add(1),
        }
    }

    /// Pops buffers until they have `wanted` bytes, as far as there are any.
    fn gather(&mut self, wanted: u64) -> Result<(), QueueError> {
        // Whatever the guest says is available: the ring has no more.
        let most = if self.mergeable { usize::from(self.queue.size()) } else { 1 };
        while self.room < wanted && self.chains.len() < most {
            let Some(chain) = self.queue.pop()? else { return Ok(()) };
            if chain.readable_len() > 0 || chain.writable_len() < header::LEN {
                let cause = "a receive buffer without room for a header, or with data";
                return Err(QueueError::Request { index: self.queue.index(), cause });
            }
            self.room += u64::from(chain.writable_len());
            self.chains.push_back(chain);
        }
        Ok(())
    }

    /// Reads a packet.
    fn read(&mut self, tap: &Tap) -> io::Result<Held> {
        let mut header = [0; header::LEN as usize];
        self.places.clear();
        self.places.push(header.as_mut_ptr(), header.len());
        let (mut room, mut offset) = (0, header::LEN);
        for chain in &self.chains {
            let wanted = (chain.writable_len() - offset).min(MAX_FRAME - room);
            let got = chain.writable_places(&self.memory, offset, wanted, &mut self.places);
            room += got;
            offset = 0;
            if got < wanted || room == MAX_FRAME {
                break;
            }
        }
        self.places.push_last(self.spill.as_mut_ptr(), self.spill.len());
        // SAFETY: header and spill are ours and live longer than the call; the chains' bytes are inside guest memory, which is
        // never unmapped while a device has it.
        let read = unsafe { self.places.read(tap) }?;
        // Less than a header is nothing that a tap gives.
        let len = u32::try_from(read).ok().and_then(|read| read.checked_sub(header::LEN));
        let len = len.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Held { header: Header::parse(header), len, placed: len.min(room) })
    }

    /// Gives the guest a packet; returns it when it lacks buffers.
    fn deliver(&mut self, held: Held, shared: &Shared) -> Result<Option<Held>, QueueError> {
        let total = header::LEN + held.len;
        self.gather(total.into())?;
        if self.room < u64::from(total) {
            if self.mergeable && self.chains.len() < usize::from(self.queue.size()) {
                return Ok(Some(held));
            }
            // All that the driver can have given is too small.
            shared.received.dropped.add(1);
            return Ok(None);
        }
        let (mut start, mut left) = (0, total);
        let rest = header::LEN + held.placed;
        self.used.clear();
        let mut first: Option<Chain> = None;
        while left > 0 {
            // There are so many: the sum was looked at.
            let Some(chain) = self.chains.pop_front() else { break };
            self.room -= u64::from(chain.writable_len());
            let here = left.min(chain.writable_len());
            if start + here > rest {
                let from = rest.max(start);
                let spilled = (from - rest) as usize..(start + here - rest) as usize;
                let _ = chain.write(&self.memory, from - start, &self.spill[spilled]);
            }
            self.used.push((chain.head(), here));
            start += here;
            left -= here;
            first.get_or_insert(chain);
        }
        if let Some(first) = first {
            let num_buffers = u16::try_from(self.used.len()).unwrap_or(u16::MAX);
            let _ = first.write(&self.memory, 0, &Header { num_buffers, ..held.header }.bytes());
        }
        self.queue.add_used_together(&self.used)?;
        shared.received.passed(held.len);
        Ok(None)
    }
}
