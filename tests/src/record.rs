//! What `make bench` has measured, as it is stored in `docs/results/bench.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use husk_cli::bench::report::{Execs, Outcome, Report, Runs, Runtime as Measured};
use husk_cli::bench::stats::{Ratio, Summary};
use serde::{Deserialize, Serialize};

use crate::ctr::Runtime;

mod tables;

/// Everything that was measured in one boot of the counting test bed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Of the repository.
    pub commit: String,
    /// The emulator whose instructions are counted.
    pub qemu: String,
    /// The runtime that husk is compared with.
    pub runc: String,
    /// Machines that hung and were started again.
    pub hung: usize,
    /// What husk promises.
    pub bars: Vec<Bar>,
    /// A machine alone.
    pub boot: Boot,
    /// KVM's counters of a container's machine when its program runs.
    pub exits: BTreeMap<String, u64>,
    /// System calls of a start, by runtime.
    pub calls: BTreeMap<String, Calls>,
    /// What `husk bench` measures.
    pub report: Report,
}

/// A promise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    /// Of what.
    pub what: String,
    /// What was measured.
    pub value: f64,
    /// What it may be at most.
    pub most: f64,
}

/// The start of a machine without containerd, from the start of `husk-vmm` to the agent's answer: 1 vCPU, 128 MiB.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    /// All of it, vms.
    pub ready: Summary,
    /// Of these, before the guest's first instruction.
    pub before_guest: Summary,
    /// Of these, from there to `/init`.
    pub entry_to_init: Summary,
    /// Exits of KVM, those that it dealt with itself too.
    pub exits: Summary,
    /// Exits to user space.
    pub exits_to_user_space: Summary,
    /// These by reason, of one start.
    pub by_reason: BTreeMap<String, u64>,
    /// How many were started.
    pub runs: usize,
}

/// System calls, counted in runs of their own: counting takes time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calls {
    /// Of the whole host.
    pub all: Summary,
    /// By program, or the name of its thread; of the run in the middle.
    pub by_program: BTreeMap<String, u64>,
    /// Of these, files opened or tried to.
    pub opens: BTreeMap<String, u64>,
}

impl Record {
    /// Reads the record at `path`.
    ///
    /// # Errors
    /// It is not there, or not a record of this version.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read(path).map_err(|cause| format!("{}: {cause}", path.display()))?;
        serde_json::from_slice(&text).map_err(|cause| format!("{}: {cause}", path.display()))
    }

    /// What was measured of a runtime.
    #[must_use]
    pub fn runtime(&self, runtime: Runtime) -> Option<&Measured> {
        self.report.runtimes.iter().find(|measured| measured.name == runtime.name())
    }

    /// How much of runc's start husk's takes, above what `ctr` and containerd take with any runtime.
    #[must_use]
    pub fn above_the_floor(&self) -> Option<Ratio> {
        let time = |runtime| Some(self.runtime(runtime)?.start.time);
        time(Runtime::Husk)?.ratio(&time(Runtime::Runc)?, Some(&time(Runtime::Null)?))
    }

    /// The same of an exec.
    #[must_use]
    pub fn exec_above_the_floor(&self) -> Option<Ratio> {
        let time = |runtime| Some(measured(&self.runtime(runtime)?.exec)?.time);
        time(Runtime::Husk)?.ratio(&time(Runtime::Runc)?, Some(&time(Runtime::Null)?))
    }

    /// How much of what a megabyte of an exec's output takes with runc it takes with husk.
    #[must_use]
    pub fn megabyte(&self) -> Option<f64> {
        let more = |runtime| {
            let measures = self.runtime(runtime)?;
            Some(measured(&measures.exec_mib)?.time.median - measured(&measures.exec)?.time.median)
        };
        Some(more(Runtime::Husk)? / more(Runtime::Runc)?)
    }

    /// Private memory of husk's processes for one idle container, MiB.
    #[must_use]
    pub fn private_mib(&self) -> Option<f64> {
        match &self.runtime(Runtime::Husk)?.idle {
            Outcome::Measured(idle) => Some(idle.private_kib() as f64 / 1024.0),
            Outcome::Refused(_) => None,
        }
    }
}

fn measured(execs: &Outcome<Execs>) -> Option<&Runs> {
    match execs {
        Outcome::Measured(execs) => Some(&execs.runs),
        Outcome::Refused(_) => None,
    }
}

/// Where the record and what is made of it are.
#[derive(Debug, Clone)]
pub struct Files {
    /// `docs/results/bench.json`.
    pub record: PathBuf,
    /// `docs/performance.md`.
    pub page: PathBuf,
    /// `docs/results/start.svg`.
    pub chart: PathBuf,
}

impl Files {
    /// Those of this repository.
    #[must_use]
    pub fn of_repository() -> Self {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        Self {
            record: docs.join("results/bench.json"),
            page: docs.join("performance.md"),
            chart: docs.join("results/start.svg"),
        }
    }

    /// What page and chart are to be, in this order.
    ///
    /// # Errors
    /// A file cannot be read; the page has no place for the tables.
    pub fn made(&self) -> Result<(String, String), String> {
        let record = Record::read(&self.record)?;
        let page = std::fs::read_to_string(&self.page).map_err(|cause| format!("{}: {cause}", self.page.display()))?;
        let page = tables::put_in(&page, &record).map_err(|cause| format!("{}: {cause}", self.page.display()))?;
        Ok((page, husk_cli::bench::chart::svg(&record.report)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_say_what_was_measured() {
        let files = Files::of_repository();
        let (page, chart) = files.made().unwrap();
        let repair =
            "differs from docs/results/bench.json: repair it with `cargo run -p husk-tests --bin husk-performance`";
        assert!(std::fs::read_to_string(&files.page).unwrap() == page, "docs/performance.md {repair}");
        assert!(std::fs::read_to_string(&files.chart).unwrap() == chart, "docs/results/start.svg {repair}");
    }
}
