//! What a client has not read yet when its process is deleted.
//!
//! A client that reads the fifos itself (`ctr`, and whoever uses containerd's client) closes them once Delete of an exec is answered, whatever is
//! in them. So Delete waits until they are empty, or have no reader, or a second has passed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, inotify, open};
use tokio::io::Interest;

use crate::watched::watch;

/// Time for a client to read what is in a fifo: with the time for the output to get there, less than CRI gives Delete.
const LIMIT: Duration = Duration::from_secs(1);

/// Returns when the client has read all that is in this fifo, or is not there. The shim itself has it open no more.
pub(super) async fn taken(fifo: &Path) {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // ENXIO: nobody reads (fifo(7)); ENOENT: whoever has made it has removed it.
    let Ok(fifo) = open(fifo, flags, Mode::empty()) else { return };
    let is_fifo = fstat(&fifo).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    let tail = Tail(fifo);
    if is_fifo && !tail.is_taken() {
        // An error is as good as a client that does not read.
        let _ = tokio::time::timeout(LIMIT, tail.wait()).await;
    }
}

/// A fifo's end for writing, through which nothing more is written.
struct Tail(OwnedFd);

impl Tail {
    fn is_taken(&self) -> bool {
        rustix::io::ioctl_fionread(&self.0).is_ok_and(|left| left == 0) || !self.has_reader()
    }

    /// Whether somebody can read it (poll(2): POLLERR).
    fn has_reader(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && !fds[0].revents().contains(PollFlags::ERR)
    }

    async fn wait(&self) -> io::Result<()> {
        // A pipe tells its writer of a read only if it was full; inotify tells of each. (Closing its descriptor waits for a grace period of the
        // kernel: the price of a client that is slow.)
        let reads = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&reads, format!("/proc/self/fd/{}", self.0.as_raw_fd()), inotify::WatchFlags::ACCESS)?;
        let reads = watch(reads, Interest::READABLE)?;
        let end = watch(self.0.try_clone()?, Interest::ERROR)?;
        // Looked at after both are watched, so that nothing is missed.
        while !self.is_taken() {
            tokio::select! {
                ready = reads.readable() => {
                    let mut buffer = [0; 1024];
                    let _ = rustix::io::read(reads.get_ref().as_fd(), &mut buffer);
                    ready?.clear_ready();
                }
                ready = end.ready(Interest::ERROR) => ready?.clear_ready(),
            }
        }
        Ok(())
    }
}
