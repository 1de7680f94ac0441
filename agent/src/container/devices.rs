//! Device nodes and links that every container has (OCI runtime spec, config-linux, "Default Devices" and
//! "Dev symbolic links"), and those of the document.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, major, makedev, minor, mknodat, open, openat, symlinkat,
};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::below::directory_below;
use super::numbers::{Kind, is_given_out};
use super::plan::{PlanError, below_root};
use super::unprivileged::Nodes;

/// Character devices: path below the root, major, minor.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("dev/null", 1, 3),
    ("dev/zero", 1, 5),
    ("dev/full", 1, 7),
    ("dev/random", 1, 8),
    ("dev/urandom", 1, 9),
    ("dev/tty", 5, 0),
];

/// Links: path below the root, target.
const LINKS: [(&str, &str); 5] = [
    ("dev/fd", "/proc/self/fd"),
    ("dev/stdin", "/proc/self/fd/0"),
    ("dev/stdout", "/proc/self/fd/1"),
    ("dev/stderr", "/proc/self/fd/2"),
    ("dev/ptmx", "pts/ptmx"),
];

/// A link that containers have where the kernel shows its memory; a guest's does not.
const CORE: (&str, &str) = ("dev/core", "/proc/kcore");

/// A device node to be.
#[derive(Debug)]
pub(super) struct Node {
    /// Below the root.
    pub(super) path: PathBuf,
    pub(super) kind: FileType,
    /// Permissions.
    pub(super) mode: u32,
    pub(super) device: u64,
    /// Ids of the container's user and group; none: who makes it.
    pub(super) owner: Option<(u32, u32)>,
}

impl Node {
    /// All that a container gets: those that every container has, and the document's.
    ///
    /// # Errors
    /// A number that no device has.
    pub(super) fn all(devices: &[LinuxDevice]) -> Result<Vec<Self>, PlanError> {
        let default = DEFAULT.iter().map(|&(path, major, minor)| {
            let (kind, device) = (FileType::CharacterDevice, makedev(major, minor));
            Ok(Self { path: path.into(), kind, mode: 0o666, device, owner: None })
        });
        default.chain(devices.iter().map(Self::of)).collect()
    }

    fn of(device: &LinuxDevice) -> Result<Self, PlanError> {
        let invalid = |what: &str, why| PlanError::Invalid {
            what: format!("linux.devices: {}: {what}", device.path().display()),
            why,
        };
        let kind = match device.typ() {
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
            LinuxDeviceType::A => return Err(invalid("type a", "it has to be c, b, u or p")),
        };
        let number = |name: &str, value: i64| {
            u32::try_from(value).map_err(|_| invalid(&format!("{name} {value}"), "no device has it"))
        };
        Ok(Self {
            path: below_root(device.path()),
            kind,
            mode: device.file_mode().unwrap_or(0o666),
            device: makedev(number("major", device.major())?, number("minor", device.minor())?),
            owner: Some((device.uid().unwrap_or(0), device.gid().unwrap_or(0))),
        })
    }

    /// Whether its number is another device in the guest, or none.
    pub(super) fn is_given_out(&self) -> bool {
        self.number().is_some_and(|(kind, major, minor)| is_given_out(kind, major, Some(minor)))
    }

    /// Which device it leads to; a fifo to none.
    pub(super) fn number(&self) -> Option<(Kind, u32, u32)> {
        let kind = match self.kind {
            FileType::BlockDevice => Kind::Block,
            FileType::CharacterDevice => Kind::Character,
            _ => return None,
        };
        Some((kind, major(self.device), minor(self.device)))
    }
}

impl fmt::Display for Node {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "/{}", self.path.display())?;
        match self.number() {
            Some((Kind::Block, major, minor)) => write!(to, " (b {major}:{minor})"),
            Some((Kind::Character, major, minor)) => write!(to, " (c {major}:{minor})"),
            None => Ok(()),
        }
    }
}

/// Makes nodes and links below the working directory, where `/dev` is mounted already; the umask is zero. Paths are
/// walked as those of mounts are: no link in the image leads out of it. In a user namespace nodes cannot be made: `made`
/// are bound then.
///
/// # Errors
/// The one that failed.
pub(super) fn make_all(nodes: &[Node], made: Option<&Nodes>, on_host: bool) -> Result<(), String> {
    let root = open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|cause| format!("cannot open the container's root: {cause}"))?;
    for (number, node) in nodes.iter().enumerate() {
        let placed = Place::find(&root, &node.path).and_then(|place| match made {
            None => place.make(node),
            Some(made) => place.bind(&made.path(number)),
        });
        placed.map_err(|cause| format!("cannot make the device /{}: {cause}", node.path.display()))?;
    }
    let core = (on_host && Path::new(CORE.1).exists()).then_some(CORE);
    for (path, target) in LINKS.into_iter().chain(core) {
        let made = Place::find(&root, Path::new(path))
            .and_then(|place| or_there(symlinkat(target, &place.directory, &place.name)));
        made.map_err(|cause| format!("cannot make the link /{path}: {cause}"))?;
    }
    Ok(())
}

/// Where something is made.
struct Place {
    directory: OwnedFd,
    name: OsString,
}

impl Place {
    /// The directory of `path` below `root`, made if it is missing, as runc does (`/dev/dma_heap/system`).
    fn find(root: &OwnedFd, path: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        Ok(Self { directory: directory_below(root, parent)?, name: name.to_owned() })
    }

    fn make(&self, node: &Node) -> io::Result<()> {
        or_there(mknodat(&self.directory, &self.name, node.kind, Mode::from_raw_mode(node.mode), node.device))?;
        let Some((user, group)) = node.owner else { return Ok(()) };
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        Ok(chownat(&self.directory, &self.name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Mounts the node onto a file of this name.
    fn bind(&self, node: &Path) -> io::Result<()> {
        or_there(mknodat(&self.directory, &self.name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0))?;
        let file =
            openat(&self.directory, &self.name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let tree = open_tree(CWD, node, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(tree.as_fd(), "", &file, "", flags)?)
    }
}

/// What is there is the image's own, or in both lists.
fn or_there(made: rustix::io::Result<()>) -> io::Result<()> {
    match made {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(cause) => Err(cause.into()),
    }
}
