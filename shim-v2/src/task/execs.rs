//! Further processes of a container: from Exec to Delete.

use std::sync::Arc;

use containerd_shim_protos::api::{DeleteResponse, ExecProcessRequest};
use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted};
use husk_protocol::agent::ExecRequest;
use log::{debug, warn};
use oci_spec::runtime::BoxBuilder;
use protobuf::MessageField;

use super::container::{Container, Exec};
use super::document::{self, DocumentError, Read};
use super::error::{Result, TaskError};
use super::life::{Life, SIGKILL, answer};
use super::process::{Phase, Process};
use super::stdio::{Names, Owner, Stdio};
use crate::config::limits;
use crate::vm::AgentError;

impl Life {
    /// An exec that was added.
    pub(super) fn exec(&self, id: &str, exec_id: &str) -> Result<(Arc<Container>, Arc<Exec>)> {
        let container = self.container(id)?;
        let exec = container.exec(exec_id).ok_or_else(|| no_exec(id, exec_id))?;
        Ok((container, exec))
    }

    /// Exec: takes a process in, and runs nothing.
    pub fn add_exec(&self, request: &ExecProcessRequest) -> Result<()> {
        let (id, exec_id) = (request.id(), request.exec_id());
        let container = self.container(id)?;
        if exec_id.is_empty() {
            return Err(TaskError::Invalid { id: id.to_owned(), what: "an exec has to have an id".to_owned() });
        }
        if container.exec(exec_id).is_some() {
            return Err(exec_exists(id, exec_id));
        }
        can_exec(&container)?;
        let invalid = |cause| TaskError::Exec { id: id.to_owned(), exec_id: exec_id.to_owned(), cause };
        let Read { mut document, unknown, .. } = document::read_process(request.spec.value.clone()).map_err(invalid)?;
        if !unknown.is_empty() {
            warn!(container = id, stage = "exec"; "exec {exec_id}: its process has what husk does not know, and what does nothing: {unknown}");
        }
        // The request's word counts, as with runc's shim.
        document.set_terminal(Some(request.terminal()));
        let names = Names {
            stdin: request.stdin().to_owned(),
            stdout: request.stdout().to_owned(),
            stderr: request.stderr().to_owned(),
            terminal: request.terminal(),
        };
        if !container.add(Exec::new(exec_id.to_owned(), document, Process::new(names))) {
            return Err(exec_exists(id, exec_id));
        }
        self.forget_deleted(id, exec_id);
        self.pod.publisher.publish(&TaskExecAdded {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..TaskExecAdded::default()
        });
        Ok(())
    }

