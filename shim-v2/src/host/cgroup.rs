//! The pod's cgroup on the host (cgroup v2): the VMM and the stubs are in it, so that one write ends them all.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use husk_protocol::cgroup::slice_path;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

/// Where cgroups are.
const ROOT: &str = "/sys/fs/cgroup";
/// How long `remove` waits for killed processes to be gone: less than a second, because the shim's only thread waits.
/// They are gone in milliseconds, or hang in the kernel.
const REMOVAL: Duration = Duration::from_millis(900);

/// Why there is no cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The path, of the runtime document or of a state file, leads out of the tree.
    #[error("the cgroup path {0:?} is not below {ROOT}")]
    Path(String),
    /// Nobody has made it.
    #[error("there is no cgroup {0} for the shim (shim_cgroup of the runtime options, cgroup v2): make it first")]
    None(PathBuf),
    /// The kernel's answer.
    #[error("cannot {what} the cgroup {path}: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
}

/// Where the pod of a container with this `linux.cgroupsPath` has its cgroup: `husk-<sandbox>` beside the container's.
/// A path for systemd (`slice:prefix:name`) leads into its slice.
///
/// # Errors
/// The path leads out of the tree.
pub fn path_for(cgroups_path: &str, sandbox: &str) -> Result<PathBuf, CgroupError> {
    let parent = match cgroups_path.split(':').collect::<Vec<_>>()[..] {
        [slice, _, _] => slice_path(slice),
        _ => Path::new(cgroups_path).parent().unwrap_or(Path::new("")).to_owned(),
    };
    let parent = below_root(&parent).ok_or_else(|| CgroupError::Path(cgroups_path.to_owned()))?;
    Ok(parent.join(format!("husk-{sandbox}")))
}

/// The directory of a cgroup that is named from the tree's root; none if the name leads out of the tree.
fn below_root(path: &Path) -> Option<PathBuf> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let stays = relative.components().all(|component| matches!(component, std::path::Component::Normal(_)));
    stays.then(|| Path::new(ROOT).join(relative))
}

/// Puts this process into a cgroup that somebody has made, who also removes it.
///
/// # Errors
/// The path leads out of the tree, there is no such cgroup, or the kernel refuses.
pub fn join(path: &str) -> Result<(), CgroupError> {
    let path = below_root(Path::new(path)).ok_or_else(|| CgroupError::Path(path.to_owned()))?;
    // As runc's shim has it: one that we made would stay for ever.
    if !path.is_dir() {
        return Err(CgroupError::None(path));
    }
    let joined = fs::write(path.join("cgroup.procs"), std::process::id().to_string());
    joined.map_err(|cause| CgroupError::Io { what: "put the shim into", path, cause })
}

/// A cgroup that is there; [`remove`] ends it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup, and what is missing above it. One that is there already is another pod's: two that share a
    /// cgroup end together.
    ///
    /// # Errors
    /// It is there, or the kernel refuses.
    pub fn create(path: PathBuf) -> Result<Self, CgroupError> {
        let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::create_dir(&path));
        made.map_err(|cause| CgroupError::Io { what: "make", path: path.clone(), cause })?;
        Ok(Self { path })
    }

    /// One that [`Cgroup::create`] has made before.
    #[must_use]
    pub fn made(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its directory, for a process that is to be born in it.
    ///
    /// # Errors
    /// It is gone.
    pub fn open(&self) -> Result<OwnedFd, CgroupError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty()).map_err(|cause| CgroupError::Io {
            what: "open",
            path: self.path.clone(),
            cause: cause.into(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Kills what is in the cgroup and removes it; nothing to do if it is gone.
///
/// # Errors
/// Something in it cannot be killed in time, or the kernel refuses.
pub fn remove(path: &Path) -> Result<(), CgroupError> {
    let failed = |cause| CgroupError::Io { what: "remove", path: path.to_owned(), cause };
    let below = path.strip_prefix(ROOT).is_ok_and(|below| {
        let mut components = below.components();
        components.next().is_some() && below.components().all(|part| matches!(part, std::path::Component::Normal(_)))
    });
    // The path comes from a file.
    if !below {
        return Err(CgroupError::Path(path.display().to_string()));
    }
    let first = fs::remove_dir(path);
    match first {
        Ok(()) => return Ok(()),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    fs::write(path.join("cgroup.kill"), "1").map_err(failed)?;
    let mut events = fs::File::open(path.join("cgroup.events")).map_err(failed)?;
    let deadline = Instant::now() + REMOVAL;
    loop {
        // Reading *this* descriptor is what arms its notification (kernfs): one that was never read is always ready.
        let mut text = String::new();
        events.seek(SeekFrom::Start(0)).map_err(failed)?;
        events.read_to_string(&mut text).map_err(failed)?;
        let populated = text.lines().any(|line| line == "populated 1");
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(cause) if !populated => return Err(failed(cause)),
            Err(_) => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(&events, PollFlags::PRI)];
        if left.is_zero() || poll(&mut fds, Some(&limit)).map_err(|cause| failed(cause.into()))? == 0 {
            return Err(failed(io::Error::new(io::ErrorKind::TimedOut, "a process in it does not die")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_the_containers() {
        let path = |path| path_for(path, "c1").map(|path| path.display().to_string());
        assert_eq!(path("/default/c1").unwrap(), "/sys/fs/cgroup/default/husk-c1");
        assert_eq!(path("kubepods/burstable/pod1/abc").unwrap(), "/sys/fs/cgroup/kubepods/burstable/pod1/husk-c1");
        assert_eq!(
            path("kubepods-burstable.slice:cri-containerd:abc").unwrap(),
            "/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/husk-c1"
        );
        assert_eq!(path("").unwrap(), "/sys/fs/cgroup/husk-c1");
        assert!(matches!(path("/a/../../b/c"), Err(CgroupError::Path(_))));
        assert!(matches!(join("/../x"), Err(CgroupError::Path(_))));
        let none = join("/no/such/cgroup").unwrap_err().to_string();
        assert!(none.contains("/sys/fs/cgroup/no/such/cgroup") && none.contains("make it first"), "{none}");
    }
}
