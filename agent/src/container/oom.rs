//! Processes of a container that the kernel has killed for want of memory.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cgroup::{Cgroup, EventsFile};

/// The count of such processes (cgroup-v2.rst, `memory.events`, "oom_kill"), and how many of them are known.
#[derive(Debug)]
pub struct OomWatch {
    events: EventsFile,
    known: AtomicU64,
}

impl OomWatch {
    /// Watches `cgroup`.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn new(cgroup: &Cgroup) -> io::Result<Self> {
        let events = EventsFile::open(&cgroup.path().join("memory.events"))?;
        Ok(Self { events, known: AtomicU64::new(0) })
    }

    /// Whether there are more than were known.
    pub fn has_more(&self) -> bool {
        // A cgroup that is gone has nobody to kill.
        let Ok(text) = self.events.read() else { return false };
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0);
        self.known.fetch_max(count, Ordering::Relaxed) < count
    }

    /// Waits for a change of the counters.
    ///
    /// # Errors
    /// The event loop's.
    pub async fn changed(&self) -> io::Result<()> {
        self.events.changed().await
    }
}
