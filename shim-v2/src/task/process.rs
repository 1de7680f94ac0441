//! A process that containerd knows, a container's init or an exec: its state and its streams.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::types::task::Status;
use tokio::sync::{Mutex as AsyncMutex, watch};

use super::stdio::{Names, Positions, Stdio};

/// What an exit status is at most.
const LARGEST_STATUS: u32 = 255;

/// How a process ended.
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

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made; its program does not run.
    Created,
    /// Its program runs.
    Running,
    /// Its program has ended.
    Stopped(Exit),
    /// Its program could not be run (an exec; a container whose start fails has ended).
    Failed,
}

impl Phase {
    /// As containerd has it.
    pub fn status(self) -> Status {
        match self {
            // As runc's shim says it: it can be deleted, and that is all.
            Self::Created | Self::Failed => Status::CREATED,
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
            Self::Failed => "one that could not be started",
        }
    }
}

/// A process.
pub struct Process {
    /// The names of its streams.
    pub names: Names,
    /// Held by Start, by the report of the exit and by Delete, one after the other. Nothing else waits for it.
    pub lifecycle: AsyncMutex<()>,
    /// What it had written at its end.
    positions: OnceLock<Positions>,
    /// Its streams: an exec's are opened when it is started.
    stdio: OnceLock<Stdio>,
    /// Standard input was closed, perhaps before there was one.
    stdin_closed: AtomicBool,
    phase: watch::Sender<Phase>,
    /// The guest has told its exit.
    told: watch::Sender<bool>,
}

impl Process {
    /// A process that was made, or is to be.
    pub fn new(names: Names) -> Self {
        Self {
            names,
            lifecycle: AsyncMutex::new(()),
            positions: OnceLock::new(),
            stdio: OnceLock::new(),
            stdin_closed: AtomicBool::new(false),
            phase: watch::Sender::new(Phase::Created),
            told: watch::Sender::new(false),
        }
    }

    /// Its streams are open. Once.
    pub fn opened(&self, stdio: Stdio) {
        // A second one would be closed here by being dropped.
        let stdio = self.stdio.get_or_init(|| stdio);
        if self.stdin_closed.load(Ordering::Relaxed) {
            stdio.close_stdin();
        }
    }

    /// Ends its standard input.
    pub fn close_stdin(&self) {
        self.stdin_closed.store(true, Ordering::Relaxed);
        if let Some(stdio) = self.stdio.get() {
            stdio.close_stdin();
        }
    }

    /// Ends what still flows.
    pub async fn close(&self) {
        if let Some(stdio) = self.stdio.get() {
            stdio.close().await;
        }
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// How it has ended, if it has.
    pub fn has_ended(&self) -> Option<Exit> {
        match self.phase() {
            Phase::Stopped(exit) => Some(exit),
            _ => None,
        }
    }

    fn change(&self, from: impl Fn(Phase) -> bool, to: Phase) -> bool {
        self.phase.send_if_modified(|phase| {
            let changes = from(*phase);
            if changes {
                *phase = to;
            }
            changes
        })
    }

    /// Its program runs, unless it has ended already.
    pub fn started(&self) {
        self.change(|phase| phase == Phase::Created, Phase::Running);
    }

    /// Its program could not be run.
    pub fn failed(&self) {
        self.change(|phase| phase == Phase::Created, Phase::Failed);
    }

    /// Its program has ended; returns whether this is the first to say so.
    pub fn stopped(&self, exit: Exit) -> bool {
        self.change(|phase| !matches!(phase, Phase::Stopped(_)), Phase::Stopped(exit))
    }

    /// Whether the guest tells its exit for the first time: what else it tells of it means nothing.
    pub fn is_told_once(&self) -> bool {
        self.told.send_if_modified(|told| !std::mem::replace(told, true))
    }

    /// Whether the guest has told its exit.
    pub fn is_told(&self) -> bool {
        *self.told.borrow()
    }

    /// Waits until the guest has told its exit.
    pub async fn told(&self) {
        // `self` has the sender.
        let _ = self.told.subscribe().wait_for(|told| *told).await;
    }

    /// Waits until its program has ended, or could not be run: none then.
    pub async fn exit(&self) -> Option<Exit> {
        let mut phase = self.phase.subscribe();
        loop {
            match *phase.borrow_and_update() {
                Phase::Stopped(exit) => return Some(exit),
                Phase::Failed => return None,
                Phase::Created | Phase::Running => {}
            }
            // `self` has the sender.
            let _ = phase.changed().await;
        }
    }

    /// What it had written at its end. Once.
    pub fn has_written(&self, positions: Positions) {
        // A second one means nothing: the guest has told it once.
        let _ = self.positions.set(positions);
    }

    /// Waits for the output that it had written at its end to be with containerd, as long as some of it is taken in every
    /// `limit`, and twice as long in all; returns whether it is.
    pub async fn drain(&self, limit: Duration) -> bool {
        let positions = self.positions.get().copied().unwrap_or_default();
        match self.stdio.get() {
            Some(stdio) => stdio.drained(positions, limit).await,
            None => true,
        }
    }
}
