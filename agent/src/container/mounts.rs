//! The container's file systems, mounted below its root before it becomes the root.
//!
//! Every path of the document is walked with `openat2(2)` inside the new root, so that no link in the image leads out of
//! it, and mounts are put on descriptors, so that nothing can change between the walk and the mount.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, makedev};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};

use super::below::{Missing, directory_below, place_below};
use super::mount_options::{Attributes, Options};
use super::plan::{Plan, PlanError, below_root};
use super::unprivileged::SYSFS;

/// Where the guest has its cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Attaches the directory `root` at `at` as a mount of its own and makes that the working directory. Mounts made from
/// here on are seen by nobody else. What happens to the mounts that there are is `outside`; none: nothing.
///
/// # Errors
/// The step and the kernel's answer.
pub(super) fn attach_root(root: &Path, at: &Path, outside: Option<MountPropagationFlags>) -> Result<(), String> {
    let step = |what: &str| {
        let what = format!("{what} the container's root");
        move |cause: rustix::io::Errno| format!("cannot {what}: {cause}")
    };
    if let Some(outside) = outside {
        mount_change("/", MountPropagationFlags::REC | outside).map_err(step("detach"))?;
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, root, flags).map_err(step("open"))?;
    if outside != Some(MountPropagationFlags::PRIVATE) {
        // Neither it nor what it is mounted on can be shared with anybody (pivot_root(2)).
        set_propagation(&tree, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .and_then(|()| make_mount_of_private(at))
            .map_err(|cause| format!("cannot detach the container's root {}: {cause}", root.display()))?;
    }
    move_mount(&tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(step("mount"))?;
    rustix::process::chdir(at).map_err(step("enter"))
}

/// Makes the mount that `path` is on private.
fn make_mount_of_private(path: &Path) -> io::Result<()> {
    for directory in path.ancestors() {
        match mount_change(directory, MountPropagationFlags::PRIVATE) {
            // Nothing is mounted here.
            Err(rustix::io::Errno::INVAL) => {}
            other => return Ok(other?),
        }
    }
    Err(rustix::io::Errno::INVAL.into())
}

/// Makes the working directory the root, and lets go of the old one, of which others may have copies that are `shared` with it.
///
/// # Errors
/// The kernel's answer.
pub(super) fn pivot(shared: bool) -> Result<(), String> {
    if shared {
        // Nobody else's is taken away below.
        rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|old| set_propagation(&old, MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC))
            .map_err(|cause| format!("cannot detach the old root: {cause}"))?;
    }
    // Both at the same place: the old root is stacked below the new one and taken away (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".").map_err(|cause| format!("cannot pivot to the container's root: {cause}"))?;
    unmount(".", UnmountFlags::DETACH).map_err(|cause| format!("cannot let go of the old root: {cause}"))?;
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
        set_attributes(&root, Attributes::READ_ONLY, 0)
    };
    attempt().map_err(|cause| format!("cannot make the root read-only: {cause}"))
}

/// Mounts the document's file systems below the working directory.
///
/// # Errors
/// The mount that failed, at which step.
pub(super) fn mount_all(plan: &Plan) -> Result<(), String> {
    let root = rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|cause| format!("cannot open the container's root: {cause}"))?;
    for (number, mount) in plan.mounts().iter().enumerate() {
        mount_one(&root, number, mount, plan).map_err(|cause| {
            let kind = match plan.source(number) {
                Some(_) => mount.source().as_deref().unwrap_or(Path::new("")).display().to_string(),
                None => mount.typ().clone().unwrap_or_default(),
            };
            format!("mounts[{number}]: cannot mount {kind} at {}: {cause}", mount.destination().display())
        })?;
    }
    Ok(())
}

