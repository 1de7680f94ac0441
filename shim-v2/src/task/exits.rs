//! What the guest tells of its processes, the machine's end, and what follows from them.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use husk_protocol::agent::ExitEvent;
use husk_protocol::agent::event::Kind;
use log::{debug, error, info, warn};
use protobuf::MessageField;

use super::container::{Container, Exec};
use super::life::{Life, SIGKILL};
use super::pod::Sandbox;
use super::process::{Exit, Phase};
use super::stats;
use super::stdio::Positions;
use crate::config::limits;
use crate::phases::{self, Stamp};
use crate::vm::By;

/// Events of the guest's that mean nothing, over a pod's life: exits of containers that could not be made, kinds of a
/// later version. A guest that sends more wants to keep the shim busy.
const MOST_STRANGE: u32 = 256;
/// Between two looks at a guest that tells of nothing but OOM kills, too many of them.
const OOM_PAUSE: Duration = Duration::from_millis(50);
/// What a process's status is when its machine is gone: 128 and SIGKILL.
const KILLED: u32 = 137;

/// An exit as the guest tells it.
pub(super) struct Told {
    exit: Exit,
    positions: Positions,
    metrics: Option<Metrics>,
}

impl Told {
    fn new(event: &ExitEvent) -> Self {
        Self {
            exit: Exit::now(event.status),
            positions: Positions { stdout: event.stdout_bytes, stderr: event.stderr_bytes },
            metrics: event.stats.as_ref().map(stats::metrics),
        }
    }

    /// Nobody tells it: the machine is gone.
    pub(super) fn killed() -> Self {
        // What has left the guest comes out: its streams end with the machine.
        let positions = Positions { stdout: u64::MAX, stderr: u64::MAX };
        Self { exit: Exit::now(KILLED), positions, metrics: None }
    }
}

