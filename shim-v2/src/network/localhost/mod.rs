//! Listeners in the guest, at the loopback addresses of the pod's namespace on the host: `kubectl port-forward` and the probes of some
//! plugins dial them there.
//!
//! A program that hangs on the namespace ([`program`], [`steering`]) sends what goes to 127.0.0.0/8 or ::1 to sockets of the shim
//! ([`sockets`]), whatever its port: one listener and one UDP socket of each family. For each connection ([`tcp`]) and each flow of
//! datagrams ([`udp`]) the agent connects to the same address and port in the guest and dials a stream ([`guest`]). A socket that somebody
//! has at a port of the namespace comes first ([`diag`]). Nothing of the guest's begins a connection here.

mod bpf;
mod carry;
mod diag;
mod guest;
mod program;
mod raw;
mod sockets;
mod steering;
mod tcp;
mod udp;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::warn;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

pub use self::guest::Guest;

use self::diag::Diag;
use self::steering::{Local, Steering};
use super::namespace::Namespace;
use crate::config::limits;

/// Connections and flows that wait for the guest's answer, at most: fewer than the streams that may not have said yet what they are.
const CONNECTING: usize = 32;
/// Until something is tried again because descriptors or memory are short: nothing says when there are some again.
const SHORT: Duration = Duration::from_secs(1);
/// What goes wrong often is said once in so long.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// What is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Flows of datagrams.
    Udp,
}

impl Protocol {
    /// Its number in an IP header.
    fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// Why `localhost` of the namespace does not reach the guest.
#[derive(Debug, thiserror::Error)]
pub enum LocalhostError {
    /// The namespace, or a socket in it.
    #[error("localhost does not reach the guest: cannot {what} in the pod's network namespace: {cause}")]
    Namespace {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The program.
    #[error(
        "localhost does not reach the guest: bpf(2) does not {what}: {cause} (Linux 5.9 with CONFIG_BPF_SYSCALL and CAP_BPF, CAP_NET_ADMIN)"
    )]
    Bpf {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
}

/// Why the guest does not take a connection.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// Nobody listens there.
    #[error("nobody listens")]
    Refused,
    /// The agent cannot be asked, or has another reason.
    #[error("{0}")]
    Failed(String),
}

/// Who connects in the guest.
pub trait Forward: Send + Sync + 'static {
    /// A stream to `to`, a loopback address of the guest's: bytes, or datagrams each behind its length of 2 bytes, big-endian. Ends by itself
    /// in bounded time.
    fn forward(&self, protocol: Protocol, to: SocketAddr) -> impl Future<Output = Result<UnixStream, NotTaken>> + Send;
}

/// The loopback addresses of a namespace reach the guest until this is dropped.
#[derive(Debug)]
pub struct Localhost {
    // First: from its end on nothing comes to the sockets.
    _steering: Steering,
    _tasks: Tasks,
}

/// What accepts and carries.
#[derive(Debug, Default)]
struct Tasks(Vec<AbortHandle>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// What all connections and flows have.
struct Shared<F> {
    guest: F,
    namespace: Namespace,
    local: Arc<Local>,
    diag: Diag,
    /// Of each protocol, at once.
    most: usize,
    connecting: Semaphore,
    said: Said,
}

impl<F: Forward> Shared<F> {
    /// Asks the guest; no more at once than [`CONNECTING`]. Why not is said already.
    async fn forward(&self, protocol: Protocol, to: SocketAddr) -> Result<UnixStream, NotTaken> {
        let turn = tokio::time::timeout(limits().forward(), self.connecting.acquire()).await;
        let stream = match turn {
            Ok(_turn) => self.guest.forward(protocol, to).await,
            Err(_) => Err(NotTaken::Failed("too many wait for the guest (limits.forward_s)".into())),
        };
        stream.inspect_err(|cause| {
            if let NotTaken::Failed(cause) = cause {
                self.said.warn(&format!("a connection to port {} is not forwarded: {cause}", to.port()));
            }
        })
    }

    /// Whether the namespace has a socket of its own there; `ours` is the shim's, which does not count.
    fn is_local(&self, protocol: Protocol, destination: SocketAddr, ours: SocketAddr) -> bool {
        if destination == ours {
            return false;
        }
        self.diag.has(&self.namespace, protocol, destination).unwrap_or_else(|cause| {
            self.said.warn(&format!("cannot ask for sockets of the namespace: {cause}"));
            false
        })
    }
}

/// What was said last: clients and guests can cause lines without end.
#[derive(Debug, Default)]
struct Said(Mutex<Option<Instant>>);

impl Said {
    fn warn(&self, line: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= SAID_EVERY) {
            *last = Some(Instant::now());
            warn!(stage = "network"; "localhost: {line} (said at most once in {} s)", SAID_EVERY.as_secs());
        }
    }
}

