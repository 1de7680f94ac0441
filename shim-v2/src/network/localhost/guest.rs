//! The guest's agent, as who connects there.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use husk_protocol::agent::ForwardRequest;
use tokio::net::UnixStream;

use super::{Forward, NotTaken, Protocol};
use crate::config::limits;
use crate::vm::{AgentClient, AgentError, Streams};

/// The pod's guest: its streams and its agent, and nothing that would keep the pod.
pub struct Guest {
    /// What the agent dials.
    pub streams: Arc<Streams>,
    /// Whom to ask.
    pub agent: AgentClient,
}

impl Forward for Guest {
    async fn forward(&self, protocol: Protocol, to: SocketAddr) -> Result<UnixStream, NotTaken> {
        let announced = self.streams.announce().map_err(|cause| NotTaken::Failed(cause.to_string()))?;
        let address = match to.ip() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let asked = self.agent.forward(ForwardRequest {
            nonce: announced.nonce(),
            address,
            port: to.port().into(),
            udp: protocol == Protocol::Udp,
            ..ForwardRequest::default()
        });
        asked.await.map_err(|cause| match cause {
            AgentError::Refused { code: ttrpc::Code::UNAVAILABLE, .. } => NotTaken::Refused,
            cause => NotTaken::Failed(cause.to_string()),
        })?;
        // It was dialled before the answer, but comes another way.
        match tokio::time::timeout(limits().forward(), announced.stream()).await {
            Ok(Some(stream)) => Ok(stream),
            Ok(None) => Err(NotTaken::Failed("the machine has ended".into())),
            Err(_) => Err(NotTaken::Failed("the agent's stream did not come (limits.forward_s)".into())),
        }
    }
}
