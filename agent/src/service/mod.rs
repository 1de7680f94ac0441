//! The agent's RPC service: what the shim asks.

mod calls;
mod containers;
mod error;
mod execs;

use std::collections::HashMap;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, OnceLock};

use futures_util::StreamExt;
use husk_protocol::agent::{CreateSandboxRequest, SetNetworkRequest, Streams, create_agent};
use husk_protocol::streams::Nonce;
use husk_protocol::version;
use log::info;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

pub use self::error::ServiceError;

use self::calls::Calls;
use self::containers::Slot;
use crate::events::Events;
use crate::logger;
use crate::network::Network;
use crate::network::devices::Windows;
use crate::reaper::Reaper;
use crate::sandbox::{add_entropy, bring_cpus_up, set_wall_clock};
use crate::stdio::Nonces;
use crate::vsock::Dial;

/// Points of the guest's start.
#[derive(Debug, Clone, Copy)]
pub struct StartTimes {
    /// The kernel had started the agent: the time stamp counter.
    pub init_tsc: u64,
    /// The agent was ready to dial the host: CLOCK_MONOTONIC in nanoseconds.
    pub ready_ns: u64,
}

/// The service.
pub struct Service<D> {
    reaper: Reaper,
    dial: D,
    times: StartTimes,
    events: Arc<Events>,
    sandbox: OnceLock<String>,
    containers: Mutex<HashMap<String, Slot>>,
    /// The shares are mounted with the first container.
    shares: Mutex<bool>,
    /// One call at a time: each compares with what the one before has made.
    network: Arc<tokio::sync::Mutex<Network>>,
}

/// Serves the shim on `connection` until the guest ends.
///
/// # Errors
/// The server cannot be started.
pub async fn serve<S, D>(connection: S, service: Arc<Service<D>>) -> Result<(), ttrpc::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Sync + 'static,
    D: Dial,
{
    // The one connection, and then none for ever: the end of the listener would end the server.
    let connections = futures_util::stream::iter([Ok(connection)]).chain(futures_util::stream::pending());
    let mut server =
        Server::new().add_listener(Listener::new(connections)).register_service(create_agent(Arc::new(Calls(service))));
    server.start().await?;
    std::future::pending().await
}

impl<D: Dial> Service<D> {
    /// A service without a sandbox.
    pub fn new(reaper: Reaper, dial: D, times: StartTimes) -> Self {
        Self {
            reaper,
            dial,
            times,
            events: Arc::default(),
            sandbox: OnceLock::new(),
            containers: Mutex::default(),
            shares: Mutex::default(),
            network: Arc::default(),
        }
    }

    async fn sandbox(&self, request: CreateSandboxRequest) -> Result<(), ServiceError> {
        if request.protocol_major != version::MAJOR {
            return Err(ServiceError::Protocol { theirs: request.protocol_major });
        }
        self.sandbox.set(request.sandbox_id.clone()).map_err(|_| ServiceError::SandboxExists)?;
        if !request.entropy.is_empty() {
            add_entropy(&request.entropy).map_err(|cause| ServiceError::Guest { what: "add entropy", cause })?;
        }
        if request.wall_clock_ns > 0 {
            set_wall_clock(request.wall_clock_ns)
                .map_err(|cause| ServiceError::Guest { what: "set the clock", cause })?;
        }
        if !request.hostname.is_empty() {
            rustix::system::sethostname(request.hostname.as_bytes())
                .map_err(|cause| ServiceError::Guest { what: "set the hostname", cause: cause.into() })?;
        }
        if !request.log_nonce.is_empty() {
            let stream = self.dial.dial_stream(&nonce(&request.log_nonce)?).await;
            let stream = stream.map_err(|cause| ServiceError::Guest { what: "dial the log's stream", cause })?;
            tokio::spawn(logger::send_to(stream));
        }
        if request.online_cpus > 1 {
            let (count, reaper, network) = (request.online_cpus, self.reaper.clone(), Arc::clone(&self.network));
            tokio::spawn(async move {
                bring_cpus_up(count, reaper).await;
                network.lock().await.has_more_cpus();
            });
        }
        info!("sandbox {} is ready", request.sandbox_id);
        Ok(())
    }

    async fn network(&self, request: SetNetworkRequest) -> Result<Vec<String>, ServiceError> {
        if self.sandbox.get().is_none() {
            return Err(ServiceError::NoSandbox);
        }
        let devices = Windows::new(self.reaper.clone());
        Ok(self.network.lock().await.set(&request, &devices).await?)
    }
}

/// One component of a path: what a name from outside may be.
fn component(what: &str, name: &str) -> Result<(), ServiceError> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(part)), None) if part == name => Ok(()),
        _ => Err(ServiceError::Invalid(format!("{what} {name:?}: not a single path component"))),
    }
}

fn nonce(bytes: &[u8]) -> Result<Nonce, ServiceError> {
    Nonce::try_from(bytes).map_err(|_| ServiceError::Invalid(format!("a nonce of {} bytes", bytes.len())))
}

fn nonces(streams: &Streams) -> Result<Nonces, ServiceError> {
    let one = |bytes: &[u8]| if bytes.is_empty() { Ok(None) } else { nonce(bytes).map(Some) };
    Ok(Nonces {
        stdin: one(&streams.stdin_nonce)?,
        stdout: one(&streams.stdout_nonce)?,
        stderr: one(&streams.stderr_nonce)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_are_one_component() {
        assert!(component("id", "a-b_c.1").is_ok());
        for bad in ["", ".", "..", "a/b", "/a", "a/", "./a"] {
            assert!(component("id", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nonces_are_of_one_length() {
        let streams = Streams { stdout_nonce: vec![1; 16], ..Default::default() };
        let nonces = nonces(&streams).unwrap();
        assert!(nonces.stdin.is_none() && nonces.stdout.is_some());
        assert!(super::nonces(&Streams { stdin_nonce: vec![1; 15], ..Default::default() }).is_err());
    }
}
