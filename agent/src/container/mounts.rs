//! The container's file systems, mounted below its root before it becomes the root.
//!
//! Every path of the document is walked with `openat2(2)` inside the new root, so that no link in the image leads out of
//! it, and mounts are put on descriptors, so that nothing can change between the walk and the mount.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};

use super::plan::{Plan, PlanError, below_root};
use super::unprivileged::SYSFS;

/// Where the guest has its cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Attaches the directory `root` at `at` as a mount of its own and makes that the working directory. Mounts made from
/// here on are seen by nobody else.
///
/// # Errors
/// The step and the kernel's answer.
pub(super) fn attach_root(root: &Path, at: &Path) -> Result<(), String> {
    let step = |what: &str| {
        let what = format!("{what} the container's root");
        move |cause: rustix::io::Errno| format!("cannot {what}: {cause}")
    };
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).map_err(step("detach"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, root, flags).map_err(step("open"))?;
    move_mount(&tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(step("mount"))?;
    rustix::process::chdir(at).map_err(step("enter"))
}

/// Makes the working directory the root, and lets go of the old one.
///
/// # Errors
/// The kernel's answer.
pub(super) fn pivot() -> Result<(), String> {
    // Both at the same place: the old root is stacked below the new one and taken away (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".").map_err(|cause| format!("cannot pivot to the container's root: {cause}"))?;
    unmount(".", UnmountFlags::DETACH).map_err(|cause| format!("cannot let go of the guest's root: {cause}"))?;
    rustix::process::chdir("/").map_err(|cause| format!("cannot enter the container's root: {cause}"))
}

/// What `linux.rootfsPropagation` asks for; runc's names. Private is what a root is anyway.
///
/// # Errors
/// Another word.
pub(super) fn propagation(word: Option<&str>) -> Result<Option<MountPropagationFlags>, PlanError> {
    let (kind, recursive) = match word.unwrap_or_default() {
        "" | "private" | "rprivate" => return Ok(None),
        "shared" => (MountPropagationFlags::SHARED, false),
        "rshared" => (MountPropagationFlags::SHARED, true),
        "slave" => (MountPropagationFlags::DOWNSTREAM, false),
        "rslave" => (MountPropagationFlags::DOWNSTREAM, true),
        "unbindable" => (MountPropagationFlags::UNBINDABLE, false),
        "runbindable" => (MountPropagationFlags::UNBINDABLE, true),
        other => {
            return Err(PlanError::Invalid {
                what: format!("linux.rootfsPropagation {other:?}"),
                why: "is none of shared, slave, private and unbindable",
            });
        }
    };
    Ok(Some(if recursive { kind | MountPropagationFlags::REC } else { kind }))
}

/// Shares the mount at `/` as said.
///
/// # Errors
/// The kernel's answer.
pub(super) fn propagate(how: MountPropagationFlags) -> Result<(), String> {
    mount_change("/", how).map_err(|cause| format!("cannot set the propagation of the root: {cause}"))
}

/// Makes `/` read-only.
///
/// # Errors
/// The kernel's answer.
pub(super) fn make_root_read_only() -> Result<(), String> {
    let attempt = || -> io::Result<()> {
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        // Whatever else holds for it stays: in a user namespace nothing of that can be taken away.
        set_attributes(&root, MountAttrFlags::MOUNT_ATTR_RDONLY, 0)
    };
    attempt().map_err(|cause| format!("cannot make the root read-only: {cause}"))
}

/// Opens `path` below `root`; links are followed inside of it.
fn open_below(root: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens the directory `path` below `root`, and makes what is missing of it.
pub(super) fn directory_below(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    match open_below(root, path, OFlags::PATH | OFlags::DIRECTORY) {
        Err(rustix::io::Errno::NOENT) => {}
        other => return Ok(other?),
    }
    let mut done = PathBuf::new();
    for part in path.components() {
        let parent = open_below(root, &done, OFlags::PATH | OFlags::DIRECTORY)?;
        done.push(part);
        match mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(cause) => return Err(cause.into()),
        }
    }
    Ok(open_below(root, path, OFlags::PATH | OFlags::DIRECTORY)?)
}

/// What a mount's options mean.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    attributes: MountAttrFlags,
    /// For the file system itself: key, and value if it has one.
    data: Vec<(String, Option<String>)>,
}

