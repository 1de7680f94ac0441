//! Whether this host has what a pod's network needs, tried in a network namespace that is gone afterwards.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use husk_protocol::netlink::{NetlinkError, Socket};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::localhost::{self, LocalhostError};
use super::namespace::open_namespace;
use super::redirect;
use super::tap::Tap;

/// The loopback's number, in every namespace.
const LOOPBACK: u32 = 1;

/// The answers.
#[derive(Debug)]
pub struct Trial {
    /// Taps can be made.
    pub tap: io::Result<()>,
    /// What comes into an interface can be redirected.
    pub redirect: Result<(), NetlinkError>,
    /// `localhost` of a namespace can reach the guest.
    pub localhost: Result<(), LocalhostError>,
}

/// Tries all of it, in a thread of its own: a namespace is a thread's.
///
/// # Errors
/// No network namespace can be made (CAP_SYS_ADMIN), or no thread.
pub fn trial() -> io::Result<Trial> {
    let all = || {
        // SAFETY: no descriptor table is unshared; this thread alone is in the namespace, and ends with it.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        let namespace = open_namespace(Path::new("/proc/thread-self/ns/net"))?;
        Ok(Trial {
            tap: Tap::new(1).map(drop),
            redirect: redirect_here(),
            localhost: localhost::can_start(namespace.as_fd()),
        })
    };
    let thread = std::thread::Builder::new().spawn(all)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("its thread has failed")))
}

/// The loopback stands in for an interface and for a tap: it is there in every namespace.
fn redirect_here() -> Result<(), NetlinkError> {
    let mut socket = Socket::open()?;
    redirect::make_place(&mut socket, LOOPBACK)?;
    redirect::redirect(&mut socket, LOOPBACK, LOOPBACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_answered_and_the_namespace_is_not_this_threads() {
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        match trial() {
            Err(cause) => eprintln!("skipped: no network namespace can be made here: {cause}"),
            Ok(trial) => {
                // What cannot be had here is an answer, too: that of its own kind.
                assert_eq!(trial.tap.is_ok(), Path::new("/dev/net/tun").exists(), "{trial:?}");
                let refusal = trial.redirect.as_ref().err().map(NetlinkError::errno);
                assert!(matches!(refusal, None | Some(Some(libc::ENOENT))), "{trial:?}");
                assert!(matches!(trial.localhost, Ok(()) | Err(LocalhostError::Bpf { .. })), "{trial:?}");
            }
        }
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), own, "this thread is where it was");
    }
}
