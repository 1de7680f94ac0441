//! Packets of the guest.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::super::chain::Chain;
use super::super::queue::{Queue, QueueError};
use super::super::vectors::Vectors;
use super::counts::Shared;
use super::header::{self, Header};
use super::limits::Limits;
use super::tap::{Failed, Tap};
use super::{MAX_FRAME, MIN_FRAME, Progress};
use crate::memory::GuestRam;

/// Packets taken before the other direction and the other queues have their turn: at most 4 MiB, about a millisecond.
const BATCH: usize = 64;

/// A queue of packets of the guest.
pub(super) struct Transmitter {
    queue: Queue,
    memory: Arc<GuestRam>,
    /// What the driver has accepted.
    features: u64,
    places: Vectors,
    /// The tap had no room; it says when it has.
    full: bool,
}

enum Sent {
    Yes(u32),
    No(Failed),
}

impl Transmitter {
    /// Takes the queue.
    pub(super) fn new(queue: Queue, memory: Arc<GuestRam>, features: u64) -> Self {
        Self { queue, memory, features, places: Vectors::default(), full: false }
    }

    /// The driver's notification.
    pub(super) fn kick(&self) -> &EventFd {
        self.queue.kick()
    }

    /// The tap may have room again.
    pub(super) fn room(&mut self) {
        self.full = false;
    }

    /// Wakes the event loop for this queue again.
    pub(super) fn again(&self) {
        // Fails only when the counter is full: then it is woken anyway.
        let _ = self.queue.kick().write(1);
    }

    /// Sends what the guest has, a batch at most. Without a tap, packets go nowhere.
    ///
    /// # Errors
    /// The guest broke the queue.
    pub(super) fn run(
        &mut self,
        tap: Option<&Tap>,
        limits: &mut Limits,
        shared: &Shared,
    ) -> Result<Progress, QueueError> {
        let progress = self.send_batch(tap, limits, shared)?;
        self.queue.signal_used()?;
        Ok(progress)
    }

    fn send_batch(&mut self, tap: Option<&Tap>, limits: &mut Limits, shared: &Shared) -> Result<Progress, QueueError> {
        if self.full && tap.is_some() {
            return Ok(Progress::Idle);
        }
        self.queue.disable_notification()?;
        for _ in 0..BATCH {
            // The clock is looked at only for a packet.
            if limits.any()
                && self.queue.has_available()?
                && let Some(until) = limits.wait(&shared.held_back)
            {
                return Ok(Progress::Wait(until));
            }
            let Some(chain) = self.queue.pop()? else {
                if !self.queue.enable_notification()? {
                    return Ok(Progress::Idle);
                }
                // More came meanwhile. It counts, so a guest that moves the index to and fro gets nowhere.
                continue;
            };
            if chain.writable_len() > 0 {
                let cause = "a packet with room for an answer";
                return Err(QueueError::Request { index: self.queue.index(), cause });
            }
            match tap.map_or(Sent::No(Failed::Packet), |tap| self.send(tap, &chain)) {
                Sent::Yes(bytes) => {
                    limits.take(bytes);
                    shared.sent.passed(bytes);
                }
                Sent::No(Failed::Packet) => shared.sent.dropped.add(1),
                Sent::No(Failed::WouldBlock) => {
                    self.queue.undo_pop();
                    self.full = true;
                    return Ok(Progress::Idle);
                }
                Sent::No(Failed::Gone) => {
                    self.queue.undo_pop();
                    return Ok(Progress::Gone);
                }
            }
            self.queue.add_used(chain.head(), 0)?;
        }
        Ok(Progress::More)
    }

    /// Sends a packet.
    fn send(&mut self, tap: &Tap, chain: &Chain) -> Sent {
        let mut header = [0; header::LEN as usize];
        if chain.read(&self.memory, 0, &mut header) < header.len() {
            return Sent::No(Failed::Packet);
        }
        let len = chain.readable_len() - header::LEN;
        let header = Header::parse(header).of_guest(self.features, len);
        let Some(header) = header.filter(|_| (MIN_FRAME..=MAX_FRAME).contains(&len)) else {
            return Sent::No(Failed::Packet);
        };
        // Ours: the guest's may change meanwhile.
        let mut header = header.bytes();
        self.places.clear();
        self.places.push(header.as_mut_ptr(), header.len());
        if chain.readable_places(&self.memory, header::LEN, len, &mut self.places) < len {
            // In more pieces than a system call takes.
            return Sent::No(Failed::Packet);
        }
        // A packet that finds no room is tried twice: the first time makes the tap say when there is some, and it may have come
        // before that (`SOCKWQ_ASYNC_NOSPACE` of `sock_alloc_send_pskb`).
        for _ in 0..2 {
            // SAFETY: the header lives as long as this function, and the chain's bytes are inside guest memory, which is never
            // unmapped while a device has it.
            match unsafe { self.places.write(tap) } {
                Ok(_) => return Sent::Yes(len),
                Err(cause) if Failed::writing(&cause) == Failed::WouldBlock => {}
                Err(cause) => return Sent::No(Failed::writing(&cause)),
            }
        }
        Sent::No(Failed::WouldBlock)
    }
}
