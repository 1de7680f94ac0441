//! The control socket: requests to the VMM, and what it sends on its own.

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use husk_protocol::control::{Envelope, ExitReason, Message, Reply, Request, Socket, SocketError};
use husk_protocol::streams::{RPC_PORT, STREAM_PORT};
use log::warn;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use super::streams::Streams;
use crate::config::limits;
use crate::watched::watch;

/// Why a request fails.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The VMM said no.
    #[error("the VMM cannot {request}: {message}")]
    Refused {
        /// What was asked.
        request: &'static str,
        /// Its words.
        message: String,
    },
    /// The socket.
    #[error("cannot ask the VMM to {request}: {cause}")]
    Socket {
        /// What was asked.
        request: &'static str,
        /// Why not.
        cause: SocketError,
    },
    /// No answer, because the machine has ended.
    #[error("cannot ask the VMM to {request}: {ended}")]
    Ended {
        /// What was asked.
        request: &'static str,
        /// How.
        ended: Ended,
    },
    /// No answer in time.
    #[error("the VMM did not answer in {limit_s} s (limits.vmm_s) when asked to {request}")]
    Timeout {
        /// The limit.
        limit_s: u64,
        /// What was asked.
        request: &'static str,
    },
}

/// Who has ended a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// We: it was asked to stop.
    Us,
    /// What runs in it.
    Guest,
    /// The VMM, or whoever killed it.
    Vmm,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the virtual machine has ended: {reason}{}", console_lines(.console))]
pub struct Ended {
    /// Whose doing it was.
    pub by: By,
    /// In words.
    pub reason: String,
    /// The console's last lines.
    pub console: String,
}

impl Ended {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        match self.by {
            By::Us => None,
            By::Guest => Some(
                "the guest's kernel has failed: its last lines say why, a memory limit that is too low is the usual cause",
            ),
            By::Vmm => Some("husk-vmm has failed or was killed: the host's kernel log says whether memory was short"),
        }
    }
}

/// The console's last lines, as the end of an error's text.
pub fn console_lines(console: &str) -> String {
    if console.is_empty() { String::new() } else { format!("; the console's last lines: {console:?}") }
}

/// The shim's end of the control socket.
#[derive(Debug)]
pub struct Control {
    socket: AsyncFd<Socket>,
    waiting: Mutex<Waiting>,
    /// We asked for the machine's end: whatever happens to the VMM from then on is that.
    stopping: AtomicBool,
    ended: watch::Sender<Option<Ended>>,
    /// KVM's descriptor of the machine. KVM takes a machine down with the last one, waiting for several grace periods of SRCU: 22 ms
    /// in which nobody has to wait for the VMM's end, because the last one is this. Guest memory goes with the VMM's process.
    machine: OnceLock<OwnedFd>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    replies: HashMap<u64, oneshot::Sender<Result<Reply, String>>>,
}

/// The connection on which the agent serves, once it has dialled.
pub type RpcConnection = oneshot::Receiver<OwnedFd>;

impl Control {
    /// Starts listening to the VMM. Its guest's streams go to `streams`.
    ///
    /// # Errors
    /// The event loop takes no more descriptors.
    pub fn start(socket: Socket, streams: Arc<Streams>) -> io::Result<(Arc<Self>, RpcConnection)> {
        let socket = watch(socket, Interest::READABLE | Interest::WRITABLE)?;
        let control = Arc::new(Self {
            socket,
            waiting: Mutex::new(Waiting::default()),
            stopping: AtomicBool::new(false),
            ended: watch::Sender::new(None),
            machine: OnceLock::new(),
        });
        let (rpc, connection) = oneshot::channel();
        tokio::spawn(listen(Arc::clone(&control), streams, rpc));
        Ok((control, connection))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the VMM; `name` says what for, in messages.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn ask(
        &self,
        name: &'static str,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Reply, ControlError> {
        let (sender, reply) = oneshot::channel();
        let id = {
            let mut waiting = self.waiting();
            waiting.next += 1;
            let id = waiting.next;
            waiting.replies.insert(id, sender);
            id
        };
        // Nobody reads the answers any more.
        if let Some(ended) = self.has_ended() {
            self.waiting().replies.remove(&id);
            return Err(ControlError::Ended { request: name, ended });
        }
        if request == Request::Stop {
            self.stopping.store(true, Ordering::Relaxed);
        }
        let envelope = Envelope { id, request };
        let limit = limits().vmm();
        let answer = tokio::time::timeout(limit, async {
            self.send(&envelope, descriptors).await.map_err(|cause| ControlError::Socket { request: name, cause })?;
            match reply.await {
                Ok(Ok(reply)) => Ok(reply),
                Ok(Err(message)) => Err(ControlError::Refused { request: name, message }),
                Err(_) => Err(ControlError::Ended { request: name, ended: self.ended().await }),
            }
        });
        let answer = answer.await.unwrap_or(Err(ControlError::Timeout { request: name, limit_s: limit.as_secs() }));
        self.waiting().replies.remove(&id);
        answer
    }

    async fn send(&self, envelope: &Envelope, descriptors: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        loop {
            match self.socket.get_ref().send(envelope, descriptors) {
                Err(SocketError::WouldBlock) => {
                    let mut guard = self.socket.writable().await?;
                    guard.clear_ready();
                }
                other => return other,
            }
        }
    }

    /// The VMM's process has ended, whatever the socket says.
    pub fn gone(&self, reason: String) {
        self.end_with(Ended { by: By::Vmm, reason, console: String::new() });
    }

    fn end_with(&self, mut ended: Ended) {
        if self.stopping.load(Ordering::Relaxed) && ended.by != By::Us {
            ended = Ended { by: By::Us, reason: "it was stopped".to_owned(), console: String::new() };
        }
        self.ended.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(ended);
            }
            first
        });
        self.waiting().replies.clear();
    }

    /// How the machine ended, if it has.
    #[must_use]
    pub fn has_ended(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }

    /// Waits for the machine's end.
    pub async fn ended(&self) -> Ended {
        let mut receiver = self.ended.subscribe();
        loop {
            if let Some(ended) = &*receiver.borrow_and_update() {
                return ended.clone();
            }
            // `self` has the sender.
            let _ = receiver.changed().await;
        }
    }
}

