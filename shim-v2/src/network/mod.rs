//! The pod's network: every interface of its namespace on the host is carried into the guest.
//!
//! Beside each interface stands a tap ([`tap`]), to which all is redirected that comes into the interface, and the other way round ([`redirect`]); the
//! tap's descriptors are the VMM's. The guest's interface is the agent's to make ([`scan`] says what of). All of it hangs on descriptors, but for
//! the redirections: they are taken back at the pod's end, or by `delete` ([`Left`]). The namespace's loopback addresses reach listeners of the guest by
//! [`localhost`].

mod carrier;
mod left;
mod links;
pub mod localhost;
pub mod namespace;
mod netfilter;
mod offer;
mod pace;
mod redirect;
mod scan;
mod tap;
pub mod trial;
mod vhost;
mod way;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use husk_protocol::netlink::NetlinkError;
use log::warn;
use tokio::sync::{mpsc, oneshot};

use self::carrier::Carrier;
pub use self::left::Left;
use self::left::Trace;
use self::localhost::{Guest, Localhost};
use self::namespace::identity;
pub use self::offer::Offer;
use crate::config::limits;
use crate::vm::{AgentClient, AgentError, ControlError, Machine};

/// Between two looks at what has changed: as long as the last one took, and within these. A host on which interfaces come and go without end gets
/// half of the shim's time at most.
const LEAST_REST: Duration = Duration::from_millis(10);
const MOST_REST: Duration = Duration::from_secs(1);

/// Why the network cannot be carried.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Something of the host's.
    #[error("cannot {what}: {cause}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// No tap.
    #[error(
        "cannot make a tap for the interface {interface}: {cause}; husk needs /dev/net/tun (the kernel's module tun) and CAP_NET_ADMIN in the pod's namespace"
    )]
    Tap {
        /// Whose.
        interface: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The namespace.
    #[error("cannot {what} in the pod's network namespace: {cause}")]
    Netlink {
        /// What was tried.
        what: &'static str,
        /// Why not.
        cause: NetlinkError,
    },
    /// An interface.
    #[error("cannot {what} the interface {interface}: {cause}")]
    Interface {
        /// What was tried.
        what: &'static str,
        /// Which.
        interface: String,
        /// Why not.
        cause: NetlinkError,
    },
    /// More than the machine has room for.
    #[error(
        "the pod's network namespace has {there} interfaces, and its machine has room for {room} (network.interfaces): raise that, or give the pod fewer"
    )]
    Many {
        /// How many.
        there: usize,
        /// For how many.
        room: u8,
    },
    /// More than the agent can be told.
    #[error(
        "the addresses, routes, rules and neighbours of the pod's network namespace have more than {} MiB, and the guest is told of no more: husk carries some 60,000 routes",
        scan::MOST >> 20
    )]
    Large,
    /// Somebody else's.
    #[error(
        "the interface {0} is carried into another machine already: a network namespace belongs to one pod at a time"
    )]
    Taken(String),
    /// It takes too long.
    #[error("the pod's network was not carried into the guest in {limit_s} s (limits.call_s)")]
    Late {
        /// The limit.
        limit_s: u64,
    },
    /// The VMM.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl From<io::Error> for NetworkError {
    fn from(cause: io::Error) -> Self {
        Self::Host { what: "work in the pod's network namespace", cause }
    }
}

impl NetworkError {
    fn netlink(what: &'static str) -> impl FnOnce(NetlinkError) -> Self {
        move |cause| Self::Netlink { what, cause }
    }
}

/// Answered when the guest has what the namespace has.
type Question = oneshot::Sender<Result<(), NetworkError>>;
/// Answered when all is taken back.
type End = oneshot::Sender<()>;

/// A pod's network, which follows its namespace.
pub struct Network {
    identity: (u64, u64),
    namespace: OwnedFd,
    guest: Guest,
    localhost: Mutex<Option<Localhost>>,
    questions: mpsc::Sender<Question>,
    /// None: it was told to end.
    end: Mutex<Option<oneshot::Sender<End>>>,
}

/// Where a namespace is and what it has: devices are in the machine, and the guest does not know of them yet.
pub struct Devices {
    carrier: Carrier,
    machine: Arc<Machine>,
    identity: (u64, u64),
    namespace: OwnedFd,
}

impl Devices {
    /// Looks at the namespace, and gives the machine a device for each of its interfaces. `path` is where it is found after the shim's
    /// death; none: it dies with the pod. `left` is told what does not go by itself.
    ///
    /// # Errors
    /// See [`NetworkError`]; what was made is taken back.
    pub async fn add(
        namespace: OwnedFd,
        path: Option<PathBuf>,
        machine: Arc<Machine>,
        offer: Offer,
        left: impl Fn(Option<Left>) + Send + Sync + 'static,
    ) -> Result<Self, NetworkError> {
        let identity = identity(namespace.as_fd())?;
        let is_new = path.is_none();
        let named = move |traces: &[Trace]| {
            let path = path.clone().filter(|_| !traces.is_empty());
            left(path.map(|path| Left::new(path, identity, traces)));
        };
        let mut carrier = Carrier::open(namespace.as_fd(), Arc::clone(&machine), offer, Box::new(named))?;
        let loopback = if is_new { carrier.bring_loopback_up() } else { Ok(()) };
        if let Err(cause) = loopback.and(carrier.look().await) {
            carrier.end().await;
            return Err(cause);
        }
        Ok(Self { carrier, machine, identity, namespace })
    }

