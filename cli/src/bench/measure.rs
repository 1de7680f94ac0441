//! The runs, and the end of everything that they made.

use std::cell::Cell;
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use husk_shim::phases::now;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::BenchError;
use super::ctr::{self, Output};
use super::host::{self, Counters};
use super::phases::{Stamps, has_stamps};
use super::report::{Execs, Idle, Outcome, Report, Run, Runs, Runtime, Segment};
use super::root::Root;

/// Runs that do not count: containerd's and the kernel's first times.
const WARM_UP: usize = 2;
/// Time for what is under way to end by itself after an interruption; a second one ends it at once.
const GRACE: Duration = Duration::from_secs(10);
/// What a container prints.
const WORD: &str = "husk";

/// What is measured.
#[derive(Debug)]
pub struct Plan {
    /// containerd's runtimes.
    pub runtimes: Vec<String>,
    /// Runs of each that count.
    pub runs: usize,
    /// Idle containers.
    pub idle: usize,
    /// What the clock's milliseconds are called.
    pub unit: &'static str,
    /// Runs that may hang, of all: they are made again.
    pub hangs: usize,
    /// Whether it is such a run that failed.
    pub is_hung: fn(&Output) -> bool,
}

/// Measures everything. What it made is removed when this returns, whatever it returns.
///
/// # Errors
/// A run fails; it is interrupted.
pub fn all(plan: &Plan, root: &Root) -> Result<Report, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BenchError::Loop)?;
    runtime.block_on(async {
        let bench = Bench {
            plan,
            root,
            stamps: Stamps::new()?,
            prefix: format!("husk-bench-{}-", std::process::id()),
            made: Cell::new(0),
            hung: Cell::new(0),
            interrupted: Cell::new(false),
            progress: Progress::new(),
        };
        let measured = bench.until_interrupted(bench.everything()).await;
        bench.progress.clear();
        match (measured, ctr::remove_all(&bench.prefix).await) {
            (measured, Ok(())) => measured,
            (Ok(_) | Err(BenchError::Interrupted), Err(left)) => Err(left),
            (Err(cause), Err(left)) => Err(BenchError::Left { cause: Box::new(cause), left: Box::new(left) }),
        }
    })
}

struct Bench<'a> {
    plan: &'a Plan,
    root: &'a Root,
    stamps: Stamps,
    /// Of the names of all containers.
    prefix: String,
    /// Containers that have had a name.
    made: Cell<usize>,
    hung: Cell<usize>,
    interrupted: Cell<bool>,
    progress: Progress,
}

/// A start, as it was seen.
struct Start {
    run: Run,
    printed: bool,
    phases: Vec<Segment>,
}