    /// Start of an exec: returns its pid.
    pub async fn start_exec(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<u32> {
        let (container, exec) = self.exec(id, exec_id)?;
        let _lifecycle = exec.process.lifecycle.lock().await;
        if exec.process.phase() != Phase::Created {
            let state = exec.process.phase().name();
            return Err(TaskError::State { id: format!("{id}, exec {exec_id}"), what: "start it", state });
        }
        let size = exec.size();
        // A start that fails is the last one, and whoever waits is told: as with runc's shim.
        let ran = match can_exec(&container) {
            Ok(()) => self.run(&container, &exec).await,
            Err(cause) => Err(cause),
        };
        let ran = match ran {
            // The guest has told the end of the container, and of its execs, before it said that there is one more.
            Ok(_) if container.init.is_told() => can_exec(&container),
            Ok(guest) => {
                exec.runs_as(guest);
                Ok(())
            }
            Err(cause) => Err(cause),
        };
        if let Err(cause) = ran {
            exec.process.failed();
            exec.process.close().await;
            return Err(cause);
        }
        exec.process.started();
        // It was resized while it was started.
        if let Some((width, height)) = exec.size().filter(|now| size != Some(*now))
            && let Err(cause) = self.sandbox(id)?.agent.resize(id, exec_id, width, height).await
        {
            debug!(container = id, stage = "exec"; "exec {exec_id}: {cause}");
        }
        let pid = exec.pid();
        self.pod.publisher.publish(&TaskExecStarted {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            pid,
            ..TaskExecStarted::default()
        });
        Ok(pid)
    }

    /// Runs it in the guest; returns its pid there.
    async fn run(self: &Arc<Self>, container: &Arc<Container>, exec: &Arc<Exec>) -> Result<u32> {
        let sandbox = self.sandbox(&container.id)?;
        let owner = Owner { id: &exec.id, namespace: self.pod.publisher.namespace(), bundle: &container.bundle };
        let (stdio, streams) = Stdio::open(&exec.process.names, owner, sandbox.machine.streams()).await?;
        exec.process.opened(stdio);
        let document = match exec.size() {
            None => serde_json::to_vec(&exec.document),
            Some((width, height)) => {
                let mut document = exec.document.clone();
                let size = BoxBuilder::default().width(u64::from(width)).height(u64::from(height)).build();
                document.set_console_size(size.ok());
                serde_json::to_vec(&document)
            }
        };
        let process = document.map_err(|cause| {
            let cause = DocumentError::Content { field: ".".to_owned(), cause };
            TaskError::Exec { id: container.id.clone(), exec_id: exec.id.clone(), cause }
        })?;
        let request = ExecRequest {
            container_id: container.id.clone(),
            exec_id: exec.id.clone(),
            process,
            streams: MessageField::some(streams),
            ..ExecRequest::default()
        };
        exec.is_asked_for();
        match sandbox.agent.exec(request).await {
            Ok(guest) => Ok(guest),
            Err(cause) => {
                // Refused is not made; after any other failure it may run all the same.
                if !matches!(cause, AgentError::Refused { .. }) {
                    let (sandbox, id, exec_id) = (Arc::clone(sandbox), container.id.clone(), exec.id.clone());
                    tokio::spawn(async move {
                        if let Err(cause) = sandbox.agent.signal(&id, &exec_id, SIGKILL, false).await {
                            warn!(container = id.as_str(), stage = "exec"; "exec {exec_id}: {cause}");
                        }
                    });
                }
                Err(sandbox.machine.blame(cause).await.map_or_else(TaskError::Agent, TaskError::Ended))
            }
        }
    }

    /// Kill of an exec.
    pub async fn kill_exec(self: &Arc<Self>, id: &str, exec_id: &str, signal: u32) -> Result<()> {
        let (container, exec) = self.exec(id, exec_id)?;
        let named = || format!("{id}, exec {exec_id}");
        match exec.process.phase() {
            Phase::Running => self.signal_and_expect(container, Some(exec), signal, false).await,
            Phase::Stopped(_) => Err(TaskError::Finished(named())),
            phase @ (Phase::Created | Phase::Failed) => {
                Err(TaskError::State { id: named(), what: "send it a signal", state: phase.name() })
            }
        }
    }

    /// Delete of an exec; a second one gets the first one's answer.
    pub async fn delete_exec(&self, id: &str, exec_id: &str) -> Result<DeleteResponse> {
        let (container, exec) = match self.exec(id, exec_id) {
            Ok(found) => found,
            Err(cause) => return self.deleted(id, exec_id).ok_or(cause),
        };
        let _lifecycle = exec.process.lifecycle.lock().await;
        // The same call, a moment before this one.
        if !container.exec(exec_id).is_some_and(|current| Arc::ptr_eq(&current, &exec)) {
            return self.deleted(id, exec_id).ok_or_else(|| no_exec(id, exec_id));
        }
        if exec.process.phase() == Phase::Running {
            let state = exec.process.phase().name();
            return Err(TaskError::State { id: format!("{id}, exec {exec_id}"), what: "delete it", state });
        }
        // Whoever waits for one that was never started waits for nothing.
        exec.process.failed();
        exec.process.drain(limits().delete_output()).await;
        // What another process of it still writes goes nowhere.
        exec.process.close().await;
        let answer = answer(exec.pid(), exec.process.has_ended());
        container.remove(exec_id);
        self.has_deleted(id, exec_id, &answer);
        Ok(answer)
    }
}

/// Whether a container can have one more process.
fn can_exec(container: &Container) -> Result<()> {
    let ended = container.init.has_ended().is_some() || container.init.is_told();
    if ended || container.is_paused() {
        let (id, state) = (container.id.clone(), if ended { "stopped" } else { container.state() });
        return Err(TaskError::State { id, what: "run a process in it", state });
    }
    Ok(())
}

fn no_exec(id: &str, exec_id: &str) -> TaskError {
    TaskError::NotFound(format!("{id}, exec {exec_id}"))
}

fn exec_exists(id: &str, exec_id: &str) -> TaskError {
    TaskError::Exists(format!("{id}, exec {exec_id}"))
}
