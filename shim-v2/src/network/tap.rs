//! Taps (Documentation/networking/tuntap.rst): interfaces whose other end is a descriptor, and which are gone with the last one.

use std::ffi::c_char;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use husk_protocol::netlink::text;
use rustix::fs::{Mode, OFlags, open};

/// Where they come from.
const TUN: &str = "/dev/net/tun";
/// What a name of ours begins with; the kernel puts a number behind it.
pub const PREFIX: &str = "husk";
/// `TUNSETIFF` of linux/if_tun.h.
const SET_INTERFACE: libc::Ioctl = 0x4004_54ca;
/// IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE.
const TAP: i16 = 0x0002;
const NO_PI: i16 = 0x1000;
const VNET_HDR: i16 = 0x4000;
const MULTI_QUEUE: i16 = 0x0100;

/// A tap.
#[derive(Debug)]
pub struct Tap {
    /// Its name in its namespace.
    pub name: String,
    /// One descriptor for each pair of queues.
    pub queues: Vec<OwnedFd>,
}

/// `struct ifreq` of linux/if.h as TUNSETIFF takes it.
#[repr(C)]
struct Request {
    name: [c_char; libc::IFNAMSIZ],
    flags: i16,
    rest: [u8; 22],
}

impl Tap {
    /// Makes a tap with this many queues in the network namespace of the calling thread.
    ///
    /// # Errors
    /// There is no `/dev/net/tun`, or the kernel refuses.
    pub fn new(queues: u16) -> io::Result<Self> {
        let flags = TAP | NO_PI | VNET_HDR | if queues > 1 { MULTI_QUEUE } else { 0 };
        let mut request = Request { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
        for (to, from) in request.name.iter_mut().zip(PREFIX.bytes().chain(*b"%d")) {
            *to = from.cast_signed();
        }
        let mut tap = Self { name: String::new(), queues: Vec::new() };
        for _ in 0..queues.max(1) {
            let queue = open(TUN, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
            // SAFETY: the request is a whole `struct ifreq`, which the kernel reads and writes within its size. The first call
            // puts the name into it, by which the others find the interface.
            if unsafe { libc::ioctl(queue.as_raw_fd(), SET_INTERFACE, &raw mut request) } < 0 {
                return Err(io::Error::last_os_error());
            }
            tap.queues.push(queue);
        }
        tap.name = text(&request.name.map(c_char::cast_unsigned));
        Ok(tap)
    }
}
