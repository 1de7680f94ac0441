//! A virtqueue: the ring of `virtio-queue`, its notification, and the policy for a guest that breaks it.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Chain, ChainError};
use super::device::Signal;
use crate::memory::GuestRam;

/// What a guest can do to a queue that ends the device (never the process): it then needs a reset by the driver.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The ring itself is inconsistent: an impossible avail index, a ring outside of memory.
    #[error("queue {index}: the driver broke the ring: {cause}")]
    Ring {
        /// The queue.
        index: u16,
        /// What is wrong.
        cause: virtio_queue::Error,
    },
    /// A descriptor chain that no driver may build.
    #[error("queue {index}: {cause}")]
    Chain {
        /// The queue.
        index: u16,
        /// What is wrong.
        cause: ChainError,
    },
    /// The device's own rule for its requests is broken.
    #[error("queue {index}: {cause}")]
    Request {
        /// The queue.
        index: u16,
        /// What is wrong.
        cause: &'static str,
    },
}

/// A queue as a device uses it.
pub struct Queue {
    index: u16,
    ring: virtio_queue::Queue,
    memory: Arc<GuestRam>,
    /// The driver's notification (an ioeventfd on the transport's notify register).
    kick: Arc<EventFd>,
    signal: Arc<dyn Signal>,
    /// Chains used since the driver was last looked at for an interrupt.
    added: u16,
}

/// Bytes of a ring before its entries, of an entry of the available ring, and of one of the used ring (virtio 1.2, 2.7.6, 2.7.8).
const RING_HEADER: u64 = 4;
const AVAIL_ENTRY: u64 = 2;
const USED_ENTRY: u64 = 8;

impl Queue {
    /// Puts a configured ring together with its notification and interrupt.
    pub fn new(
        index: u16,
        ring: virtio_queue::Queue,
        memory: Arc<GuestRam>,
        kick: Arc<EventFd>,
        signal: Arc<dyn Signal>,
    ) -> Self {
        Self { index, ring, memory, kick, signal, added: 0 }
    }

