//! A container's cgroup (v2).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rustix::fs::OFlags;
use rustix::process::Signal;
use tokio::io::Interest;

use super::pid_from;
use crate::watched::watch;

/// How a cgroup's directory is opened.
const OPEN: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What failed on a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A step on a file or directory.
    #[error("cgroup: cannot {what} {}: {cause}", path.display())]
    Step {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// A limit that cannot be.
    #[error("cgroup: {key} cannot be set to {value}: {cause}")]
    Limit {
        /// The cgroup's file.
        key: &'static str,
        /// What was written.
        value: String,
        /// The kernel's answer.
        cause: io::Error,
    },
}

/// A cgroup of ours.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup `name` in `parent`.
    ///
    /// # Errors
    /// It exists already, or the kernel has no room.
    pub fn create(parent: &Path, name: &str) -> Result<Self, CgroupError> {
        let path = parent.join(name);
        match fs::create_dir(&path) {
            Ok(()) => Ok(Self { path }),
            Err(cause) => Err(CgroupError::Step { what: "make", path, cause }),
        }
    }

    /// The cgroup at `path`, which exists.
    #[cfg(test)]
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cgroup that a process is in, as [`Cgroup::open`] does.
    ///
    /// # Errors
    /// The process is gone.
    pub(super) fn open_of_process(pid: u32) -> io::Result<OwnedFd> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        // The hierarchy of version 2 is the only one, and numbered 0 (cgroups(7)).
        let path = text.lines().find_map(|line| line.strip_prefix("0::/")).ok_or(io::ErrorKind::NotFound)?;
        let path = Path::new("/sys/fs/cgroup").join(path);
        Ok(rustix::fs::open(path, OPEN, rustix::fs::Mode::empty())?)
    }

    fn step(&self, what: &'static str, file: &str) -> impl Fn(io::Error) -> CgroupError {
        let path = self.path.join(file);
        move |cause| CgroupError::Step { what, path: path.clone(), cause }
    }

    /// The directory, for `clone3`.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn open(&self) -> Result<OwnedFd, CgroupError> {
        rustix::fs::open(&self.path, OPEN, rustix::fs::Mode::empty())
            .map_err(io::Error::from)
            .map_err(self.step("open", ""))
    }

    /// Sets the limits of the OCI document.
    ///
    /// # Errors
    /// The limit that the kernel refuses.
    pub fn limit(&self, resources: Option<&LinuxResources>) -> Result<(), CgroupError> {
        for (key, value) in resources.map(limits).unwrap_or_default() {
            fs::write(self.path.join(key), &value).map_err(|cause| CgroupError::Limit { key, value, cause })?;
        }
        Ok(())
    }

    /// Sends a signal to every process.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if signal == Signal::KILL {
            return fs::write(self.path.join("cgroup.kill"), "1");
        }
        for pid in self.processes()?.into_iter().filter_map(pid_from) {
            match rustix::process::kill_process(pid, signal) {
                // It has ended since.
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
        Ok(())
    }

    /// The process ids of all processes, in the guest's initial pid namespace.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let mut processes = Vec::new();
        for group in tree(&self.path)? {
            // A group that the container has removed meanwhile has nobody in it.
            let Ok(lines) = fs::read_to_string(group.join("cgroup.procs")) else { continue };
            processes.extend(lines.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        Ok(processes)
    }

    /// Whether its processes are stopped, or about to be.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        let text = fs::read_to_string(self.path.join("cgroup.freeze")).map_err(self.step("read", "cgroup.freeze"))?;
        Ok(text.trim() == "1")
    }

    /// Stops all processes where they are, or lets them go on; returns when it is so.
    ///
    /// # Errors
    /// The kernel's answer.
    pub async fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        let value = if frozen { "1" } else { "0" };
        fs::write(self.path.join("cgroup.freeze"), value).map_err(self.step("write", "cgroup.freeze"))?;
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        self.becomes(wanted).await.map_err(self.step("watch", "cgroup.events"))
    }

    /// Kills what is left and removes the cgroup. One that is gone already is none to remove.
    ///
    /// # Errors
    /// The kernel's answer.
    pub async fn remove(&self) -> Result<(), CgroupError> {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(self.step("kill", "cgroup.kill"))?,
        }
        self.becomes("populated 0").await.map_err(self.step("watch", "cgroup.events"))?;
        // The innermost first; nobody is left who could make one more.
        for group in tree(&self.path).map_err(self.step("read", ""))?.into_iter().rev() {
            match fs::remove_dir(&group) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(self.step("remove", "")(cause)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns when `cgroup.events` has this line: the kernel signals its changes (cgroup-v2.rst, "Basic Operations").
    async fn becomes(&self, wanted: &str) -> io::Result<()> {
        let path = self.path.join("cgroup.events");
        let mut watched = None;
        loop {
            if fs::read_to_string(&path)?.lines().any(|line| line == wanted) {
                return Ok(());
            }
            // Watched before the next look, so that no change is missed in between.
            match &watched {
                None => {
                    use rustix::fs::inotify;
                    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
                    let inotify = inotify::init(flags)?;
                    inotify::add_watch(&inotify, &path, inotify::WatchFlags::MODIFY)?;
                    watched = Some(watch(inotify, Interest::READABLE)?);
                }
                Some(inotify) => {
                    let mut buffer = [0; 1024];
                    inotify.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut buffer)?)).await?;
                }
            }
        }
    }
}

