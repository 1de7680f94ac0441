//! Limits of how fast shares are read and written: what `io.max` of a cgroup is for a device of the host, in the place where a
//! guest's requests for files pass (cgroup-v2.rst, "IO Interface Files").

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use husk_protocol::control::Rates;

/// What may come at once after a pause, as time: a tenth of what a second lets through, as blk-throttle has it
/// (`DFL_THROTL_SLICE_HD`).
const BURST: Duration = Duration::from_millis(100);

/// Which way data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Read,
    Write,
}

/// The limits of one device.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// Whether there are any: most guests have none.
    any: AtomicBool,
    limits: Mutex<Vec<Limit>>,
}

/// What some shares read and write together.
#[derive(Debug)]
struct Limit {
    name: String,
    shares: Vec<u32>,
    bytes: [Pace; 2],
    requests: [Pace; 2],
}

/// How fast something goes, at most (the generic cell rate algorithm, ITU-T I.371): a request goes on when the ones before
/// it have had their time, and takes its own.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// 0: without a limit.
    per_second: u64,
    /// When the time of all that went through is over.
    over: Instant,
}

impl Pace {
    /// When the next request goes on.
    fn ready_at(&self) -> Option<Instant> {
        // No earlier than the clock's beginning.
        (self.per_second > 0).then(|| self.over.checked_sub(BURST).unwrap_or(self.over))
    }

    fn take(&mut self, units: u32, now: Instant) {
        if self.per_second > 0 {
            let nanoseconds = u128::from(units) * 1_000_000_000 / u128::from(self.per_second);
            let time = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
            let from = self.over.max(now);
            self.over = from.checked_add(time).unwrap_or(from);
        }
    }

    /// Another rate; what went through at the last one has had its time.
    fn change(&mut self, per_second: u64, now: Instant) {
        if self.per_second != per_second {
            *self = Self { per_second, over: now };
        }
    }
}

impl Limit {
    fn paces(&self, way: Way) -> [&Pace; 2] {
        [&self.bytes[way as usize], &self.requests[way as usize]]
    }
}

impl Limits {
    /// Sets a limit, or takes it away if there are no rates.
    pub(super) fn set(&self, name: String, shares: Vec<u32>, rates: Rates, now: Instant) {
        let mut limits = self.limits();
        let old = limits.iter().position(|limit| limit.name == name).map(|at| limits.remove(at));
        if rates != Rates::default() {
            let none = [Pace { per_second: 0, over: now }; 2];
            let (mut bytes, mut requests) = old.map_or((none, none), |old| (old.bytes, old.requests));
            bytes[Way::Read as usize].change(rates.read_bytes, now);
            bytes[Way::Write as usize].change(rates.written_bytes, now);
            requests[Way::Read as usize].change(rates.reads, now);
            requests[Way::Write as usize].change(rates.writes, now);
            limits.push(Limit { name, shares, bytes, requests });
        }
        self.any.store(!limits.is_empty(), Ordering::Release);
    }

    /// Forgets a share; true: it had limits.
    pub(super) fn remove_share(&self, share: u32) -> bool {
        if !self.any() {
            return false;
        }
        let mut limits = self.limits();
        let had = limits.iter().any(|limit| limit.shares.contains(&share));
        for limit in limits.iter_mut() {
            limit.shares.retain(|other| *other != share);
        }
        limits.retain(|limit| !limit.shares.is_empty());
        self.any.store(!limits.is_empty(), Ordering::Release);
        had
    }

    /// Whether there is any limit.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// When a request for a file of this share may go on; none: at any time.
    pub(super) fn ready_at(&self, share: u32, way: Way) -> Option<Instant> {
        if !self.any() {
            return None;
        }
        ready_at(&self.limits(), share, way)
    }

    /// Takes the time of a request; false: it may not go on yet.
    pub(super) fn take(&self, share: u32, way: Way, bytes: u32, now: Instant) -> bool {
        if !self.any() {
            return true;
        }
        let mut limits = self.limits();
        if ready_at(&limits, share, way).is_some_and(|at| at > now) {
            return false;
        }
        for limit in limits.iter_mut().filter(|limit| limit.shares.contains(&share)) {
            limit.bytes[way as usize].take(bytes, now);
            limit.requests[way as usize].take(1, now);
        }
        true
    }

    fn limits(&self) -> MutexGuard<'_, Vec<Limit>> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ready_at(limits: &[Limit], share: u32, way: Way) -> Option<Instant> {
    let of_share = limits.iter().filter(|limit| limit.shares.contains(&share));
    of_share.flat_map(|limit| limit.paces(way)).filter_map(Pace::ready_at).max()
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
