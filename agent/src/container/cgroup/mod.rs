//! A container's cgroup (v2).

mod bpf;
mod devices;
mod events;
mod limits;
mod others;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;
use rustix::process::Signal;

pub(super) use self::devices::allow_everything;
pub use self::events::EventsFile;
pub use self::limits::Limits;
use super::pid_from;

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
    /// A limit that the kernel refuses.
    #[error("{field}: {file} cannot be set to {text}: {cause}")]
    Limit {
        /// The document's field and its value.
        field: String,
        /// The cgroup's file.
        file: String,
        /// What was written.
        text: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// A limit below what is in use, and it was to be checked.
    #[error("{field}: {used} bytes are in use, and memory.checkBeforeUpdate is set")]
    InUse {
        /// The document's field and its value.
        field: String,
        /// Bytes.
        used: i64,
    },
}

/// A cgroup of ours.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
    /// The program that decides about devices, for the next one to replace it.
    filter: Arc<Mutex<Option<OwnedFd>>>,
}

impl Cgroup {
    /// Makes the cgroup `name` in `parent`.
    ///
    /// # Errors
    /// It exists already, or the kernel has no room.
    pub fn create(parent: &Path, name: &str) -> Result<Self, CgroupError> {
        let path = parent.join(name);
        match fs::create_dir(&path) {
            Ok(()) => Ok(Self { path, filter: Arc::default() }),
            Err(cause) => Err(CgroupError::Step { what: "make", path, cause }),
        }
    }

    /// The cgroup at `path`, which exists.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), filter: Arc::default() }
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

    /// Sets the limits of a new container.
    ///
    /// # Errors
    /// The limit that the kernel refuses.
    pub fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        limits.set(self)
    }

    /// Changes the limits of one that runs, all of them or none.
    ///
    /// # Errors
    /// The limit that the kernel refuses.
    pub fn change(&self, limits: &Limits) -> Result<(), CgroupError> {
        limits.change(self)
    }

    /// Has the kernel ask these rules about devices, from one moment to the next.
    fn filter_devices(&self, rules: &[devices::Rule]) -> Result<(), CgroupError> {
        let refused = self.step("filter the devices of", "");
        let program = bpf::load(&devices::program(rules)).map_err(&refused)?;
        // Open for reading: the kernel takes no O_PATH here.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&self.path, flags, rustix::fs::Mode::empty());
        let directory = directory.map_err(|cause| refused(cause.into()))?;
        let mut filter = self.filter.lock().unwrap_or_else(PoisonError::into_inner);
        bpf::attach(&directory, &program, filter.as_ref()).map_err(&refused)?;
        *filter = Some(program);
        Ok(())
    }

    /// Hands the cgroup to a user of the guest's, who can make groups below it then (cgroup-v2.rst, "Model of Delegation").
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn delegate(&self, user: u32) -> Result<(), CgroupError> {
        // Which files those are, the kernel says.
        const FILES: &str = "/sys/kernel/cgroup/delegate";
        let files =
            fs::read_to_string(FILES).map_err(|cause| CgroupError::Step { what: "read", path: FILES.into(), cause })?;
        for file in std::iter::once("").chain(files.lines()) {
            match std::os::unix::fs::chown(self.path.join(file), Some(user), None) {
                // Of a controller that is not built in.
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(self.step("give away", file))?,
            }
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
        let events = EventsFile::open(&self.path.join("cgroup.events"))?;
        // A change that comes after the look ends the wait.
        while !events.read()?.lines().any(|line| line == wanted) {
            events.changed().await?;
        }
        Ok(())
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