impl Bench<'_> {
    /// Lets the work go on to its next step after a signal, and no further.
    async fn until_interrupted<T>(&self, work: impl Future<Output = Result<T, BenchError>>) -> Result<T, BenchError> {
        let mut signals = Signals::new().map_err(BenchError::Loop)?;
        let mut work = std::pin::pin!(work);
        tokio::select! {
            result = &mut work => return result,
            () = signals.any() => {}
        }
        self.interrupted.set(true);
        self.progress.say("interrupted: the containers are being removed (once more: at once)");
        tokio::select! {
            result = &mut work => return result,
            () = signals.any() => {}
            () = tokio::time::sleep(GRACE) => {}
        }
        Err(BenchError::Interrupted)
    }

    /// Before everything that takes time.
    fn go_on(&self) -> Result<(), BenchError> {
        if self.interrupted.get() { Err(BenchError::Interrupted) } else { Ok(()) }
    }

    async fn everything(&self) -> Result<Report, BenchError> {
        let host = host::describe().await?;
        let starts = self.starts().await?;
        let execs = self.execs("exec", &["/bin/echo", WORD], &format!("{WORD}\n")).await?;
        // Zeroes: what is measured is how they get out.
        let bulk = ["/bin/dd", "if=/dev/zero", "bs=65536", "count=16"];
        let bulk = self.execs("exec with 1 MiB of output", &bulk, &"\0".repeat(1 << 20)).await?;
        let mut runtimes = Vec::new();
        for (((name, starts), exec), exec_mib) in starts.into_iter().zip(execs).zip(bulk) {
            let idle = self.idle(&name).await?;
            let printed = starts.iter().all(|start| start.printed);
            let phases = median_of(&starts);
            let start = Runs::of(starts.into_iter().map(|start| start.run).collect());
            let none = || BenchError::Failed { what: format!("measure {name}"), why: "no runs".to_owned() };
            let start = start.ok_or_else(none)?;
            runtimes.push(Runtime { name, start, printed, phases, exec, exec_mib, idle });
        }
        Ok(Report {
            husk: husk_shim::VERSION.to_owned(),
            host,
            unit: self.plan.unit.to_owned(),
            root: self.root.describe(),
            runs: self.plan.runs,
            warm_up: WARM_UP,
            hung: self.hung.get(),
            runtimes,
        })
    }

    fn id(&self) -> String {
        self.made.set(self.made.get() + 1);
        format!("{}{}", self.prefix, self.made.get())
    }

    /// The words of a `ctr run`.
    fn run_words(&self, runtime: &str, id: &str, flags: &[&str], at_once: bool, command: &[&str]) -> Vec<String> {
        let (root_flags, root) = self.root.words(at_once);
        let mut words: Vec<String> =
            ["run"].iter().chain(flags).chain(&root_flags).map(|word| (*word).to_owned()).collect();
        words.extend(["--runtime".to_owned(), runtime.to_owned()]);
        if has_stamps(runtime) {
            words.extend(["--runtime-config-path".to_owned(), self.stamps.config().display().to_string()]);
        }
        words.extend([root, id.to_owned()]);
        words.extend(command.iter().map(|word| (*word).to_owned()));
        words
    }

    /// Does it again when it hangs, as often as the plan allows.
    async fn not_hung(&self, what: &str, words: impl Fn() -> (String, Vec<String>)) -> Result<Timed, BenchError> {
        loop {
            self.go_on()?;
            let (id, words) = words();
            let before = Counters::now()?;
            let begin = now();
            let output = ctr::ctr(&words).await?;
            let end = now();
            if output.is_success() {
                return Ok(Timed { id, run: before.run(end - begin)?, begin, end, output });
            }
            ctr::remove(&id).await?;
            if !(self.plan.is_hung)(&output) || self.hung.get() >= self.plan.hangs {
                return Err(BenchError::Failed { what: what.to_owned(), why: output.complaint() });
            }
            self.hung.set(self.hung.get() + 1);
            self.progress.say(&format!("{what}: it hung and is made again: {}", output.complaint()));
        }
    }

    /// Starts of all runtimes, one of each in turn.
    async fn starts(&self) -> Result<Vec<(String, Vec<Start>)>, BenchError> {
        let mut starts: Vec<(String, Vec<Start>)> =
            self.plan.runtimes.iter().map(|runtime| (runtime.clone(), Vec::new())).collect();
        for round in 0..self.plan.runs + WARM_UP {
            self.progress.round("start", round, self.plan.runs);
            for (runtime, into) in &mut starts {
                let timed = self
                    .not_hung(&format!("start a container with {runtime}"), || {
                        let id = self.id();
                        let words = self.run_words(runtime, &id, &["--rm"], false, &["/bin/echo", WORD]);
                        (id, words)
                    })
                    .await?;
                if round >= WARM_UP {
                    let phases = self.stamps.of(&timed.id, timed.begin, timed.end).unwrap_or_default();
                    let printed = timed.output.stdout.trim_end() == WORD;
                    into.push(Start { run: timed.run, printed, phases });
                }
            }
        }
        Ok(starts)
    }

    /// An idle container.
    async fn stay(&self, runtime: &str) -> Result<Outcome<String>, BenchError> {
        let flags = ["-d", "--null-io"];
        // Longer than anybody waits.
        let started = self
            .not_hung(&format!("start an idle container with {runtime}"), || {
                let id = self.id();
                let words = self.run_words(runtime, &id, &flags, true, &["/bin/sleep", "1000000"]);
                (id, words)
            })
            .await?;
        if ctr::is_running(&started.id).await? {
            return Ok(Outcome::Measured(started.id));
        }
        ctr::remove(&started.id).await?;
        Ok(Outcome::Refused("its containers do not stay".to_owned()))
    }

    /// Execs of `command` in one idle container of each runtime, in turn; `wanted` is what they are to print.
    async fn execs(&self, what: &str, command: &[&str], wanted: &str) -> Result<Vec<Outcome<Execs>>, BenchError> {
        let mut containers = Vec::new();
        for runtime in &self.plan.runtimes {
            containers.push(self.stay(runtime).await?);
        }
        let mut runs: Vec<Vec<Run>> = vec![Vec::new(); containers.len()];
        let mut printed = vec![true; containers.len()];
        for round in 0..self.plan.runs + WARM_UP {
            self.progress.round(what, round, self.plan.runs);
            for (at, (container, runtime)) in containers.iter_mut().zip(&self.plan.runtimes).enumerate() {
                let Outcome::Measured(id) = &*container else { continue };
                self.go_on()?;
                let exec = format!("exec{round}");
                let words: Vec<&str> =
                    ["task", "exec", "--exec-id", &exec, id].into_iter().chain(command.iter().copied()).collect();
                let before = Counters::now()?;
                let begin = now();
                let output = ctr::ctr(&words).await?;
                let end = now();
                if output.is_success() {
                    if let Some(printed) = printed.get_mut(at) {
                        *printed &= output.stdout == wanted;
                    }
                    if round >= WARM_UP
                        && let Some(into) = runs.get_mut(at)
                    {
                        into.push(before.run(end - begin)?);
                    }
                } else if round == 0 {
                    ctr::remove(id).await?;
                    *container = Outcome::Refused(output.complaint());
                } else {
                    let what = format!("run a process in a container of {runtime}");
                    return Err(BenchError::Failed { what, why: output.complaint() });
                }
            }
        }
        let mut outcomes = Vec::new();
        for ((container, runs), printed) in containers.into_iter().zip(runs).zip(printed) {
            outcomes.push(match (container, Runs::of(runs)) {
                (Outcome::Measured(id), Some(runs)) => {
                    ctr::remove(&id).await?;
                    Outcome::Measured(Execs { runs, printed })
                }
                (Outcome::Refused(why), _) => Outcome::Refused(why),
                (Outcome::Measured(_), None) => Outcome::Refused("no runs".to_owned()),
            });
        }
        Ok(outcomes)
    }

    /// Memory: of the first idle container's runtime, and of the host for more of them.
    async fn idle(&self, runtime: &str) -> Result<Outcome<Idle>, BenchError> {
        self.progress.say(&format!("idle memory of {runtime}"));
        let first = match self.stay(runtime).await? {
            Outcome::Measured(first) => first,
            Outcome::Refused(why) => return Ok(Outcome::Refused(why)),
        };
        let processes = host::processes_for(&first);
        let before = host::available_kib()?;
        let mut ids = vec![first];
        for _ in 0..self.plan.idle {
            match self.stay(runtime).await? {
                Outcome::Measured(id) => ids.push(id),
                Outcome::Refused(why) => {
                    ctr::remove_all(&self.prefix).await?;
                    return Ok(Outcome::Refused(why));
                }
            }
        }
        let taken = before as f64 - host::available_kib()? as f64;
        for id in ids {
            ctr::remove(&id).await?;
        }
        Ok(Outcome::Measured(Idle {
            more: self.plan.idle,
            available_kib_each: taken / self.plan.idle as f64,
            processes,
        }))
    }
}

