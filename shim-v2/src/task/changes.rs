//! What can be asked of and done to a container that runs: its processes, its use of resources, its limits, its freezer,
//! its terminals.

use std::collections::HashMap;
use std::sync::Arc;

use containerd_shim_protos::api::ProcessInfo;
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::events::task::{TaskPaused, TaskResumed};
use husk_protocol::agent;
use husk_protocol::runc::ProcessDetails;
use log::{debug, warn};
use oci_spec::runtime::LinuxResources;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use ttrpc::Code;

use super::container::{Container, Exec, told_pid};
use super::error::{Result, TaskError};
use super::life::Life;
use super::process::Phase;
use super::stats;
use super::throttle;
use crate::vm::AgentError;

/// Processes in one answer, at most: the guest says them.
const MOST_PROCESSES: usize = 8192;
/// The type of the details of a process, as runc's shim has it.
const DETAILS: &str = "containerd.runc.v1.ProcessDetails";

impl Life {
    /// Pids: the task's own, and those of the guest, behind the host's numbers. A guest that does not answer has at least the
    /// first: containerd takes a task without processes for a shim that was left behind, and deletes it.
    pub async fn pids(&self, id: &str) -> Result<Vec<ProcessInfo>> {
        let container = self.container(id)?;
        let task = ProcessInfo { pid: container.stub.pid(), ..ProcessInfo::default() };
        let mut processes = vec![task];
        if container.init.has_ended().is_none() {
            match self.sandbox(id)?.agent.processes(id).await {
                Ok(told) => {
                    let execs = container.execs().into_iter().map(|exec| (exec.pid(), exec)).collect();
                    // Init is the task.
                    let others = told.into_iter().filter(|process| process.pid != container.guest_pid);
                    processes.extend(others.take(MOST_PROCESSES).map(|process| described(&execs, &process)));
                }
                Err(cause) => warn!(container = id, stage = "pids"; "only the task's own pid is told: {cause}"),
            }
        }
        Ok(processes)
    }

    /// Stats; a container that has ended has those of its end.
    pub async fn stats(&self, id: &str) -> Result<Metrics> {
        let container = self.container(id)?;
        if let Some(metrics) = container.last_metrics() {
            return Ok(metrics);
        }
        match self.sandbox(id)?.agent.stats(id).await {
            Ok(told) => {
                let metrics = stats::metrics(&told);
                container.has_used(metrics.clone());
                Ok(metrics)
            }
            // Its machine has ended, and did not say: what is known.
            Err(cause) if container.init.has_ended().is_some() => {
                debug!(container = id, stage = "stats"; "{cause}");
                Ok(container.known_metrics())
            }
            Err(cause) => Err(cause.into()),
        }
    }

    /// Update: `linux.resources` of the OCI document.
    pub async fn update(&self, id: &str, resources: &Any) -> Result<()> {
        let container = self.container(id)?;
        if container.init.has_ended().is_some() {
            return Err(TaskError::State { id: id.to_owned(), what: "change its limits", state: container.state() });
        }
        let invalid = |cause| TaskError::Limits { id: id.to_owned(), cause };
        let resources: LinuxResources = serde_json::from_slice(&resources.value).map_err(invalid)?;
        let document = serde_json::to_vec(&resources).map_err(invalid)?;
        let _updating = container.updating.lock().await;
        let before = container.throttles();
        let throttles = throttle::read(&resources, &before)?;
        let sandbox = self.sandbox(id)?;
        sandbox.agent.update(id, document).await?;
        if throttles != before {
            container.set_throttles(throttles.clone());
            throttle::apply(&sandbox.machine, id, &container.shares, &throttles).await?;
            // Meanwhile: who is killed waits for no rate.
            if container.was_killed() {
                self.lift_throttles(&container).await;
            }
        }
        Ok(())
    }

    /// Pause.
    pub async fn pause(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let _freezer = container.freezer.lock().await;
        if container.init.phase() != Phase::Running || container.is_paused() {
            return Err(TaskError::State { id: id.to_owned(), what: "pause it", state: container.state() });
        }
        let agent = &self.sandbox(id)?.agent;
        if let Err(cause) = agent.freeze(id, true).await {
            // Half of its processes may have stopped.
            if let Err(cause) = agent.freeze(id, false).await {
                debug!(container = id, stage = "pause"; "{cause}");
            }
            return Err(cause.into());
        }
        if container.init.is_told() {
            return Err(TaskError::State { id: id.to_owned(), what: "pause it", state: "stopped" });
        }
        container.set_paused(true);
        self.pod.publisher.publish(&TaskPaused { container_id: id.to_owned(), ..TaskPaused::default() });
        Ok(())
    }

    /// Resume.
    pub async fn resume(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let _freezer = container.freezer.lock().await;
        if container.init.phase() != Phase::Running || !container.is_paused() {
            return Err(TaskError::State { id: id.to_owned(), what: "resume it", state: container.state() });
        }
        self.sandbox(id)?.agent.freeze(id, false).await?;
        container.set_paused(false);
        self.pod.publisher.publish(&TaskResumed { container_id: id.to_owned(), ..TaskResumed::default() });
        Ok(())
    }

    /// ResizePty. A process without a terminal has nothing to resize; an exec that does not run yet begins with the size.
    pub async fn resize(
        &self,
        container: &Arc<Container>,
        exec: Option<&Arc<Exec>>,
        width: u32,
        height: u32,
    ) -> Result<()> {
        let process = exec.map_or(&container.init, |exec| &exec.process);
        if !process.names.terminal {
            return Ok(());
        }
        if let Some(exec) = exec
            && process.phase() == Phase::Created
        {
            exec.set_size(width, height);
            return Ok(());
        }
        let id = &container.id;
        let exec_id = exec.map_or("", |exec| exec.id.as_str());
        if process.phase() != Phase::Running && process.phase() != Phase::Created {
            return Ok(());
        }
        match self.sandbox(id)?.agent.resize(id, exec_id, width, height).await {
            // It has just ended: there is nothing to resize, and nobody to tell.
            Err(AgentError::Refused { code: Code::NOT_FOUND, .. }) => Ok(()),
            other => Ok(other?),
        }
    }
}

/// A process of the guest's; which exec it is, is the shim's word and not the guest's.
fn described(execs: &HashMap<u32, Arc<Exec>>, process: &agent::Process) -> ProcessInfo {
    let pid = told_pid(process.pid);
    let exec = execs.get(&pid);
    // A message of one short text can always be encoded.
    let details = exec.and_then(|exec| {
        ProcessDetails { exec_id: exec.id.clone(), ..ProcessDetails::default() }.write_to_bytes().ok()
    });
    let info = details.map(|value| Any { type_url: DETAILS.to_owned(), value, ..Any::default() });
    ProcessInfo { pid, info: info.into(), ..ProcessInfo::default() }
}
