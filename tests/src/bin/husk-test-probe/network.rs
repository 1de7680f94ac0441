//! IP from inside a container, or on the host.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use husk_tests::{load, talk};

use crate::Report;
use crate::system::name;

fn say(report: &mut Report, key: &str, result: &io::Result<()>) {
    match result {
        Ok(()) => report.say(key, "ok"),
        // Those that the kernel has no number for say more by themselves.
        Err(cause) if cause.raw_os_error().is_none() => report.say(key, cause),
        Err(cause) => report.say(key, name(cause)),
    }
}

/// Where a server is; an address that is none fails each look.
fn server(address: &str, port: &str) -> SocketAddr {
    let whole = if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
    whole.parse().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)))
}

fn serving() {
    let mut out = io::stdout();
    let _ = out.write_all(b"serving\n").and_then(|()| out.flush());
}

pub(crate) fn serve(port: &str, report: &mut Report) {
    say(report, "serve", &talk::serve(port.parse().unwrap_or(0), serving));
}

pub(crate) fn load(port: &str, report: &mut Report) {
    say(report, "load", &load::serve(port.parse().unwrap_or(0), serving));
}

pub(crate) fn talk(address: &str, port: &str, mebibytes: &str, report: &mut Report) {
    for (what, came) in talk::talk(server(address, port), mebibytes.parse().unwrap_or(0)) {
        say(report, &what, &came);
    }
}

pub(crate) fn many(address: &str, port: &str, count: &str, report: &mut Report) {
    say(report, "many", &talk::many(server(address, port), count.parse().unwrap_or(0)));
}

/// Sends a frame to everybody, in the name of the hardware address `source`.
pub(crate) fn frame(interface: &str, source: &str, report: &mut Report) {
    say(report, "frame", &send_frame(interface, source));
}

fn send_frame(interface: &str, source: &str) -> io::Result<()> {
    /// For local experiments (IEEE 802, "Local Experimental EtherType 1").
    const PROTOCOL: u16 = 0x88b5;
    let source: Vec<u8> = source.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let mut frame = [&[0xff; 6][..], &source, &PROTOCOL.to_be_bytes()].concat();
    // The shortest that Ethernet has.
    frame.resize(60, 0);
    let index = std::fs::read_to_string(format!("/sys/class/net/{interface}/ifindex"))?;
    let index = index.trim().parse().map_err(io::Error::other)?;
    let family = libc::sa_family_t::try_from(libc::AF_PACKET).unwrap_or(0);
    let to = libc::sockaddr_ll {
        sll_family: family,
        sll_protocol: PROTOCOL.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&to)).unwrap_or(0);
    // SAFETY: no pointers; what comes back is checked and owned by nobody else.
    let socket = unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(socket)
    };
    // SAFETY: frame and address are of these lengths and outlive the call, which only reads them.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), length)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// From the address of an interface; `by` is who has to answer, or `-`.
pub(crate) fn group(address: &str, interface: &str, port: &str, by: &str, report: &mut Report) {
    let index = std::fs::read_to_string(format!("/sys/class/net/{interface}/ifindex")).unwrap_or_default();
    let index = index.trim().parse().unwrap_or(0);
    let from = server(address, "0").ip();
    let by = (by != "-").then(|| server(by, "0").ip());
    say(report, "group", &talk::in_group(from, index, port.parse().unwrap_or(0), by, 1000));
}

pub(crate) fn whole(address: &str, port: &str, mtu: &str, report: &mut Report) {
    say(report, "whole", &talk::whole(server(address, port), mtu.parse().unwrap_or(0)));
}
