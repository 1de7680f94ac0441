//! The leak check: what a host has before and after, so that what a container left is named.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::ctr::{Run, Runtime, ctr, must};
use crate::rootfs;

/// Time for what is on its way to its end: containerd closes a shim's connection and removes a bundle after it has
/// answered its client.
const SETTLE: Duration = Duration::from_secs(15);
/// Shared memory that the host itself may have more of, in KiB: logs and state of containerd's on tmpfs.
const SHMEM_SLACK_KIB: u64 = 256;
/// Dying cgroups that the kernel may not have released yet, over what there were: runc leaves as many (its own cgroup,
/// until the last reference of the memory controller is gone).
const DYING_SLACK: u64 = 1;

/// What a host has. Every entry says what it is.
#[derive(Debug, Clone, Default)]
struct Snapshot {
    things: BTreeSet<String>,
    containerd_descriptors: usize,
    shmem_kib: u64,
    dying: u64,
}

/// Runs `case` and fails if it has left anything on the host.
///
/// # Panics
/// When the case fails, or something is left.
pub fn leaves_nothing(case: impl FnOnce()) {
    warm_up();
    let mut before = Snapshot::take();
    before.dying = FEWEST_DYING.load(Ordering::Relaxed);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(case)) {
        // What the case did not get to end must not fail the next ones.
        remove_everything();
        resume_unwind(panic);
    }
    let end = Instant::now() + SETTLE;
    loop {
        let mut after = Snapshot::take();
        if after.dying > before.dying + DYING_SLACK {
            after.dying = fewest_dying();
        }
        let left = after.beyond(&before);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "left on the host:\n{}", left.join("\n"));
        wait_for_change(&before);
    }
}

/// The fewest dying cgroups that there have been when nothing but the kernel held them.
static FEWEST_DYING: AtomicU64 = AtomicU64::new(u64::MAX);

/// How many cgroups are dying when clean pages and unused inodes, which belong to them, are let go. Then every program has to be read
/// again, and an emulated CPU translates it again: seconds, so it is done where there are too many, and not for each look.
fn fewest_dying() -> u64 {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let now = dying();
    FEWEST_DYING.fetch_min(now, Ordering::Relaxed);
    now
}

fn dying() -> u64 {
    value(&fs::read_to_string("/sys/fs/cgroup/cgroup.stat").unwrap(), "nr_dying_descendants")
}

/// Ends every container and every process of husk's.
pub fn remove_everything() {
    for id in ctr(&["container", "ls", "-q"]).text().lines() {
        let _ = ctr(&["task", "delete", "-f", id]);
        let _ = ctr(&["container", "delete", id]);
    }
    for program in ["containerd-shim-husk-v2", "husk-vmm", "husk-stub"] {
        kill(processes_of(program));
    }
}

/// Removes the fifos that `ctr` leaves where it fails to wait for a task, or does not wait.
///
/// # Panics
/// The kernel refuses.
pub fn remove_fifos() {
    for entry in fs::read_dir("/run/containerd/fifo").unwrap() {
        fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
}

/// What the first container of any runtime leaves (containerd's directories, the namespace's cgroup) is not a leak.
fn warm_up() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let root = tempfile::tempdir().unwrap();
        rootfs::busybox(root.path());
        let output = Run::on_directory("warm-up", root.path()).runtime(Runtime::Runc).run(&["true"]);
        assert_eq!(output.status, 0, "{}", output.errors());
        fewest_dying();
    });
}

/// Waits for a process that is too many to end; where there is none, a moment: nothing tells when containerd has closed
/// a descriptor or the kernel has released a cgroup.
fn wait_for_change(before: &Snapshot) {
    let extra = processes().into_iter().find(|(_, name)| !before.things.contains(name));
    let limit = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let pidfd = extra.and_then(|(pid, _)| pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok());
    let mut fds: Vec<PollFd<'_>> = pidfd.iter().map(|pidfd| PollFd::new(pidfd, PollFlags::IN)).collect();
    let _ = poll(&mut fds, Some(&limit));
}

