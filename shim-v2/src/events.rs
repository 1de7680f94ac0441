//! containerd's events: one queue, in order, the head tried again until containerd has it.
//!
//! (Both published client libraries put a failed event at the queue's end, which reorders.)

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed, TaskStart,
};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use log::warn;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use tokio::sync::Notify;
use ttrpc::context;

use crate::config::limits;

/// Events that wait at most, while containerd is down: the oldest are lost, and said.
const MOST: usize = 2048;
/// Time between two tries, while containerd is down. There is no event for "somebody listens at this path again".
const AGAIN: Duration = Duration::from_millis(250);

/// An event of a task.
pub trait Event: Message {
    /// Where containerd publishes it.
    const TOPIC: &'static str;
}

/// An event's type. Bare: containerd 1.6 compares whole strings. (protobuf's reflection says it too, but builds tables of
/// all message types to do so, in every shim.)
fn type_of<E: Event>() -> String {
    format!("containerd.events.{}", E::NAME)
}

macro_rules! events {
    ($($message:ident: $topic:ident),*) => {
        $(impl Event for $message {
            const TOPIC: &'static str = topics::$topic;
        })*
    };
}

events! {
    TaskCreate: TASK_CREATE_EVENT_TOPIC,
    TaskStart: TASK_START_EVENT_TOPIC,
    TaskOOM: TASK_OOM_EVENT_TOPIC,
    TaskExit: TASK_EXIT_EVENT_TOPIC,
    TaskDelete: TASK_DELETE_EVENT_TOPIC,
    TaskExecAdded: TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted: TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskPaused: TASK_PAUSED_EVENT_TOPIC,
    TaskResumed: TASK_RESUMED_EVENT_TOPIC
}

struct Queue {
    waiting: Mutex<VecDeque<Envelope>>,
    added: Notify,
    empty: Notify,
}

/// Publishes events. Clones are the same queue.
#[derive(Clone)]
pub struct Publisher {
    queue: Arc<Queue>,
    namespace: String,
}

impl Publisher {
    /// Starts publishing events of `namespace` to containerd at `address` (the path of its ttrpc socket).
    #[must_use]
    pub fn start(namespace: String, address: String) -> Self {
        let queue =
            Arc::new(Queue { waiting: Mutex::new(VecDeque::new()), added: Notify::new(), empty: Notify::new() });
        tokio::spawn(deliver(Arc::clone(&queue), address));
        Self { queue, namespace }
    }

    /// containerd's namespace, in which they are published.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Puts an event at the queue's end.
    pub fn publish<E: Event>(&self, event: &E) {
        let mut any = Any::new();
        any.type_url = type_of::<E>();
        match event.write_to_bytes() {
            Ok(bytes) => any.value = bytes,
            Err(cause) => {
                warn!("an event for {} cannot be encoded: {cause}", E::TOPIC);
                return;
            }
        }
        let mut envelope = Envelope::new();
        envelope.timestamp = MessageField::some(SystemTime::now().into());
        envelope.set_namespace(self.namespace.clone());
        envelope.set_topic(E::TOPIC.to_owned());
        envelope.event = MessageField::some(any);
        let mut waiting = self.queue.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MOST {
            // OOM kills first: a guest can have many of them, and containerd decides nothing by them.
            let oom = waiting.iter().skip(1).position(|waiting| waiting.topic() == TaskOOM::TOPIC).map(|at| at + 1);
            if let Some(lost) = waiting.remove(oom.unwrap_or(0)) {
                warn!("an event for {} is lost: containerd takes none", lost.topic());
            }
        }
        waiting.push_back(envelope);
        self.queue.added.notify_one();
    }

    /// Waits until containerd has all events, at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        let empty = async {
            loop {
                let notified = self.queue.empty.notified();
                if self.queue.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                    return;
                }
                notified.await;
            }
        };
        if tokio::time::timeout(limit, empty).await.is_err() {
            warn!("containerd did not take all events");
        }
    }
}

