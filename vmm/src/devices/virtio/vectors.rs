//! Places in memory, for a system call that reads or writes several at once (readv(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// Places at most (IOV_MAX, `UIO_MAXIOV` of Linux).
const MOST: usize = 1024;

/// A list of places, to be filled again and again without an allocation.
#[derive(Debug, Default)]
pub struct Vectors {
    places: Vec<libc::iovec>,
}

// SAFETY: the places are addresses; whoever uses them (`read`, `write`) says that they are valid, on whatever thread.
unsafe impl Send for Vectors {}

impl Vectors {
    /// Forgets all places.
    pub fn clear(&mut self) {
        self.places.clear();
    }

    /// Adds a place; false: there is no room for more, but for one that comes last.
    pub fn push(&mut self, start: *mut u8, len: usize) -> bool {
        let room = self.places.len() + 1 < MOST;
        if room {
            self.places.push(libc::iovec { iov_base: start.cast(), iov_len: len });
        }
        room
    }

    /// Adds a place behind all others, for which there always is room; another one takes its place.
    pub fn push_last(&mut self, start: *mut u8, len: usize) {
        self.places.truncate(MOST - 1);
        self.places.push(libc::iovec { iov_base: start.cast(), iov_len: len });
    }

    /// Reads from `file` into the places (readv).
    ///
    /// # Errors
    /// The kernel's answer.
    ///
    /// # Safety
    /// All places are valid for writes of their lengths, and nobody else's but the guest's.
    pub unsafe fn read(&self, file: impl AsFd) -> io::Result<usize> {
        // SAFETY: the places are valid, as the caller says; there are at most `MOST`, so `count` is their number.
        self.until_done(file, |fd, places, count| unsafe { libc::readv(fd, places, count) })
    }

    /// Writes what is at the places to `file` (writev).
    ///
    /// # Errors
    /// The kernel's answer.
    ///
    /// # Safety
    /// All places are valid for reads of their lengths.
    pub unsafe fn write(&self, file: impl AsFd) -> io::Result<usize> {
        // SAFETY: as above.
        self.until_done(file, |fd, places, count| unsafe { libc::writev(fd, places, count) })
    }

    /// Calls again where a signal came before anything was done.
    fn until_done(
        &self,
        file: impl AsFd,
        call: impl Fn(RawFd, *const libc::iovec, libc::c_int) -> libc::ssize_t,
    ) -> io::Result<usize> {
        let count = libc::c_int::try_from(self.places.len()).unwrap_or_default();
        loop {
            let done = call(file.as_fd().as_raw_fd(), self.places.as_ptr(), count);
            match usize::try_from(done).map_err(|_| io::Error::last_os_error()) {
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}
