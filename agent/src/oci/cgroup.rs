//! The group of a container in the host's tree (cgroup v2).

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use husk_protocol::cgroup::slice_path;
use rustix::fs::statfs;

use super::error::{OciError, on};
use crate::container::Cgroup;

/// Where the host has its groups.
const ROOT: &str = "/sys/fs/cgroup";
/// CGROUP2_SUPER_MAGIC of include/uapi/linux/magic.h.
const CGROUP2: i64 = 0x6367_7270;

/// A group that was made for a container.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) cgroup: Cgroup,
    /// Whether it was not there before.
    pub(super) made: bool,
}

/// The directory of a container's group.
///
/// # Errors
/// The path leads out of the tree.
pub(super) fn path_for(document: Option<&Path>, id: &str) -> Result<PathBuf, OciError> {
    let own = fs::read_to_string("/proc/self/cgroup").map_err(on("read", Path::new("/proc/self/cgroup")))?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    path_beside(document, id, Path::new(own))
}

/// As [`path_for`], for a caller in the group `own`. As runc has it: an absolute path begins at the tree's root, another one beside the
/// caller's group, which has processes and so cannot have limited groups below it; `slice:prefix:name` is a scope in its slice.
fn path_beside(document: Option<&Path>, id: &str, own: &Path) -> Result<PathBuf, OciError> {
    let document = document.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(id));
    let text = document.to_string_lossy();
    let path = match text.split(':').collect::<Vec<_>>()[..] {
        [slice, prefix, name] => {
            let slice = if slice.is_empty() { "system.slice" } else { slice };
            let scope = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
            slice_path(slice).join(scope)
        }
        _ if document.is_absolute() => document.to_owned(),
        _ => own.parent().unwrap_or(Path::new("")).join(document),
    };
    let relative = path.strip_prefix("/").unwrap_or(&path);
    let stays = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if !stays || relative.as_os_str().is_empty() {
        return Err(format!("linux.cgroupsPath {text:?}: it is not below {ROOT}").into());
    }
    Ok(Path::new(ROOT).join(relative))
}

impl Group {
    /// Makes the group, and what is missing above it. One that is there is taken if nobody is in it.
    ///
    /// # Errors
    /// The host has no cgroup v2, or somebody is in it.
    pub(super) fn make(path: PathBuf) -> Result<Self, OciError> {
        let kind = statfs(ROOT).map_err(|cause| on("look at", Path::new(ROOT))(cause.into()))?.f_type;
        if kind != CGROUP2 {
            return Err(format!("{ROOT} is no cgroup v2 file system, and husk-agent oci knows no other").into());
        }
        let below = path.strip_prefix(ROOT).unwrap_or(&path);
        let mut at = PathBuf::from(ROOT);
        for part in below {
            enable(&at);
            at.push(part);
            match fs::create_dir(&at) {
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists && at != path => {}
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
                    let cgroup = Cgroup::at(&path);
                    let processes = cgroup.processes().map_err(on("read", &path))?;
                    if !processes.is_empty() {
                        let count = processes.len();
                        return Err(format!("container's cgroup is not empty: {count} process(es) found").into());
                    }
                    return Ok(Self { cgroup, made: false });
                }
                other => other.map_err(on("make", &at))?,
            }
        }
        Ok(Self { cgroup: Cgroup::at(&path), made: true })
    }
}

/// Gives the groups below this one the controllers that it has, as far as it can: a limit that is missing one says so.
fn enable(group: &Path) {
    let controllers = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        if let Err(cause) = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}")) {
            log::debug!("{}: groups below it do not get the controller {controller}: {cause}", group.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_runcs() {
        let path = |document: &str| {
            let path = path_beside(Some(Path::new(document)), "id", Path::new("user.slice/session.scope"));
            path.map(|path| path.display().to_string())
        };
        assert_eq!(path("/default/c1").unwrap(), "/sys/fs/cgroup/default/c1");
        assert_eq!(path("c1").unwrap(), "/sys/fs/cgroup/user.slice/c1");
        assert_eq!(path("").unwrap(), "/sys/fs/cgroup/user.slice/id");
        assert_eq!(path("a-b.slice:cri:x").unwrap(), "/sys/fs/cgroup/a.slice/a-b.slice/cri-x.scope");
        assert_eq!(path(":husk:x").unwrap(), "/sys/fs/cgroup/system.slice/husk-x.scope");
        for out in ["/../x", "/", "../../../x", "/a/../../b"] {
            assert!(path(out).unwrap_err().to_string().contains("is not below"), "{out}");
        }
    }
}
