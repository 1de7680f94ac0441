//! AF_VSOCK from inside a container.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::Report;
use crate::system::name;

/// Time for the host to close what does not say its nonce, with room for a slow one, in seconds.
const PATIENCE: i64 = 60;
/// VMADDR_CID_HOST of vsock(7), and the two that are not the host.
const HOST: u32 = 2;
const LOCAL: u32 = 1;
const HYPERVISOR: u32 = 0;

/// Dials each port of the host, says sixteen bytes that nobody has announced, and waits for what comes.
pub(crate) fn dial_each(ports: &[&str], report: &mut Report) {
    for port in ports {
        let number: u32 = port.parse().unwrap_or(0);
        report.say_or(&format!("port {port}"), dial(HOST, number).and_then(|socket| converse(&socket)));
        for cid in [LOCAL, HYPERVISOR] {
            report.say_or(&format!("port {port} of {cid}"), dial(cid, number).map(|_| "connected"));
        }
    }
}

/// Dials a port many times, keeps all connections, and says how many were made.
pub(crate) fn flood(count: &str, port: &str, report: &mut Report) {
    let (count, port) = (count.parse().unwrap_or(0), port.parse().unwrap_or(0));
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..count {
        match dial(HOST, port) {
            Ok(socket) => open.push(socket),
            Err(_) => refused += 1,
        }
    }
    report.say("connected", open.len());
    report.say("refused", refused);
    // All of them come to their end.
    let ended =
        open.iter().filter(|socket| read(socket).is_ok_and(|count| count == 0) || read(socket).is_err()).count();
    report.say("ended", ended);
}

fn dial(cid: u32, port: u32) -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: made just now, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeroes is a valid sockaddr_vm.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = u16::try_from(libc::AF_VSOCK).unwrap_or(0);
    (address.svm_cid, address.svm_port) = (cid, port);
    let size = u32::try_from(size_of::<libc::sockaddr_vm>()).unwrap_or(0);
    // SAFETY: the address is of this frame and of this size.
    if unsafe { libc::connect(fd, (&raw const address).cast(), size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

fn converse(socket: &OwnedFd) -> io::Result<String> {
    let nonce = [0x5a_u8; 16];
    // SAFETY: the bytes are of this frame.
    let sent = unsafe { libc::send(socket.as_raw_fd(), nonce.as_ptr().cast(), nonce.len(), libc::MSG_NOSIGNAL) };
    if sent < 0 {
        return Ok(format!("connected, then {}", name(&io::Error::last_os_error())));
    }
    Ok(match read(socket) {
        Ok(0) => "connected, then the end".to_owned(),
        Ok(count) => format!("connected, then {count} bytes"),
        Err(cause) => format!("connected, then {}", name(&cause)),
    })
}

fn read(socket: &OwnedFd) -> io::Result<usize> {
    let limit = libc::timeval { tv_sec: PATIENCE, tv_usec: 0 };
    let size = u32::try_from(size_of::<libc::timeval>()).unwrap_or(0);
    let fd = socket.as_raw_fd();
    // SAFETY: the limit is of this frame and of this size.
    unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const limit).cast(), size) };
    let mut bytes = [0_u8; 64];
    // SAFETY: the bytes are of this frame.
    let count = unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
