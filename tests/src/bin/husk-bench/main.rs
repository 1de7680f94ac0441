//! Measures in the counting test bed: see `tests/bench/run`, which runs it there.
//!
//! The clock counts the machine's instructions (and waits for timers): 1 ms of it is a million instructions, a "vms"
//! below. Runs of the runtimes are interleaved, so that what drifts drifts for all.
//!
//! QEMU's nested SVM hangs a machine now and then (docs/operations.md, "Limits"): such a run is made again, and counted.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement that cannot go on has failed"
)]

mod boots;
mod calls;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use husk_cli::bench::ctr::Output;
use husk_cli::bench::measure::{self, Plan};
use husk_cli::bench::report::{Execs, Outcome, Runtime as Measured};
use husk_cli::bench::root::Root;
use husk_cli::bench::{store, table};
use husk_tests::ctr::Runtime;
use husk_tests::host::remove_everything;
use husk_tests::record::{Bar, Record};

/// What husk promises.
const MOST_OF_RUNC: f64 = 0.9;
const MOST_OF_RUNCS_EXEC: f64 = 0.4;
const MOST_OF_RUNCS_MEGABYTE: f64 = 0.5;
const MOST_READY_VMS: f64 = 50.0;
const MOST_EXITS: f64 = 500.0;
const MOST_PRIVATE_MIB: f64 = 6.0;
/// Machines that may hang, of all of them: more is not QEMU's doing.
const MOST_HUNG: usize = 3;
/// Idle containers over which the memory of one is measured.
const IDLE: usize = 10;
/// Limits that end a hung machine sooner than a person's.
const LIMITS: &str = "[limits]\nready_s = 15\ncall_s = 15\n";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [runs, commit, qemu, out] = &arguments[..] else {
        eprintln!("usage: husk-bench RUNS COMMIT QEMU OUT");
        return ExitCode::from(2);
    };
    let runs: usize = runs.parse().expect("RUNS is a number");
    fs::write("/etc/husk/config.toml", LIMITS).unwrap();
    let mut hung = Hung::default();
    let boot = boots::measure(LIMITS, &mut hung);
    let exits = hung.until_one_does_not(boots::exits_of_a_container);
    let plan = Plan {
        runtimes: [Runtime::Runc, Runtime::Null, Runtime::Husk].map(|runtime| runtime.name().to_owned()).to_vec(),
        runs,
        idle: IDLE,
        unit: "vms (millions of instructions of the whole machine)",
        hangs: MOST_HUNG,
        is_hung: |output: &Output| is_hung(output.status, &output.stderr),
    };
    let report = measure::all(&plan, &Root::new(None, None).unwrap()).unwrap_or_else(|cause| panic!("{cause}"));
    let calls = [Runtime::Runc, Runtime::Null, Runtime::Husk];
    let calls = calls.map(|runtime| (runtime.name().to_owned(), calls::of_a_start(runtime, &mut hung)));
    let mut record = Record {
        commit: commit.clone(),
        qemu: qemu.clone(),
        runc: runc_version(),
        hung: hung.0,
        bars: Vec::new(),
        boot,
        exits,
        calls: calls.into_iter().collect(),
        report,
    };
    record.bars = bars(&record);
    store(Path::new(out), &record).unwrap_or_else(|cause| panic!("{cause}"));
    print(&record)
}

fn bars(record: &Record) -> Vec<Bar> {
    let bar = |what: &str, value: Option<f64>, most| Bar { what: what.to_owned(), value: value.expect(what), most };
    vec![
        bar("start: (husk − null) / (runc − null)", record.above_the_floor().map(|ratio| ratio.median), MOST_OF_RUNC),
        bar(
            "exec: (husk − null) / (runc − null)",
            record.exec_above_the_floor().map(|ratio| ratio.median),
            MOST_OF_RUNCS_EXEC,
        ),
        bar("a megabyte of an exec's output: husk / runc", record.megabyte(), MOST_OF_RUNCS_MEGABYTE),
        bar("start of a machine alone to its agent's answer, vms", Some(record.boot.ready.median), MOST_READY_VMS),
        bar("exits to user space of such a start", Some(record.boot.exits_to_user_space.median), MOST_EXITS),
        bar("private memory of shim, VMM and stub, MiB", record.private_mib(), MOST_PRIVATE_MIB),
    ]
}

/// Shows the figures; fails if a promise is broken.
fn print(record: &Record) -> ExitCode {
    print!("{}", table::text(&record.report));
    println!("\nmachine alone, start to ready: {} vms", table::interval(&record.boot.ready));
    for (runtime, calls) in &record.calls {
        println!("system calls of a start, {runtime}: {}", table::interval(&calls.all));
    }
    println!("machines that hung and were started again: {}", record.hung + record.report.hung);
    let mut status = ExitCode::SUCCESS;
    for Bar { what, value, most } in &record.bars {
        let met = value <= most;
        println!("{}: {what}: {value:.2}, at most {most}", if met { "met" } else { "MISSED" });
        if !met {
            status = ExitCode::FAILURE;
        }
    }
    for runtime in [Runtime::Runc, Runtime::Husk] {
        let printed = |execs: &Outcome<Execs>| matches!(execs, Outcome::Measured(Execs { printed: true, .. }));
        let all = |measured: &Measured| measured.printed && printed(&measured.exec) && printed(&measured.exec_mib);
        if !record.runtime(runtime).is_some_and(all) {
            // containerd's client loses the end of an output where the shim does not wait for it (docs/performance.md): runc's does not.
            let ours = runtime == Runtime::Husk;
            let word = if ours { "MISSED" } else { "said, and no promise of husk's" };
            println!("{word}: containers of {} have not printed all that they were told to", runtime.name());
            if ours {
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}

fn runc_version() -> String {
    let output = Command::new("runc").arg("--version").output().expect("runc");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().unwrap_or_default().replace("version ", "")
}

/// How many machines have hung.
#[derive(Default)]
struct Hung(usize);

impl Hung {
    fn until_one_does_not<T>(&mut self, mut attempt: impl FnMut() -> Result<T, String>) -> T {
        loop {
            match attempt() {
                Ok(result) => return result,
                Err(cause) => {
                    eprintln!("bench: {cause}");
                    self.0 += 1;
                    assert!(self.0 <= MOST_HUNG, "too many machines hang");
                    remove_everything();
                }
            }
        }
    }
}

/// Whether the run was ended by a limit: husk's, which says so, or the one around `ctr`. Every other failure fails.
fn is_hung(status: Option<i32>, errors: &str) -> bool {
    let late = errors.contains("did not become ready in 15 s (limits.ready_s): its machine is running");
    let silent = errors.contains("the guest's agent did not") && errors.contains(" in 15 s (limits.call_s)");
    matches!(status, None | Some(124)) || late || silent
}
