//! Measures in the counting test bed: see `tests/bench/run`, which runs it there.
//!
//! The clock counts the machine's instructions (and waits for timers): 1 ms of it is a million instructions, a "vms"
//! below. Runs of the runtimes are interleaved, so that what drifts drifts for both.
//!
//! QEMU's nested SVM hangs a machine now and then (docs/operations.md, "Limits"): such a run is made again, and counted.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement that cannot go on has failed"
)]

use std::fs;
use std::path::Path;
use std::time::Instant;

use husk_shim::VERSION;
use husk_shim::config::Config;
use husk_shim::vm::{BootError, Machine, Parts, Size};
use husk_tests::ctr::{Output, Run, Runtime};
use husk_tests::host::{processes_of, remove_everything};
use husk_tests::rootfs;
use serde_json::{Value, json};

/// Runs that are thrown away before: containerd's and the kernel's first times.
const WARM_UP: usize = 2;
/// Starts of the machine alone.
const BOOTS: usize = 9;
/// What husk promises (the first of its issues): medians above these fail.
const MOST_OF_RUNC: f64 = 1.0;
const MOST_READY_VMS: f64 = 60.0;
/// Machines that may hang, of all of them: more is not QEMU's doing.
const MOST_HUNG: usize = 3;
/// Limits that end a hung machine sooner than a person's.
const LIMITS: &str = "[limits]\nready_s = 15\ncall_s = 15\n";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [runs, commit, date, qemu, out] = &arguments[..] else {
        eprintln!("usage: husk-bench RUNS COMMIT DATE QEMU OUT");
        std::process::exit(2);
    };
    let runs: usize = runs.parse().expect("RUNS is a number");
    let thp = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap();
    fs::write("/etc/husk/config.toml", LIMITS).unwrap();
    let mut hung = Hung::default();
    let boots: Vec<Value> = (0..=BOOTS).map(|_| hung.until_one_does_not(boot)).skip(1).collect();
    let ready = Summary::of(boots.iter().map(|boot| boot["ready_vms"].as_f64().unwrap()).collect());
    let exits = hung.until_one_does_not(exits_of_a_container);
    println!("VMM start to agent ready, 1 vCPU, 128 MiB: {}", ready.text());
    let phase = |key: &str| Summary::of(boots.iter().map(|boot| boot[key].as_f64().unwrap()).collect());
    println!("  of these, the VMM before the guest: {}", phase("vmm_before_guest_vms").text());
    println!("  the guest's kernel, from its entry to /init: {}", phase("guest_entry_to_init_vms").text());
    println!("  one of them: {}", boots[BOOTS / 2]);
    let (runc, husk) = containers(runs, &mut hung);
    let (runc_time, husk_time) = (Summary::of(times(&runc)), Summary::of(times(&husk)));
    println!("ctr run --rm, busybox echo, runc: {}", runc_time.text());
    println!("ctr run --rm, busybox echo, husk: {}", husk_time.text());
    let ratio = husk_time.median / runc_time.median;
    println!("husk / runc, of the medians: {ratio:.2}");
    println!("exits of a container's machine up to its program: {exits}");
    println!("machines that hung and were started again: {}", hung.0);
    let report = json!({
        "hung": hung.0, "commit": commit, "date": date, "qemu": qemu, "host_kernel": release(), "transparent_hugepage": thp.trim(),
        "unit": "vms: a million instructions of the whole machine, waits for timers included",
        "ctr_run": { "runs": runs, "runc": runc_time.json(&runc), "husk": husk_time.json(&husk), "ratio": ratio, "kvm": exits },
        "vmm_start_to_ready": { "vcpus": 1, "memory_mib": 128, "ready": ready.json(&boots) },
    });
    fs::write(out, serde_json::to_string_pretty(&report).unwrap()).unwrap();
    assert!(ratio <= MOST_OF_RUNC, "husk takes longer than runc");
    assert!(ready.median <= MOST_READY_VMS, "the machine is ready after more than {MOST_READY_VMS} vms");
}

fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim().to_owned()
}

/// Counters of the whole host.
#[derive(Clone, Copy)]
struct Counters {
    faults: u64,
    switches: u64,
    processes: u64,
}

impl Counters {
    fn now() -> Self {
        let field = |text: &str, key: &str| -> u64 {
            let line = text.lines().find(|line| line.split_whitespace().next() == Some(key)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let (vmstat, stat) = (fs::read_to_string("/proc/vmstat").unwrap(), fs::read_to_string("/proc/stat").unwrap());
        Self { faults: field(&vmstat, "pgfault"), switches: field(&stat, "ctxt"), processes: field(&stat, "processes") }
    }
}

/// What happened between `before` and now.
fn measured(start: Instant, before: Counters) -> Value {
    let elapsed = start.elapsed();
    let after = Counters::now();
    json!({
        "vms": elapsed.as_secs_f64() * 1000.0,
        "page_faults": after.faults - before.faults,
        "context_switches": after.switches - before.switches,
        "processes": after.processes - before.processes,
    })
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
fn is_hung(output: &Output) -> bool {
    let errors = output.errors();
    let late = errors.contains("did not become ready in 15 s: its machine is running");
    output.status == 124 || late || (errors.contains("the guest's agent did not") && errors.contains(" in 15 s"))
}

/// `runs` of each runtime, interleaved.
fn containers(runs: usize, hung: &mut Hung) -> (Vec<Value>, Vec<Value>) {
    let root = tempfile::tempdir().unwrap();
    rootfs::busybox(root.path());
    let (mut runc, mut husk) = (Vec::new(), Vec::new());
    for run in 0..runs + WARM_UP {
        for (runtime, into) in [(Runtime::Runc, &mut runc), (Runtime::Husk, &mut husk)] {
            let container = Run::on_directory(&format!("bench{run}"), root.path()).runtime(runtime);
            let result = hung.until_one_does_not(|| {
                let (before, start) = (Counters::now(), Instant::now());
                let output = container.run(&["echo", "hello"]);
                let result = measured(start, before);
                if is_hung(&output) {
                    return Err(format!("hung: status {}: {}", output.status, output.errors()));
                }
                assert_eq!((output.status, &*output.text()), (0, "hello\n"), "{}", output.errors());
                Ok(result)
            });
            if run >= WARM_UP {
                into.push(result);
            }
        }
        eprintln!("bench: run {} of {}", run + 1, runs + WARM_UP);
    }
    (runc, husk)
}

fn times(results: &[Value]) -> Vec<f64> {
    results.iter().map(|result| result["vms"].as_f64().unwrap()).collect()
}

/// One machine from the start of its VMM to the agent's answer.
fn boot() -> Result<Value, String> {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = Config::parse(LIMITS, "bench").unwrap();
        let console = directory.path().join("console");
        let before = Counters::now();
        let start = Instant::now();
        let machine = Machine::spawn(Parts::of_version(VERSION)).unwrap();
        machine.boot(Size { memory_mib: 128, vcpus: 1 }, &config, &console).await.unwrap();
        let (_agent, health) = match machine.agent(&config, &console).await {
            Ok(answer) => answer,
            Err(cause @ BootError::Late { .. }) => {
                machine.stop().await;
                return Err(cause.to_string());
            }
            Err(cause) => panic!("{cause}"),
        };
        let mut result = measured(start, before);
        let metrics = machine.metrics().await.unwrap();
        let exits: u64 = metrics.exits.values().sum();
        let fields = result.as_object_mut().unwrap();
        let vms = fields.remove("vms").unwrap();
        fields.insert("ready_vms".to_owned(), vms);
        fields.insert("vmm_before_guest_vms".to_owned(), (metrics.process_to_guest_ns as f64 / 1e6).into());
        // The guest's time stamp counter began with the vCPUs, and ticks once per instruction here.
        let entry_to_init = health.init_tsc.saturating_sub(metrics.vcpus_to_guest_ns);
        fields.insert("guest_entry_to_init_vms".to_owned(), (entry_to_init as f64 / 1e6).into());
        fields.insert("exits_to_user_space".to_owned(), exits.into());
        fields.insert("exits_by_reason".to_owned(), serde_json::to_value(&metrics.exits).unwrap());
        fields.insert("exits_in_all".to_owned(), kvm_counter(machine.process().pid().cast_signed(), "exits").into());
        machine.stop().await;
        Ok(result)
    })
}

/// KVM's own counters of a container's machine (Documentation/virt/kvm and `kvm_vcpu_stats_desc`), when its program runs.
fn exits_of_a_container() -> Result<Value, String> {
    let root = tempfile::tempdir().unwrap();
    rootfs::busybox(root.path());
    let run = Run::on_directory("exits", root.path()).start(&["sh", "-c", "touch /started; read line"]);
    let mut run = run.has_made(&root.path().join("started"));
    let [vmm] = processes_of("husk-vmm")[..] else { panic!("not one machine") };
    let counters = ["exits", "mmio_exits", "io_exits", "irq_exits", "halt_exits", "signal_exits", "irq_injections"];
    let counted = counters.map(|name| (name.to_owned(), kvm_counter(vmm, name).into()));
    drop(run.stdin.take());
    let output = run.wait();
    if is_hung(&output) {
        return Err(output.errors());
    }
    Ok(Value::Object(counted.into_iter().collect()))
}

fn kvm_counter(pid: i32, counter: &str) -> u64 {
    let machines = fs::read_dir("/sys/kernel/debug/kvm").unwrap().flatten();
    let ours = machines.map(|entry| entry.path()).find(|path| name(path).starts_with(&format!("{pid}-")));
    fs::read_to_string(ours.unwrap().join(counter)).unwrap().trim().parse().unwrap()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A median with its interval, of order statistics: no distribution is assumed.
struct Summary {
    median: f64,
    low: f64,
    high: f64,
    /// How sure the interval is.
    coverage: f64,
}

impl Summary {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let n = values.len();
        let median = if n % 2 == 1 { values[n / 2] } else { f64::midpoint(values[n / 2 - 1], values[n / 2]) };
        // The narrowest pair of ranks whose binomial probability is 95 % or more; with few values, all of them.
        let rank = (0..n.div_ceil(2)).rev().find(|rank| coverage(n, *rank) >= 0.95).unwrap_or(0);
        Self { median, low: values[rank], high: values[n - 1 - rank], coverage: coverage(n, rank) }
    }

    fn text(&self) -> String {
        let Self { median, low, high, coverage } = self;
        format!("median {median:.1} vms ({:.0} %: {low:.1} to {high:.1})", coverage * 100.0)
    }

    fn json(&self, all: &[Value]) -> Value {
        json!({
            "median": self.median, "low": self.low, "high": self.high, "coverage": self.coverage, "all": all,
        })
    }
}

/// How probable it is that the median is between the values of rank `rank` from below and from above, of `n`.
fn coverage(n: usize, rank: usize) -> f64 {
    // P(at most `rank` of n coins are heads), twice, is outside.
    let mut term = 0.5_f64.powi(i32::try_from(n).unwrap_or(i32::MAX));
    let mut below = 0.0;
    for k in 0..=rank {
        below += term;
        term *= (n - k) as f64 / (k + 1) as f64;
    }
    1.0 - 2.0 * below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_the_binomials() {
        // As in every table of the sign test: n = 30 gives the 10th value from either side, 95.7 %.
        let thirty = Summary::of((1..=30).map(f64::from).collect());
        assert_eq!((thirty.median, thirty.low, thirty.high), (15.5, 10.0, 21.0));
        assert!((thirty.coverage - 0.957).abs() < 0.001, "{}", thirty.coverage);
        // Three values cannot be surer than this.
        let three = Summary::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((three.median, three.low, three.high, three.coverage), (2.0, 1.0, 3.0, 0.75));
    }
}
