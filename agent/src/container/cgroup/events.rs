//! A cgroup's files of which the kernel signals each change: `cgroup.events`, `memory.events`.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::io::Interest;

use crate::watched::{Watched, watch};

/// Such a file, by poll (cgroup-v2.rst, "Basic Operations": "poll and [id]notify events are triggered"). Not by inotify:
/// closing its descriptor waits for a grace period of the kernel (`fsnotify_wait_marks_destroyed`; 20 ms), and with it all
/// that the agent's one thread does.
#[derive(Debug)]
pub struct EventsFile(Watched);

impl EventsFile {
    /// Opens and watches the file. The first [`EventsFile::changed`] after it returns at once, unless it is read before.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self(watch(file, Interest::PRIORITY)?))
    }

    /// What is in it. A change after this ends [`EventsFile::changed`].
    ///
    /// # Errors
    /// The kernel's answer: ENODEV, if the cgroup is gone.
    pub fn read(&self) -> io::Result<String> {
        // A dozen short lines.
        let mut buffer = [0; 1024];
        let count = rustix::io::pread(self.0.get_ref(), &mut buffer, 0)?;
        Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
    }

    /// Waits for a change since it was read.
    ///
    /// # Errors
    /// The event loop's.
    pub async fn changed(&self) -> io::Result<()> {
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}
