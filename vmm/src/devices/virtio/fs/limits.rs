//! Limits of how fast shares are read and written: what `io.max` of a cgroup is for a device of the host, in the place where a
//! guest's requests for files pass (cgroup-v2.rst, "IO Interface Files").

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use husk_protocol::control::{self, LimitedFiles};
use husk_protocol::files::Shared;

use super::super::pace::{Pace, Timer};

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
    /// Rings when a request that waits may go on. Made with the first limit: where there is none, nothing waits.
    timer: OnceLock<Timer>,
}

/// What some files read and write together.
#[derive(Debug)]
struct Limit {
    owner: String,
    name: String,
    files: Vec<(u32, LimitedFiles)>,
    bytes: [Pace; 2],
    requests: [Pace; 2],
}

impl Limit {
    fn paces(&self, way: Way) -> [&Pace; 2] {
        [&self.bytes[way as usize], &self.requests[way as usize]]
    }

    fn is_for(&self, file: Shared) -> bool {
        self.files.iter().any(|(share, files)| *share == file.number && files.has(file.device))
    }
}

impl Limits {
    /// Makes the timer, if there is none.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub(super) fn make_timer(&self) -> io::Result<()> {
        if self.timer.get().is_none() {
            // Two at once: the first one stays.
            let _ = self.timer.set(Timer::new()?);
        }
        Ok(())
    }

    /// The timer, if there is one.
    pub(super) fn timer(&self) -> Option<&Timer> {
        self.timer.get()
    }

    /// Lets the timer ring.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn ring_at(&self, at: Instant) -> io::Result<()> {
        self.timer().map_or(Ok(()), |timer| timer.ring_at(at))
    }

    /// Sets the rates of a limit; it is for no files at first.
    pub(super) fn set(&self, limit: control::Limit, now: Instant) {
        let control::Limit { owner, name, rates } = limit;
        let mut limits = self.limits();
        let found = limits.iter().position(|limit| limit.owner == owner && limit.name == name);
        let at = found.unwrap_or_else(|| {
            let none = [Pace::new(0, now); 2];
            limits.push(Limit { owner, name, files: Vec::new(), bytes: none, requests: none });
            limits.len() - 1
        });
        if let Some(limit) = limits.get_mut(at) {
            limit.bytes[Way::Read as usize].change(rates.read_bytes, now);
            limit.bytes[Way::Write as usize].change(rates.written_bytes, now);
            limit.requests[Way::Read as usize].change(rates.reads, now);
            limit.requests[Way::Write as usize].change(rates.writes, now);
        }
        self.any.store(true, Ordering::Release);
    }

    /// Puts files under a limit, in the place of what was said of this share before; false: there is no such limit.
    pub(super) fn add(&self, limit: &(String, String), share: u32, files: LimitedFiles) -> bool {
        let mut limits = self.limits();
        let found = limits.iter_mut().find(|other| other.owner == limit.0 && other.name == limit.1);
        found.is_some_and(|limit| {
            limit.files.retain(|(other, _)| *other != share);
            limit.files.push((share, files));
            true
        })
    }

    /// Takes an owner's limits away.
    pub(super) fn remove(&self, owner: &str) {
        self.retain(|limit| limit.owner != owner);
    }

    /// Forgets a share; true: there are limits.
    pub(super) fn remove_share(&self, share: u32) -> bool {
        let any = self.any();
        if any {
            self.retain(|limit| {
                let had = !limit.files.is_empty();
                limit.files.retain(|(other, _)| *other != share);
                !had || !limit.files.is_empty()
            });
        }
        any
    }

    fn retain(&self, keep: impl FnMut(&mut Limit) -> bool) {
        let mut limits = self.limits();
        limits.retain_mut(keep);
        self.any.store(!limits.is_empty(), Ordering::Release);
    }

    /// Whether there is any limit.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// When a request for this file may go on; none: at any time.
    pub(super) fn ready_at(&self, file: Shared, way: Way) -> Option<Instant> {
        if !self.any() {
            return None;
        }
        ready_at(&self.limits(), file, way)
    }

    /// Takes the time of a request; false: it may not go on yet.
    pub(super) fn take(&self, file: Shared, way: Way, bytes: u32, now: Instant) -> bool {
        if !self.any() {
            return true;
        }
        let mut limits = self.limits();
        if ready_at(&limits, file, way).is_some_and(|at| at > now) {
            return false;
        }
        for limit in limits.iter_mut().filter(|limit| limit.is_for(file)) {
            limit.bytes[way as usize].take(bytes, now);
            limit.requests[way as usize].take(1, now);
        }
        true
    }

    fn limits(&self) -> MutexGuard<'_, Vec<Limit>> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ready_at(limits: &[Limit], file: Shared, way: Way) -> Option<Instant> {
    let of_file = limits.iter().filter(|limit| limit.is_for(file));
    of_file.flat_map(|limit| limit.paces(way)).filter_map(Pace::ready_at).max()
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
