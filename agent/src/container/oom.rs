//! Processes of a container that the kernel has killed for want of memory.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::inotify;
use tokio::io::Interest;

use super::cgroup::Cgroup;
use crate::watched::{Watched, watch};

/// The count of such processes (cgroup-v2.rst, `memory.events`, "oom_kill"), and how many of them are known.
#[derive(Debug)]
pub struct OomWatch {
    path: PathBuf,
    known: AtomicU64,
    changes: Watched,
}

impl OomWatch {
    /// Watches `cgroup`.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn new(cgroup: &Cgroup) -> io::Result<Self> {
        let path = cgroup.path().join("memory.events");
        let changes = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&changes, &path, inotify::WatchFlags::MODIFY)?;
        Ok(Self { path, known: AtomicU64::new(0), changes: watch(changes, Interest::READABLE)? })
    }

    /// Whether there are more than were known.
    pub fn has_more(&self) -> bool {
        // A cgroup that is gone has nobody to kill.
        let Ok(text) = fs::read_to_string(&self.path) else { return false };
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0);
        self.known.fetch_max(count, Ordering::Relaxed) < count
    }

    /// Waits for a change of the counters.
    ///
    /// # Errors
    /// The event loop's.
    pub async fn changed(&self) -> io::Result<()> {
        let mut buffer = [0; 1024];
        self.changes.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut buffer)?)).await.map(drop)
    }
}
