//! A process of a container between its making and its program, in an event loop ([`super::host`] does without one).

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncWrite};

use super::link::{self, Link, Said};
use super::process;
use super::user::IdMappings;
use super::{ContainerError, Made, ProcessPlan, Running};
use crate::reaper::Exit;
use crate::stdio::{Outputs, Streams};

/// What a process is made with.
pub(super) struct Prepared<S> {
    /// Its standard streams; none: a terminal.
    pub(super) stdio: Option<crate::stdio::Stdio>,
    outputs: Outputs,
    /// For the terminal.
    streams: Option<Streams<S>>,
    agent: link::AgentEnd,
    child: link::ChildEnd,
}

/// A clone that has not become its program yet. It is killed if this is dropped before: the reaper takes it.
pub(super) struct Cloning<S> {
    made: Option<Made>,
    streams: Option<Streams<S>>,
    link: Option<Link>,
}

impl<S> Drop for Cloning<S> {
    fn drop(&mut self) {
        if let Some(made) = &self.made {
            // The only error is that it has ended.
            let _ = made.process.signal(Signal::KILL);
        }
    }
}

impl<S> Prepared<S>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    pub(super) fn new(
        plan: &ProcessPlan,
        ids: Option<&IdMappings>,
        streams: Streams<S>,
    ) -> Result<Self, ContainerError> {
        let (agent, child) = link::pair().map_err(ContainerError::Clone)?;
        if plan.has_terminal() {
            return Ok(Self { stdio: None, outputs: Outputs::default(), streams: Some(streams), agent, child });
        }
        let (stdio, outputs) = streams.pipes().map_err(ContainerError::Streams)?;
        let user = plan.process().user().uid();
        // Mapped: the plan was checked.
        let user = ids.map_or(Some(user), |ids| ids.user(user)).unwrap_or(user);
        process::give_stdio(&stdio, user).map_err(ContainerError::Streams)?;
        Ok(Self { stdio: Some(stdio), outputs, streams: None, agent, child })
    }

    pub(super) fn child(&self) -> &link::ChildEnd {
        &self.child
    }

    /// Lets go of what is the clone's.
    pub(super) fn made(self, pid: u32, pidfd: OwnedFd, exit: Exit) -> Result<Cloning<S>, ContainerError> {
        drop((self.stdio, self.child));
        let process = Running { pid, pidfd, terminal: None };
        let made = Some(Made { process, exit, outputs: self.outputs });
        // Guarded before anything can fail.
        let mut cloning = Cloning { made, streams: self.streams, link: None };
        cloning.link = Some(self.agent.watched().map_err(ContainerError::Clone)?);
        Ok(cloning)
    }
}

impl<S> Cloning<S>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    /// Does something to it from outside.
    pub(super) fn helped(&self, help: impl FnOnce(u32) -> Result<(), String>) -> Result<(), ContainerError> {
        self.made.as_ref().map_or(Ok(()), |made| help(made.process.pid)).map_err(ContainerError::Init)
    }

    /// Lets it go on.
    pub(super) fn goes_on(&self) {
        if let Some(link) = &self.link {
            link.go();
        }
    }

    /// Waits until it is ready, and has become its program if `executed`. Not for ever: what it does before its program
    /// runs is in the container's hands in part, whose processes can stop it, and whose files it opens.
    pub(super) async fn comes_to(&mut self, executed: bool, limit: Option<Duration>) -> Result<(), ContainerError> {
        match limit {
            None => self.listen(executed).await,
            Some(limit) => {
                let came = tokio::time::timeout(limit, self.listen(executed)).await;
                came.unwrap_or(Err(ContainerError::Late(limit)))
            }
        }
    }

    async fn listen(&mut self, executed: bool) -> Result<(), ContainerError> {
        loop {
            let said = match &self.link {
                Some(link) => link.said().await,
                None => Said::End,
            };
            match said {
                Said::Ready(terminal) => {
                    self.take(terminal)?;
                    if !executed {
                        return Ok(());
                    }
                }
                // Its status says no more than the reason does.
                Said::Failed(why) => {
                    self.exit().await;
                    return Err(ContainerError::Init(why));
                }
                // Close-on-exec (or its end: its exit is an event).
                Said::End if executed => return Ok(()),
                // An init in a guest tells nobody.
                Said::Mounted => {}
                Said::End => return Err(ContainerError::Died(self.exit().await)),
            }
        }
    }

    /// It is what it was to be: nobody kills it any more.
    pub(super) fn finish(mut self) -> Result<(Made, Option<Link>), ContainerError> {
        let link = self.link.take();
        // There is one unless its end was waited for.
        self.made.take().map(|made| (made, link)).ok_or(ContainerError::NotCreated)
    }

    fn take(&mut self, terminal: Option<OwnedFd>) -> Result<(), ContainerError> {
        if let (Some(controller), Some(streams), Some(made)) = (terminal, self.streams.take(), &mut self.made) {
            let (terminal, outputs) = streams.terminal(controller).map_err(ContainerError::Streams)?;
            made.process.terminal = Some(terminal);
            made.outputs = outputs;
        }
        Ok(())
    }

    /// Its status, once it is reaped.
    async fn exit(&mut self) -> u32 {
        match self.made.take() {
            Some(made) => made.exit.await.unwrap_or(255),
            None => 255,
        }
    }
}
