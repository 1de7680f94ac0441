//! Whether a pod that does nothing wakes anybody.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use husk_tests::host::processes_of;

/// How long nothing is done.
const QUIET: Duration = Duration::from_secs(60);
/// What a start leaves to do afterwards (the guest's deferred work, the shim's first looks) is not idleness.
const SETTLED: Duration = Duration::from_secs(20);

/// Context switches in a minute, by program and thread, of those that have any.
pub fn switches() -> BTreeMap<String, u64> {
    thread::sleep(SETTLED);
    let before = counts();
    thread::sleep(QUIET);
    let after = counts();
    assert!(!after.is_empty(), "there is nothing of husk");
    let more = |(thread, count): (String, u64)| {
        let more = count - before.get(&thread).copied().unwrap_or(0);
        (more > 0).then_some((thread, more))
    };
    after.into_iter().filter_map(more).collect()
}

/// Of all threads of husk's, both kinds (proc_pid_status(5)).
fn counts() -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for program in ["husk-vmm", "containerd-shim-husk-v2", "husk-stub"] {
        for pid in processes_of(program) {
            for entry in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
                let thread = entry.file_name().to_string_lossy().into_owned();
                let status = fs::read_to_string(entry.path().join("status")).unwrap();
                let field =
                    |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
                let count = |name: &str| field(name).parse::<u64>().unwrap();
                let switches = count("voluntary_ctxt_switches:") + count("nonvoluntary_ctxt_switches:");
                counts.insert(format!("{program} {} ({thread})", field("Name:")), switches);
            }
        }
    }
    counts
}
