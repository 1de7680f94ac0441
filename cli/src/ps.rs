//! `husk ps`: the pods of this host, their containers, their memory, and since when they run.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use husk_shim::host::process::Identity;
use serde::Serialize;

use crate::host::Host;
use crate::pods::{self, Pod};
use crate::terminal::{escaped, table};

/// Ids of containers in the table are cut to so many characters: Kubernetes' have 64.
const SHORT_ID: usize = 13;

/// What may be asked.
#[derive(clap::Args)]
#[command(
    after_help = "MEMORY is what the pod's processes on the host hold: the machine (VMM) with what its guest has \
    touched, the shim and one small process per container. Memory shared with others counts in part (PSS)."
)]
pub struct Arguments {
    /// Print JSON: a list of objects with `namespace`, `id`, `state`, `containers`, `memory_kib`, `cgroup_kib`, `uptime_s`,
    /// `shim_pid`, `version` and `remedy`
    #[arg(long)]
    json: bool,
}

/// How a pod stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Condition {
    /// Its machine runs.
    Running,
    /// Its machine has ended; its shim waits for containerd to delete it.
    Ended,
    /// Its shim is gone, and nobody has removed what it had.
    Stale,
    /// Its shim has not written yet what it has, or never will.
    Unknown,
}

impl Condition {
    fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Ended => "ended",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
        }
    }
}

/// A line.
#[derive(Debug, Serialize)]
struct Line {
    namespace: String,
    id: String,
    state: Condition,
    /// Those whose process is there.
    containers: Vec<String>,
    /// Proportional set size of shim, VMM and stubs.
    memory_kib: Option<u64>,
    /// What the pod's cgroup is charged with: VMM and stubs, and the files that they have read.
    cgroup_kib: Option<u64>,
    /// Since the shim's start.
    uptime_s: Option<u64>,
    shim_pid: Option<u32>,
    version: Option<String>,
    remedy: Option<String>,
}

/// Lists the pods.
pub fn run(arguments: &Arguments) -> ExitCode {
    let host = Host::this();
    let lines: Vec<Line> = match pods::all(&host) {
        Ok(pods) => pods.into_iter().map(|pod| line(&host, pod)).collect(),
        Err(cause) => {
            crate::complain(&cause.to_string());
            return ExitCode::FAILURE;
        }
    };
    if arguments.json {
        crate::print_json(&lines)
    } else {
        crate::print(&text(&lines))
    }
    ExitCode::SUCCESS
}

fn line(host: &Host, pod: Pod) -> Line {
    let Pod { namespace, id, directory, state } = pod;
    let cleanup = format!(
        "ctr -n {namespace} task delete -f {id}; if containerd does not know it: \
         containerd-shim-husk-v2 -namespace {namespace} -id {id} delete >/dev/null"
    );
    let state = match state {
        Ok(Some(state)) => state,
        other => {
            let why = other.err().unwrap_or_else(|| "it has no state file".to_owned());
            let remedy =
                format!("{why}: if it is not just starting, look into {}, then: {cleanup}", directory.display());
            return Line {
                namespace,
                id,
                state: Condition::Unknown,
                containers: Vec::new(),
                memory_kib: None,
                cgroup_kib: None,
                uptime_s: None,
                shim_pid: None,
                version: None,
                remedy: Some(remedy),
            };
        }
    };
    let living: Vec<&Identity> = state.processes.iter().filter(|process| process.is_alive()).collect();
    let is_stub = |process: &Identity| state.containers.values().any(|stub| stub == process);
    let condition = match (state.shim.is_alive(), living.iter().any(|process| !is_stub(process))) {
        (false, _) => Condition::Stale,
        (true, true) => Condition::Running,
        (true, false) => Condition::Ended,
    };
    let shim = (condition != Condition::Stale).then_some(&state.shim);
    let sizes: Vec<u64> =
        living.iter().copied().chain(shim).filter_map(|process| memory_kib(&host.proc, process.pid)).collect();
    let current = state.cgroup.as_ref().and_then(|path| fs::read_to_string(path.join("memory.current")).ok());
    let containers = state.containers.iter().filter(|(_, stub)| stub.is_alive()).map(|(id, _)| id.clone());
    Line {
        state: condition,
        containers: containers.collect(),
        memory_kib: (!sizes.is_empty()).then(|| sizes.iter().sum()),
        cgroup_kib: current.and_then(|bytes| bytes.trim().parse::<u64>().ok()).map(|bytes| bytes / 1024),
        uptime_s: shim.and_then(|shim| uptime_s(&host.proc, shim.started)),
        shim_pid: shim.map(|shim| shim.pid),
        version: Some(state.version.clone()),
        remedy: (condition == Condition::Stale).then(|| format!("its shim is gone; remove what it left: {cleanup}")),
        namespace,
        id,
    }
}

/// A process's proportional set size (proc_pid_smaps(5)).
fn memory_kib(proc: &Path, pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(proc.join(pid.to_string()).join("smaps_rollup")).ok()?;
    let value = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    value.split_whitespace().next()?.parse().ok()
}

