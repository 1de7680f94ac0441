//! What the host says: counters, versions, memory and processes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{SystemTime, UNIX_EPOCH};

use super::ctr::must;
use super::report::{Host, Process};
use super::{BenchError, report};

/// A mapping of this size, in KiB, in a process that has a virtual machine is the guest's memory.
const GUEST_KIB: u64 = 64 * 1024;

/// Counters of the whole host.
#[derive(Debug, Clone, Copy)]
pub struct Counters {
    faults: u64,
    switches: u64,
    processes: u64,
}

impl Counters {
    /// As they are.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub fn now() -> Result<Self, BenchError> {
        let (vmstat, stat) = (read("/proc/vmstat")?, read("/proc/stat")?);
        Ok(Self {
            faults: field(&vmstat, "pgfault"),
            switches: field(&stat, "ctxt"),
            processes: field(&stat, "processes"),
        })
    }

    /// A run that began with these counters and took so many nanoseconds.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub fn run(self, ns: u64) -> Result<report::Run, BenchError> {
        let after = Self::now()?;
        Ok(report::Run {
            time: ns as f64 / 1e6,
            page_faults: after.faults.saturating_sub(self.faults),
            context_switches: after.switches.saturating_sub(self.switches),
            processes: after.processes.saturating_sub(self.processes),
        })
    }
}

/// Memory that a program could still get, KiB.
///
/// # Errors
/// There is no `/proc`.
pub fn available_kib() -> Result<u64, BenchError> {
    Ok(field(&read("/proc/meminfo")?, "MemAvailable:"))
}

fn read(path: &str) -> Result<String, BenchError> {
    fs::read_to_string(path).map_err(|cause| BenchError::File(path.into(), cause))
}

/// The number after `key`, which begins a line; 0 if there is none.
fn field(text: &str, key: &str) -> u64 {
    let mut values = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == key).then(|| words.next()?.parse().ok())?
    });
    values.next().unwrap_or(0)
}

/// This host.
///
/// # Errors
/// containerd does not answer.
pub async fn describe() -> Result<Host, BenchError> {
    // Of the daemon: the second of the two that `ctr version` tells.
    let versions = must(&["version"]).await?;
    let containerd = versions.lines().filter_map(|line| line.trim().strip_prefix("Version:")).next_back();
    let pages = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let chosen = pages.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    Ok(Host {
        date: date(),
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        containerd: containerd.unwrap_or("unknown").trim().to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_mib: field(&read("/proc/meminfo")?, "MemTotal:") / 1024,
        transparent_hugepage: chosen.map_or("not there", |(chosen, _)| chosen).to_owned(),
    })
}

/// Today, UTC.
fn date() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    husk_shim::logger::timestamp(now).chars().take(10).collect()
}

/// The processes of a container's runtime: those that name its id, and their descendants, but for what is in a PID
/// namespace of its own, which is the container.
#[must_use]
pub fn processes_for(id: &str) -> Vec<Process> {
    let all: Vec<(u32, u32)> = numbers("/proc").into_iter().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let own = std::process::id();
    let mut chosen: Vec<u32> =
        all.iter().map(|(pid, _)| *pid).filter(|pid| *pid != own && command_names(*pid, id)).collect();
    loop {
        let more: Vec<u32> = all
            .iter()
            .filter(|(pid, parent)| chosen.contains(parent) && !chosen.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        chosen.extend(more);
    }
    let namespace = |pid: u32| fs::metadata(format!("/proc/{pid}/ns/pid")).ok().map(|data| data.ino());
    let ours = namespace(own);
    chosen.into_iter().filter(|pid| namespace(*pid) == ours).filter_map(process).collect()
}

fn numbers(directory: &str) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    u32::try_from(field(&status, "PPid:")).ok()
}

fn command_names(pid: u32, id: &str) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).any(|word| word.split(|byte| *byte == b'/').any(|part| part == id.as_bytes()))
}

/// None if it is gone.
fn process(pid: u32) -> Option<Process> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let targets: Vec<_> = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    let has_machine = targets.iter().any(|target| target.to_string_lossy() == "anon_inode:kvm-vm");
    let Private { own, clean, guest } = private(&fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?, has_machine);
    Some(Process {
        name: program.file_name()?.to_string_lossy().into_owned(),
        private_kib: own,
        clean_kib: clean,
        guest_kib: guest,
        threads: numbers(&format!("/proc/{pid}/task")).len(),
        descriptors: targets.len(),
    })
}

/// Private memory of a process, KiB.
#[derive(Debug, Default, PartialEq, Eq)]
struct Private {
    /// Not the guest's.
    own: u64,
    /// Of these, unchanged from a file.
    clean: u64,
    /// The guest's.
    guest: u64,
}

/// Private memory, by `/proc/<pid>/smaps` (proc(5)): its sums are what
/// `smaps_rollup` says, and it tells a machine's memory apart.
fn private(smaps: &str, has_machine: bool) -> Private {
    let (mut private, mut size) = (Private::default(), 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), value) = (words.next(), words.next()) else { continue };
        let value: u64 = value.and_then(|value| value.parse().ok()).unwrap_or(0);
        match key {
            "Size:" => size = value,
            "Private_Clean:" | "Private_Dirty:" if has_machine && size >= GUEST_KIB => private.guest += value,
            "Private_Clean:" => {
                private.own += value;
                private.clean += value;
            }
            "Private_Dirty:" => private.own += value,
            _ => {}
        }
    }
    private
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "7f1430000000-7f1430021000 rw-p 00000000 00:00 0 \nSize:                132 kB\n\
        Private_Clean:         4 kB\nPrivate_Dirty:        28 kB\n\
        7f1437e00000-7f1457e00000 rw-p 00000000 00:00 0 \nSize:             524288 kB\n\
        Private_Clean:         0 kB\nPrivate_Dirty:     38912 kB\nVmFlags: rd wr mr\n";

    #[test]
    fn the_guests_memory_is_not_the_vmms() {
        assert_eq!(private(SMAPS, true), Private { own: 32, clean: 4, guest: 38912 });
        // A heap of a program without a machine is its own, however large.
        assert_eq!(private(SMAPS, false), Private { own: 38944, clean: 4, guest: 0 });
    }

    #[test]
    fn fields_begin_lines_and_are_whole() {
        assert_eq!(field("pgfault_x 3\npgfault 4\n", "pgfault"), 4);
        assert_eq!(field("MemAvailable:   77 kB\n", "MemAvailable:"), 77);
        assert_eq!(field("", "ctxt"), 0);
    }

    #[test]
    fn a_process_that_names_the_id_is_found_with_its_children() {
        let id = format!("husk-bench-test-{}", std::process::id());
        // A shell with a child: the child's command line does not name it.
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 60 & echo; wait", "sh", &id])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Its child is there when it has written.
        let mut out = shell.stdout.take().unwrap();
        std::io::Read::read_exact(&mut out, &mut [0]).unwrap();
        let found = processes_for(&id);
        let children = numbers("/proc").into_iter().filter(|pid| parent(*pid) == Some(shell.id()));
        for pid in children.chain([shell.id()]) {
            rustix::process::kill_process(
                rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(),
                rustix::process::Signal::KILL,
            )
            .unwrap();
        }
        shell.wait().unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|process| process.private_kib > 0 && process.threads == 1 && process.guest_kib == 0));
    }
}