impl Life {
    /// Takes what the agent tells, until the machine's end.
    pub(super) async fn watch_events(self: Arc<Self>) {
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
            let mut useful = false;
            for event in events {
                if event.seq != after + 1 {
                    return format!("the guest's agent tells event {} after {after}", event.seq);
                }
                after = event.seq;
                let meant = match event.kind {
                    Some(Kind::Exit(exit)) => {
                        useful = true;
                        self.exit_told(&exit)
                    }
                    Some(Kind::Oom(oom)) => match self.oom_told(&oom.container_id) {
                        Some(told) => {
                            useful |= told;
                            true
                        }
                        None => false,
                    },
                    _ => false,
                };
                if !meant {
                    debug!(stage = "events"; "an event of the agent's that means nothing");
                    strange += 1;
                }
            }
            if !useful {
                // OOM kills that are told too often: who tells them so does not keep the shim busy.
                tokio::time::sleep(OOM_PAUSE).await;
            }
            if strange > MOST_STRANGE {
                return format!("the guest's agent has told {strange} events that mean nothing");
            }
        }
    }

    /// Returns whether there is a process whose first exit this is.
    fn exit_told(self: &Arc<Self>, event: &ExitEvent) -> bool {
        let container = {
            let mut tables = self.tables();
            match tables.containers.get(&event.container_id).cloned() {
                Some(Some(container)) => container,
                // Its answer is still under way.
                Some(None) if event.exec_id.is_empty() => {
                    return tables.early.insert(event.container_id.clone(), Told::new(event)).is_none();
                }
                _ => return false,
            }
        };
        if event.exec_id.is_empty() {
            let first = container.init.is_told_once();
            if first {
                tokio::spawn(Arc::clone(self).exited(container, Told::new(event)));
            }
            return first;
        }
        // One that was not started cannot have ended.
        let exec = container.exec(&event.exec_id).filter(|exec| exec.was_asked_for());
        let Some(exec) = exec.filter(|exec| exec.process.is_told_once()) else { return false };
        tokio::spawn(Arc::clone(self).exec_exited(container, exec, Told::new(event)));
        true
    }

    /// Returns whether it is passed on; none: there is no such container.
    fn oom_told(&self, id: &str) -> Option<bool> {
        let container = self.container(id).ok()?;
        let told = container.oom_is_told();
        if told {
            warn!(container = id, stage = "oom"; "a process was killed: the container is at its memory limit, or the guest at its end");
            self.pod.publisher.publish(&TaskOOM { container_id: id.to_owned(), ..TaskOOM::default() });
        }
        Some(told)
    }

    /// Reports an exit: after Start's answer, after the output, after the execs, before anything is torn down.
    pub(super) async fn exited(self: Arc<Self>, container: Arc<Container>, told: Told) {
        let exit = told.exit;
        // Of a machine that has ended nobody tells it.
        let _ = container.init.is_told_once();
        let drained = {
            let _lifecycle = container.init.lifecycle.lock().await;
            self.end_execs(&container).await;
            // A client that does not read cannot hold it up.
            container.init.has_written(told.positions);
            let drained = container.init.drain(limits().output()).await;
            container.ended_with(told.metrics);
            if !container.init.stopped(exit) {
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

    /// Waits for the exits of a container's execs, which come before its own. The kernel has ended them with it: one whose
    /// exit was not told yet was killed.
    async fn end_execs(self: &Arc<Self>, container: &Arc<Container>) {
        for exec in container.execs() {
            if exec.process.phase() == Phase::Running && exec.process.is_told_once() {
                tokio::spawn(Arc::clone(self).exec_exited(Arc::clone(container), Arc::clone(&exec), Told::killed()));
            }
            if exec.process.is_told() {
                exec.process.exit().await;
            }
        }
    }

    /// Reports an exec's exit.
    pub(super) async fn exec_exited(self: Arc<Self>, container: Arc<Container>, exec: Arc<Exec>, told: Told) {
        let _lifecycle = exec.process.lifecycle.lock().await;
        // Not if its start has failed.
        if exec.process.phase() != Phase::Running {
            return;
        }
        exec.process.has_written(told.positions);
        exec.process.drain(limits().output()).await;
        if !exec.process.stopped(told.exit) {
            return;
        }
        exec.process.close_stdin();
        self.pod.publisher.publish(&TaskExit {
            container_id: container.id.clone(),
            id: exec.id.clone(),
            pid: exec.pid(),
            exit_status: told.exit.status,
            exited_at: MessageField::some(told.exit.at.into()),
            ..TaskExit::default()
        });
        debug!(container = container.id.as_str(), stage = "exit", status = told.exit.status; "exec {} has ended", exec.id);
    }

    /// Tells the end of all processes when their machine has ended.
    pub(super) async fn watch_machine(self: Arc<Self>) {
        let Some(sandbox) = self.pod.sandbox() else { return };
        let ended = sandbox.machine.ended().await;
        if ended.by != By::Us {
            error!(stage = "machine"; "{ended}");
        }
        // A VMM that closes its socket and goes on running does not go on.
        sandbox.machine.stop().await;
        let containers: Vec<_> = self.tables().containers.values().flatten().cloned().collect();
        for container in containers {
            if container.init.has_ended().is_none() {
                tokio::spawn(Arc::clone(&self).exited(container, Told::killed()));
            }
        }
    }

    /// A stub that somebody kills means that its container is to be killed.
    pub(super) async fn watch_stub(self: Arc<Self>, container: Arc<Container>) {
        let ended = container.stub.ended().await;
        if container.init.has_ended().is_some() {
            return;
        }
        match ended {
            Ok(how) => info!(container = container.id.as_str(), stage = "stub"; "the task's process was ended: {how}"),
            Err(cause) => {
                warn!(container = container.id.as_str(), stage = "stub"; "cannot watch the task's process: {cause}");
                return;
            }
        }
        if let Err(cause) = self.signal(&container.id, "", SIGKILL, true).await {
            warn!(container = container.id.as_str(), stage = "stub"; "{cause}");
        }
        self.expect_exit(&container, None).await;
    }
}
