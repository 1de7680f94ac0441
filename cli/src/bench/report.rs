//! What was measured: the JSON file, and what table and chart are made from.

use serde::{Deserialize, Serialize};

use super::stats::Summary;

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Of husk's tool.
    pub husk: String,
    /// Where.
    pub host: Host,
    /// Of every `time`: milliseconds, or what the caller's clock counts.
    pub unit: String,
    /// What the containers ran on.
    pub root: String,
    /// Runs of each runtime that count.
    pub runs: usize,
    /// Runs before these.
    pub warm_up: usize,
    /// Runs that hung and were made again.
    pub hung: usize,
    /// In the order in which they were named.
    pub runtimes: Vec<Runtime>,
}

/// The machine and its software.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Day of the measurement, UTC.
    pub date: String,
    /// The kernel's release.
    pub kernel: String,
    /// containerd's version.
    pub containerd: String,
    /// CPUs that are online.
    pub cpus: usize,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// `always`, `madvise` or `never`.
    pub transparent_hugepage: String,
}

/// One runtime.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Runtime {
    /// As `ctr --runtime` has it.
    pub name: String,
    /// `ctr run --rm`.
    pub start: Runs,
    /// Whether its containers have printed what they were told to.
    pub printed: bool,
    /// The phases of the start whose duration is the median; empty if the runtime has no time stamps.
    pub phases: Vec<Segment>,
    /// `ctr task exec` of `echo`.
    pub exec: Outcome<Execs>,
    /// The same of a program that prints 1 MiB.
    pub exec_mib: Outcome<Execs>,
    /// Memory of idle containers.
    pub idle: Outcome<Idle>,
}

/// A measurement that a runtime may refuse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome<T> {
    /// It did not.
    Measured(T),
    /// It did, in these words.
    Refused(String),
}

/// Execs of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Execs {
    /// They.
    pub runs: Runs,
    /// Whether they have printed what they were told to.
    pub printed: bool,
}

/// Runs of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Runs {
    /// How long.
    pub time: Summary,
    /// Page faults of the whole host meanwhile.
    pub page_faults: Summary,
    /// Context switches of the whole host meanwhile.
    pub context_switches: Summary,
    /// Processes and threads made on the host meanwhile.
    pub processes: Summary,
    /// Each of them.
    pub all: Vec<Run>,
}

/// One run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// How long.
    pub time: f64,
    /// See [`Runs::page_faults`].
    pub page_faults: u64,
    /// See [`Runs::context_switches`].
    pub context_switches: u64,
    /// See [`Runs::processes`].
    pub processes: u64,
}

impl Runs {
    /// None without runs.
    #[must_use]
    pub fn of(all: Vec<Run>) -> Option<Self> {
        let summary = |value: fn(&Run) -> f64| Summary::of(all.iter().map(value));
        Some(Self {
            time: summary(|run| run.time)?,
            page_faults: summary(|run| run.page_faults as f64)?,
            context_switches: summary(|run| run.context_switches as f64)?,
            processes: summary(|run| run.processes as f64)?,
            all,
        })
    }
}

/// Who is at work in a part of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// `ctr` and containerd.
    Containerd,
    /// husk's shim.
    Shim,
    /// husk's VMM: before its guest, and its end.
    Vmm,
    /// The guest's kernel.
    Kernel,
    /// The guest's agent, until the guest is a pod's.
    Agent,
    /// The container: made, started, its program, its end.
    Container,
}

/// A part of a start.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Who.
    pub who: Who,
    /// How long.
    pub time: f64,
}

/// What idle containers take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Idle {
    /// Containers that were started beside the first.
    pub more: usize,
    /// By how much `MemAvailable` fell for each of them, KiB.
    pub available_kib_each: f64,
    /// The runtime's processes for the first one.
    pub processes: Vec<Process>,
}

impl Idle {
    /// Private memory of the runtime's processes without the guest's, KiB.
    #[must_use]
    pub fn private_kib(&self) -> u64 {
        self.processes.iter().map(|process| process.private_kib).sum()
    }

    /// Of these, see [`Process::clean_kib`].
    #[must_use]
    pub fn clean_kib(&self) -> u64 {
        self.processes.iter().map(|process| process.clean_kib).sum()
    }

    /// The guest's memory that is there, KiB.
    #[must_use]
    pub fn guest_kib(&self) -> u64 {
        self.processes.iter().map(|process| process.guest_kib).sum()
    }
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its program.
    pub name: String,
    /// Private memory without the guest's, KiB.
    pub private_kib: u64,
    /// Of these, what is unchanged from a file, mostly the program: other containers share it as soon as there are any.
    pub clean_kib: u64,
    /// Private memory that is the guest's, KiB.
    pub guest_kib: u64,
    /// Its threads.
    pub threads: usize,
    /// Its descriptors.
    pub descriptors: usize,
}

/// Something to draw and to print.
#[cfg(test)]
pub(super) fn example() -> Report {
    let runs = |times: [f64; 3]| {
        let run = |time| Run { time, page_faults: 1592, context_switches: 1376, processes: 19 };
        Runs::of(times.map(run).to_vec()).unwrap()
    };
    let runtime = |name: &str, times| Runtime {
        name: name.into(),
        start: runs(times),
        printed: true,
        phases: Vec::new(),
        exec: Outcome::Measured(Execs { runs: runs([116.0, 117.0, 115.0]), printed: true }),
        exec_mib: Outcome::Measured(Execs { runs: runs([126.0, 127.0, 125.0]), printed: false }),
        idle: Outcome::Measured(Idle { more: 10, available_kib_each: 11_264.0, processes: Vec::new() }),
    };
    let mut husk = runtime("io.containerd.husk.v2", [185.0, 186.0, 187.0]);
    husk.exec = Outcome::Refused("it has no head".into());
    let parts = [
        (Who::Containerd, 40.0),
        (Who::Shim, 8.0),
        (Who::Vmm, 11.0),
        (Who::Kernel, 38.8),
        (Who::Agent, 2.1),
        (Who::Container, 20.0),
        (Who::Containerd, 66.1),
    ];
    husk.phases = parts.map(|(who, time)| Segment { who, time }).to_vec();
    let mut null = runtime("io.containerd.null.v2", [80.0, 80.5, 81.0]);
    null.printed = false;
    null.idle = Outcome::Refused("its container does not stay".into());
    Report {
        husk: "0.1.0".into(),
        host: Host {
            date: "2026-11-25".into(),
            kernel: "6.12.117".into(),
            containerd: "1.7.24".into(),
            cpus: 1,
            memory_mib: 4096,
            transparent_hugepage: "always".into(),
        },
        unit: "ms".into(),
        root: "a directory with busybox".into(),
        runs: 3,
        warm_up: 2,
        hung: 0,
        runtimes: vec![husk, runtime("io.containerd.runc.v2", [249.0, 250.0, 251.0]), null],
    }
}