/// How long ago something started that started so many clock ticks after boot.
fn uptime_s(proc: &Path, started: u64) -> Option<u64> {
    let text = fs::read_to_string(proc.join("uptime")).ok()?;
    let now: u64 = text.split('.').next()?.parse().ok()?;
    Some(now.saturating_sub(started.checked_div(rustix::param::clock_ticks_per_second())?))
}

fn text(lines: &[Line]) -> String {
    if lines.is_empty() {
        return "no pods\n".to_owned();
    }
    let header = ["NAMESPACE", "ID", "STATE", "MEMORY", "UPTIME", "VERSION", "CONTAINERS"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let unknown = || "-".to_owned();
    for line in lines {
        let containers: Vec<String> = line.containers.iter().map(|id| short(&safe(id))).collect();
        rows.push(vec![
            safe(&line.namespace),
            safe(&line.id),
            line.state.word().to_owned(),
            line.memory_kib.map_or_else(unknown, size),
            line.uptime_s.map_or_else(unknown, duration),
            line.version.as_deref().map_or_else(unknown, safe),
            if containers.is_empty() { unknown() } else { containers.join(",") },
        ]);
    }
    let mut text = table(&rows);
    for line in lines {
        if let Some(remedy) = &line.remedy {
            let (namespace, id, remedy) = (safe(&line.namespace), safe(&line.id), safe(remedy));
            text.push_str(&format!("\n{namespace}/{id}: {remedy}\n"));
        }
    }
    text
}

/// A name as a directory or a state file has it, which need not be one of containerd's.
fn safe(name: &str) -> String {
    escaped(name, false).into_owned()
}

fn short(id: &str) -> String {
    if id.chars().count() <= SHORT_ID { id.to_owned() } else { id.chars().take(SHORT_ID - 1).chain(['~']).collect() }
}

fn size(kib: u64) -> String {
    if kib < 10 << 10 { format!("{kib} KiB") } else { format!("{} MiB", kib >> 10) }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use husk_shim::host::process::started;
    use husk_shim::host::state::State;
    use std::collections::BTreeMap;

    /// A pod whose processes are this test's own, which certainly live.
    fn pod(change: impl FnOnce(&mut State)) -> Line {
        let root = tempfile::tempdir().unwrap();
        let host = Host { proc: "/proc".into(), ..Host::below(root.path()) };
        let pid = std::process::id();
        let this = Identity { pid, started: started(pid).unwrap() };
        let stub = Identity { pid: 1, started: started(1).unwrap() };
        let mut state = State {
            version: "1.2.3".to_owned(),
            shim: this,
            processes: vec![this, stub],
            containers: BTreeMap::from([("c1".to_owned(), stub)]),
            socket: "/s".into(),
            cgroup: Some(root.path().into()),
            network: None,
            ended: false,
        };
        change(&mut state);
        fs::write(root.path().join("memory.current"), "4194304\n").unwrap();
        let directory = root.path().join("d");
        line(&host, Pod { namespace: "default".to_owned(), id: "c1".to_owned(), directory, state: Ok(Some(state)) })
    }

    #[test]
    fn a_running_pod_is_described() {
        let line = pod(|_| {});
        assert_eq!((line.state, line.containers.as_slice()), (Condition::Running, &["c1".to_owned()][..]));
        assert_eq!((line.cgroup_kib, line.shim_pid), (Some(4096), Some(std::process::id())));
        assert!(line.memory_kib.unwrap() > 100 && line.uptime_s.unwrap() < 600, "{line:?}");
        assert!(line.remedy.is_none());
        let shown = text(&[line]);
        assert!(shown.lines().nth(1).unwrap().starts_with("default    c1  running  "), "{shown}");
    }

    #[test]
    fn an_ended_machine_and_a_lost_shim_are_told_apart() {
        let line = pod(|state| state.processes.truncate(0));
        assert_eq!((line.state, line.remedy), (Condition::Ended, None));
        // Its number is somebody else's by now.
        let line = pod(|state| state.shim.started += 1);
        assert_eq!((line.state, line.shim_pid, line.uptime_s), (Condition::Stale, None, None));
        assert!(text(&[line]).contains("containerd-shim-husk-v2 -namespace default -id c1 delete"));
    }

    #[test]
    fn another_process_of_a_containers_number_is_not_its_own() {
        let line = pod(|state| state.containers.values_mut().for_each(|stub| stub.started += 1));
        assert!(line.containers.is_empty(), "{line:?}");
    }

    #[test]
    fn a_pod_without_a_state_is_shown() {
        let root = tempfile::tempdir().unwrap();
        for state in [Ok(None), Err("its state file cannot be read: x".to_owned())] {
            let directory = root.path().to_owned();
            let pod = Pod { namespace: "n".to_owned(), id: "i".to_owned(), directory, state };
            let line = line(&Host::below(root.path()), pod);
            assert_eq!(line.state, Condition::Unknown);
            assert!(line.remedy.unwrap().contains("state file"));
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([59, 61, 3660, 90000].map(duration), ["59s", "1m1s", "1h1m", "1d1h"]);
        assert_eq!([1024, 102_400].map(size), ["1024 KiB", "100 MiB"]);
        assert_eq!(short("0123456789abcdef"), "0123456789ab~");
        assert_eq!(text(&[]), "no pods\n");
    }
}
