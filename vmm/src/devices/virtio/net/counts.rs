//! What is counted of a device, written by its thread and read by others.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use husk_protocol::control::NetCounters;

/// A counter.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    /// Adds to it.
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Packets one way.
#[derive(Debug, Default)]
pub(super) struct Packets {
    packets: Count,
    bytes: Count,
    pub(super) dropped: Count,
}

impl Packets {
    /// A packet has passed.
    pub(super) fn passed(&self, bytes: u32) {
        self.packets.add(1);
        self.bytes.add(bytes.into());
    }
}

/// What a device's thread shares with the rest of the VMM.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) sent: Packets,
    pub(super) received: Packets,
    pub(super) held_back: Count,
    /// The interface has a carrier, as the shim says.
    pub(super) carrier: AtomicBool,
    /// The tap is gone: there is no carrier, whatever the shim says.
    pub(super) gone: AtomicBool,
}

impl Shared {
    pub(super) fn counters(&self) -> NetCounters {
        NetCounters {
            sent_packets: self.sent.packets.get(),
            sent_bytes: self.sent.bytes.get(),
            sent_dropped: self.sent.dropped.get(),
            received_packets: self.received.packets.get(),
            received_bytes: self.received.bytes.get(),
            received_dropped: self.received.dropped.get(),
            held_back: self.held_back.get(),
        }
    }
}
