//! A container: its state, its stub on the host, its streams.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::types::task::Status;
use log::{info, warn};
use tokio::sync::{Mutex as AsyncMutex, watch};

use super::stdio::{Names, Stdio};
use crate::host::process::Child;

/// What an exit status is at most.
const LARGEST_STATUS: u32 = 255;

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// As a shell says it.
    pub status: u32,
    /// When the shim learned of it: the guest's clock is the guest's.
    pub at: SystemTime,
}

impl Exit {
    /// An exit now; the status is the guest's word, and at most what one can be.
    pub fn now(status: u32) -> Self {
        Self { status: status.min(LARGEST_STATUS), at: SystemTime::now() }
    }
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made; its program does not run.
    Created,
    /// Its program runs.
    Running,
    /// Its program has ended.
    Stopped(Exit),
}

impl Phase {
    /// As containerd has it.
    pub fn status(self) -> Status {
        match self {
            Self::Created => Status::CREATED,
            Self::Running => Status::RUNNING,
            Self::Stopped(_) => Status::STOPPED,
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped(_) => "stopped",
        }
    }
}

/// A container.
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The names of its streams.
    pub names: Names,
    /// Its streams.
    pub stdio: Stdio,
    /// Its process on the host.
    pub stub: Child,
    /// The name of its root's share.
    pub share: String,
    /// It is all there is in the pod.
    pub lone: bool,
    /// Held by Start, by the report of the exit and by Delete, one after the other. Nothing else waits for it.
    pub lifecycle: AsyncMutex<()>,
    phase: watch::Sender<Phase>,
    /// The guest has told its exit.
    told: AtomicBool,
}

impl Container {
    /// A container that was made.
    pub fn new(
        id: String,
        bundle: PathBuf,
        names: Names,
        stdio: Stdio,
        stub: Child,
        share: String,
        lone: bool,
    ) -> Self {
        let phase = watch::Sender::new(Phase::Created);
        Self {
            id,
            bundle,
            names,
            stdio,
            stub,
            share,
            lone,
            lifecycle: AsyncMutex::new(()),
            phase,
            told: AtomicBool::new(false),
        }
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Its program runs, unless it has ended already.
    pub fn started(&self) {
        self.phase.send_if_modified(|phase| {
            let first = *phase == Phase::Created;
            if first {
                *phase = Phase::Running;
            }
            first
        });
    }

    /// Its program has ended; returns whether this is the first to say so.
    pub fn stopped(&self, exit: Exit) -> bool {
        self.phase.send_if_modified(|phase| {
            let first = !matches!(phase, Phase::Stopped(_));
            if first {
                *phase = Phase::Stopped(exit);
            }
            first
        })
    }

    /// Whether the guest tells its exit for the first time: what else it tells of it means nothing.
    pub fn is_told_once(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }

    /// Waits until its program has ended.
    pub async fn exit(&self) -> Exit {
        let mut phase = self.phase.subscribe();
        loop {
            if let Phase::Stopped(exit) = *phase.borrow_and_update() {
                return exit;
            }
            // `self` has the sender.
            let _ = phase.changed().await;
        }
    }

    /// Waits for its output to be with containerd, at most `limit`.
    pub async fn drain(&self, limit: Duration) -> bool {
        let drained = self.stdio.drained(limit).await;
        if !drained {
            info!(container = self.id.as_str(), stage = "exit"; "output is left after {} s", limit.as_secs());
        }
        drained
    }

    /// Ends the stub, so that the task's pid is gone.
    pub async fn end_stub(&self) {
        self.stub.kill();
        if let Err(cause) = self.stub.ended().await {
            warn!(container = self.id.as_str(), stage = "exit"; "cannot wait for the stub: {cause}");
        }
    }
}
