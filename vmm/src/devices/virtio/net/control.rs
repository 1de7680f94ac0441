//! The guest's wishes (virtio 1.2, 5.1.6.5).

use std::sync::Arc;

use virtio_bindings::virtio_net as bits;

use super::super::chain::Chain;
use super::super::queue::{Queue, QueueError};
use super::features as feature;
use crate::memory::GuestRam;

/// Commands answered before the packets have their turn.
const BATCH: usize = 16;
/// Bytes of a command before its data: class and command.
const HEADER: u32 = 2;

/// A command that makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Which packets it wants to see. All that come to the interface are for it: nothing is to be done.
    Filter,
    /// How many pairs of queues it uses.
    Pairs(u16),
    /// Which offloads it takes.
    Offloads(u64),
}

impl Command {
    /// The command in a chain, for a driver that has accepted `features`; none: there is no such one.
    fn parse(chain: &Chain, memory: &GuestRam, features: u64) -> Option<Self> {
        let mut header = [0; HEADER as usize];
        if chain.read(memory, 0, &mut header) < header.len() {
            return None;
        }
        let len = chain.readable_len() - HEADER;
        let has = |needed: u64| features & needed != 0;
        match header.map(u32::from) {
            [bits::VIRTIO_NET_CTRL_RX, bits::VIRTIO_NET_CTRL_RX_PROMISC | bits::VIRTIO_NET_CTRL_RX_ALLMULTI]
                if has(feature::CTRL_RX) =>
            {
                let [on] = data(chain, memory)?;
                (on <= 1).then_some(Self::Filter)
            }
            [bits::VIRTIO_NET_CTRL_MAC, bits::VIRTIO_NET_CTRL_MAC_TABLE_SET] if has(feature::CTRL_RX) => {
                mac_tables(chain, memory, len).then_some(Self::Filter)
            }
            [bits::VIRTIO_NET_CTRL_MQ, bits::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET] if has(feature::MQ) => {
                Some(Self::Pairs(u16::from_le_bytes(data(chain, memory)?)))
            }
            [bits::VIRTIO_NET_CTRL_GUEST_OFFLOADS, bits::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET]
                if has(feature::CTRL_GUEST_OFFLOADS) =>
            {
                let offloads = u64::from_le_bytes(data(chain, memory)?);
                (offloads & !(features & feature::GUEST_OFFLOADS) == 0).then_some(Self::Offloads(offloads))
            }
            _ => None,
        }
    }
}

/// The data of a command, if it is that long.
fn data<const N: usize>(chain: &Chain, memory: &GuestRam) -> Option<[u8; N]> {
    let mut data = [0; N];
    let len = (chain.readable_len() - HEADER) as usize;
    (len == N && chain.read(memory, HEADER, &mut data) == N).then_some(data)
}

/// Whether data of `len` bytes are two tables of addresses (5.1.6.5.2).
fn mac_tables(chain: &Chain, memory: &GuestRam, len: u32) -> bool {
    const ADDRESS: u64 = 6;
    let mut at: u64 = 0;
    for _ in 0..2 {
        let mut count = [0; 4];
        let Ok(offset) = u32::try_from(u64::from(HEADER) + at) else { return false };
        if chain.read(memory, offset, &mut count) < count.len() {
            return false;
        }
        at += 4 + ADDRESS * u64::from(u32::from_le_bytes(count));
    }
    at == u64::from(len)
}

/// The queue of commands.
pub(super) struct Control {
    queue: Queue,
    memory: Arc<GuestRam>,
    features: u64,
}

impl Control {
    /// Takes the queue of a driver that has accepted `features`.
    pub(super) fn new(queue: Queue, memory: Arc<GuestRam>, features: u64) -> Self {
        Self { queue, memory, features }
    }

    /// Answers what is asked, a batch at most; `obey` says whether a command was obeyed.
    ///
    /// # Errors
    /// The guest broke the queue.
    pub(super) fn run(&mut self, mut obey: impl FnMut(Command) -> bool) -> Result<(), QueueError> {
        self.queue.disable_notification()?;
        for _ in 0..BATCH {
            let Some(chain) = self.queue.pop()? else {
                if !self.queue.enable_notification()? {
                    return self.queue.signal_used();
                }
                continue;
            };
            let obeyed = Command::parse(&chain, &self.memory, self.features).is_some_and(&mut obey);
            let answer = if obeyed { bits::VIRTIO_NET_OK } else { bits::VIRTIO_NET_ERR };
            if chain.write(&self.memory, 0, &answer.to_le_bytes()[..1]) < 1 {
                let cause = "a command without room for an answer";
                return Err(QueueError::Request { index: self.queue.index(), cause });
            }
            self.queue.add_used(chain.head(), 1)?;
        }
        // Fails only when the counter is full: then we are notified anyway.
        let _ = self.queue.kick().write(1);
        self.queue.signal_used()
    }
}
