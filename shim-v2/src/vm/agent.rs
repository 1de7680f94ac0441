//! The agent's calls. The agent is the guest's: its answers are bounded in time and in size ([`Bounded`]), and nothing that
//! it says names anything of the host.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use husk_protocol::agent as rpc;
use husk_protocol::version;
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{self, Context};

use super::bounded::Bounded;
use crate::config::limits;

/// Events in one answer: each may bring a container's numbers, some KiB.
const EVENTS: u32 = 16;

/// Characters of an error message of the guest's.
const LONGEST_MESSAGE: usize = 4096;

/// Warnings in one answer: an honest agent's are no more.
const MOST_WARNINGS: usize = 65;

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent said no.
    #[error("{message}")]
    Refused {
        /// ttrpc's code.
        code: ttrpc::Code,
        /// The agent's words.
        message: String,
    },
    /// The connection is gone.
    #[error("the guest's agent cannot be asked to {call}: {cause}")]
    Lost {
        /// What was asked.
        call: &'static str,
        /// Why.
        cause: String,
    },
    /// No answer in time.
    #[error("the guest's agent did not {call} in {} s ({key})", .limit.as_secs())]
    Timeout {
        /// What was asked.
        call: &'static str,
        /// The limit.
        limit: Duration,
        /// Its key in the configuration.
        key: &'static str,
    },
    /// Another protocol.
    #[error(
        "the guest's agent {agent} speaks protocol {theirs}.x and this shim {}.x: use a guest of the shim's version",
        version::MAJOR
    )]
    Protocol {
        /// The agent's version.
        agent: String,
        /// Its protocol.
        theirs: u32,
    },
}

/// Text of the guest's, for logs and terminals: cut, and without control characters.
fn printable(text: &str) -> String {
    let cut = text.chars().take(LONGEST_MESSAGE);
    cut.map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Which of the configuration's limits a call has.
#[derive(Debug, Clone, Copy)]
enum Limit {
    /// Something is done.
    Call,
    /// Something is looked up, and somebody waits for it: containerd gives State, Stats and Pids 2 s.
    Query,
    /// A connection is made in the guest, and somebody waits for it.
    Forward,
}

impl Limit {
    fn name(self) -> &'static str {
        match self {
            Self::Call => "limits.call_s",
            Self::Query => "limits.query_s",
            Self::Forward => "limits.forward_s",
        }
    }
}

/// A call's own limit, which the agent learns: a little more than ours, which comes first and has better words.
fn context_for(limit: Duration) -> Context {
    context::with_duration(limit + Duration::from_secs(1))
}

/// The shim's end of the agent's connection. Clones share it.
#[derive(Clone)]
pub struct AgentClient {
    client: rpc::AgentClient,
    limit: Duration,
}

impl AgentClient {
    /// Talks to the agent on a connection that it has dialled; every call may take `limit`.
    ///
    /// # Errors
    /// The event loop takes no more descriptors.
    pub fn new(connection: OwnedFd, limit: Duration) -> std::io::Result<Self> {
        let stream = UnixStream::from_std(StdStream::from(connection))?;
        Ok(Self { client: rpc::AgentClient::new(Client::new(Socket::new(Bounded::new(stream)))), limit })
    }

    fn context(&self) -> Context {
        context_for(self.limit)
    }

    /// Waits for an answer; `name` says what was asked, in messages.
    async fn answer<T>(
        &self,
        name: &'static str,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, AgentError> {
        self.answer_within(Limit::Call, self.limit, name, answer).await
    }

