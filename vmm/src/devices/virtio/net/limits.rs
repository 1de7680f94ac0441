//! How much the guest may send and gets.

use std::time::Instant;

use husk_protocol::control::NetRate;

use super::super::pace::Pace;
use super::counts::Count;

/// The limits one way, of all queues together.
#[derive(Debug)]
pub(super) struct Limits {
    /// None: there are none, and nobody has to look at the clock.
    paces: Option<[Pace; 2]>,
    /// They hold something back at the moment.
    hold: bool,
}

impl Limits {
    pub(super) fn new(rate: &NetRate, now: Instant) -> Self {
        let bytes = Pace::new(rate.bytes, now).with_burst(rate.burst_bytes);
        let packets = Pace::new(rate.packets, now).with_burst(rate.burst_packets);
        Self { paces: (rate.bytes > 0 || rate.packets > 0).then_some([bytes, packets]), hold: false }
    }

    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        self.paces.is_some()
    }

    /// Until when the next packet has to wait; none: it may go. `held_back` counts each time that the limits begin to hold.
    pub(super) fn wait(&mut self, held_back: &Count) -> Option<Instant> {
        let paces = self.paces?;
        let now = Instant::now();
        let until = paces.iter().filter_map(Pace::ready_at).max().filter(|at| *at > now);
        if until.is_some() && !self.hold {
            held_back.add(1);
        }
        self.hold = until.is_some();
        until
    }

    /// A packet goes.
    pub(super) fn take(&mut self, bytes: u32) {
        if let Some([of_bytes, of_packets]) = &mut self.paces {
            let now = Instant::now();
            of_bytes.take(bytes, now);
            of_packets.take(1, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_and_then_it_holds() {
        let count = Count::default();
        let rate = NetRate { bytes: 1000, burst_bytes: 3000, packets: 0, burst_packets: 0 };
        let mut limits = Limits::new(&rate, Instant::now());
        let mut sent = 0;
        while limits.wait(&count).is_none() {
            limits.take(500);
            sent += 500;
        }
        // What the clock lets through meanwhile is less than a packet.
        assert!((3000..=4000).contains(&sent), "{sent}");
        let until = limits.wait(&count).unwrap();
        assert!(until > Instant::now());
        let packets = NetRate { packets: 1, burst_packets: 1, ..NetRate::default() };
        let mut limits = Limits::new(&packets, Instant::now());
        assert!(limits.any() && limits.wait(&count).is_none());
        limits.take(1);
        limits.take(1);
        assert!(limits.wait(&count).is_some());
        let mut none = Limits::new(&NetRate { burst_bytes: 5, burst_packets: 5, ..NetRate::default() }, Instant::now());
        none.take(u32::MAX);
        assert!(!none.any() && none.wait(&count).is_none());
    }
}