impl Snapshot {
    fn take() -> Self {
        let mut things: BTreeSet<String> = processes().into_iter().map(|(_, name)| name).collect();
        let mut add = |kind: &str, name: &str| {
            things.insert(format!("{kind} {name}"));
        };
        let mounts = fs::read_to_string("/proc/1/mountinfo").unwrap();
        mounts.lines().for_each(|line| add("mount", line));
        let sockets = fs::read_to_string("/proc/net/unix").unwrap();
        sockets.lines().filter_map(|line| line.split_whitespace().nth(7)).for_each(|path| add("socket", path));
        for directory in
            ["/run/husk", "/run/containerd", "/run/netns", "/var/lib/containerd/io.containerd.runtime.v2.task"]
        {
            tree(Path::new(directory), &mut |path| add("path", path));
        }
        tree(Path::new("/sys/fs/cgroup"), &mut |path| {
            if Path::new(path).is_dir() {
                add("cgroup", path);
            }
        });
        let snapshots = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
        for directory in ["/sys/class/net", "/sys/kernel/debug/kvm", snapshots] {
            names(directory).iter().for_each(|name| add(directory, name));
        }
        for device in names("/sys/block") {
            let used = device.starts_with("dm-") || Path::new("/sys/block").join(&device).join("loop").exists();
            if used {
                add("block device", &device);
            }
        }
        for pid in numbers() {
            if let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/net")) {
                add("network namespace", &namespace.display().to_string());
            }
        }
        // Tasks and bundles are paths already; snapshots are too, and the database's own are containers.
        must(&["container", "ls", "-q"]).lines().for_each(|line| add("container", line));
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
        Self {
            things,
            containerd_descriptors: containerd_descriptors(),
            shmem_kib: value(&meminfo, "Shmem:"),
            dying: dying(),
        }
    }

    fn beyond(&self, before: &Self) -> Vec<String> {
        let mut left: Vec<String> = self.things.difference(&before.things).cloned().collect();
        let mut more = |what: &str, now: u64, then: u64, slack: u64| {
            if now > then + slack {
                left.push(format!("{what}: {now}, was {then}"));
            }
        };
        more("containerd's descriptors", self.containerd_descriptors as u64, before.containerd_descriptors as u64, 0);
        more("Shmem in KiB", self.shmem_kib, before.shmem_kib, SHMEM_SLACK_KIB);
        more("dying cgroups", self.dying, before.dying, DYING_SLACK);
        left
    }
}

fn value(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn names(directory: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn numbers() -> Vec<i32> {
    names("/proc").iter().filter_map(|name| name.parse().ok()).collect()
}

/// Processes that are not the kernel's, with their command lines. The pid is part of the name: one more of the same kind
/// is one more.
fn processes() -> Vec<(i32, String)> {
    let containerd = containerd();
    let describe = |pid: i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        // A case may have started it again.
        let number = if Some(pid) == containerd { String::new() } else { pid.to_string() };
        (!command.is_empty()).then(|| (pid, format!("process {number} {}", command.trim_end())))
    };
    numbers().into_iter().filter_map(describe).collect()
}

/// How many descriptors containerd has open.
///
/// # Panics
/// There is no containerd.
#[must_use]
pub fn containerd_descriptors() -> usize {
    names(&format!("/proc/{}/fd", containerd().expect("containerd runs"))).len()
}

/// containerd's pid, if it runs.
#[must_use]
pub fn containerd() -> Option<i32> {
    processes_of("containerd").into_iter().next()
}

/// The generation of containerd that this test bed was started with.
///
/// # Panics
/// This is no test bed.
#[must_use]
pub fn generation() -> String {
    fs::read_to_string("/husk-testbed/containerd").unwrap().trim().to_owned()
}

/// What limits of time that a case tests are multiplied with (`HUSK_TEST_PATIENCE`, 1 if it is not set): an emulated host
/// is slower than a real one, and more so when others use its machine.
///
/// # Panics
/// It is no number.
#[must_use]
pub fn patience() -> u32 {
    std::env::var("HUSK_TEST_PATIENCE").map_or(1, |factor| factor.parse().expect("HUSK_TEST_PATIENCE is a number"))
}

/// Ends containerd by this signal and waits until it is gone.
///
/// # Panics
/// It does not run, or does not end.
pub fn stop_containerd(signal: Signal) {
    let pid = containerd().expect("containerd runs");
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    wait_for_end(pid.cast_unsigned());
}

/// Starts containerd of this generation, and returns when it is ready.
///
/// # Panics
/// It does not start.
pub fn start_containerd(generation: &str) {
    let status = Command::new("start-containerd").arg(generation).status().unwrap();
    assert!(status.success(), "containerd {generation} does not start: see /var/log/containerd.log");
}

/// Every path below a directory.
fn tree(directory: &Path, visit: &mut impl FnMut(&str)) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        visit(&entry.path().display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            tree(&entry.path(), visit);
        }
    }
}

/// The processes that run this program, by pid.
#[must_use]
pub fn processes_of(program: &str) -> Vec<i32> {
    let runs = |pid: &i32| {
        fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path.file_name().is_some_and(|name| name == program))
    };
    numbers().into_iter().filter(runs).collect()
}

/// One of KVM's counters of the machine of this process (`kvm_vcpu_stats_desc`, in debugfs).
///
/// # Panics
/// It has no machine.
#[must_use]
pub fn kvm_counter(pid: i32, counter: &str) -> u64 {
    let directory = "/sys/kernel/debug/kvm";
    let machine = names(directory).into_iter().find(|name| name.starts_with(&format!("{pid}-")));
    let path = Path::new(directory).join(machine.expect("KVM counts for it")).join(counter);
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// Kills what [`processes_of`] this program finds.
///
/// # Panics
/// There is none.
pub fn kill_processes_of(program: &str) {
    let found = processes_of(program);
    assert!(!found.is_empty(), "no {program} runs");
    kill(found);
}

fn kill(pids: Vec<i32>) {
    for pid in pids.into_iter().filter_map(Pid::from_raw) {
        // The only error is that it is gone.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Waits until a process is gone.
///
/// # Panics
/// It takes longer than a minute.
pub fn wait_for_end(pid: u32) {
    let Ok(pidfd) = pidfd_open(Pid::from_raw(pid.cast_signed()).unwrap(), PidfdFlags::empty()) else { return };
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "process {pid} does not end");
}