    /// The queue's number in its device.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Whether the driver has set this queue up.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.ring.ready()
    }

    /// The notification's event, for registration in an event loop.
    #[must_use]
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The interrupt's event, for who serves the queue outside of this process.
    #[must_use]
    pub fn line(&self) -> Option<&EventFd> {
        self.signal.line(self.index)
    }

    /// The next available chain, checked.
    ///
    /// # Errors
    /// The guest broke the ring or built an impossible chain.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let index = self.index;
        match next_raw(&mut self.ring, &*self.memory, index)? {
            None => Ok(None),
            Some(raw) => Chain::check(raw, &self.memory).map(Some).map_err(|cause| QueueError::Chain { index, cause }),
        }
    }

    /// The next available chain as it is, for the one device whose crate walks chains itself (virtio-fs).
    ///
    /// # Errors
    /// The guest broke the ring.
    pub fn pop_raw(&mut self) -> Result<Option<virtio_queue::DescriptorChain<Arc<GuestRam>>>, QueueError> {
        next_raw(&mut self.ring, Arc::clone(&self.memory), self.index)
    }

    /// How many chains it has room for.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Gives the last popped chain back to the available ring: it comes again with the next pop.
    pub fn undo_pop(&mut self) {
        self.ring.go_to_previous_position();
    }

    /// Whether the driver has made a buffer available that was not popped yet.
    ///
    /// # Errors
    /// The ring is outside of memory.
    pub fn has_available(&self) -> Result<bool, QueueError> {
        let avail = self.ring.avail_idx(&*self.memory, Ordering::Acquire).map_err(|cause| self.ring_error(cause))?;
        Ok(avail.0 != self.ring.next_avail())
    }

    /// Returns a chain to the driver with the number of bytes written to it.
    ///
    /// # Errors
    /// The used ring is outside of memory.
    pub fn add_used(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.ring.add_used(&*self.memory, head, written).map_err(|cause| self.ring_error(cause))?;
        self.added = self.added.wrapping_add(1);
        Ok(())
    }

    /// Returns chains that belong together, so that the driver sees all of them or none (virtio 1.2, 5.1.6.4.1, for the
    /// buffers of one packet).
    ///
    /// # Errors
    /// The used ring is outside of memory.
    pub fn add_used_together(&mut self, used: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some((&(head, written), others)) = used.split_last() else { return Ok(()) };
        let size = self.ring.size().max(1);
        let mut next = self.ring.next_used();
        for &(head, written) in others {
            let mut entry = [0; 8];
            entry[..4].copy_from_slice(&u32::from(head).to_le_bytes());
            entry[4..].copy_from_slice(&written.to_le_bytes());
            let at = self.place(self.ring.used_ring(), RING_HEADER + USED_ENTRY * u64::from(next % size))?;
            self.memory
                .write_slice(&entry, at)
                .map_err(|cause| self.ring_error(virtio_queue::Error::GuestMemory(cause)))?;
            next = next.wrapping_add(1);
            self.added = self.added.wrapping_add(1);
        }
        self.ring.set_next_used(next);
        // Shows the driver all of them.
        self.add_used(head, written)
    }

    /// Interrupts the driver if it wants to know of what was used since the last call.
    ///
    /// # Errors
    /// The ring is outside of memory.
    pub fn signal_used(&mut self) -> Result<(), QueueError> {
        let added = std::mem::take(&mut self.added);
        if added > 0 && (!self.ring.event_idx_enabled() || self.used_event_is_among(added)?) {
            self.signal.queue(self.index);
        }
        Ok(())
    }

    /// Whether the entry that the driver waits for is one of the last `added` (virtio 1.2, 2.7.10; `vring_need_event` of Linux).
    fn used_event_is_among(&self, added: u16) -> Result<bool, QueueError> {
        // What was used is in memory before the look at what the driver wants.
        fence(Ordering::SeqCst);
        let at = self.place(self.ring.avail_ring(), RING_HEADER + AVAIL_ENTRY * u64::from(self.ring.size()))?;
        let event: u16 = self
            .memory
            .load(at, Ordering::Relaxed)
            .map_err(|cause| self.ring_error(virtio_queue::Error::GuestMemory(cause)))?;
        Ok(self.ring.next_used().wrapping_sub(u16::from_le(event)).wrapping_sub(1) < added)
    }

    fn place(&self, ring: u64, offset: u64) -> Result<GuestAddress, QueueError> {
        let place = ring.checked_add(offset).map(GuestAddress);
        place.ok_or_else(|| self.ring_error(virtio_queue::Error::AddressOverflow))
    }

    /// Asks the driver not to notify while the device looks at the ring anyway.
    ///
    /// # Errors
    /// The ring is outside of memory.
    pub fn disable_notification(&mut self) -> Result<(), QueueError> {
        self.ring.disable_notification(&*self.memory).map_err(|cause| QueueError::Ring { index: self.index, cause })
    }

    /// Asks the driver to notify again. True: buffers came in meanwhile, look once more.
    ///
    /// # Errors
    /// The ring is outside of memory.
    pub fn enable_notification(&mut self) -> Result<bool, QueueError> {
        self.ring.enable_notification(&*self.memory).map_err(|cause| QueueError::Ring { index: self.index, cause })
    }

    /// Goes on where somebody else, who has served the queue meanwhile, has left it: at this entry of the available ring, none: at the
    /// first one that was not used; and in the used ring behind what the driver sees there.
    ///
    /// # Errors
    /// The used ring is outside of memory.
    pub fn take_over(&mut self, next_avail: Option<u16>) -> Result<(), QueueError> {
        let used = self.ring.used_idx(&*self.memory, Ordering::Acquire).map_err(|cause| self.ring_error(cause))?.0;
        self.ring.set_next_avail(next_avail.unwrap_or(used));
        self.ring.set_next_used(used);
        Ok(())
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestRam> {
        &self.memory
    }

    /// The queue's state as it is saved.
    #[must_use]
    pub fn state(&self) -> QueueState {
        self.ring.state().into()
    }

    fn ring_error(&self, cause: virtio_queue::Error) -> QueueError {
        QueueError::Ring { index: self.index, cause }
    }
}

/// The next available chain of `ring`, which is queue `index`.
fn next_raw<M: Clone + Deref<Target = GuestRam>>(
    ring: &mut virtio_queue::Queue,
    memory: M,
    index: u16,
) -> Result<Option<virtio_queue::DescriptorChain<M>>, QueueError> {
    // `iter` is what tells an impossible avail index from an empty ring (`pop_descriptor_chain` hides the error).
    let mut available = ring.iter(memory).map_err(|cause| QueueError::Ring { index, cause })?;
    Ok(available.next())
}

/// A queue's saved state: `virtio_queue::QueueState` in a form that can be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Largest size offered.
    pub max_size: u16,
    /// Size that the driver chose.
    pub size: u16,
    /// Next entry of the available ring to look at.
    pub next_avail: u16,
    /// Next entry of the used ring to write.
    pub next_used: u16,
    /// EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// The driver has set the queue up.
    pub ready: bool,
    /// Guest physical address of the descriptor table.
    pub desc_table: u64,
    /// Guest physical address of the available ring.
    pub avail_ring: u64,
    /// Guest physical address of the used ring.
    pub used_ring: u64,
}

impl From<virtio_queue::QueueState> for QueueState {
    fn from(state: virtio_queue::QueueState) -> Self {
        Self {
            max_size: state.max_size,
            size: state.size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx: state.event_idx_enabled,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }
}

impl TryFrom<QueueState> for virtio_queue::Queue {
    type Error = virtio_queue::Error;

    fn try_from(state: QueueState) -> Result<Self, Self::Error> {
        virtio_queue::QueueState {
            max_size: state.max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
        .try_into()
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
