//! A directory or a regular file of the host (hostPath, ConfigMap, Secret, resolv.conf, `ctr run --mount`).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use husk_protocol::files::KERNEL_FILE_SYSTEMS;
use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, fstat, fstatfs};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::{Volume, VolumeError, has};
use crate::host::idmap::IdMap;
use crate::host::mount::{restrict, set_attributes};

/// Opens the source of `mount`, the document's mount of this number.
pub(super) fn open(number: usize, mount: &Mount, bundle: &Path) -> Result<Volume, VolumeError> {
    let destination = mount.destination();
    let invalid = |why| VolumeError::Invalid { mount: number, destination: destination.clone(), why };
    let Some(source) = mount.source().as_ref().filter(|source| !source.as_os_str().is_empty()) else {
        return Err(invalid("it has no source: a bind mount is of a file or a directory of the host"));
    };
    let path = bundle.join(source);
    let failed = |what| {
        let (destination, path) = (destination.clone(), path.clone());
        move |cause: io::Error| VolumeError::Io { mount: number, destination, what, path, cause }
    };
    let recursive = !has(mount, "bind");
    let source = detach(&path, recursive).map_err(failed("open"))?;
    let kind = |why| VolumeError::Kind { mount: number, destination: destination.clone(), path: path.clone(), why };
    if let Some(why) = unsuitable(&source).map_err(failed("look at"))? {
        return Err(kind(why));
    }
    let device = fstat(&source).map_err(io::Error::from).map_err(failed("look at"))?.st_dev;
    // On the host's side too: what the guest's kernel thinks of it decides nothing.
    let all_read_only = has(mount, "rro");
    let read_only = all_read_only || has(mount, "ro") && !has(mount, "rw");
    if read_only {
        set_attributes(&source, libc::MOUNT_ATTR_RDONLY, None, all_read_only).map_err(failed("make read-only"))?;
    }
    if let Some(ids) = IdMap::of_mount(mount).map_err(invalid)? {
        ids.apply(&source, has(mount, "ridmap")).map_err(failed("map the ids of"))?;
    }
    restrict(&source, recursive).map_err(failed("restrict"))?;
    Ok(Volume { mount: number, path, device, recursive, source, read_only: all_read_only || read_only && !recursive })
}

/// Opens the program at `path`, for nobody to write; what could not be done, and the kernel's answer.
pub(super) fn program(path: &Path) -> Result<OwnedFd, (&'static str, io::Error)> {
    let refused = |why: &str| ("share", io::Error::other(format!("it{why}")));
    if !path.is_absolute() {
        return Err(refused("s path is not absolute"));
    }
    let program = detach(path, false).map_err(|cause| ("open", cause))?;
    if let Some(why) = unsuitable(&program).map_err(|cause| ("look at", cause))? {
        return Err(refused(&format!(" {why}")));
    }
    let stat = fstat(&program).map_err(|cause| ("look at", cause.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused(" is no regular file"));
    }
    set_attributes(&program, libc::MOUNT_ATTR_RDONLY, None, false).map_err(|cause| ("make read-only", cause))?;
    restrict(&program, false).map_err(|cause| ("restrict", cause))?;
    Ok(program)
}

/// A mount of its own of what is at `path`, where links are followed as on the host.
fn detach(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(open_tree(CWD, path, flags)?)
}

/// Why this cannot be shared, if it cannot.
fn unsuitable(source: &OwnedFd) -> io::Result<Option<&'static str>> {
    if KERNEL_FILE_SYSTEMS.contains(&fstatfs(source)?.f_type) {
        return Ok(Some(
            "shows the host's kernel or its processes: mount the guest's (types proc, sysfs, cgroup, devpts)",
        ));
    }
    Ok(match FileType::from_raw_mode(fstat(source)?.st_mode) {
        FileType::Directory | FileType::RegularFile => None,
        FileType::CharacterDevice | FileType::BlockDevice => Some(
            "is a device of the host, which a guest does not have: name it in linux.devices if the guest's kernel has one of its kind",
        ),
        FileType::Socket => Some("is a socket: nobody can connect to a process of the host from a virtual machine"),
        FileType::Fifo => Some("is a fifo: it cannot reach from a virtual machine to a process of the host"),
        _ => Some("is neither a directory nor a regular file"),
    })
}
