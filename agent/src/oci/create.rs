//! `create` and `run`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::process::Signal;

use super::args::{Flag, Words, switch, value};
use super::bundle::Bundle;
use super::cgroup::{Group, path_for};
use super::error::{OciError, on};
use super::foreground::{self, Signals};
use super::hooks::RuntimeHooks;
use super::logger::rfc3339;
use super::state::{Record, START, Stored, check_id, claim, start_time, write_pid};
use super::{console, keyring, life, wait};
use crate::container::host::{self, Creation, Made};

/// Flags of both.
pub(super) const FLAGS: &[Flag] = &[
    value(&["bundle", "b"]),
    value(&["console-socket"]),
    value(&["pidfd-socket"]),
    value(&["pid-file"]),
    value(&["preserve-fds"]),
    switch(&["no-pivot"]),
    switch(&["no-new-keyring"]),
    // Of `run`.
    switch(&["detach", "d"]),
    switch(&["keep"]),
    switch(&["no-subreaper"]),
];

/// `create`.
pub(super) fn create(root: &Path, words: &Words) -> Result<(), OciError> {
    let id = words.only("create")?;
    for flag in ["detach", "keep", "no-subreaper"] {
        if words.has(flag) {
            return Err(format!("flag provided but not defined: -{flag}").into());
        }
    }
    let preserved = preserved(words)?;
    Making::begin(root, id, words, true, preserved)?.finish().map(drop)
}

/// `run`; returns the status of its program, or 0 if it is left to itself.
pub(super) fn run(root: &Path, words: &Words) -> Result<u8, OciError> {
    let id = words.only("run")?;
    let detach = words.has("detach");
    // Before there are any of this program's own.
    let preserved = preserved(words)?;
    // Held until somebody is there to send them to.
    let signals = (!detach).then(Signals::hold).transpose().map_err(|cause| format!("cannot take signals: {cause}"))?;
    let (container, made) = Making::begin(root, id, words, detach, preserved)?.finish()?;
    let started = life::start_container(&container);
    let ended = started.and_then(|()| match &signals {
        None => Ok(0),
        Some(signals) => foreground::attend(&made, signals),
    });
    if ended.is_err() || (!detach && !words.has("keep")) {
        life::destroy(&container)?;
    }
    ended
}

/// A container in the making: nothing of it is left if this is dropped.
struct Making {
    directory: PathBuf,
    group: Option<Group>,
    /// Once there is a process.
    container: Option<Stored>,
    made: Option<Made>,
    hooks: RuntimeHooks,
}

impl Making {
    fn begin(root: &Path, id: &str, words: &Words, detach: bool, preserved: u32) -> Result<Self, OciError> {
        check_id(id)?;
        if words.has("no-pivot") {
            return Err("--no-pivot: a container's root is its own here, and without pivot_root it would not be".into());
        }
        if words.value("pidfd-socket").is_some() {
            return Err("--pidfd-socket: it is not sent anywhere here; open it by the process id".into());
        }
        let bundle = Bundle::open(words.value("bundle"), id)?;
        console::check(bundle.plan.process().has_terminal(), detach, words.value("console-socket"))?;
        let hooks = RuntimeHooks::of(&bundle.document)?;
        let directory = claim(root, id)?;
        let mut making = Self { directory, group: None, container: None, made: None, hooks };
        making.make(bundle, id, words, preserved)?;
        Ok(making)
    }

    fn make(&mut self, bundle: Bundle, id: &str, words: &Words, preserved: u32) -> Result<(), OciError> {
        let Bundle { directory: bundle, root, document, text, plan } = bundle;
        for notice in plan.notices() {
            log::warn!("{notice}");
        }
        let path = path_for(plan.linux().cgroups_path().as_deref(), id)?;
        let group = self.group.insert(Group::make(path.clone())?);
        group.cgroup.limit(plan.limits())?;
        if let Some(user) = plan.cgroup_owner() {
            group.cgroup.delegate(user)?;
        }
        Stored::keep_document(&self.directory, &text)?;
        let start = host::listen(&self.directory, START).map_err(on("make a socket in", &self.directory))?;
        if !words.has("no-new-keyring") {
            keyring::join(id);
        }
        let record = |pid: u32| Record {
            id: id.to_owned(),
            pid,
            // One that has ended has none, and is stopped.
            start_time: start_time(pid).unwrap_or(0),
            ready: false,
            bundle: bundle.clone(),
            rootfs: root.clone(),
            cgroup: path.clone(),
            created: rfc3339(SystemTime::now()),
        };
        let stored =
            |pid| Stored { directory: self.directory.clone(), record: record(pid), document: document.clone() };
        let told = std::cell::Cell::new(false);
        let mounted = |pid| {
            let container = stored(pid);
            container.save().map_err(|cause| cause.to_string())?;
            told.set(true);
            self.hooks.create(&container)
        };
        let creation = Creation {
            plan: &plan,
            root: &root,
            directory: &self.directory,
            cgroup: &group.cgroup,
            start: &start,
            preserved,
        };
        let made = creation.run(self.hooks.has_creation().then_some(&mounted));
        if made.is_err() && told.get() {
            // What its hooks have done is to be undone.
            self.container = Some(stored(0));
        }
        let made = self.made.insert(made?);
        let container = self.container.insert(stored(made.pid));
        if let (Some(terminal), Some(socket)) = (&made.terminal, words.value("console-socket")) {
            console::send(Path::new(socket), terminal)?;
        }
        container.record.ready = true;
        container.save()?;
        // The last: whoever waits for it may go on with the container.
        words.value("pid-file").map_or(Ok(()), |file| write_pid(Path::new(file), made.pid))
    }

    /// There is a container now.
    fn finish(mut self) -> Result<(Stored, Made), OciError> {
        self.group = None;
        self.directory = PathBuf::new();
        self.container.take().zip(self.made.take()).ok_or_else(|| "there is no container".into())
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if self.directory.as_os_str().is_empty() {
            return;
        }
        if let Some(made) = &self.made {
            // The only error is that it has ended.
            let _ = rustix::process::pidfd_send_signal(&made.pidfd, Signal::KILL);
        }
        if let Some(group) = self.group.take().filter(|group| group.made)
            && let Err(cause) = wait(group.cgroup.remove())
        {
            log::warn!("{cause}");
        }
        if let Err(cause) = fs::remove_dir_all(&self.directory) {
            log::warn!("cannot remove {}: {cause}", self.directory.display());
        }
        if let Some(container) = &self.container {
            self.hooks.poststop(container);
        }
    }
}

/// How many descriptors behind the standard streams the program gets. To be asked before this process opens any.
///
/// # Errors
/// One is not open.
pub(super) fn preserved(words: &Words) -> Result<u32, OciError> {
    let count = words.number::<u32>("preserve-fds")?.unwrap_or(0);
    for number in 3..3_u32.saturating_add(count) {
        if !Path::new(&format!("/proc/self/fd/{number}")).exists() {
            return Err(format!("--preserve-fds {count}: the descriptor {number} is not open").into());
        }
    }
    Ok(count)
}
