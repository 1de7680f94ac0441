//! What the shim is told of the containers: a queue that it acknowledges.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use husk_protocol::agent::{Event, ExitEvent, NextEventsResponse, OomEvent, Stats, event};
use tokio::sync::Notify;

/// Most events of one answer, whatever is asked for: an answer stays far below ttrpc's 4 MiB.
const MOST: usize = 1024;

/// Events that were not acknowledged, in order. There is at most one exit for each process that was started, and each start
/// waits for the shim; OOM kills of a container are in the queue twice at most.
#[derive(Debug, Default)]
pub struct Events {
    queue: Mutex<Queue>,
    pushed: Notify,
}

/// How a process has ended.
#[derive(Debug, Default)]
pub struct Exited {
    /// As a shell says it.
    pub status: u32,
    /// Bytes of standard output before the end.
    pub stdout_bytes: u64,
    /// Bytes of standard error before the end.
    pub stderr_bytes: u64,
    /// Of a container's init: what the container has used.
    pub stats: Option<Stats>,
}

#[derive(Debug, Default)]
struct Queue {
    last_seq: u64,
    events: VecDeque<Event>,
}

impl Events {
    /// A process of `container` has ended: its init, with an empty `exec`.
    pub fn exited(&self, container: &str, exec: &str, exited: Exited) {
        let exit = ExitEvent {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            status: exited.status,
            stdout_bytes: exited.stdout_bytes,
            stderr_bytes: exited.stderr_bytes,
            stats: exited.stats.into(),
            ..Default::default()
        };
        self.push(event::Kind::Exit(exit));
    }

    /// The kernel has killed a process of `container` for want of memory.
    pub fn oom(&self, container: &str) {
        let waits = |event: &Event| matches!(&event.kind, Some(event::Kind::Oom(oom)) if oom.container_id == container);
        // Not taken yet, or not acknowledged: the shim is behind, and one says what two would.
        if self.queue.lock().unwrap_or_else(PoisonError::into_inner).events.iter().filter(|event| waits(event)).count()
            > 1
        {
            return;
        }
        self.push(event::Kind::Oom(OomEvent { container_id: container.to_owned(), ..Default::default() }));
    }

    fn push(&self, kind: event::Kind) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.last_seq += 1;
        let seq = queue.last_seq;
        queue.events.push_back(Event { seq, kind: Some(kind), ..Default::default() });
        drop(queue);
        self.pushed.notify_waiters();
    }

    /// Forgets all up to `after` and returns what follows, `max` at most; waits up to `wait` while there is nothing.
    pub async fn next(&self, after: u64, max: u32, wait: Option<Duration>) -> NextEventsResponse {
        let waited = async {
            loop {
                // Registered before the look, or a push between look and wait would be missed.
                let pushed = self.pushed.notified();
                tokio::pin!(pushed);
                pushed.as_mut().enable();
                let events = self.take(after, max);
                if !events.is_empty() {
                    return events;
                }
                pushed.await;
            }
        };
        let events = match wait {
            Some(limit) => tokio::time::timeout(limit, waited).await.unwrap_or_default(),
            None => waited.await,
        };
        NextEventsResponse { events, ..Default::default() }
    }

    fn take(&self, after: u64, max: u32) -> Vec<Event> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        while queue.events.front().is_some_and(|event| event.seq <= after) {
            queue.events.pop_front();
        }
        let max = usize::try_from(max).unwrap_or(MOST).clamp(1, MOST);
        queue.events.iter().take(max).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(future)
    }

    fn seqs(response: &NextEventsResponse) -> Vec<u64> {
        response.events.iter().map(|event| event.seq).collect()
    }

    #[test]
    fn repeats_until_it_is_acknowledged() {
        block_on(async {
            let events = Events::default();
            (1..=3).for_each(|status| events.exited("c", "", Exited { status, ..Exited::default() }));
            assert_eq!(seqs(&events.next(0, 2, None).await), [1, 2]);
            assert_eq!(seqs(&events.next(0, 9, None).await), [1, 2, 3]);
            assert_eq!(seqs(&events.next(2, 9, None).await), [3]);
            assert_eq!(seqs(&events.next(3, 9, Some(Duration::from_secs(5))).await), [] as [u64; 0]);
            // What was acknowledged does not come back.
            assert_eq!(seqs(&events.next(0, 9, Some(Duration::from_secs(5))).await), [] as [u64; 0]);
        });
    }

    #[test]
    fn wakes_all_that_wait() {
        block_on(async {
            let events = Arc::new(Events::default());
            let waiting: Vec<_> = (0..2)
                .map(|_| {
                    let events = Arc::clone(&events);
                    tokio::spawn(async move { events.next(0, 1, None).await })
                })
                .collect();
            tokio::task::yield_now().await;
            events.exited("c", "", Exited::default());
            for task in waiting {
                assert_eq!(seqs(&task.await.unwrap()), [1]);
            }
        });
    }
}