impl Options {
    fn parse(options: &[String]) -> Self {
        let mut parsed = Self { attributes: MountAttrFlags::empty(), data: Vec::new() };
        let atimes = MountAttrFlags::MOUNT_ATTR__ATIME;
        for option in options {
            let (set, clear) = match option.as_str() {
                "ro" => (MountAttrFlags::MOUNT_ATTR_RDONLY, MountAttrFlags::empty()),
                "nosuid" => (MountAttrFlags::MOUNT_ATTR_NOSUID, MountAttrFlags::empty()),
                "nodev" => (MountAttrFlags::MOUNT_ATTR_NODEV, MountAttrFlags::empty()),
                "noexec" => (MountAttrFlags::MOUNT_ATTR_NOEXEC, MountAttrFlags::empty()),
                "nodiratime" => (MountAttrFlags::MOUNT_ATTR_NODIRATIME, MountAttrFlags::empty()),
                "nosymfollow" => (MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, MountAttrFlags::empty()),
                "noatime" => (MountAttrFlags::MOUNT_ATTR_NOATIME, atimes),
                "strictatime" => (MountAttrFlags::MOUNT_ATTR_STRICTATIME, atimes),
                "relatime" => (MountAttrFlags::MOUNT_ATTR_RELATIME, atimes),
                "rw" => (MountAttrFlags::empty(), MountAttrFlags::MOUNT_ATTR_RDONLY),
                "suid" => (MountAttrFlags::empty(), MountAttrFlags::MOUNT_ATTR_NOSUID),
                "dev" => (MountAttrFlags::empty(), MountAttrFlags::MOUNT_ATTR_NODEV),
                "exec" => (MountAttrFlags::empty(), MountAttrFlags::MOUNT_ATTR_NOEXEC),
                // A mount of its own has nobody to share with.
                "defaults" | "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" | "unbindable"
                | "runbindable" => continue,
                other => {
                    let (key, value) = other.split_once('=').map_or((other, None), |(key, value)| (key, Some(value)));
                    parsed.data.push((key.to_owned(), value.map(str::to_owned)));
                    continue;
                }
            };
            parsed.attributes = parsed.attributes.difference(clear).union(set);
        }
        parsed
    }
}

/// Mounts the document's file systems below the working directory.
///
/// # Errors
/// The mount that failed, at which step.
pub(super) fn mount_all(plan: &Plan) -> Result<(), String> {
    let root = rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|cause| format!("cannot open the container's root: {cause}"))?;
    for mount in plan.mounts() {
        mount_one(&root, mount, plan).map_err(|cause| {
            let kind = mount.typ().as_deref().unwrap_or("none");
            format!("cannot mount {kind} at {}: {cause}", mount.destination().display())
        })?;
    }
    Ok(())
}

fn mount_one(root: &OwnedFd, mount: &Mount, plan: &Plan) -> io::Result<()> {
    let kind = match mount.typ().as_deref().unwrap_or_default() {
        // The guest has version 2 alone.
        "cgroup" => "cgroup2",
        kind => kind,
    };
    let at = directory_below(root, &below_root(mount.destination()))?;
    let options = Options::parse(mount.options().as_deref().unwrap_or_default());
    let made = match kind {
        // They belong to namespaces that are not the user namespace's.
        "sysfs" if plan.ids().is_some() => bind(SYSFS, &options)?,
        "cgroup2" if plan.ids().is_some() && !plan.has_namespace(libc::CLONE_NEWCGROUP) => bind(CGROUPS, &options)?,
        _ => make(kind, mount, &options)?,
    };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(&made, "", &at, "", flags)?)
}