/// Takes what the VMM sends, until it is gone.
async fn listen(control: Arc<Control>, streams: Arc<Streams>, rpc: oneshot::Sender<OwnedFd>) {
    let mut rpc = Some(rpc);
    let mut told = false;
    let gone = |reason: String| Ended { by: By::Vmm, reason, console: String::new() };
    let ended = loop {
        // A VMM that never stops sending gets its turn, and no more.
        tokio::task::consume_budget().await;
        let received = match control.socket.get_ref().receive::<Message>() {
            Err(SocketError::WouldBlock) => {
                match control.socket.readable().await {
                    Ok(mut guard) => guard.clear_ready(),
                    Err(cause) => break gone(cause.to_string()),
                }
                continue;
            }
            Err(SocketError::Closed) => break gone("the VMM is gone without a word".to_owned()),
            Err(cause) => break gone(cause.to_string()),
            Ok(received) => received,
        };
        match received.message {
            Message::Reply { id, result } => {
                // One that nobody waits for any more, or never did.
                if let Some(sender) = control.waiting().replies.remove(&id) {
                    let _ = sender.send(result.map_err(|failure| failure.message));
                }
            }
            Message::Made => {
                // The first is kept, whatever it is; others are closed.
                if let Some(machine) = received.descriptors.into_iter().next() {
                    let _ = control.machine.set(machine);
                }
            }
            Message::Dial { port } => {
                let Ok([connection]) = <[OwnedFd; 1]>::try_from(received.descriptors) else {
                    // Said once: a VMM that does nothing else must not fill the log.
                    if !std::mem::replace(&mut told, true) {
                        warn!("the VMM announces a connection of the guest without its descriptor");
                    }
                    continue;
                };
                match (port, rpc.take()) {
                    (RPC_PORT, Some(sender)) => {
                        let _ = sender.send(connection);
                    }
                    (STREAM_PORT, unused) => {
                        rpc = unused;
                        streams.dialled(connection);
                    }
                    // A container that dials the agent's port again: closed.
                    (_, unused) => rpc = unused,
                }
            }
            Message::Exited(exit) => {
                let (by, reason) = match exit.reason {
                    ExitReason::Stopped => (By::Us, "it was stopped".to_owned()),
                    ExitReason::GuestReset => (By::Guest, "the guest reset itself (a reboot, or a panic)".to_owned()),
                    ExitReason::TripleFault => (By::Guest, "the guest's CPU shut down (triple fault)".to_owned()),
                    ExitReason::Failed(cause) => (By::Vmm, cause),
                };
                // Its last message: what may come behind it is not waited for.
                break Ended { by, reason, console: exit.console };
            }
        }
    };
    control.end_with(ended);
    streams.close();
}

#[cfg(test)]
mod tests {
    use super::*;
    use husk_protocol::control::{Exit, Failure, MachineState};
    use std::os::fd::AsFd;

    async fn receive(vmm: &AsyncFd<Socket>) -> Envelope {
        loop {
            match vmm.get_ref().receive::<Envelope>() {
                Err(SocketError::WouldBlock) => vmm.readable().await.unwrap().clear_ready(),
                other => return other.unwrap().message,
            }
        }
    }

