//! `husk bench`: measures containerd's runtimes on this host, whichever they are, through `ctr`.
//!
//! * [`measure`]: the runs, one runtime after the other in turn, and the end of all that they made;
//! * [`report`], [`stats`]: what was measured, and what follows from it;
//! * [`table`], [`chart`]: the same for people;
//! * [`phases`]: what husk was at during a start; [`host`]: what the host says meanwhile;
//! * [`ctr`], [`root`]: containers and what they run on.
//!
//! `make bench` does the same in the counting test bed, and more (`tests/src/bin/husk-bench/`).

pub mod chart;
pub mod ctr;
pub mod host;
pub mod measure;
pub mod phases;
pub mod report;
pub mod root;
pub mod stats;
pub mod table;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use measure::Plan;
use report::Report;
use root::Root;

/// What is compared unless said otherwise.
const RUNTIMES: [&str; 2] = ["io.containerd.husk.v2", "io.containerd.runc.v2"];
/// 128 and SIGINT: what a shell has for a command that was interrupted.
const INTERRUPTED: u8 = 130;

/// What `--help` says below the options.
const MORE: &str = "\
It measures how long a container takes to start (ctr run --rm) and a process in it (ctr task exec), and what one more idle \
container takes of this host's memory. containerd has to run, and its ctr is used, as root: CONTAINERD_ADDRESS and \
CONTAINERD_NAMESPACE count as they do for it. Containers are named husk-bench-PID-N and are removed whatever happens, also \
at Ctrl-C.";

/// The words of `husk bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = MORE)]
pub struct Arguments {
    /// A runtime of containerd's, as for ctr run --runtime; more than one are measured in turn [default: io.containerd.husk.v2
    /// and io.containerd.runc.v2]
    #[arg(long = "runtime", value_name = "RUNTIME")]
    runtimes: Vec<String>,
    /// Starts and execs of each runtime that count, after two that do not
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// Idle containers over which the memory of one is measured
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    idle: u16,
    /// Run the containers of this image of containerd's, which has /bin/echo, /bin/sleep and /bin/dd
    #[arg(long, value_name = "REF", conflicts_with = "rootfs")]
    image: Option<String>,
    /// Run the containers on this directory, which has them [default: one with this host's static busybox]
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// Store all figures, every run's too, in this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the starts, with the phases of husk's, into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// There is no `ctr`.
    #[error("cannot run ctr, containerd's client: {0}; is containerd installed, and ctr in PATH?")]
    Ctr(io::Error),
    /// Something did not work.
    #[error("cannot {what}: {why}")]
    Failed {
        /// What was tried.
        what: String,
        /// Why not.
        why: String,
    },
    /// A file.
    #[error("{0}: {1}")]
    File(PathBuf, io::Error),
    /// Nothing to run.
    #[error(
        "this host has no static busybox to run in the containers: name a root with --image or --rootfs, or install busybox-static"
    )]
    NoBusybox,
    /// The event loop.
    #[error("cannot make the event loop: {0}")]
    Loop(io::Error),
    /// Something went wrong, and something is left.
    #[error("{cause}; then: {left}")]
    Left {
        /// The first.
        cause: Box<BenchError>,
        /// What is left.
        left: Box<BenchError>,
    },
    /// Somebody wants it to end.
    #[error("interrupted; its containers are removed")]
    Interrupted,
}

/// Runs `husk bench`.
#[must_use]
pub fn run(arguments: &Arguments) -> ExitCode {
    match measured(arguments) {
        Ok(report) => {
            // A reader that has gone away wants no more of it.
            let _ = io::stdout().write_all(table::text(&report).as_bytes());
            ExitCode::SUCCESS
        }
        Err(cause) => {
            let _ = writeln!(io::stderr(), "husk bench: {cause}");
            if matches!(cause, BenchError::Interrupted) { ExitCode::from(INTERRUPTED) } else { ExitCode::FAILURE }
        }
    }
}

fn measured(arguments: &Arguments) -> Result<Report, BenchError> {
    let mut runtimes = arguments.runtimes.clone();
    if runtimes.is_empty() {
        runtimes = RUNTIMES.map(str::to_owned).to_vec();
    }
    // Before minutes of measuring, not after: that they can be written. What is not there yet is not there afterwards,
    // if that comes to nothing.
    for file in [&arguments.json, &arguments.svg].into_iter().flatten() {
        let is_new = !file.exists();
        let opened = std::fs::File::options().append(true).create(true).open(file);
        opened.map_err(|cause| BenchError::File(file.clone(), cause))?;
        if is_new {
            let _ = std::fs::remove_file(file);
        }
    }
    let root = Root::new(arguments.image.as_deref(), arguments.rootfs.as_deref())?;
    let plan = Plan {
        runtimes,
        runs: arguments.runs.into(),
        idle: arguments.idle.into(),
        unit: "ms",
        hangs: 0,
        is_hung: |_| false,
    };
    let report = measure::all(&plan, &root)?;
    if let Some(file) = &arguments.json {
        store(file, &report)?;
    }
    if let Some(file) = &arguments.svg {
        std::fs::write(file, chart::svg(&report)).map_err(|cause| BenchError::File(file.clone(), cause))?;
    }
    Ok(report)
}

/// Stores figures as JSON.
///
/// # Errors
/// The file cannot be written.
pub fn store(file: &Path, figures: &impl serde::Serialize) -> Result<(), BenchError> {
    let failed = |cause| BenchError::File(file.to_owned(), cause);
    let text = serde_json::to_string_pretty(figures).map_err(|cause| failed(cause.into()))?;
    std::fs::write(file, text + "\n").map_err(failed)
}