/// Groups of a container that are looked at: a container can make any number, and the agent has one thread.
const MOST_GROUPS: usize = 4096;

/// A group and all that a container has made below it, each before those below it. One that goes away meanwhile has nobody
/// in it.
fn tree(path: &Path) -> io::Result<Vec<PathBuf>> {
    let below = |entries: fs::ReadDir| -> Vec<PathBuf> {
        let groups = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        groups.map(|entry| entry.path()).collect()
    };
    let mut groups = vec![path.to_owned()];
    groups.extend(below(fs::read_dir(path)?));
    let mut next = 1;
    while let Some(group) = groups.get(next).filter(|_| groups.len() < MOST_GROUPS) {
        if let Ok(entries) = fs::read_dir(group) {
            groups.extend(below(entries));
        }
        next += 1;
    }
    Ok(groups)
}

/// Files of the cgroup and what belongs into them.
fn limits(resources: &LinuxResources) -> Vec<(&'static str, String)> {
    let mut limits = Vec::new();
    if let Some(memory) = resources.memory() {
        let limit = memory.limit().filter(set);
        if let Some(value) = limit {
            limits.push(("memory.max", max_or(value)));
        }
        if let Some(value) = memory.reservation().filter(set) {
            limits.push(("memory.low", max_or(value)));
        }
        // The document counts memory and swap together, the cgroup swap alone.
        if let (Some(both), Some(memory)) = (memory.swap().filter(set), limit) {
            let swap = if both < 0 { both } else { both.saturating_sub(memory).max(0) };
            limits.push(("memory.swap.max", max_or(swap)));
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
            limits.push(("cpu.weight", weight(shares).to_string()));
        }
        let (quota, period) = (cpu.quota().filter(set), cpu.period().filter(|period| *period != 0));
        if quota.is_some() || period.is_some() {
            let quota = quota.map_or_else(|| "max".to_owned(), max_or);
            limits.push(("cpu.max", format!("{quota} {}", period.unwrap_or(100_000))));
        }
        if let Some(idle) = cpu.idle() {
            limits.push(("cpu.idle", idle.to_string()));
        }
    }
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        limits.push(("pids.max", max_or(pids.limit())));
    }
    limits
}

/// Zero is unset, as with runc: clients fill structures with it.
fn set(value: &i64) -> bool {
    *value != 0
}

/// Negative: no limit.
fn max_or(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// cgroup v1's shares (2 to 262144) as a weight (1 to 10000): runc's formula, so that ratios are the same.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;

    use super::*;

    fn limits_of(resources: &str) -> Vec<(&'static str, String)> {
        limits(&serde_json::from_str(resources).unwrap())
    }

    fn is(key: &'static str, value: &str) -> (&'static str, String) {
        (key, value.to_owned())
    }

    #[test]
    fn limits_become_files() {
        assert_eq!(
            limits_of(
                r#"{"memory":{"limit":1048576,"swap":3145728},"pids":{"limit":-1},"cpu":{"quota":50000,"shares":1024}}"#
            ),
            [
                is("memory.max", "1048576"),
                is("memory.swap.max", "2097152"),
                is("cpu.weight", "39"),
                is("cpu.max", "50000 100000"),
                is("pids.max", "max")
            ]
        );
        assert_eq!(
            limits_of(r#"{"memory":{"limit":-1,"swap":-1}}"#),
            [is("memory.max", "max"), is("memory.swap.max", "max")]
        );
        let zeros =
            r#"{"cpu":{"cpus":"","shares":0,"quota":0,"period":0},"memory":{"limit":0,"swap":0,"reservation":0}}"#;
        assert_eq!(limits_of(zeros), []);
    }

    #[test]
    fn the_default_document_sets_nothing_that_is_not_in_it() {
        let spec = Spec::default();
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        assert_eq!(resources.map(limits).unwrap_or_default(), []);
    }
}
