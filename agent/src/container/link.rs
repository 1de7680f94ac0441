//! What the agent and a clone of it say to each other until the clone has become a program: messages on a pair of
//! sockets, which the execution of the program closes.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;

use crate::watched::{Watched, watch};

/// Longest message, in bytes: reasons of failures are cut.
const LONGEST: usize = 4096;
/// First byte of a message: the process is prepared. Its terminal, if it has one, comes along.
const READY: u8 = b'R';
/// Its file systems are mounted, and the root is the old one still.
const MOUNTED: u8 = b'M';
/// The reason of a failure follows.
const FAILED: u8 = b'F';
/// The agent's word: go on.
const GO: u8 = b'G';

/// The clone's end.
#[derive(Debug)]
pub(super) struct ChildEnd(OwnedFd);

/// The agent's end.
#[derive(Debug)]
pub(super) struct AgentEnd(OwnedFd);

/// The agent's end, in the event loop.
#[derive(Debug)]
pub(super) struct Link(Watched);

/// What a clone says.
#[derive(Debug)]
pub(super) enum Said {
    /// It is prepared; with the controlling side of its terminal.
    Ready(Option<OwnedFd>),
    /// Its file systems are mounted: it waits for who has asked to be told.
    Mounted,
    /// It cannot go on.
    Failed(String),
    /// It has become its program, or has ended.
    End,
}

/// Both ends.
///
/// # Errors
/// The kernel has no descriptors.
pub(super) fn pair() -> io::Result<(AgentEnd, ChildEnd)> {
    let (agent, child) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((AgentEnd(agent), ChildEnd(child)))
}

impl ChildEnd {
    /// The end of a connection that somebody has made to the clone.
    pub(super) fn of(connection: OwnedFd) -> Self {
        Self(connection)
    }

    /// Says that the file systems are mounted, and waits.
    ///
    /// # Errors
    /// The agent is gone.
    pub(super) fn mounted(&self) -> Result<(), String> {
        self.send(&[MOUNTED], None).map_err(|cause| format!("cannot tell the agent: {cause}"))?;
        self.wait()
    }

    /// Its number, which must stay open.
    pub(super) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn send(&self, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.as_slice();
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(&self.0, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Says that the process is prepared.
    ///
    /// # Errors
    /// The agent is gone.
    pub(super) fn ready(&self, terminal: Option<BorrowedFd<'_>>) -> Result<(), String> {
        self.send(&[READY], terminal).map_err(|cause| format!("cannot tell the agent: {cause}"))
    }

    /// Waits for the agent's word to go on: with the ids of a user namespace, with the program.
    ///
    /// # Errors
    /// It never will.
    pub(super) fn wait(&self) -> Result<(), String> {
        let mut byte = [0];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut byte)) {
            Ok(1) => Ok(()),
            _ => Err("the agent gave it up".to_owned()),
        }
    }

    /// Says why the process cannot go on.
    pub(super) fn failed(&self, reason: &str) {
        let mut message = vec![FAILED];
        message.extend_from_slice(&reason.as_bytes()[..reason.len().min(LONGEST - 1)]);
        // By write(2), which next to no filter refuses. Nobody to tell: the agent is gone, and the guest with it.
        let _ = rustix::io::write(&self.0, &message);
    }
}

impl AgentEnd {
    /// The end of a connection to a clone.
    pub(super) fn of(connection: OwnedFd) -> Self {
        Self(connection)
    }

    /// As [`Link::go`], without an event loop.
    pub(super) fn go(&self) {
        let _ = rustix::net::send(&self.0, &[GO], SendFlags::NOSIGNAL);
    }

    /// As [`Link::said`], without an event loop. None: it says nothing in this time; without a limit it is waited for.
    pub(super) fn said(&self, limit: Option<Duration>) -> Option<Said> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        match rustix::io::retry_on_intr(|| poll(&mut fds, limit.as_ref())) {
            Ok(0) => None,
            _ => Some(receive(self.0.as_fd()).unwrap_or(Said::End)),
        }
    }

    /// Puts it into the event loop.
    ///
    /// # Errors
    /// The event loop's.
    pub(super) fn watched(self) -> io::Result<Link> {
        rustix::io::ioctl_fionbio(&self.0, true)?;
        Ok(Link(watch(self.0, Interest::READABLE)?))
    }
}

impl Link {
    /// Lets the clone go on. One that is gone says so by its end.
    pub(super) fn go(&self) {
        let _ = rustix::net::send(self.0.get_ref(), &[GO], SendFlags::NOSIGNAL);
    }

    /// What the clone says next.
    pub(super) async fn said(&self) -> Said {
        let received = self.0.async_io(Interest::READABLE, |socket| receive(socket.as_fd())).await;
        // An error is the end of a process that the kernel has killed.
        received.unwrap_or(Said::End)
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Said> {
    let mut message = [0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut message)], &mut ancillary, flags)?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(match message.get(..received.bytes) {
        Some([READY, ..]) => Said::Ready(descriptor),
        Some([MOUNTED, ..]) => Said::Mounted,
        Some([FAILED, reason @ ..]) => Said::Failed(String::from_utf8_lossy(reason).into_owned()),
        _ => Said::End,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(future)
    }

    #[test]
    fn what_is_said_arrives_with_its_descriptor() {
        block_on(async {
            let (agent, child) = pair().unwrap();
            let link = agent.watched().unwrap();
            let (read, write) = rustix::pipe::pipe().unwrap();
            child.ready(Some(write.as_fd())).unwrap();
            drop(write);
            let Said::Ready(Some(write)) = link.said().await else { panic!("ready with a descriptor") };
            rustix::io::write(&write, b"x").unwrap();
            assert_eq!(rustix::io::read(&read, &mut [0; 4]).unwrap(), 1);
            link.go();
            child.wait().unwrap();
            child.failed(&"é".repeat(LONGEST));
            let Said::Failed(reason) = link.said().await else { panic!("a failure") };
            assert!(reason.starts_with('é') && reason.len() <= LONGEST + 2);
            drop(child);
            assert!(matches!(link.said().await, Said::End));
        });
    }

    #[test]
    fn a_child_whose_agent_is_gone_does_not_wait() {
        let (agent, child) = pair().unwrap();
        drop(agent);
        assert!(child.wait().is_err() && child.ready(None).is_err());
    }
}
