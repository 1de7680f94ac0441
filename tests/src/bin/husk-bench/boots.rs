//! Machines without containerd, and what KVM counts.

use std::collections::BTreeMap;
use std::time::Instant;

use husk_cli::bench::stats::Summary;
use husk_shim::VERSION;
use husk_shim::config::Config;
use husk_shim::vm::{BootError, Machine, Parts, Size};
use husk_tests::ctr::Run;
use husk_tests::host::{kvm_counter, processes_of};
use husk_tests::record::Boot;
use husk_tests::rootfs;

use super::{Hung, is_hung};

/// Starts of the machine alone, after one that does not count.
const BOOTS: usize = 9;

/// One start.
struct Start {
    ready: f64,
    before_guest: f64,
    entry_to_init: f64,
    exits: u64,
    by_reason: BTreeMap<String, u64>,
}

/// Starts machines, one after the other.
pub fn measure(limits: &str, hung: &mut Hung) -> Boot {
    let starts: Vec<Start> = (0..=BOOTS).map(|_| hung.until_one_does_not(|| boot(limits))).skip(1).collect();
    let summary = |of: fn(&Start) -> f64| Summary::of(starts.iter().map(of)).unwrap();
    Boot {
        ready: summary(|start| start.ready),
        before_guest: summary(|start| start.before_guest),
        entry_to_init: summary(|start| start.entry_to_init),
        exits: summary(|start| start.exits as f64),
        exits_to_user_space: summary(|start| start.by_reason.values().sum::<u64>() as f64),
        by_reason: starts[BOOTS / 2].by_reason.clone(),
        runs: BOOTS,
    }
}

/// One machine from the start of its VMM to the agent's answer.
fn boot(limits: &str) -> Result<Start, String> {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = Config::parse(limits, "bench").unwrap();
        let console = directory.path().join("console");
        let start = Instant::now();
        let machine = Machine::spawn(Parts::of_version(VERSION), None).unwrap();
        machine.boot(Size { memory_mib: 128, vcpus: 1 }, &config, &console).await.unwrap();
        let (_agent, health) = match machine.agent(&config, &console).await {
            Ok(answer) => answer,
            Err(cause @ BootError::Late { .. }) => {
                machine.stop().await;
                return Err(cause.to_string());
            }
            Err(cause) => panic!("{cause}"),
        };
        let ready = start.elapsed();
        let metrics = machine.metrics().await.unwrap();
        // The guest's time stamp counter began with the vCPUs, and ticks once per instruction here.
        let entry_to_init = health.init_tsc.saturating_sub(metrics.vcpus_to_guest_ns);
        let result = Start {
            ready: ready.as_secs_f64() * 1000.0,
            before_guest: metrics.process_to_guest_ns as f64 / 1e6,
            entry_to_init: entry_to_init as f64 / 1e6,
            exits: kvm_counter(machine.process().pid().cast_signed(), "exits"),
            by_reason: metrics.exits,
        };
        machine.stop().await;
        Ok(result)
    })
}

/// KVM's own counters of a container's machine (Documentation/virt/kvm and `kvm_vcpu_stats_desc`), when its program runs.
pub fn exits_of_a_container() -> Result<BTreeMap<String, u64>, String> {
    let root = tempfile::tempdir().unwrap();
    rootfs::busybox(root.path());
    let run = Run::on_directory("exits", root.path()).start(&["sh", "-c", "touch /started; read line"]);
    let mut run = run.has_made(&root.path().join("started"));
    let [vmm] = processes_of("husk-vmm")[..] else { panic!("not one machine") };
    let counters = ["exits", "mmio_exits", "io_exits", "irq_exits", "halt_exits", "signal_exits", "irq_injections"];
    let counted = counters.map(|name| (name.to_owned(), kvm_counter(vmm, name)));
    drop(run.stdin.take());
    let output = run.wait();
    if is_hung(Some(output.status), &output.errors()) {
        return Err(output.errors());
    }
    Ok(counted.into_iter().collect())
}
