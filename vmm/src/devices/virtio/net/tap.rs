//! The host's side: a tap's queues (Documentation/networking/tuntap.rst, `drivers/net/tun.c`).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use log::debug;

use super::header;

/// Why a descriptor is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It is not a tap's.
    #[error("descriptor {index} is not attached to a tap (TUNGETIFF): {cause}")]
    NoTap {
        /// Which of them, from 0.
        index: usize,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The tap was made in another way.
    #[error(
        "the tap {name:?} was made with flags {flags:#x} and needs {needed:#x} (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, and IFF_MULTI_QUEUE for several queues)"
    )]
    Flags {
        /// Its name.
        name: String,
        /// Its flags.
        flags: i32,
        /// Those that it needs.
        needed: i32,
    },
    /// They are of different taps.
    #[error("the descriptors are of two taps, {first:?} and {other:?}")]
    Two {
        /// The first one's.
        first: String,
        /// The other.
        other: String,
    },
    /// A step failed.
    #[error("the tap {name:?}: cannot {what}: {cause}")]
    Step {
        /// Its name.
        name: String,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
}

/// A queue of a tap.
#[derive(Debug)]
pub(super) struct Tap {
    fd: OwnedFd,
    attached: bool,
}

/// What a read or write that failed means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failed {
    /// Not now.
    WouldBlock,
    /// This packet does not pass; the next one may.
    Packet,
    /// There is no tap any more.
    Gone,
}

impl Tap {
    /// Takes the queues of a tap, the first attached and the others not; also says whether it segments UDP.
    ///
    /// # Errors
    /// See [`TapError`].
    pub(super) fn open(fds: Vec<OwnedFd>) -> Result<(Vec<Self>, bool), TapError> {
        let several = if fds.len() > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let needed = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
        let mut taps: Vec<Self> = Vec::with_capacity(fds.len());
        let mut tap: Option<String> = None;
        for (index, fd) in fds.into_iter().enumerate() {
            let (name, flags) = interface(&fd).map_err(|cause| TapError::NoTap { index, cause })?;
            if flags & needed != needed {
                return Err(TapError::Flags { name, flags, needed });
            }
            match &tap {
                Some(first) if *first != name => return Err(TapError::Two { first: first.clone(), other: name }),
                Some(_) => {}
                None => tap = Some(name),
            }
            taps.push(Self { fd, attached: true });
        }
        match configure(&mut taps) {
            Ok(uso) => Ok((taps, uso)),
            Err((what, cause)) => Err(TapError::Step { name: tap.unwrap_or_default(), what, cause }),
        }
    }

    /// What the kernel may leave to the guest of the packets that it gets (`TUN_F_*`): for all queues of the tap.
    pub(super) fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        // SAFETY: this request's argument is a number.
        done(unsafe { libc::ioctl(self.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
    }

    /// Whether packets come to this queue.
    pub(super) fn attached(&self) -> bool {
        self.attached
    }

    /// Whether the interface of this queue, which is attached, is gone.
    pub(super) fn is_gone(&self) -> bool {
        interface(&self.fd).is_err()
    }

    /// Lets packets come to this queue, or no longer.
    pub(super) fn attach(&mut self, attach: bool) -> io::Result<()> {
        if self.attached != attach {
            let flag = if attach { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
            // SAFETY: all zeroes is a value of this structure of C.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            request.ifr_ifru.ifru_flags = libc::c_short::try_from(flag).unwrap_or_default();
            // SAFETY: the request reads one structure.
            done(unsafe { libc::ioctl(self.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })?;
            self.attached = attach;
        }
        Ok(())
    }
}

/// The header's size and byte order, and one queue. True: it segments UDP.
fn configure(taps: &mut [Tap]) -> Result<bool, (&'static str, io::Error)> {
    let size = i32::try_from(header::LEN).unwrap_or_default();
    for (index, tap) in taps.iter_mut().enumerate() {
        // A wait for packets would hold up all else that its thread does.
        rustix::io::ioctl_fionbio(&*tap, true).map_err(|cause| ("make a queue non-blocking", cause.into()))?;
        set(tap, libc::TUNSETVNETHDRSZ, size).map_err(|cause| ("set the header's size (TUNSETVNETHDRSZ)", cause))?;
        match set(tap, libc::TUNSETVNETLE, 1) {
            // A kernel without it is little endian as we are.
            Err(cause) if cause.raw_os_error() == Some(libc::ENOTTY) => {}
            result => result.map_err(|cause| ("set the header's byte order (TUNSETVNETLE)", cause))?,
        }
        // Packets that come to a queue of which the guest knows nothing would stay there.
        tap.attach(index == 0).map_err(|cause| ("detach a queue (TUNSETQUEUE)", cause))?;
    }
    let Some(first) = taps.first() else { return Ok(false) };
    let uso = match first.set_offloads(libc::TUN_F_CSUM | libc::TUN_F_USO4 | libc::TUN_F_USO6) {
        Ok(()) => true,
        Err(cause) => {
            debug!("this host's taps do not segment UDP: {cause}");
            false
        }
    };
    first.set_offloads(0).map_err(|cause| ("set its offloads (TUNSETOFFLOAD)", cause))?;
    Ok(uso)
}

/// The name of the interface behind a descriptor, and how it was made.
fn interface(fd: &OwnedFd) -> io::Result<(String, i32)> {
    // SAFETY: all zeroes is a value of this structure of C.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the request fills one structure.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: the kernel has filled in the flags, which are numbers.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
    let name = request.ifr_name.map(libc::c_char::cast_unsigned);
    let name = CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok((name, flags & 0xffff))
}

fn set(tap: &Tap, request: libc::Ioctl, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the requests that come here read one number.
    done(unsafe { libc::ioctl(tap.as_raw_fd(), request, &raw const value) })
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Failed {
    /// What the error of a write means (`tun_get_user`).
    pub(super) fn writing(cause: &io::Error) -> Self {
        match cause.raw_os_error() {
            Some(libc::EAGAIN) => Self::WouldBlock,
            // EBADFD: the queue has no interface any more.
            Some(libc::EBADFD | libc::EBADF | libc::ENODEV | libc::ENXIO) => Self::Gone,
            // EINVAL, EFAULT, EMSGSIZE: the packet; ENOBUFS, ENOMEM, EIO (the interface is down): the host, now.
            _ => Self::Packet,
        }
    }

    /// What the error of a read means (`tun_do_read`).
    pub(super) fn reading(cause: &io::Error) -> Self {
        match cause.raw_os_error() {
            Some(libc::EAGAIN) => Self::WouldBlock,
            // The packet is out of the queue.
            Some(libc::EINVAL | libc::EFAULT) => Self::Packet,
            // EBADFD; and after no other error is it known that the next read does not fail in the same way.
            _ => Self::Gone,
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
