//! For tests: taps in a network namespace of their own.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;

/// As the shim makes a tap.
pub const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Runs a test in a thread with a network namespace of its own; where that is not permitted, says so and runs nothing.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().name("namespace".to_owned()).spawn(|| {
        // SAFETY: changes this thread's namespace only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            println!("SKIPPED: no network namespace: {}", io::Error::last_os_error());
            return;
        }
        // No frames that nobody asked for.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        if let Err(cause) = open_tap("probe", FLAGS) {
            println!("SKIPPED: no tap: {cause}");
            return;
        }
        test();
    });
    thread.unwrap().join().unwrap();
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
