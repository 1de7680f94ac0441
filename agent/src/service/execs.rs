//! Further processes of a container.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use husk_protocol::agent::ExecRequest;
use oci_spec::runtime::Process;
use tokio::sync::watch;

use super::containers::Member;
use super::{Service, ServiceError, nonces};
use crate::container::{ContainerError, Made, ProcessPlan, Running};
use crate::events::Exited;
use crate::stdio;
use crate::vsock::Dial;

/// The execs of a container that run.
#[derive(Debug, Default)]
pub(super) struct Execs {
    /// None: being made.
    table: Mutex<HashMap<String, Option<Arc<Running>>>>,
    /// How many there are.
    count: watch::Sender<usize>,
}

/// An exec's place in the table, which is free again when this is dropped.
#[derive(Debug)]
struct Place {
    member: Arc<Member>,
    id: String,
}

impl Execs {
    fn table(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Running>>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one of this id, if it runs.
    pub(super) fn get(&self, id: &str) -> Option<Arc<Running>> {
        self.table().get(id).cloned().flatten()
    }

    /// Waits until none runs.
    pub(super) async fn ended(&self) {
        // `self` has the sender.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Place {
    /// None: the id has one.
    fn take(member: &Arc<Member>, id: &str) -> Option<Self> {
        match member.execs.table().entry(id.to_owned()) {
            Entry::Occupied(_) => None,
            Entry::Vacant(vacant) => {
                vacant.insert(None);
                member.execs.count.send_modify(|count| *count += 1);
                Some(Self { member: Arc::clone(member), id: id.to_owned() })
            }
        }
    }

    fn fill(&self, process: Running) {
        self.member.execs.table().insert(self.id.clone(), Some(Arc::new(process)));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.member.execs.table().remove(&self.id);
        self.member.execs.count.send_modify(|count| *count -= 1);
    }
}

impl<D: Dial> Service<D> {
    /// Runs one more process in a container, until its program runs.
    pub(super) async fn exec(self: &Arc<Self>, request: ExecRequest) -> Result<u32, ServiceError> {
        let ExecRequest { container_id: id, exec_id, process, streams, .. } = request;
        let member = self.container(&id)?;
        let process: Process = serde_json::from_slice(&process)
            .map_err(|cause| ServiceError::Invalid(format!("container {id}, exec {exec_id}: its process: {cause}")))?;
        let failed = |cause| ServiceError::Container { id: id.clone(), cause };
        let plan = ProcessPlan::new(process).map_err(|cause| failed(ContainerError::Plan(cause)))?;
        let place = Place::take(&member, &exec_id)
            .ok_or_else(|| ServiceError::ExecExists { id: id.clone(), exec_id: exec_id.clone() })?;
        let streams = stdio::connect(nonces(&streams.unwrap_or_default())?, &self.dial).await;
        let streams = streams.map_err(|cause| ServiceError::Guest { what: "connect the exec's streams", cause })?;
        let Made { process, exit, outputs } = member.exec(&plan, streams, &self.reaper).await.map_err(failed)?;
        let pid = process.pid();
        place.fill(process);
        let events = Arc::clone(&self.events);
        tokio::spawn(async move {
            // The reaper never drops a sender without a status.
            let status = exit.await.unwrap_or(255);
            let (stdout_bytes, stderr_bytes) = outputs.at_exit().await;
            events.exited(&id, &exec_id, Exited { status, stdout_bytes, stderr_bytes, stats: None });
            drop(place);
        });
        Ok(pid)
    }
}