/// Delivers events, one after the other.
async fn deliver(queue: Arc<Queue>, address: String) {
    let mut client = None;
    // Said once per outage.
    let mut said = false;
    loop {
        let head = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner).front().cloned();
        let Some(head) = head else {
            queue.empty.notify_waiters();
            queue.added.notified().await;
            continue;
        };
        match forward(&mut client, &address, head.clone()).await {
            Ok(()) => {
                said = false;
                let mut waiting = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                // Unless it was lost meanwhile.
                if waiting.front().is_some_and(|front| *front == head) {
                    waiting.pop_front();
                }
            }
            Err(cause) => {
                if !said {
                    warn!("containerd does not take events, tried again: {cause}");
                    said = true;
                }
                client = None;
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

async fn forward(client: &mut Option<EventsClient>, address: &str, envelope: Envelope) -> io::Result<()> {
    let events = match client {
        Some(events) => events,
        None => {
            let connection = Client::connect(&format!("unix://{address}")).await.map_err(io::Error::other)?;
            client.insert(EventsClient::new(connection))
        }
    };
    let mut request = ForwardRequest::new();
    request.envelope = MessageField::some(envelope);
    let limit = limits().event();
    // ttrpc's own limit does not cover the write.
    match tokio::time::timeout(limit, events.forward(context::with_duration(limit), &request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(cause)) => Err(io::Error::other(cause)),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::shim_async::{Events, create_events};
    use tokio::sync::mpsc;
    use ttrpc::asynchronous::{Server, TtrpcContext};

    /// A containerd that refuses the first event once.
    struct Containerd {
        refuse: Mutex<bool>,
        taken: mpsc::UnboundedSender<(String, String)>,
    }

    #[async_trait]
    impl Events for Containerd {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            if std::mem::take(&mut *self.refuse.lock().unwrap()) {
                return Err(ttrpc::Error::Others("not yet".to_owned()));
            }
            let envelope = request.envelope.unwrap_or_default();
            self.taken.send((envelope.namespace().to_owned(), envelope.topic().to_owned())).unwrap();
            Ok(Empty::new())
        }
    }

    #[test]
    fn names_are_the_messages_own() {
        fn own<E: Event + protobuf::MessageFull>() -> bool {
            E::descriptor().full_name() == type_of::<E>()
        }
        assert!(own::<TaskCreate>() && own::<TaskStart>() && own::<TaskOOM>() && own::<TaskExit>());
        assert!(own::<TaskDelete>() && own::<TaskExecAdded>() && own::<TaskExecStarted>());
        assert!(own::<TaskPaused>() && own::<TaskResumed>());
    }

    #[tokio::test]
    async fn what_happens_while_containerd_is_away_is_told_in_order_when_it_is_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ttrpc.sock").display().to_string();
        let publisher = Publisher::start("default".to_owned(), path.clone());
        publisher.publish(&TaskCreate::default());
        publisher.publish(&TaskStart::default());
        publisher.publish(&TaskExit::default());
        // Nobody is there: it does not wait for ever.
        publisher.flush(Duration::from_millis(10)).await;
        let (taken, mut events) = mpsc::unbounded_channel();
        let service = Arc::new(Containerd { refuse: Mutex::new(true), taken });
        let mut server =
            Server::new().bind(&format!("unix://{path}")).unwrap().register_service(create_events(service));
        server.start().await.unwrap();
        for topic in ["/tasks/create", "/tasks/start", "/tasks/exit"] {
            assert_eq!(events.recv().await.unwrap(), ("default".to_owned(), topic.to_owned()));
        }
        publisher.publish(&TaskDelete::default());
        publisher.flush(Duration::from_secs(60)).await;
        assert_eq!(events.try_recv().unwrap().1, "/tasks/delete", "flushed is delivered");
        server.shutdown().await.unwrap();
    }
}
