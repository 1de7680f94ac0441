//! What makes a guest one certain pod.

use std::io;
use std::os::fd::AsRawFd;

use crate::reaper::Reaper;
use crate::shares;

/// Adds to the kernel's entropy: RNDADDENTROPY, and RNDRESEEDCRNG so that it counts at once (random(4)).
///
/// # Errors
/// The kernel's answer.
pub fn add_entropy(bytes: &[u8]) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    /// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)` of linux/random.h.
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    let device = open("/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let len = i32::try_from(bytes.len()).map_err(too_long)?;
    // struct rand_pool_info: bits of entropy, bytes, the bytes.
    let mut pool = len.saturating_mul(8).to_ne_bytes().to_vec();
    pool.extend_from_slice(&len.to_ne_bytes());
    pool.extend_from_slice(bytes);
    // SAFETY: the kernel reads the header and as many bytes as it says, which is what follows it.
    let done = unsafe {
        libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, pool.as_ptr()) == 0
            && libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets CLOCK_REALTIME, in nanoseconds since the epoch.
///
/// # Errors
/// The kernel's answer.
pub fn set_wall_clock(nanoseconds: u64) -> io::Result<()> {
    let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let time = rustix::time::Timespec {
        tv_sec: i64::try_from(nanoseconds / 1_000_000_000).map_err(out_of_range)?,
        tv_nsec: i64::try_from(nanoseconds % 1_000_000_000).map_err(out_of_range)?,
    };
    Ok(rustix::time::clock_settime(rustix::time::ClockId::Realtime, time)?)
}

/// Brings CPUs up to `count` in all, in a process of its own: each write waits for its CPU, and nobody waits for them.
pub async fn bring_cpus_up(count: u32, reaper: Reaper) {
    let bring =
        || (1..count).all(|cpu| std::fs::write(format!("/sys/devices/system/cpu/cpu{cpu}/online"), "1").is_ok());
    shares::apart("bring all CPUs up", None, &reaper, bring).await;
}