    /// Makes the guest's network, and follows the namespace from then on.
    ///
    /// # Errors
    /// See [`NetworkError`]; what was made is taken back.
    pub async fn follow(mut self, agent: AgentClient) -> Result<Network, NetworkError> {
        if let Err(cause) = self.carrier.tell(&agent).await {
            self.carrier.end().await;
            return Err(cause);
        }
        let (questions, asked) = mpsc::channel(1);
        let (end, ended) = oneshot::channel();
        let guest = Guest { streams: Arc::clone(self.machine.streams()), agent: agent.clone() };
        tokio::spawn(follow(self.carrier, agent, asked, ended));
        let localhost = Mutex::default();
        let end = Mutex::new(Some(end));
        Ok(Network { identity: self.identity, namespace: self.namespace, guest, localhost, questions, end })
    }

    /// Takes back what was made.
    pub async fn end(mut self) {
        self.carrier.end().await;
    }
}

impl Network {
    /// Whether it is this namespace's.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn is_of(&self, namespace: BorrowedFd<'_>) -> io::Result<bool> {
        Ok(self.identity == identity(namespace)?)
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Lets the namespace's loopback addresses reach the guest, for this many connections at once. Where the host cannot, one line in the log
    /// says so, and the pod lives.
    pub fn open_localhost(&self, most: u32) {
        let mut localhost = self.localhost.lock().unwrap_or_else(PoisonError::into_inner);
        if most == 0 || localhost.is_some() {
            return;
        }
        match Localhost::start(self.namespace.as_fd(), self.guest.clone(), most) {
            Ok(started) => *localhost = Some(started),
            Err(cause) => {
                warn!(stage = "network"; "localhost of the pod's namespace does not reach the guest: {cause}")
            }
        }
    }

    /// Returns when the guest has what the namespace has by now: somebody may have put interfaces into it since the last look.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub async fn settle(&self) -> Result<(), NetworkError> {
        let (sender, answer) = oneshot::channel();
        let asked = async {
            // An error is the end of the pod, which others tell.
            let _ = self.questions.send(sender).await;
            answer.await.unwrap_or(Ok(()))
        };
        // Others may be before this one, and each waits for the agent.
        let limit = limits().call();
        tokio::time::timeout(limit, asked).await.unwrap_or(Err(NetworkError::Late { limit_s: limit.as_secs() }))
    }

    /// Takes back what does not go by itself. Whatever is under way with the agent is not waited for.
    pub async fn end(&self) {
        drop(self.localhost.lock().unwrap_or_else(PoisonError::into_inner).take());
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (sender, answer) = oneshot::channel();
        if end.is_some_and(|end| end.send(sender).is_ok()) {
            let _ = answer.await;
        }
    }
}

/// Follows the namespace until the pod ends.
async fn follow(
    mut carrier: Carrier,
    agent: AgentClient,
    mut questions: mpsc::Receiver<Question>,
    end: oneshot::Receiver<End>,
) {
    let followed = async {
        let mut rest = Duration::ZERO;
        let mut is_first = true;
        loop {
            let changed = async {
                tokio::time::sleep(rest).await;
                carrier.changed().await;
            };
            let question = tokio::select! {
                Some(question) = questions.recv() => Some(question),
                () = changed => None,
            };
            let began = Instant::now();
            match question {
                // Its limit is over.
                Some(question) if question.is_closed() => continue,
                Some(question) => {
                    let mut answer = carrier.renew(&agent).await;
                    // The pod's start: what a network plugin has put there since Create has to be carried, as at Create.
                    if std::mem::take(&mut is_first)
                        && let Some(lack) = carrier.lack()
                    {
                        answer = answer.and(Err(lack));
                    }
                    let _ = question.send(answer);
                }
                None => {
                    if let Err(cause) = carrier.renew(&agent).await {
                        warn!(stage = "network"; "a change of the pod's network is not followed: {cause}");
                    }
                }
            }
            rest = began.elapsed().clamp(LEAST_REST, MOST_REST);
        }
    };
    // An error: the pod is gone without a word.
    let end = tokio::select! {
        biased;
        end = end => end.ok(),
        () = followed => None,
    };
    carrier.end().await;
    if let Some(end) = end {
        let _ = end.send(());
    }
}

#[cfg(test)]
mod tests;