impl Localhost {
    /// Lets loopback addresses of `namespace` reach the guest: at most `most` connections and as many flows of datagrams at once, and
    /// fewer where the limit of open files is low.
    /// To be called in the event loop of the shim's one thread. The namespace lives as long as the result.
    ///
    /// # Errors
    /// See [`LocalhostError`]; nothing stays.
    pub fn start(namespace: BorrowedFd<'_>, guest: impl Forward, most: u32) -> Result<Self, LocalhostError> {
        let failed = |what| move |cause| LocalhostError::Namespace { what, cause };
        let namespace = Namespace::new(namespace).map_err(failed("work"))?;
        let made = namespace.inside(|| {
            // A kernel without IPv6 has nobody who dials it.
            let have = |address, socket: io::Result<_>| match socket {
                Err(cause) if cause.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(None),
                other => other.map(|socket| Some((address, socket))),
            };
            let mut made = (Vec::new(), Vec::new());
            for address in sockets::ADDRESSES {
                made.0.extend(have(address, sockets::listener(address))?);
                made.1.extend(have(address, sockets::receiver(address))?);
            }
            Ok(made)
        });
        let (listeners, receivers) = made.map_err(failed("make sockets"))?;
        let tcp =
            listeners.iter().map(|(address, socket)| (Protocol::Tcp, SocketAddr::new(*address, 0), socket.as_fd()));
        let udp =
            receivers.iter().map(|(address, socket)| (Protocol::Udp, SocketAddr::new(*address, 0), socket.as_fd()));
        let all: Vec<_> = tcp.chain(udp).collect();
        let most = most.min(affordable());
        // A connection leaves its destination alone for a moment, a flow one of its ends.
        let (steering, local) = Steering::start(namespace.descriptor(), &all, most.saturating_mul(2).max(1))?;
        let shared = Arc::new(Shared {
            guest,
            namespace,
            local,
            diag: Diag::default(),
            most: usize::try_from(most).unwrap_or(usize::MAX),
            connecting: Semaphore::new(CONNECTING),
            said: Said::default(),
        });
        let mut tasks = Tasks::default();
        let connections = Arc::new(Semaphore::new(shared.most));
        for (_, listener) in listeners {
            let acceptor = tcp::Acceptor::new(listener, Arc::clone(&shared), Arc::clone(&connections));
            tasks.0.push(tokio::spawn(acceptor.map_err(failed("watch sockets"))?.run()).abort_handle());
        }
        let room = udp::Room::new(shared.most);
        for (_, receiver) in receivers {
            let receiver = udp::Receiver::new(receiver, Arc::clone(&shared), room.clone());
            tasks.0.push(tokio::spawn(receiver.map_err(failed("watch sockets"))?.run()).abort_handle());
        }
        Ok(Self { _steering: steering, _tasks: tasks })
    }
}

/// Whether the kernel takes the program: puts it onto a namespace for a moment, without any sockets to send to.
///
/// # Errors
/// Why not.
pub fn can_start(namespace: BorrowedFd<'_>) -> Result<(), LocalhostError> {
    Steering::start(namespace, &[], 1).map(drop)
}

/// Connections, and flows, that half of this process's descriptors are enough for: a flood must not take those of the containers' streams.
fn affordable() -> u32 {
    let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current else { return u32::MAX };
    u32::try_from(limit / 2 / (tcp::DESCRIPTORS + udp::DESCRIPTORS)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
