//! The pod's containers: from Create to Remove.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use husk_protocol::agent::{
    CreateContainerRequest, Process, ResizeTerminalRequest, SignalRequest, UpdateContainerRequest,
};
use log::warn;
use oci_spec::runtime::{LinuxResources, Spec};
use rustix::process::Signal;

use super::execs::Execs;
use super::{Service, ServiceError, component, nonces};
use crate::boot::{self, POD_CGROUP, SHARES};
use crate::container::{self, Cgroup, Container, Limits, OomWatch, Place, Sources, Told, signal_from};
use crate::events::{Events, Exited};
use crate::reaper::Exit;
use crate::shares;
use crate::stdio::{self, Outputs};
use crate::vsock::Dial;

/// Processes in one answer, which has to stay short.
const MOST_PROCESSES: usize = 8192;

/// A container of the pod.
#[derive(Debug)]
pub(super) struct Member {
    container: Container,
    pub(super) execs: Execs,
    /// Where its shares are.
    shares: Vec<PathBuf>,
}

impl std::ops::Deref for Member {
    type Target = Container;

    fn deref(&self) -> &Container {
        &self.container
    }
}

/// A container's place in the table: taken before it is made, so that a second Create of the same id is refused.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    Making,
    /// Being made, and to be removed as soon as it is.
    Doomed,
    Made(Arc<Member>),
}

