//! For tests: taps in a network namespace of their own.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;

/// As the shim makes a tap.
pub const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Runs a test in a thread with a network namespace of its own; where that is not permitted, says so and runs nothing.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().name("namespace".to_owned()).spawn(|| match enter() {
        Ok(()) => test(),
        Err(why) => println!("SKIPPED: {why}"),
    });
    thread.unwrap().join().unwrap();
}

/// Gives this thread a network namespace of its own, in which there can be taps.
///
/// # Errors
/// What is not permitted.
pub fn enter() -> Result<(), String> {
    // SAFETY: changes this thread's namespace only.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(format!("no network namespace: {}", io::Error::last_os_error()));
    }
    // No frames that nobody asked for.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    open_tap("probe", FLAGS).map(drop).map_err(|cause| format!("no tap: {cause}"))
}

/// A descriptor of a tap of this thread's namespace.
pub fn open_tap(name: &str, flags: i32) -> io::Result<OwnedFd> {
    let tun = OwnedFd::from(std::fs::File::options().read(true).write(true).open("/dev/net/tun")?);
    // SAFETY: all zeroes is a value of this structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap();
    // SAFETY: the request reads and fills one structure.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tun)
}

pub fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