/// What tells a program to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// A run of `ctr` that went well.
struct Timed {
    id: String,
    run: Run,
    /// CLOCK_MONOTONIC, nanoseconds.
    begin: u64,
    end: u64,
    output: Output,
}

/// The phases of the start in the middle: those of one run add up, medians of each would not.
fn median_of(starts: &[Start]) -> Vec<Segment> {
    let mut order: Vec<&Start> = starts.iter().filter(|start| !start.phases.is_empty()).collect();
    order.sort_by(|one, other| one.run.time.total_cmp(&other.run.time));
    order.get(order.len().saturating_sub(1) / 2).map(|start| start.phases.clone()).unwrap_or_default()
}

/// On the standard error: one line that changes, or, where it is no terminal, a line a step.
struct Progress {
    terminal: bool,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    fn round(&self, what: &str, round: usize, runs: usize) {
        match round.checked_sub(WARM_UP) {
            None => self.say(&format!("{what}: warm-up {} of {WARM_UP}", round + 1)),
            Some(run) => self.say(&format!("{what}: run {} of {runs} of each runtime", run + 1)),
        }
    }

    fn say(&self, words: &str) {
        let mut err = std::io::stderr().lock();
        // Nobody to tell.
        let _ = if self.terminal {
            write!(err, "\r\x1b[Khusk bench: {words}")
        } else {
            writeln!(err, "husk bench: {words}")
        };
        let _ = err.flush();
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Who;
    use super::*;

    fn start(time: f64, stamped: bool) -> Start {
        let phases = if stamped { vec![Segment { who: Who::Shim, time }] } else { Vec::new() };
        let run = Run { time, page_faults: 0, context_switches: 0, processes: 0 };
        Start { run, printed: true, phases }
    }

    #[test]
    fn the_phases_are_those_of_the_run_in_the_middle() {
        let starts = [start(9.0, true), start(1.0, true), start(4.0, true), start(3.0, true), start(2.0, false)];
        assert_eq!(median_of(&starts), [Segment { who: Who::Shim, time: 3.0 }]);
        assert_eq!(median_of(&[start(1.0, false)]), []);
        assert_eq!(median_of(&[]), []);
    }

    #[test]
    fn only_husk_gets_the_configuration_with_stamps() {
        let root = Root::new(Some("an/image"), None).unwrap();
        let plan = Plan { runtimes: Vec::new(), runs: 1, idle: 1, unit: "ms", hangs: 0, is_hung: |_| false };
        let bench = Bench {
            plan: &plan,
            root: &root,
            stamps: Stamps::new().unwrap(),
            prefix: "husk-bench-1-".to_owned(),
            made: Cell::new(0),
            hung: Cell::new(0),
            interrupted: Cell::new(false),
            progress: Progress { terminal: false },
        };
        let id = bench.id();
        let words = bench.run_words("io.containerd.runc.v2", &id, &["--rm"], false, &["/bin/echo", WORD]);
        assert_eq!(words.join(" "), "run --rm --runtime io.containerd.runc.v2 an/image husk-bench-1-1 /bin/echo husk");
        let words = bench.run_words("io.containerd.husk.v2", &bench.id(), &[], true, &["/bin/sleep", "1"]).join(" ");
        let config = bench.stamps.config().display().to_string();
        assert!(words.contains(&format!("--runtime-config-path {config} an/image husk-bench-1-2")), "{words}");
        assert!(std::fs::read_to_string(config).unwrap().contains("phases_file"));
    }
}
