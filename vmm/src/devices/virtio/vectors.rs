//! Places in memory, for a system call that reads or writes several at once (readv(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Places at most (IOV_MAX, `UIO_MAXIOV` of Linux).
pub const MOST: usize = 1024;

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

    /// Adds a place; false: there is no room for more.
    pub fn push(&mut self, start: *mut u8, len: usize) -> bool {
        let room = self.places.len() < MOST;
        if room {
            self.places.push(libc::iovec { iov_base: start.cast(), iov_len: len });
        }
        room
    }

    /// Whether there is room for so many more.
    #[must_use]
    pub fn has_room(&self, count: usize) -> bool {
        self.places.len() + count <= MOST
    }

    /// Reads from `file` into the places (readv).
    ///
    /// # Errors
    /// The kernel's answer.
    ///
    /// # Safety
    /// All places are valid for writes of their lengths, and nobody else's but the guest's.
    pub unsafe fn read(&self, file: impl AsFd) -> io::Result<usize> {
        let (fd, count) = (file.as_fd().as_raw_fd(), self.count());
        // SAFETY: the places are valid, as the caller says; there are at most `MOST`, so `count` is their number.
        let done = unsafe { libc::readv(fd, self.places.as_ptr(), count) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Writes what is at the places to `file` (writev).
    ///
    /// # Errors
    /// The kernel's answer.
    ///
    /// # Safety
    /// All places are valid for reads of their lengths.
    pub unsafe fn write(&self, file: impl AsFd) -> io::Result<usize> {
        let (fd, count) = (file.as_fd().as_raw_fd(), self.count());
        // SAFETY: as above.
        let done = unsafe { libc::writev(fd, self.places.as_ptr(), count) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    fn count(&self) -> libc::c_int {
        libc::c_int::try_from(self.places.len()).unwrap_or_default()
    }
}
