//! The guest's agent, as who connects there.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use husk_protocol::agent::ForwardRequest;
use tokio::net::UnixStream;

use super::{Forward, NotTaken, Protocol};
use crate::config::limits;
use crate::vm::{AgentClient, AgentError, Streams};

/// The pod's guest: its streams and its agent, and nothing that would keep the pod.
#[derive(Clone)]
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream as StdStream;
    use std::time::Duration;

    use async_trait::async_trait;
    use futures_util::StreamExt;
    use husk_protocol::agent::{Agent, ForwardResponse, create_agent};
    use tokio::io::AsyncReadExt;
    use ttrpc::asynchronous::transport::Listener;
    use ttrpc::asynchronous::{Server, TtrpcContext};

    use super::*;

    /// Dials, and says on the stream what it was asked for; at some ports it does something else.
    struct Told(Arc<Streams>);

    const CLOSED: u32 = 7;
    const WRONG: u32 = 8;
    const NO_DIAL: u32 = 9;

    #[async_trait]
    impl Agent for Told {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<ForwardResponse> {
            let refused = |code| Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, "no".to_owned())));
            match request.port {
                CLOSED => return refused(ttrpc::Code::UNAVAILABLE),
                WRONG => return refused(ttrpc::Code::INVALID_ARGUMENT),
                NO_DIAL => return Ok(ForwardResponse::default()),
                _ => {}
            }
            let (mut ours, theirs) = StdStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            ours.write_all(&request.nonce).unwrap();
            write!(ours, "{:?} {} {}", request.address, request.port, request.udp).unwrap();
            self.0.dialled(theirs.into());
            Ok(ForwardResponse::default())
        }
    }

    async fn guest() -> (Guest, Server) {
        let streams = Arc::new(Streams::default());
        let (ours, theirs) = StdStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let connection = Ok(UnixStream::from_std(theirs).unwrap());
        let connections = futures_util::stream::iter([connection]).chain(futures_util::stream::pending());
        let service = create_agent(Arc::new(Told(Arc::clone(&streams))));
        let mut server = Server::new().add_listener(Listener::new(connections)).register_service(service);
        server.start().await.unwrap();
        let agent = AgentClient::new(ours.into(), Duration::from_secs(10)).unwrap();
        (Guest { streams, agent }, server)
    }

    #[tokio::test]
    async fn the_agent_is_told_where_and_its_stream_comes_back() {
        let (guest, _server) = guest().await;
        for (protocol, to, told) in [
            (Protocol::Tcp, "127.0.0.2:80", "[127, 0, 0, 2] 80 false"),
            (Protocol::Udp, "[::1]:65535", "[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] 65535 true"),
        ] {
            let mut stream = guest.forward(protocol, to.parse().unwrap()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, told);
        }
    }

    #[tokio::test]
    async fn a_refusal_is_told_from_a_failure() {
        let (guest, _server) = guest().await;
        let at = |port: u32| SocketAddr::new([127, 0, 0, 1].into(), u16::try_from(port).unwrap());
        assert!(matches!(guest.forward(Protocol::Tcp, at(CLOSED)).await, Err(NotTaken::Refused)));
        assert!(matches!(guest.forward(Protocol::Tcp, at(WRONG)).await, Err(NotTaken::Failed(_))));
        // The machine ends before the stream comes.
        let streams = Arc::clone(&guest.streams);
        let waiting = tokio::spawn(async move { guest.forward(Protocol::Tcp, at(NO_DIAL)).await });
        let ended = async {
            while !waiting.is_finished() {
                streams.close();
                tokio::task::yield_now().await;
            }
        };
        ended.await;
        assert!(matches!(waiting.await.unwrap(), Err(NotTaken::Failed(_))));
    }
}
