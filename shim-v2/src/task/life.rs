//! The pod's containers from Create to Delete: what happens in which order, and who is told.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::api::{CreateTaskRequest, DeleteResponse};
use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskIO, TaskStart};
use futures_util::future::join_all;
use log::{error, info, warn};
use protobuf::MessageField;
use tokio::sync::Notify;

use super::container::{Container, Exec};
use super::create::create;
use super::error::{Result, TaskError};
use super::exits::Told;
use super::pod::{Pod, Sandbox};
use super::process::{Exit, Phase};
use crate::config::limits;
use crate::phases::{self, Stamp};
use crate::vm::AgentError;

/// Deleted processes that are remembered, for a Delete that comes again.
const MOST_DELETED: usize = 256;
/// The signal that cannot be ignored.
pub(super) const SIGKILL: u32 = 9;

/// The containers of one pod.
pub struct Life {
    pub(super) pod: Arc<Pod>,
    tables: Mutex<Tables>,
    shut_down: Notify,
    asked: Notify,
}

/// What a Delete has answered, for one that comes again.
struct Deleted {
    id: String,
    /// Empty: the container.
    exec_id: String,
    answer: DeleteResponse,
}

#[derive(Default)]
pub(super) struct Tables {
    /// None: being made.
    pub(super) containers: HashMap<String, Option<Arc<Container>>>,
    /// Exits of containers that are still being made.
    pub(super) early: HashMap<String, Told>,
    /// What Delete has answered, the latest last.
    deleted: VecDeque<Deleted>,
    /// Somebody listens to the machine.
    watched: bool,
}