    async fn answer_within<T>(
        &self,
        key: Limit,
        limit: Duration,
        name: &'static str,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, AgentError> {
        // ttrpc's own limit does not cover the write; ours is for both.
        match tokio::time::timeout(limit, answer).await {
            Err(_) => Err(AgentError::Timeout { call: name, limit, key: key.name() }),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(ttrpc::Error::RpcStatus(status))) => {
                Err(AgentError::Refused { code: status.code(), message: printable(status.message()) })
            }
            Ok(Err(cause)) => Err(AgentError::Lost { call: name, cause: cause.to_string() }),
        }
    }

    /// Whether the agent is ready; another protocol than ours is an error.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn health(&self) -> Result<rpc::HealthResponse, AgentError> {
        let request = rpc::HealthRequest::new();
        let health = self.answer("be ready", self.client.health(self.context(), &request)).await?;
        if health.protocol_major != version::MAJOR {
            return Err(AgentError::Protocol { agent: health.agent_version, theirs: health.protocol_major });
        }
        Ok(health)
    }

    /// Makes the guest this pod's.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn create_sandbox(&self, mut request: rpc::CreateSandboxRequest) -> Result<(), AgentError> {
        request.protocol_major = version::MAJOR;
        request.protocol_minor = version::MINOR;
        self.answer("make the sandbox", self.client.create_sandbox(self.context(), &request)).await.map(drop)
    }

    /// Makes a container, which may take `more` time than another call; returns its init's pid in the guest.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn create_container(
        &self,
        request: rpc::CreateContainerRequest,
        more: Duration,
    ) -> Result<u32, AgentError> {
        let limit = self.limit.saturating_add(more);
        let created = self.client.create_container(context_for(limit), &request);
        Ok(self.answer_within(Limit::Call, limit, "make the container", created).await?.pid)
    }

    /// Lets a container's program run, behind hooks that take `hooks` at most.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn start_container(&self, id: &str, hooks: Duration) -> Result<(), AgentError> {
        let request = rpc::StartContainerRequest { id: id.to_owned(), ..Default::default() };
        let limit = self.limit.saturating_add(hooks);
        let started = self.client.start_container(context_for(limit), &request);
        self.answer_within(Limit::Call, limit, "start the container", started).await.map(drop)
    }

    /// Runs one more process in a container; returns its pid in the guest.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn exec(&self, request: rpc::ExecRequest) -> Result<u32, AgentError> {
        Ok(self.answer("run the process", self.client.exec(self.context(), &request)).await?.pid)
    }

    /// Sends a signal to a container's init, to one of its execs, or to all of its processes.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn signal(&self, id: &str, exec_id: &str, signal: u32, all: bool) -> Result<(), AgentError> {
        let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
        let request = rpc::SignalRequest { id, exec_id, signal, all, ..Default::default() };
        self.answer("send a signal", self.client.signal(self.context(), &request)).await.map(drop)
    }

    /// Sets the size of a process's terminal: columns and rows.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn resize(&self, id: &str, exec_id: &str, width: u32, height: u32) -> Result<(), AgentError> {
        let (container_id, exec_id) = (id.to_owned(), exec_id.to_owned());
        let request = rpc::ResizeTerminalRequest { container_id, exec_id, width, height, ..Default::default() };
        let resized = self.client.resize_terminal(self.context(), &request);
        self.answer("set the terminal's size", resized).await.map(drop)
    }

    /// Stops a container's processes where they are, or lets them go on.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn freeze(&self, id: &str, frozen: bool) -> Result<(), AgentError> {
        let request = rpc::FreezeRequest { id: id.to_owned(), frozen, ..Default::default() };
        let name = if frozen { "pause the container" } else { "resume the container" };
        self.answer(name, self.client.freeze(self.context(), &request)).await.map(drop)
    }

    /// Changes a container's limits: the OCI document's `linux.resources`.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn update(&self, id: &str, resources: Vec<u8>) -> Result<(), AgentError> {
        let request = rpc::UpdateContainerRequest { id: id.to_owned(), resources, ..Default::default() };
        let updated = self.client.update_container(self.context(), &request);
        self.answer("change the container's limits", updated).await.map(drop)
    }

    /// Makes the guest's network; returns what could not be made as it was asked for.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn set_network(&self, request: rpc::SetNetworkRequest) -> Result<Vec<String>, AgentError> {
        let made = self.client.set_network(self.context(), &request);
        let warnings = self.answer("make the pod's network", made).await?.warnings;
        Ok(warnings.iter().take(MOST_WARNINGS).map(|warning| printable(warning)).collect())
    }

    /// What a container has used.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn stats(&self, id: &str) -> Result<rpc::Stats, AgentError> {
        let request = rpc::StatsRequest { id: id.to_owned(), ..Default::default() };
        let limit = limits().query();
        let stats = self.client.stats(context_for(limit), &request);
        let answer = self.answer_within(Limit::Query, limit, "tell what it uses", stats).await?;
        Ok(answer.stats.unwrap_or_default())
    }

    /// A container's processes, its init first.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn processes(&self, id: &str) -> Result<Vec<rpc::Process>, AgentError> {
        let request = rpc::ProcessesRequest { id: id.to_owned(), ..Default::default() };
        let limit = limits().query();
        let processes = self.client.processes(context_for(limit), &request);
        Ok(self.answer_within(Limit::Query, limit, "list its processes", processes).await?.processes)
    }

    /// Waits for events after `after`, which are acknowledged by it. Returns when there are some.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn next_events(&self, after: u64) -> Result<Vec<rpc::Event>, AgentError> {
        let request = rpc::NextEventsRequest { after_seq: after, max: EVENTS, wait_ms: 0, ..Default::default() };
        // No limit: the machine's end ends the connection, and that the call.
        let answer = self.client.next_events(Context::default(), &request).await;
        let answer = answer.map_err(|cause| AgentError::Lost { call: "tell its events", cause: cause.to_string() })?;
        Ok(answer.events)
    }

    /// Connects to a port of the guest's loopback, and has a stream dialled to it.
    ///
    /// # Errors
    /// See [`AgentError`]; refused with `UNAVAILABLE`: nobody listens there.
    pub async fn forward(&self, request: rpc::ForwardRequest) -> Result<(), AgentError> {
        let limit = limits().forward();
        let forwarded = self.client.forward(context_for(limit), &request);
        self.answer_within(Limit::Forward, limit, "connect", forwarded).await.map(drop)
    }

    /// Removes what is left of a container in the guest.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn remove_container(&self, id: &str) -> Result<(), AgentError> {
        let request = rpc::RemoveContainerRequest { id: id.to_owned(), ..Default::default() };
        self.answer("remove the container", self.client.remove_container(self.context(), &request)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_words_are_cut_and_move_no_cursor() {
        let words = format!("\x1b[2Jno such file{}", "x".repeat(10_000));
        let text = printable(&words);
        assert!(text.starts_with("\u{fffd}[2Jno such file"), "{text}");
        assert_eq!(text.chars().count(), LONGEST_MESSAGE);
    }
}
