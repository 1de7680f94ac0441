//! The pod's containers from Create to Delete: what happens in which order, and who is told.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::api::{CreateTaskRequest, DeleteResponse};
use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskExit, TaskIO, TaskStart};
use husk_protocol::agent::event::Kind;
use log::{debug, error, info, warn};
use protobuf::MessageField;
use tokio::sync::Notify;

use super::container::{Container, Exit, Phase};
use super::create::create;
use super::error::{Result, TaskError};
use super::pod::{Pod, Sandbox};
use crate::config::limits;
use crate::phases::{self, Stamp};
use crate::vm::{AgentError, By};

/// Events of the guest's that mean nothing, over a pod's life: exits of containers that could not be made, kinds of a
/// later version. A guest that sends more wants to keep the shim busy.
const MOST_STRANGE: u32 = 256;
/// Deleted containers that are remembered, for a Delete that comes again.
const MOST_DELETED: usize = 256;
/// What a container's status is when its machine is gone: 128 and SIGKILL.
const KILLED: u32 = 137;
/// The signal that cannot be ignored.
const SIGKILL: u32 = 9;

/// The containers of one pod.
pub struct Life {
    pod: Arc<Pod>,
    tables: Mutex<Tables>,
    shut_down: Notify,
    asked: Notify,
}

#[derive(Default)]
struct Tables {
    /// None: being made.
    containers: HashMap<String, Option<Arc<Container>>>,
    /// Exits of containers that are still being made.
    early: HashMap<String, Exit>,
    /// What Delete has answered, the latest last.
    deleted: VecDeque<(String, DeleteResponse)>,
    /// Somebody listens to the machine.
    watched: bool,
}

impl Life {
    /// A pod without containers.
    pub fn new(pod: Arc<Pod>) -> Arc<Self> {
        Arc::new(Self { pod, tables: Mutex::new(Tables::default()), shut_down: Notify::new(), asked: Notify::new() })
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A container that was made.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        let tables = self.tables();
        tables.containers.get(id).cloned().flatten().ok_or_else(|| TaskError::NotFound(id.to_owned()))
    }

    fn sandbox(&self, id: &str) -> Result<&Arc<Sandbox>> {
        // A container has been made, so its machine has.
        self.pod.sandbox().ok_or_else(|| TaskError::NotFound(id.to_owned()))
    }

    /// Create: returns the task's pid.
    pub async fn create(self: &Arc<Self>, request: CreateTaskRequest) -> Result<u32> {
        self.asked.notify_one();
        let id = request.id().to_owned();
        {
            let mut tables = self.tables();
            if tables.containers.contains_key(&id) {
                return Err(TaskError::Exists(id));
            }
            // The answer to the Delete of another life of this id.
            tables.deleted.retain(|(deleted, _)| *deleted != id);
            tables.containers.insert(id.clone(), None);
        }
        let made = create(&self.pod, &request).await;
        let container = match made {
            Ok(container) => Arc::new(container),
            Err(cause) => {
                error!(container = id.as_str(), stage = cause.stage(); "{cause}");
                let nothing_left = {
                    let mut tables = self.tables();
                    tables.containers.remove(&id);
                    tables.early.remove(&id);
                    tables.containers.is_empty()
                };
                if nothing_left {
                    self.pod.end().await;
                }
                return Err(cause);
            }
        };
        let pid = container.stub.pid();
        let names = &container.names;
        self.pod.publisher.publish(&TaskCreate {
            container_id: id.clone(),
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: MessageField::some(TaskIO {
                stdin: names.stdin.clone(),
                stdout: names.stdout.clone(),
                stderr: names.stderr.clone(),
                terminal: names.terminal,
                ..TaskIO::default()
            }),
            pid,
            ..TaskCreate::default()
        });
        let (early, watched) = {
            let mut tables = self.tables();
            tables.containers.insert(id.clone(), Some(Arc::clone(&container)));
            (tables.early.remove(&id), std::mem::replace(&mut tables.watched, true))
        };
        if let Some(exit) = early
            && container.is_told_once()
        {
            tokio::spawn(Arc::clone(self).exited(Arc::clone(&container), exit));
        }
        if !watched {
            tokio::spawn(Arc::clone(self).watch_events());
            tokio::spawn(Arc::clone(self).watch_machine());
        }
        // Ended between the agent's answer and the container's place in the table: nobody else tells it.
        if self.pod.sandbox().is_some_and(|sandbox| sandbox.machine.has_ended().is_some()) {
            tokio::spawn(Arc::clone(self).exited(Arc::clone(&container), Exit::now(KILLED)));
        }
        tokio::spawn(Arc::clone(self).watch_stub(container));
        Ok(pid)
    }