/// One more mount of what is mounted at `path` of the guest.
fn bind(path: &str, options: &Options) -> io::Result<OwnedFd> {
    let tree = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    // When a file's access time changes cannot be another than in the guest, and does not matter to either of them.
    set_attributes(&tree, options.attributes.difference(MountAttrFlags::MOUNT_ATTR__ATIME), 0)?;
    Ok(tree)
}

/// A new mount.
fn make(kind: &str, mount: &Mount, options: &Options) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if let Some(source) = mount.source() {
        fsconfig_set_string(context.as_fd(), "source", source.as_path())?;
    }
    for (key, value) in &options.data {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str()),
            None => fsconfig_set_flag(context.as_fd(), key.as_str()),
        }
        .map_err(|cause| io::Error::other(format!("option {key}: {cause}")))?;
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, options.attributes)?)
}

/// Hides `path` of the container, which is the root already. One that does not exist needs no hiding.
///
/// # Errors
/// The kernel's answer.
pub(super) fn mask(path: &str) -> Result<(), String> {
    let attempt = || -> io::Result<()> {
        let found = match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
            other => other?,
        };
        let is_directory = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode).is_dir();
        let cover = if is_directory {
            let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_create(context.as_fd())?;
            fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?
        } else {
            open_tree(CWD, "/dev/null", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?
        };
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(&cover, "", &found, "", flags)?)
    };
    attempt().map_err(|cause| format!("cannot mask {path}: {cause}"))
}

/// Makes `path` of the container, which is the root already, read-only. One that does not exist needs nothing.
///
/// # Errors
/// The kernel's answer.
pub(super) fn make_read_only(path: &str) -> Result<(), String> {
    let attempt = || -> io::Result<()> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let tree = match open_tree(CWD, path, flags) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
            other => other?,
        };
        set_attributes(&tree, MountAttrFlags::MOUNT_ATTR_RDONLY, libc::AT_RECURSIVE)?;
        Ok(move_mount(&tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
    };
    attempt().map_err(|cause| format!("cannot make {path} read-only: {cause}"))
}

/// Adds to a mount's attributes, by `mount_setattr(2)`; with AT_RECURSIVE to those of all mounts in it.
fn set_attributes(tree: &OwnedFd, set: MountAttrFlags, recursive: libc::c_int) -> io::Result<()> {
    // SAFETY: all zeroes is a valid mount_attr: nothing is changed.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = u64::from(set.bits());
    // SAFETY: the path is empty and terminated, the attributes valid and of this size, and the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        Options::parse(&options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_attributes_or_the_file_systems_own() {
        let parsed =
            parse(&["nosuid", "strictatime", "mode=755", "size=65536k", "newinstance", "rprivate", "ro", "rw"]);
        assert_eq!(parsed.attributes, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME);
        let data: Vec<_> = parsed.data.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
        assert_eq!(data, [("mode", Some("755")), ("size", Some("65536k")), ("newinstance", None)]);
        // The last of the access times counts.
        assert_eq!(parse(&["strictatime", "noatime"]).attributes, MountAttrFlags::MOUNT_ATTR_NOATIME);
    }

    #[test]
    fn no_link_leads_out_of_the_root() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::os::unix::fs::symlink("../../outside", root.join("etc/up")).unwrap();
        std::os::unix::fs::symlink("/abs", root.join("link")).unwrap();
        std::fs::create_dir(root.join("abs")).unwrap();
        let root_fd = rustix::fs::open(&root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        // An absolute link is followed inside the root, a dangling one is an error, and nothing is made outside.
        directory_below(&root_fd, Path::new("link/deep/er")).unwrap();
        assert!(root.join("abs/deep/er").is_dir());
        assert!(directory_below(&root_fd, Path::new("etc/up/x")).is_err());
        assert!(!base.path().join("outside").exists() && !root.join("outside").exists());
        directory_below(&root_fd, Path::new("")).unwrap();
    }
}
