//! A container: its processes, its stub on the host.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::types::task::Status;
use husk_protocol::agent::Stats;
use log::warn;
use tokio::sync::Mutex as AsyncMutex;

use super::process::{Phase, Process};
use super::stats;
use super::throttle::{Source, Throttles};
use crate::host::hooks::Hooks;
use crate::host::process::Child;

/// Process ids of the host end here (PID_MAX_LIMIT, linux/threads.h). Those of a guest are told behind it, so that no number
/// of the guest's names a process of the host's: somebody may send a signal to it, or look it up.
const GUEST_PIDS: u32 = 1 << 22;
/// OOM kills of a container are told no more often than this: a guest could tell them for ever.
const OOM_INTERVAL: Duration = Duration::from_millis(100);

/// A process of the guest's as containerd is told of it.
pub fn told_pid(guest: u32) -> u32 {
    GUEST_PIDS + guest % GUEST_PIDS
}

/// What a container is made of, once and for all.
pub struct Made {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its process on the host.
    pub stub: Child,
    /// Its init's process id in the guest.
    pub guest_pid: u32,
    /// Its shares: its root's, and those of its bind mounts and of its hooks' programs.
    pub shares: Vec<Source>,
    /// It is all there is in the pod.
    pub lone: bool,
    /// What its document wants to be run on the host.
    pub hooks: Hooks,
}

/// A container.
pub struct Container {
    made: Made,
    /// Its first process.
    pub init: Process,
    /// Held by Pause and Resume, one after the other.
    pub freezer: AsyncMutex<()>,
    /// Held by Update, one after the other.
    pub updating: AsyncMutex<()>,
    /// The limits of the host's devices that its files have.
    throttles: Mutex<Throttles>,
    /// SIGKILL was sent to it.
    killed: AtomicBool,
    /// Its processes are stopped where they are.
    paused: AtomicBool,
    execs: Mutex<HashMap<String, Arc<Exec>>>,
    /// What it had used at its end, if that was told.
    last: OnceLock<Option<Metrics>>,
    /// What it said that it used when it was asked.
    used: Mutex<Option<Metrics>>,
    oom: Mutex<Option<Instant>>,
}

impl std::ops::Deref for Container {
    type Target = Made;

    fn deref(&self) -> &Made {
        &self.made
    }
}

/// A further process of a container.
pub struct Exec {
    /// Its id in the container.
    pub id: String,
    /// The OCI document's `process`.
    pub document: oci_spec::runtime::Process,
    /// The process.
    pub process: Process,
    /// The guest was asked to run it: it can tell its exit from here on.
    asked: AtomicBool,
    /// As containerd is told of it; 0 before it runs.
    pid: AtomicU32,
    /// The size of its terminal, if it was set before there was one.
    size: Mutex<Option<(u32, u32)>>,
}

impl Container {
    /// A container that was made.
    pub fn new(made: Made, init: Process, throttles: Throttles) -> Self {
        Self {
            made,
            init,
            freezer: AsyncMutex::new(()),
            updating: AsyncMutex::new(()),
            throttles: Mutex::new(throttles),
            killed: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            execs: Mutex::default(),
            last: OnceLock::new(),
            used: Mutex::default(),
            oom: Mutex::default(),
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The exec of this id.
    pub fn exec(&self, id: &str) -> Option<Arc<Exec>> {
        self.table().get(id).cloned()
    }

    /// All execs.
    pub fn execs(&self) -> Vec<Arc<Exec>> {
        self.table().values().cloned().collect()
    }

    /// Takes an exec in; returns whether its id was free.
    pub fn add(&self, exec: Exec) -> bool {
        let mut table = self.table();
        let free = !table.contains_key(&exec.id);
        if free {
            table.insert(exec.id.clone(), Arc::new(exec));
        }
        free
    }

    /// Forgets an exec.
    pub fn remove(&self, exec: &str) {
        self.table().remove(exec);
    }

    /// The limits of the host's devices that its files have.
    pub fn throttles(&self) -> Throttles {
        self.throttles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It has these from now on.
    pub fn set_throttles(&self, throttles: Throttles) {
        *self.throttles.lock().unwrap_or_else(PoisonError::into_inner) = throttles;
    }

    /// It is to end at once.
    pub fn is_killed(&self) {
        self.killed.store(true, Ordering::Relaxed);
    }

    /// Whether it was to end at once.
    pub fn was_killed(&self) -> bool {
        self.killed.load(Ordering::Relaxed)
    }

    /// Whether its processes are stopped where they are.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Its processes are stopped, or go on.
    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    /// The state of one of its processes, as containerd has it.
    pub fn status(&self, process: &Process) -> Status {
        match process.phase() {
            Phase::Running if self.is_paused() => Status::PAUSED,
            phase => phase.status(),
        }
    }

    /// Its state in words.
    pub fn state(&self) -> &'static str {
        match self.init.phase() {
            Phase::Running if self.is_paused() => "paused",
            phase => phase.name(),
        }
    }

    /// What is known at its end. Once.
    pub fn ended_with(&self, metrics: Option<Metrics>) {
        // A second one means nothing: the guest has told it once.
        let _ = self.last.set(metrics);
    }

    /// What it had used at its end.
    pub fn last_metrics(&self) -> Option<Metrics> {
        self.last.get().cloned().flatten()
    }

    /// What it has used, so far.
    pub fn has_used(&self, metrics: Metrics) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Some(metrics);
    }

    /// What is known of what it has used: of a machine that has ended without a word, what it last said.
    pub fn known_metrics(&self) -> Metrics {
        self.used
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .unwrap_or_else(|| stats::metrics(&Stats::new()))
    }

    /// Whether an OOM kill is to be told now.
    pub fn oom_is_told(&self) -> bool {
        let mut last = self.oom.lock().unwrap_or_else(PoisonError::into_inner);
        let tell = last.is_none_or(|last| last.elapsed() >= OOM_INTERVAL);
        if tell {
            *last = Some(Instant::now());
        }
        tell
    }

    /// Ends the stub, so that the task's pid is gone.
    pub async fn end_stub(&self) {
        self.stub.kill();
        if let Err(cause) = self.stub.ended().await {
            warn!(container = self.id.as_str(), stage = "exit"; "cannot wait for the stub: {cause}");
        }
    }
}

impl Exec {
    /// An exec that was added.
    pub fn new(id: String, document: oci_spec::runtime::Process, process: Process) -> Self {
        Self { id, document, process, asked: AtomicBool::new(false), pid: AtomicU32::new(0), size: Mutex::default() }
    }

    /// As containerd is told of it; 0 before it runs.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// The guest is asked to run it.
    pub fn is_asked_for(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Whether the guest was asked to run it.
    pub fn was_asked_for(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// It runs, as this process of the guest's.
    pub fn runs_as(&self, guest: u32) {
        self.pid.store(told_pid(guest), Ordering::Relaxed);
    }

    /// Remembers its terminal's size for its start.
    pub fn set_size(&self, width: u32, height: u32) {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner) = Some((width, height));
    }

    /// The size of its terminal, if it was set before there was one.
    pub fn size(&self) -> Option<(u32, u32)> {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pid_of_the_guests_is_one_of_the_hosts() {
        for guest in [0, 1, GUEST_PIDS - 1, GUEST_PIDS, u32::MAX] {
            assert!((GUEST_PIDS..2 * GUEST_PIDS).contains(&told_pid(guest)), "{guest}");
        }
        assert_eq!(told_pid(17) - GUEST_PIDS, 17);
    }
}