    /// Start: returns the task's pid.
    pub async fn start(&self, id: &str) -> Result<u32> {
        phases::stamp(Stamp::StartReceived);
        let container = self.container(id)?;
        let lifecycle = container.lifecycle.lock().await;
        let phase = container.phase();
        if phase != Phase::Created {
            return Err(TaskError::State { id: id.to_owned(), what: "start it", state: phase.name() });
        }
        if let Err(cause) = self.sandbox(id)?.agent.start_container(id).await {
            error!(container = id, stage = "start"; "{cause}");
            if let AgentError::Refused { .. } = cause {
                // Its init has ended: the client deletes it next, which it can only once the exit was told.
                drop(lifecycle);
                let _ = tokio::time::timeout(limits().kill(), container.exit()).await;
            }
            return Err(cause.into());
        }
        container.started();
        phases::stamp(Stamp::ProgramStarted);
        let pid = container.stub.pid();
        self.pod.publisher.publish(&TaskStart { container_id: id.to_owned(), pid, ..TaskStart::default() });
        Ok(pid)
    }

    /// Kill.
    pub async fn kill(self: &Arc<Self>, id: &str, signal: u32, all: bool) -> Result<()> {
        let container = self.container(id)?;
        if let Phase::Stopped(_) = container.phase() {
            return Err(TaskError::Finished(id.to_owned()));
        }
        let signalled = self.signal(&container, signal, all).await;
        // Whatever the guest answers: it is the guest that is being killed.
        if signal == SIGKILL {
            let life = Arc::clone(self);
            tokio::spawn(async move { life.expect_exit(&container).await });
        }
        signalled
    }