impl<D: Dial> Service<D> {
    fn table(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn container(&self, id: &str) -> Result<Arc<Member>, ServiceError> {
        match self.table().get(id) {
            Some(Slot::Made(member)) => Ok(Arc::clone(member)),
            _ => Err(ServiceError::NotFound(id.to_owned())),
        }
    }

    pub(super) async fn create(&self, request: CreateContainerRequest) -> Result<u32, ServiceError> {
        if self.sandbox.get().is_none() {
            return Err(ServiceError::NoSandbox);
        }
        let id = request.id.clone();
        component("container id", &id)?;
        match self.table().entry(id.clone()) {
            Entry::Occupied(_) => return Err(ServiceError::Exists(id)),
            Entry::Vacant(vacant) => vacant.insert(Slot::Making),
        };
        let made = self.make(request).await;
        let doomed = {
            let mut table = self.table();
            let doomed = matches!(table.get(&id), Some(Slot::Doomed));
            match &made {
                Ok(member) => table.insert(id.clone(), Slot::Made(Arc::clone(member))),
                Err(_) => table.remove(&id),
            };
            doomed
        };
        if doomed && made.is_ok() {
            self.remove(&id).await?;
            return Err(ServiceError::NotFound(id));
        }
        made.map(|member| member.init().pid())
    }

    /// Makes a container; what was made of a failed one is gone.
    async fn make(&self, request: CreateContainerRequest) -> Result<Arc<Member>, ServiceError> {
        let CreateContainerRequest { id, oci_spec, root_share, streams, volumes, bundle, hook_s, hook_shares, .. } =
            request;
        component("root share", &root_share)?;
        let mut sources = Sources::new();
        for volume in &volumes {
            component("share of a mount", &volume.share)?;
            sources.insert(volume.mount as usize, Path::new(SHARES).join(&volume.share));
        }
        for share in &hook_shares {
            component("share of a hook", share)?;
        }
        let spec: Spec = serde_json::from_slice(&oci_spec)
            .map_err(|cause| ServiceError::Invalid(format!("container {id}: its OCI document: {cause}")))?;
        self.mount_shares()?;
        let nonces = nonces(&streams.unwrap_or_default())?;
        let streams = stdio::connect(nonces, &self.dial).await;
        let streams =
            streams.map_err(|cause| ServiceError::Guest { what: "connect the container's streams", cause })?;
        let cgroup = Cgroup::create(Path::new(POD_CGROUP), &id)
            .map_err(|cause| ServiceError::Cgroup { id: id.clone(), cause })?;
        let root = Path::new(SHARES).join(root_share);
        let shares: Vec<PathBuf> = std::iter::once(root.clone()).chain(sources.values().cloned()).collect();
        shares::hold(shares.clone(), &self.reaper).await;
        let hook_limit = (hook_s > 0).then(|| Duration::from_secs(hook_s.into()));
        let programs = hook_shares.iter().map(|share| Path::new(SHARES).join(share)).collect();
        let told = Told { id: id.clone(), bundle: bundle.into(), hook_limit, programs };
        match container::create(spec, &root, sources, streams, cgroup.clone(), &self.reaper, told).await {
            Ok((container, exit, outputs)) => {
                let member = Arc::new(Member { container, execs: Execs::default(), shares });
                tokio::spawn(watch(id, Arc::clone(&member), exit, outputs, Arc::clone(&self.events)));
                Ok(member)
            }
            Err(cause) => {
                if let Err(left) = cgroup.remove().await {
                    warn!("container {id}: {left}");
                }
                shares::let_go(shares, &self.reaper).await;
                Err(ServiceError::Container { id, cause })
            }
        }
    }

    fn mount_shares(&self) -> Result<(), ServiceError> {
        let mut mounted = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if !*mounted {
            boot::mount_shares()?;
            *mounted = true;
        }
        Ok(())
    }

    pub(super) async fn remove(&self, id: &str) -> Result<(), ServiceError> {
        // One that is not there has been removed: retried calls succeed.
        let member = match self.table().get_mut(id) {
            None => return Ok(()),
            Some(Slot::Made(member)) => Arc::clone(member),
            Some(making) => {
                *making = Slot::Doomed;
                return Ok(());
            }
        };
        let removed = member.cgroup().remove().await;
        removed.map_err(|cause| ServiceError::Cgroup { id: id.to_owned(), cause })?;
        shares::let_go(member.shares.clone(), &self.reaper).await;
        self.table().remove(id);
        Ok(())
    }

    pub(super) async fn remove_all(&self) -> Result<(), ServiceError> {
        let ids: Vec<String> = self.table().keys().cloned().collect();
        for id in ids {
            self.remove(&id).await?;
        }
        Ok(())
    }

    pub(super) fn update(&self, request: &UpdateContainerRequest) -> Result<(), ServiceError> {
        let id = &request.id;
        let member = self.container(id)?;
        let resources: LinuxResources = serde_json::from_slice(&request.resources)
            .map_err(|cause| ServiceError::Invalid(format!("container {id}: its new limits: {cause}")))?;
        let refused = |cause| ServiceError::Container { id: id.clone(), cause };
        let limits = Limits::of(&resources, Place::Guest).map_err(|cause| refused(cause.into()))?;
        for notice in limits.notices() {
            warn!("container {id}: {notice}");
        }
        member.cgroup().change(&limits).map_err(|cause| refused(cause.into()))
    }

    pub(super) fn send_signal(&self, request: &SignalRequest) -> Result<(), ServiceError> {
        let number = request.signal;
        let member = self.container(&request.id)?;
        if number == 0 {
            // kill(2): only whether there is somebody to send one to.
            return match request.exec_id.as_str() {
                "" => Ok(()),
                exec => member
                    .execs
                    .get(exec)
                    .map(drop)
                    .ok_or_else(|| ServiceError::NoExec { id: request.id.clone(), exec_id: exec.to_owned() }),
            };
        }
        let signal =
            signal_from(number).ok_or_else(|| ServiceError::Invalid(format!("signal {number}: there is none")))?;
        let not_found = || match request.exec_id.as_str() {
            "" => ServiceError::NotFound(request.id.clone()),
            exec => ServiceError::NoExec { id: request.id.clone(), exec_id: exec.to_owned() },
        };
        let sent = match request.exec_id.as_str() {
            "" if request.all => member.signal_all(signal),
            "" => member.init().signal(signal),
            exec => member.execs.get(exec).ok_or_else(not_found)?.signal(signal),
        };
        sent.map_err(|cause| match cause.raw_os_error() {
            Some(libc::ESRCH) => not_found(),
            _ => ServiceError::Guest { what: "send the signal", cause },
        })
    }

    pub(super) fn resize(&self, request: &ResizeTerminalRequest) -> Result<(), ServiceError> {
        let side = |name: &str, value: u32| {
            u16::try_from(value).map_err(|_| ServiceError::Invalid(format!("a terminal of {value} {name}")))
        };
        let (columns, rows) = (side("columns", request.width)?, side("rows", request.height)?);
        let member = self.container(&request.container_id)?;
        let resized = match request.exec_id.as_str() {
            "" => member.init().resize(columns, rows),
            exec => {
                let exec = member.execs.get(exec).ok_or_else(|| ServiceError::NoExec {
                    id: request.container_id.clone(),
                    exec_id: exec.to_owned(),
                })?;
                exec.resize(columns, rows)
            }
        };
        resized.map_err(|cause| ServiceError::Guest { what: "set the terminal's size", cause })
    }

    /// Its init first.
    pub(super) fn processes_of(&self, id: &str) -> Result<Vec<Process>, ServiceError> {
        let member = self.container(id)?;
        let pids = member.cgroup().processes();
        let mut pids = pids.map_err(|cause| ServiceError::Guest { what: "list the processes", cause })?;
        let init = i32::try_from(member.init().pid()).unwrap_or(0);
        pids.sort_unstable_by_key(|pid| (*pid != init, *pid));
        let process = |pid: i32| Some(Process { pid: u32::try_from(pid).ok()?, ..Process::default() });
        Ok(pids.into_iter().filter_map(process).take(MOST_PROCESSES).collect())
    }
}

/// Tells what happens to a container until its init has ended.
async fn watch(id: String, member: Arc<Member>, exit: Exit, outputs: Outputs, events: Arc<Events>) {
    let oom = OomWatch::new(member.cgroup()).inspect_err(|cause| {
        // The exit and its status are told all the same.
        warn!("container {id}: OOM kills are not told: {cause}");
    });
    let killed = async {
        let Ok(oom) = &oom else { return std::future::pending().await };
        while oom.changed().await.is_ok() {
            if oom.has_more() {
                events.oom(&id);
            }
        }
        std::future::pending().await
    };
    let status = tokio::select! {
        // The reaper never drops a sender without a status.
        status = exit => status.unwrap_or(255),
        never = killed => never,
    };
    let (stdout_bytes, stderr_bytes) = outputs.at_exit().await;
    // The kernel's note of it may be on its way still.
    if oom.is_ok_and(|oom| oom.has_more()) {
        events.oom(&id);
    }
    // Without a pid namespace the others go on, and nobody could end them any more (as runc does it).
    if !member.has_pid_namespace()
        && let Err(cause) = member.signal_all(Signal::KILL)
    {
        warn!("container {id}: what its init has left cannot be killed: {cause}");
    }
    // An exec's exit comes before init's.
    member.execs.ended().await;
    let stats = member.cgroup().stats();
    events.exited(&id, "", Exited { status, stdout_bytes, stderr_bytes, stats: Some(stats) });
}
