//! What the configuration gives a machine for the interfaces of its pod.

use std::os::fd::OwnedFd;

use husk_protocol::control::NetRate;
use log::warn;

use super::vhost;
use crate::config;

/// Pairs of queues at most: the VMM's.
const MOST_QUEUES: u16 = 4;

/// What a machine has for the interfaces of its pod.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// Devices at most.
    pub room: u8,
    /// Pairs of queues of each.
    pub queues: u16,
    /// The host's kernel is to move the packets.
    pub vhost: bool,
    /// What each may send.
    pub sent: NetRate,
    /// What each gets.
    pub received: NetRate,
}

impl Offer {
    /// What the configuration says, for a machine with this many CPUs. Where two keys exclude each other, a line in the log says which one holds.
    #[must_use]
    pub fn of(config: &config::Network, cpus: u8) -> Self {
        // The burst is the VMM's own.
        let rate = |kib: u32, packets: u32| NetRate {
            bytes: u64::from(kib) * 1024,
            packets: packets.into(),
            ..NetRate::default()
        };
        let sent = rate(config.sent_kib_s, config.sent_packets_s);
        let received = rate(config.received_kib_s, config.received_packets_s);
        let free = [sent, received] == [NetRate::default(); 2];
        if config.vhost && !free {
            warn!(stage = "network"; "network.vhost is set, and so is a limit of what interfaces send or get, which vhost-net does not know: the VMM moves the packets");
        }
        let (room, queues) = (config.interfaces, u16::from(cpus).min(MOST_QUEUES));
        Self { room, queues, vhost: config.vhost && free, sent, received }
    }
    /// The kernel's ends of a device's queues; none: the VMM moves the packets. Where the host has no vhost-net, that is said once.
    pub(super) fn vhost_descriptors(&mut self) -> Vec<OwnedFd> {
        if !self.vhost {
            return Vec::new();
        }
        vhost::open(self.queues).unwrap_or_else(|cause| {
            self.vhost = false;
            warn!(stage = "network"; "network.vhost is set, and {} cannot be opened: {cause}; the VMM moves the packets (the kernel's module is vhost_net)", vhost::DEVICE);
            Vec::new()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_excludes_vhost() {
        let mut config = config::Network { vhost: true, ..config::Network::default() };
        assert!(Offer::of(&config, 1).vhost);
        config.received_packets_s = 1;
        assert!(!Offer::of(&config, 1).vhost);
        assert!(!Offer::of(&config::Network::default(), 1).vhost);
    }
}