    async fn signal(&self, container: &Container, signal: u32, all: bool) -> Result<()> {
        let sandbox = self.sandbox(&container.id)?;
        match sandbox.agent.signal(&container.id, signal, all).await {
            // A guest that does not answer cannot keep its containers alive: it does nothing for any of them.
            Err(cause @ (AgentError::Timeout { .. } | AgentError::Lost { .. })) if signal == SIGKILL => {
                warn!(container = container.id.as_str(), stage = "kill"; "the machine is stopped: {cause}");
                sandbox.machine.stop().await;
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Waits for the exit of a container that was killed. The kernel cannot refuse a KILL, so a guest that does not tell
    /// the exit in time lies, and its machine is stopped.
    async fn expect_exit(&self, container: &Container) {
        if tokio::time::timeout(limits().kill(), container.exit()).await.is_err()
            && let Some(sandbox) = self.pod.sandbox()
        {
            warn!(container = container.id.as_str(), stage = "kill"; "the guest does not end it: its machine is stopped");
            sandbox.machine.stop().await;
        }
    }

    /// Delete; a second one gets the first one's answer.
    pub async fn delete(&self, id: &str) -> Result<DeleteResponse> {
        phases::stamp(Stamp::DeleteReceived);
        let container = match self.container(id) {
            Ok(container) => container,
            Err(cause) => return self.deleted(id).ok_or(cause),
        };
        if container.phase() == Phase::Created {
            // It was never started: nobody else ends it. One that cannot be killed is ended with its machine.
            if let Err(cause) = self.signal(&container, SIGKILL, true).await {
                warn!(container = id, stage = "delete"; "{cause}");
            }
            self.expect_exit(&container).await;
            container.exit().await;
        }
        let _lifecycle = container.lifecycle.lock().await;
        // The same call, a moment before this one.
        if !self.container(id).is_ok_and(|current| Arc::ptr_eq(&current, &container)) {
            return self.deleted(id).ok_or_else(|| TaskError::NotFound(id.to_owned()));
        }
        let Phase::Stopped(exit) = container.phase() else {
            return Err(TaskError::State { id: id.to_owned(), what: "delete it", state: container.phase().name() });
        };
        container.drain(limits().delete_output()).await;
        container.stdio.close();
        let last = self.tables().containers.len() == 1;
        if last {
            self.pod.end().await;
        } else if let Some(sandbox) = self.pod.sandbox() {
            if let Err(cause) = sandbox.agent.remove_container(id).await {
                warn!(container = id, stage = "delete"; "{cause}");
            }
            if let Err(cause) = sandbox.machine.remove_share(&container.share).await {
                warn!(container = id, stage = "delete"; "{cause}");
            }
        }
        let pid = container.stub.pid();
        let answer = DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(exit.at.into()),
            ..DeleteResponse::default()
        };
        {
            let mut tables = self.tables();
            tables.containers.remove(id);
            tables.deleted.push_back((id.to_owned(), answer.clone()));
            if tables.deleted.len() > MOST_DELETED {
                tables.deleted.pop_front();
            }
        }
        self.pod.publisher.publish(&TaskDelete {
            container_id: id.to_owned(),
            pid,
            exit_status: exit.status,
            exited_at: answer.exited_at.clone(),
            ..TaskDelete::default()
        });
        phases::stamp(Stamp::Deleted);
        if last && let Some(sandbox) = self.pod.sandbox() {
            phases::append(&sandbox.config.log.phases_file, &self.pod.id);
        }
        info!(container = id, stage = "delete"; "the container is deleted");
        Ok(answer)
    }

    fn deleted(&self, id: &str) -> Option<DeleteResponse> {
        let tables = self.tables();
        tables.deleted.iter().rev().find(|(deleted, _)| deleted == id).map(|(_, answer)| answer.clone())
    }

    /// Shutdown, which means nothing while there are containers.
    pub async fn end_if_empty(&self) {
        if !self.tables().containers.is_empty() {
            return;
        }
        self.pod.end().await;
        self.pod.publisher.flush(limits().events()).await;
        self.shut_down.notify_one();
    }

    /// Ends everything, as at the end of the host: the machine is stopped, and the exits are told.
    pub async fn end(&self) {
        if let Some(sandbox) = self.pod.sandbox() {
            sandbox.machine.stop().await;
        }
        let containers: Vec<_> = self.tables().containers.values().flatten().cloned().collect();
        for container in containers {
            container.exit().await;
        }
    }

    /// Waits until somebody asks for a container, if nobody has yet.
    pub async fn is_asked(&self) {
        self.asked.notified().await;
    }

    /// Waits for a Shutdown that counts.
    pub async fn shut_down(&self) {
        self.shut_down.notified().await;
    }

    /// Takes what the agent tells, until the machine's end.
    async fn watch_events(self: Arc<Self>) {
        let Some(sandbox) = self.pod.sandbox() else { return };
        let cause = self.take_events(sandbox).await;
        // The machine's end, which somebody else watches, or an agent that breaks its word: no exit would be told any
        // more, or too many.
        if sandbox.machine.has_ended().is_none() {
            warn!(stage = "events"; "the machine is stopped: {cause}");
            sandbox.machine.stop().await;
        }
    }

    /// Takes events for as long as they are what an agent sends; returns why they are not.
    async fn take_events(self: &Arc<Self>, sandbox: &Sandbox) -> String {
        let (mut after, mut strange) = (0, 0);
        loop {
            let events = match sandbox.agent.next_events(after).await {
                Ok(events) => events,
                Err(cause) => return cause.to_string(),
            };
            if events.is_empty() {
                return "the guest's agent answers without an event".to_owned();
            }
            for event in events {
                if event.seq != after + 1 {
                    return format!("the guest's agent tells event {} after {after}", event.seq);
                }
                after = event.seq;
                let meant = match event.kind {
                    Some(Kind::Exit(exit)) if exit.exec_id.is_empty() => {
                        self.exit_told(&exit.container_id, Exit::now(exit.status))
                    }
                    _ => false,
                };
                if !meant {
                    debug!(stage = "events"; "an event of the agent's that means nothing");
                    strange += 1;
                }
            }
            if strange > MOST_STRANGE {
                return format!("the guest's agent has told {strange} events that mean nothing");
            }
        }
    }

    /// Returns whether there is a container whose first exit this is.
    fn exit_told(self: &Arc<Self>, id: &str, exit: Exit) -> bool {
        let container = {
            let mut tables = self.tables();
            match tables.containers.get(id).cloned() {
                Some(Some(container)) => container,
                // Its answer is still under way.
                Some(None) => return tables.early.insert(id.to_owned(), exit).is_none(),
                None => return false,
            }
        };
        let first = container.is_told_once();
        if first {
            tokio::spawn(Arc::clone(self).exited(container, exit));
        }
        first
    }

    /// Reports an exit: after Start's answer, after the output, before anything is torn down.
    async fn exited(self: Arc<Self>, container: Arc<Container>, exit: Exit) {
        let drained = {
            let _lifecycle = container.lifecycle.lock().await;
            // A client that does not read, or a process that outlives its container's init, cannot hold it up.
            let drained = container.drain(limits().output()).await;
            if !container.stopped(exit) {
                return;
            }
            container.end_stub().await;
            self.pod.publisher.publish(&TaskExit {
                container_id: container.id.clone(),
                id: container.id.clone(),
                pid: container.stub.pid(),
                exit_status: exit.status,
                exited_at: MessageField::some(exit.at.into()),
                ..TaskExit::default()
            });
            phases::stamp(Stamp::ExitTold);
            info!(container = container.id.as_str(), stage = "exit", status = exit.status; "the container has ended");
            drained
        };
        // Nobody has a use for the machine of a lone container any more, once its output is out.
        if container.lone && drained {
            self.pod.end().await;
        }
    }

    /// Tells the end of all containers when their machine has ended.
    async fn watch_machine(self: Arc<Self>) {
        let Some(sandbox) = self.pod.sandbox() else { return };
        let ended = sandbox.machine.ended().await;
        if ended.by != By::Us {
            error!(stage = "machine"; "{ended}");
        }
        // A VMM that closes its socket and goes on running does not go on.
        sandbox.machine.stop().await;
        let containers: Vec<_> = self.tables().containers.values().flatten().cloned().collect();
        for container in containers {
            if !matches!(container.phase(), Phase::Stopped(_)) {
                tokio::spawn(Arc::clone(&self).exited(container, Exit::now(KILLED)));
            }
        }
    }

    /// A stub that somebody kills means that its container is to be killed.
    async fn watch_stub(self: Arc<Self>, container: Arc<Container>) {
        let ended = container.stub.ended().await;
        if matches!(container.phase(), Phase::Stopped(_)) {
            return;
        }
        match ended {
            Ok(how) => info!(container = container.id.as_str(), stage = "stub"; "the task's process was ended: {how}"),
            Err(cause) => {
                warn!(container = container.id.as_str(), stage = "stub"; "cannot watch the task's process: {cause}");
                return;
            }
        }
        if let Err(cause) = self.signal(&container, SIGKILL, true).await {
            warn!(container = container.id.as_str(), stage = "stub"; "{cause}");
        }
        self.expect_exit(&container).await;
    }
}