    fn pair() -> (Arc<Control>, RpcConnection, AsyncFd<Socket>, Arc<Streams>) {
        let (ours, theirs) = Socket::pair().unwrap();
        let streams = Arc::new(Streams::default());
        let (control, rpc) = Control::start(ours, Arc::clone(&streams)).unwrap();
        (control, rpc, watch(theirs, Interest::READABLE).unwrap(), streams)
    }

    #[tokio::test]
    async fn answers_find_their_questions() {
        let (control, _rpc, vmm, _streams) = pair();
        let first = control.ask("tell its state", Request::State, &[]);
        let second = control.ask("start", Request::Start, &[]);
        let vmm = async {
            let (a, b) = (receive(&vmm).await, receive(&vmm).await);
            let failure = Failure { message: "no machine".into() };
            vmm.get_ref().send(&Message::Reply { id: 999, result: Ok(Reply::Done) }, &[]).unwrap();
            vmm.get_ref().send(&Message::Reply { id: b.id, result: Err(failure) }, &[]).unwrap();
            let state = Reply::State(MachineState::Empty);
            vmm.get_ref().send(&Message::Reply { id: a.id, result: Ok(state) }, &[]).unwrap();
        };
        let (first, second, ()) = tokio::join!(first, second, vmm);
        assert_eq!(first.unwrap(), Reply::State(MachineState::Empty));
        assert_eq!(second.unwrap_err().to_string(), "the VMM cannot start: no machine");
    }

    #[tokio::test]
    async fn an_end_ends_every_question_and_says_why() {
        let (control, _rpc, vmm, _streams) = pair();
        let question = control.ask("start", Request::Start, &[]);
        let vmm = async {
            receive(&vmm).await;
            let exit = Exit { reason: ExitReason::TripleFault, console: "last\nwords".into() };
            vmm.get_ref().send(&Message::Exited(exit), &[]).unwrap();
            drop(vmm);
        };
        let (answer, ()) = tokio::join!(question, vmm);
        let text = answer.unwrap_err().to_string();
        assert!(text.contains("triple fault") && text.contains(r"last\nwords"), "{text}");
        assert_eq!(control.has_ended().map(|ended| ended.by), Some(By::Guest));
    }

    #[tokio::test]
    async fn a_stop_that_was_asked_for_is_no_accident() {
        let (control, _rpc, vmm, _streams) = pair();
        let question = control.ask("stop", Request::Stop, &[]);
        let vmm = async {
            let id = receive(&vmm).await.id;
            vmm.get_ref().send(&Message::Reply { id, result: Ok(Reply::Done) }, &[]).unwrap();
            drop(vmm);
        };
        let (answer, ()) = tokio::join!(question, vmm);
        assert_eq!(answer.unwrap(), Reply::Done);
        assert_eq!(control.ended().await.by, By::Us);
    }

    #[tokio::test]
    async fn the_first_machine_is_kept_and_no_other() {
        let (control, _rpc, vmm, _streams) = pair();
        let (kept, kept_end) = Socket::pair().unwrap();
        let (closed, closed_end) = Socket::pair().unwrap();
        vmm.get_ref().send(&Message::Made, &[]).unwrap();
        vmm.get_ref().send(&Message::Made, &[kept_end.as_fd()]).unwrap();
        vmm.get_ref().send(&Message::Made, &[closed_end.as_fd()]).unwrap();
        drop((kept_end, closed_end));
        let closed = watch(closed, Interest::READABLE).unwrap();
        closed.readable().await.unwrap().retain_ready();
        assert!(matches!(closed.get_ref().receive::<u32>(), Err(SocketError::Closed)));
        assert!(matches!(kept.receive::<u32>(), Err(SocketError::WouldBlock)));
        drop(vmm);
        control.ended().await;
        drop(control);
        tokio::task::yield_now().await;
        let kept = watch(kept, Interest::READABLE).unwrap();
        kept.readable().await.unwrap().retain_ready();
        assert!(matches!(kept.get_ref().receive::<u32>(), Err(SocketError::Closed)));
    }

    #[tokio::test]
    async fn the_agents_port_is_taken_once() {
        let (_control, rpc, vmm, _streams) = pair();
        let (a, b) = Socket::pair().unwrap();
        vmm.get_ref().send(&Message::Dial { port: RPC_PORT }, &[]).unwrap();
        vmm.get_ref().send(&Message::Dial { port: RPC_PORT }, &[a.as_fd()]).unwrap();
        vmm.get_ref().send(&Message::Dial { port: RPC_PORT }, &[b.as_fd()]).unwrap();
        let connection = rpc.await.unwrap();
        drop(a);
        drop(connection);
        assert!(matches!(b.receive::<u32>(), Err(SocketError::Closed)), "the first connection was the agent's");
    }
}
