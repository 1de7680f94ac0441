//! vhost-net: the host's kernel moves the packets between a tap and a guest's memory (`drivers/vhost/net.c`).

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open as open_file};

/// Where it is. Opening it loads the kernel's module, where there is one.
pub const DEVICE: &str = "/dev/vhost-net";

/// Descriptors for so many pairs of queues. Nothing is behind them until their user becomes their owner.
///
/// # Errors
/// The kernel's answer.
pub fn open(pairs: u16) -> io::Result<Vec<OwnedFd>> {
    (0..pairs.max(1)).map(|_| Ok(open_file(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)).collect()
}