fn mount_one(root: &OwnedFd, number: usize, mount: &Mount, plan: &Plan) -> io::Result<()> {
    let kind = match mount.typ().as_deref().unwrap_or_default() {
        // The guest has version 2 alone.
        "cgroup" => "cgroup2",
        kind => kind,
    };
    let options = Options::parse(mount.options().as_deref().unwrap_or_default());
    let destination = below_root(mount.destination());
    let (made, at) = match plan.source(number) {
        Some(source) => {
            // A guest is given what it is to have.
            let only_this = mount.options().iter().flatten().any(|option| option == "bind") && plan.place().is_host();
            let tree = bind(source, &options, plan, !only_this)?;
            let missing = match FileType::from_raw_mode(fstat(&tree)?.st_mode) {
                FileType::Directory => Missing::Directory,
                _ => Missing::File,
            };
            (tree, place_below(root, &destination, missing)?)
        }
        None => {
            let at = directory_below(root, &destination)?;
            let made = match kind {
                // They belong to namespaces that are not the user namespace's.
                "sysfs" if plan.ids().is_some() && !plan.place().is_host() => {
                    bind(Path::new(SYSFS), &options, plan, true)?
                }
                // On a host another mount of them would change the options of all (kernel/cgroup/cgroup.c).
                "cgroup2" if (plan.ids().is_some() || plan.place().is_host()) && !plan.has_own_cgroups() => {
                    bind(Path::new(CGROUPS), &options, plan, true)?
                }
                _ => make(kind, mount, &options)?,
            };
            (made, at)
        }
    };
    set_attributes(&made, options.recursive, libc::AT_RECURSIVE)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&made, "", &at, "", flags)?;
    // In its place: what is moved into a shared mount becomes shared, whatever it was (Documentation/filesystems/sharedsubtree.rst, 5c).
    options.propagation.map_or(Ok(()), |propagation| set_propagation(&made, propagation))
}

/// One more mount of what is mounted at `path`, if `recursive` with the mounts below it.
fn bind(path: &Path, options: &Options, plan: &Plan, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let tree = open_tree(CWD, path, flags)?;
    let mut attributes = options.attributes;
    if !plan.place().is_host() {
        // What holds for the guest's own mount holds here: the host's devices are nobody's in a guest.
        attributes.clear = attributes.clear.difference(MountAttrFlags::MOUNT_ATTR_NODEV);
    }
    if plan.ids().is_some() {
        // Nothing can be taken away in a user namespace; when a file's access time changes cannot be another than in the
        // guest, and does not matter to either of them.
        attributes.set = attributes.set.difference(MountAttrFlags::MOUNT_ATTR__ATIME);
        attributes.clear = MountAttrFlags::empty();
    }
    set_attributes(&tree, attributes, 0)?;
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
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, options.attributes.set)?)
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
        let is_directory = FileType::from_raw_mode(fstat(&found)?.st_mode).is_dir();
        let cover = if is_directory {
            let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_create(context.as_fd())?;
            fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?
        } else {
            null_device()?
        };
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(&cover, "", &found, "", flags)?)
    };
    attempt().map_err(|cause| format!("cannot mask {path}: {cause}"))
}

/// A mount of the container's null device. An image can have something else of this name, and a link leads anywhere: whatever stands
/// there would be shown in the place of what is masked, or be written by who writes there.
fn null_device() -> io::Result<OwnedFd> {
    const NULL: &str = "/dev/null";
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = open_tree(CWD, NULL, flags)?;
    let found = fstat(&tree)?;
    if !FileType::from_raw_mode(found.st_mode).is_char_device() || found.st_rdev != makedev(1, 3) {
        return Err(io::Error::other(format!("the container's {NULL} is not the null device (c 1:3)")));
    }
    Ok(tree)
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
        set_attributes(&tree, Attributes::READ_ONLY, libc::AT_RECURSIVE)?;
        Ok(move_mount(&tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
    };
    attempt().map_err(|cause| format!("cannot make {path} read-only: {cause}"))
}

/// Changes a mount's attributes; with AT_RECURSIVE those of all mounts in it.
fn set_attributes(tree: &OwnedFd, attributes: Attributes, recursive: libc::c_int) -> io::Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    mount_setattr(tree, attributes, 0, recursive)
}

/// Sets what happens to mounts that are made in it later.
fn set_propagation(tree: &OwnedFd, propagation: MountPropagationFlags) -> io::Result<()> {
    let recursive = if propagation.contains(MountPropagationFlags::REC) { libc::AT_RECURSIVE } else { 0 };
    let kind = propagation.difference(MountPropagationFlags::REC);
    mount_setattr(tree, Attributes::NONE, kind.bits().into(), recursive)
}

/// `mount_setattr(2)`.
fn mount_setattr(tree: &OwnedFd, attributes: Attributes, propagation: u64, recursive: libc::c_int) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: attributes.set.bits().into(),
        attr_clr: attributes.clear.bits().into(),
        propagation,
        userns_fd: 0,
    };
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