impl Life {
    /// A pod without containers.
    pub fn new(pod: Arc<Pod>) -> Arc<Self> {
        Arc::new(Self { pod, tables: Mutex::new(Tables::default()), shut_down: Notify::new(), asked: Notify::new() })
    }

    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A container that was made.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        let tables = self.tables();
        tables.containers.get(id).cloned().flatten().ok_or_else(|| TaskError::NotFound(id.to_owned()))
    }

    pub(super) fn sandbox(&self, id: &str) -> Result<&Arc<Sandbox>> {
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
            tables.deleted.retain(|deleted| deleted.id != id);
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
        let names = &container.init.names;
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
        if let Some(told) = early
            && container.init.is_told_once()
        {
            tokio::spawn(Arc::clone(self).exited(Arc::clone(&container), told));
        }
        if !watched {
            tokio::spawn(Arc::clone(self).watch_events());
            tokio::spawn(Arc::clone(self).watch_machine());
        }
        // Ended between the agent's answer and the container's place in the table: nobody else tells it.
        if self.pod.sandbox().is_some_and(|sandbox| sandbox.machine.has_ended().is_some()) {
            tokio::spawn(Arc::clone(self).exited(Arc::clone(&container), Told::killed()));
        }
        tokio::spawn(Arc::clone(self).watch_stub(container));
        Ok(pid)
    }

    /// Start: returns the task's pid.
    pub async fn start(self: &Arc<Self>, id: &str) -> Result<u32> {
        phases::stamp(Stamp::StartReceived);
        let container = self.container(id)?;
        let lifecycle = container.init.lifecycle.lock().await;
        if container.init.phase() != Phase::Created {
            return Err(TaskError::State { id: id.to_owned(), what: "start it", state: container.state() });
        }
        // Whoever has waited for the namespace to be there has put interfaces into it since Create (`ctr run --cni`, nerdctl's hooks).
        if let Some(network) = self.pod.network() {
            network.settle().await?;
        }
        if let Err(cause) = self.sandbox(id)?.agent.start_container(id, container.hooks.starting()).await {
            error!(container = id, stage = "start"; "{cause}");
            if let AgentError::Refused { .. } = cause {
                // Its init has ended: the client deletes it next, which it can only once the exit was told.
                drop(lifecycle);
                let _ = tokio::time::timeout(limits().kill(), container.init.exit()).await;
            }
            return Err(cause.into());
        }
        container.init.started();
        phases::stamp(Stamp::ProgramStarted);
        // When Start is answered.
        let pod = Arc::clone(&self.pod);
        tokio::spawn(async move {
            if let (Some(network), Some(sandbox)) = (pod.network(), pod.sandbox()) {
                network.open_localhost(sandbox.config.network.localhost_connections);
            }
        });
        let pid = container.stub.pid();
        self.pod.publisher.publish(&TaskStart { container_id: id.to_owned(), pid, ..TaskStart::default() });
        if let Err(cause) = container.hooks.poststart(pid).await {
            error!(container = id, stage = "start"; "{cause}");
            // Its exit is told once this lets go of it.
            drop(lifecycle);
            if let Err(cause) = self.signal_and_expect(Arc::clone(&container), None, SIGKILL, true).await {
                warn!(container = id, stage = "start"; "{cause}");
            }
            let _ = tokio::time::timeout(limits().kill(), container.init.exit()).await;
            return Err(cause.into());
        }
        Ok(pid)
    }

    /// Kill: of a container's init, or of all of its processes.
    pub async fn kill(self: &Arc<Self>, id: &str, signal: u32, all: bool) -> Result<()> {
        let container = self.container(id)?;
        if container.init.has_ended().is_some() {
            // None is left of all, which is what was wanted.
            return if all { Ok(()) } else { Err(TaskError::Finished(id.to_owned())) };
        }
        self.signal_and_expect(container, None, signal, all).await
    }

    /// Sends a signal, and sees to it that what is killed ends.
    pub(super) async fn signal_and_expect(
        self: &Arc<Self>,
        container: Arc<Container>,
        exec: Option<Arc<Exec>>,
        signal: u32,
        all: bool,
    ) -> Result<()> {
        let exec_id = exec.as_ref().map_or("", |exec| exec.id.as_str());
        let signalled = self.signal(&container.id, exec_id, signal, all).await;
        // Whatever the guest answers: it is the guest that is being killed.
        if signal == SIGKILL {
            let life = Arc::clone(self);
            tokio::spawn(async move { life.expect_exit(&container, exec.as_deref()).await });
        }
        signalled
    }

    /// Lifts the limits of a container's files: who is in the middle of a transfer ends when that does.
    pub(super) async fn lift_throttles(&self, container: &Container) {
        let id = container.id.as_str();
        if let Some(sandbox) = self.pod.sandbox().filter(|_| !container.throttles().is_empty())
            && let Err(cause) = sandbox.machine.unlimit(id).await
        {
            warn!(container = id, stage = "kill"; "its files are still limited: {cause}");
        }
    }

    pub(super) async fn signal(&self, id: &str, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let sandbox = self.sandbox(id)?;
        let lift = async {
            if let Some(container) = self.container(id).ok().filter(|_| signal == SIGKILL && exec_id.is_empty()) {
                container.is_killed();
                self.lift_throttles(&container).await;
            }
        };
        match tokio::join!(sandbox.agent.signal(id, exec_id, signal, all), lift).0 {
            // A guest that does not answer cannot keep its containers alive: it does nothing for any of them.
            Err(cause @ (AgentError::Timeout { .. } | AgentError::Lost { .. }))
                if signal == SIGKILL && exec_id.is_empty() =>
            {
                warn!(container = id, stage = "kill"; "the machine is stopped: {cause}");
                sandbox.machine.stop().await;
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Waits until the guest tells the exit of a process that was killed. A container that does not end is ended with its
    /// machine: its guest lies, or hangs. (An exec may hang in a file operation of the host's that takes long; its container goes on.)
    pub(super) async fn expect_exit(&self, container: &Container, exec: Option<&Exec>) {
        let process = exec.map_or(&container.init, |exec| &exec.process);
        if tokio::time::timeout(limits().kill(), process.told()).await.is_ok() {
            return;
        }
        match exec {
            Some(exec) => warn!(container = container.id.as_str(), stage = "kill"; "exec {} does not end", exec.id),
            None => {
                if let Some(sandbox) = self.pod.sandbox() {
                    warn!(container = container.id.as_str(), stage = "kill"; "the guest does not end it: its machine is stopped");
                    sandbox.machine.stop().await;
                }
            }
        }
    }

    /// Delete; a second one gets the first one's answer.
    pub async fn delete(&self, id: &str) -> Result<DeleteResponse> {
        phases::stamp(Stamp::DeleteReceived);
        let container = match self.container(id) {
            Ok(container) => container,
            Err(cause) => return self.deleted(id, "").ok_or(cause),
        };
        if container.init.phase() == Phase::Created {
            // It was never started: nobody else ends it. One that cannot be killed is ended with its machine.
            if let Err(cause) = self.signal(id, "", SIGKILL, true).await {
                warn!(container = id, stage = "delete"; "{cause}");
            }
            self.expect_exit(&container, None).await;
            container.init.exit().await;
        }
        let _lifecycle = container.init.lifecycle.lock().await;
        // The same call, a moment before this one.
        if !self.container(id).is_ok_and(|current| Arc::ptr_eq(&current, &container)) {
            return self.deleted(id, "").ok_or_else(|| TaskError::NotFound(id.to_owned()));
        }
        let Some(exit) = container.init.has_ended() else {
            return Err(TaskError::State { id: id.to_owned(), what: "delete it", state: container.state() });
        };
        container.init.drain(limits().delete_output()).await;
        container.init.close().await;
        let execs = container.execs();
        // Whoever waits for one of them that was never started waits for nothing.
        execs.iter().for_each(|exec| exec.process.failed());
        join_all(execs.iter().map(|exec| exec.process.close())).await;
        let last = self.tables().containers.len() == 1;
        if last {
            self.pod.end().await;
        } else if let Some(sandbox) = self.pod.sandbox() {
            // What waits for them would be under way still.
            self.lift_throttles(&container).await;
            if let Err(cause) = sandbox.agent.remove_container(id).await {
                warn!(container = id, stage = "delete"; "{cause}");
            }
            sandbox.machine.remove_shares(container.shares.iter().map(|source| source.share.as_str())).await;
        }
        container.hooks.poststop().await;
        let answer = answer(container.stub.pid(), Some(exit));
        self.tables().containers.remove(id);
        self.has_deleted(id, "", &answer);
        self.pod.publisher.publish(&TaskDelete {
            container_id: id.to_owned(),
            pid: answer.pid,
            exit_status: answer.exit_status,
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

    /// Remembers what Delete has answered.
    pub(super) fn has_deleted(&self, id: &str, exec_id: &str, answer: &DeleteResponse) {
        let deleted = &mut self.tables().deleted;
        deleted.push_back(Deleted { id: id.to_owned(), exec_id: exec_id.to_owned(), answer: answer.clone() });
        if deleted.len() > MOST_DELETED {
            deleted.pop_front();
        }
    }

    /// Another exec of this id begins.
    pub(super) fn forget_deleted(&self, id: &str, exec_id: &str) {
        self.tables().deleted.retain(|deleted| deleted.id != id || deleted.exec_id != exec_id);
    }

    /// What Delete has answered.
    pub(super) fn deleted(&self, id: &str, exec_id: &str) -> Option<DeleteResponse> {
        let tables = self.tables();
        let deleted = tables.deleted.iter().rev().find(|deleted| deleted.id == id && deleted.exec_id == exec_id);
        deleted.map(|deleted| deleted.answer.clone())
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
            container.init.exit().await;
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
}

/// Delete's answer; a process that never ran has no exit.
pub(super) fn answer(pid: u32, exit: Option<Exit>) -> DeleteResponse {
    DeleteResponse {
        pid,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map(|exit| exit.at.into()).into(),
        ..DeleteResponse::default()
    }
}
