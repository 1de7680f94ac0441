//! Mounts whose files have the ids that a user namespace gives them (mount_setattr(2), "ID-mapped mounts"): roots, where
//! containerd's overlayfs asks for it with `uidmap=` and `gidmap=`, and bind mounts with mappings in the document.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, Mount};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::pipe::{PipeFlags, pipe_with};

use super::mount::set_attributes;

/// The mappings of a mount.
#[derive(Debug, PartialEq, Eq)]
pub struct IdMap {
    users: String,
    groups: String,
}

impl IdMap {
    /// The mappings among a mount's options, if there are any.
    ///
    /// # Errors
    /// Why they are none.
    pub fn of(options: &[&str]) -> Result<Option<Self>, &'static str> {
        let find = |key: &str| options.iter().find_map(|option| option.strip_prefix(key));
        match (find("uidmap="), find("gidmap=")) {
            (None, None) => Ok(None),
            (Some(users), Some(groups)) => match (lines(users), lines(groups)) {
                (Some(users), Some(groups)) => Ok(Some(Self { users, groups })),
                _ => Err("uidmap= and gidmap= are lists of container-id:host-id:size"),
            },
            _ => Err("uidmap= and gidmap= belong together"),
        }
    }

    /// The mappings of a mount of the runtime document (config.md, "uidMappings" of mounts).
    ///
    /// # Errors
    /// Why they are none.
    pub fn of_mount(mount: &Mount) -> Result<Option<Self>, &'static str> {
        let lines = |mappings: &[LinuxIdMapping]| -> String {
            let line = |one: &LinuxIdMapping| format!("{} {} {}\n", one.container_id(), one.host_id(), one.size());
            mappings.iter().map(line).collect()
        };
        let list = |mappings: &Option<Vec<LinuxIdMapping>>| lines(mappings.as_deref().unwrap_or_default());
        match (list(mount.uid_mappings()), list(mount.gid_mappings())) {
            (users, groups) if users.is_empty() && groups.is_empty() => Ok(None),
            (users, groups) if users.is_empty() || groups.is_empty() => {
                Err("its uidMappings and gidMappings belong together")
            }
            (users, groups) => Ok(Some(Self { users, groups })),
        }
    }

    /// Whether an option is one of these mappings, which the file system knows nothing of.
    pub fn has(option: &str) -> bool {
        option.starts_with("uidmap=") || option.starts_with("gidmap=")
    }

    /// Mounts the directory `source`, mapped, at `target`.
    ///
    /// # Errors
    /// The step and the kernel's answer: not every file system can be mapped.
    pub fn mount(&self, source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, source, flags).map_err(io::Error::from).map_err(step("open it"))?;
        self.apply(&tree, false)?;
        if read_only {
            set_attributes(&tree, libc::MOUNT_ATTR_RDONLY, None, false).map_err(step("make it read-only"))?;
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&tree, "", CWD, target, flags).map_err(io::Error::from).map_err(step("mount it"))
    }

    /// Maps the ids of a detached mount, and of those in it if `recursive`.
    ///
    /// # Errors
    /// The step and the kernel's answer: not every file system can be mapped.
    pub fn apply(&self, tree: &OwnedFd, recursive: bool) -> io::Result<()> {
        let namespace = self.namespace().map_err(step("make a user namespace for its ids"))?;
        set_attributes(tree, libc::MOUNT_ATTR_IDMAP, Some(&namespace), recursive)
            .map_err(step("map its ids (does its file system have ID-mapped mounts?)"))
    }

    /// A user namespace with these mappings: that of a child, which lives until it is opened.
    fn namespace(&self) -> io::Result<OwnedFd> {
        let (wait, go) = pipe_with(PipeFlags::CLOEXEC)?;
        let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
        let mut byte = [0u8];
        // SAFETY: like fork(2): no memory is shared. The child calls the kernel alone, with a buffer of its own, and ends.
        let pid = unsafe {
            let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
            if pid == 0 {
                // Its own copy of the other end: the read ends when this process closes the last one, or is gone.
                libc::close(go.as_raw_fd());
                libc::read(wait.as_raw_fd(), byte.as_mut_ptr().cast(), byte.len());
                libc::_exit(0);
            }
            pid
        };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        let of = |file: &str| format!("/proc/{pid}/{file}");
        let opened = fs::write(of("gid_map"), &self.groups)
            .and_then(|()| fs::write(of("uid_map"), &self.users))
            .and_then(|()| Ok(open(of("ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?));
        drop(go);
        // Fits: process ids end at 2^22.
        if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()))?;
        }
        opened
    }
}

fn step(what: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |cause| io::Error::new(cause.kind(), format!("{what}: {cause}"))
}

/// containerd's `0:1000:10,10:2000:5` as the kernel takes it.
fn lines(mappings: &str) -> Option<String> {
    let line = |mapping: &str| {
        let numbers = mapping.split(':').map(|number| number.parse::<u32>().ok()).collect::<Option<Vec<_>>>()?;
        let [inside, outside, size] = numbers[..] else { return None };
        Some(format!("{inside} {outside} {size}\n"))
    };
    mappings.split(',').map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_the_kernels() {
        assert_eq!(IdMap::of(&["ro", "lowerdir=/a"]), Ok(None));
        let map = IdMap::of(&["uidmap=0:1000:10,10:2000:5", "ro", "gidmap=0:7:1"]).unwrap().unwrap();
        assert_eq!((map.users.as_str(), map.groups.as_str()), ("0 1000 10\n10 2000 5\n", "0 7 1\n"));
        for options in [["uidmap=0:1:2", "ro"], ["uidmap=0:1", "gidmap=0:1:2"], ["uidmap=0:1:2", "gidmap=0:-1:2"]] {
            assert!(IdMap::of(&options).is_err(), "{options:?}");
        }
    }
}
