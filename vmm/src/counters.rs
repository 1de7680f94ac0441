//! What is counted of a machine.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Why a vCPU came to user space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `in`.
    PortIn,
    /// `out`.
    PortOut,
    /// A read where no memory is.
    MmioRead,
    /// A write where no memory is.
    MmioWrite,
    /// We asked it to.
    Kick,
}

const KINDS: [(Kind, &str); 5] = [
    (Kind::PortIn, "port_in"),
    (Kind::PortOut, "port_out"),
    (Kind::MmioRead, "mmio_read"),
    (Kind::MmioWrite, "mmio_write"),
    (Kind::Kick, "kick"),
];

/// Counters of one machine, for all its vCPUs.
#[derive(Debug)]
pub struct Counters {
    exits: [AtomicU64; KINDS.len()],
    process_start: Instant,
    vcpus_created: OnceLock<Duration>,
    first_entry: OnceLock<Entry>,
    tsc_khz: AtomicU32,
}

/// The first entry into the guest.
#[derive(Debug)]
struct Entry {
    /// Since the start of the process.
    after: Duration,
    /// CLOCK_MONOTONIC, in nanoseconds: other processes have the same clock.
    at: u64,
}

impl Counters {
    /// All zero; `process_start` is when the VMM began.
    #[must_use]
    pub fn new(process_start: Instant) -> Self {
        Self {
            exits: Default::default(),
            process_start,
            vcpus_created: OnceLock::new(),
            first_entry: OnceLock::new(),
            tsc_khz: AtomicU32::new(0),
        }
    }

    /// A vCPU came to user space.
    pub fn count(&self, kind: Kind) {
        self.exits[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The vCPUs are being created.
    pub fn vcpus_created(&self) {
        self.vcpus_created.get_or_init(|| self.process_start.elapsed());
    }

    /// A vCPU enters the guest.
    pub fn entered(&self) {
        self.first_entry.get_or_init(|| Entry { after: self.process_start.elapsed(), at: monotonic_ns() });
    }

    /// How fast the guest's time stamp counter runs.
    pub fn set_tsc_khz(&self, khz: u32) {
        self.tsc_khz.store(khz, Ordering::Relaxed);
    }

    /// How fast the guest's time stamp counter runs, in kHz; 0 if KVM does not say.
    #[must_use]
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz.load(Ordering::Relaxed)
    }

    /// When a vCPU first entered the guest: CLOCK_MONOTONIC, in nanoseconds.
    #[must_use]
    pub fn entered_at_ns(&self) -> Option<u64> {
        Some(self.first_entry.get()?.at)
    }

    /// Exits to user space by reason.
    #[must_use]
    pub fn exits(&self) -> BTreeMap<String, u64> {
        let count = |kind: Kind| self.exits[kind as usize].load(Ordering::Relaxed);
        KINDS.into_iter().map(|(kind, name)| (name.to_owned(), count(kind))).collect()
    }

    /// From the start of the process to the first entry into the guest.
    #[must_use]
    pub fn process_to_guest(&self) -> Option<Duration> {
        Some(self.first_entry.get()?.after)
    }

    /// From the vCPUs' creation to the first entry into the guest.
    #[must_use]
    pub fn vcpus_to_guest(&self) -> Option<Duration> {
        Some(self.process_to_guest()?.saturating_sub(*self.vcpus_created.get()?))
    }
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Since boot: neither is negative, and 64 bits hold 584 years.
    now.tv_sec.unsigned_abs().saturating_mul(1_000_000_000).saturating_add(now.tv_nsec.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_counted_under_its_name() {
        let counters = Counters::new(Instant::now());
        for (n, (kind, _)) in (1..).zip(KINDS) {
            (0..n).for_each(|_| counters.count(kind));
        }
        let exits = counters.exits();
        let expected = (1..).zip(KINDS).map(|(n, (_, name))| (name.to_owned(), n)).collect();
        assert_eq!(exits, expected);
        assert!(counters.process_to_guest().is_none());
        counters.vcpus_created();
        assert!(counters.vcpus_to_guest().is_none() && counters.entered_at_ns().is_none());
        let before = monotonic_ns();
        counters.entered();
        let entered = counters.entered_at_ns().unwrap();
        assert!((before..=monotonic_ns()).contains(&entered));
        counters.entered();
        assert_eq!(counters.entered_at_ns(), Some(entered), "the first entry counts");
        assert!(counters.process_to_guest() >= counters.vcpus_to_guest());
        assert!(counters.vcpus_to_guest().is_some());
    }
}
