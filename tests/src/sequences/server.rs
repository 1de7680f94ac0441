//! containerd's side of events: takes and keeps them, in the order in which they come.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events_ttrpc_async::{Events, create_events};
use futures_util::stream::poll_fn;
use protobuf::well_known_types::empty::Empty;
use tokio::net::UnixListener;
use tokio::sync::watch;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, Service, TtrpcContext};

/// The events of one shim.
pub struct Recorder {
    events: Arc<watch::Sender<Vec<Envelope>>>,
    server: Server,
}

struct Taker(Arc<watch::Sender<Vec<Envelope>>>);

#[async_trait]
impl Events for Taker {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        self.0.send_modify(|events| events.extend(request.envelope.into_option()));
        Ok(Empty::new())
    }
}

impl Recorder {
    /// Listens at `path`.
    ///
    /// # Panics
    /// Nobody can.
    pub async fn start(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let connections = poll_fn(move |context| listener.poll_accept(context).map(|new| Some(new.map(|(s, _)| s))));
        let events = Arc::new(watch::Sender::new(Vec::new()));
        let services: HashMap<String, Service> = create_events(Arc::new(Taker(Arc::clone(&events))));
        let mut server = Server::new().add_listener(Listener::new(connections)).register_service(services);
        server.start().await.unwrap();
        Self { events, server }
    }

    /// All so far.
    #[must_use]
    pub fn events(&self) -> Vec<Envelope> {
        self.events.borrow().clone()
    }

    /// Waits until the events so far are what is asked for; returns whether they became so in time.
    pub async fn wait_until(&self, limit: Duration, mut enough: impl FnMut(&[Envelope]) -> bool) -> bool {
        let mut events = self.events.subscribe();
        tokio::time::timeout(limit, events.wait_for(|events| enough(events))).await.is_ok_and(|found| found.is_ok())
    }

    /// Stops listening.
    pub async fn stop(mut self) {
        let _ = self.server.shutdown().await;
    }
}
