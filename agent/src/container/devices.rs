//! Device nodes and links that every container has (OCI runtime spec, config-linux, "Default Devices" and
//! "Dev symbolic links"), and those of the document.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mknodat, open, symlinkat};

use super::mounts::directory_below;
use super::plan::below_root;

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

/// Makes them below the working directory, where `/dev` is mounted already; the umask is zero. Paths are walked as
/// those of mounts are: no link in the image leads out of it.
///
/// # Errors
/// The one that failed.
pub(super) fn make_all(devices: &[LinuxDevice]) -> Result<(), String> {
    let root = open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|cause| format!("cannot open the container's root: {cause}"))?;
    for (path, major, minor) in DEFAULT {
        let made = Place::find(&root, Path::new(path))
            .and_then(|place| place.node(FileType::CharacterDevice, 0o666, makedev(major, minor)));
        made.map_err(|cause| format!("cannot make /{path}: {cause}"))?;
    }
    for device in devices {
        one(&root, device).map_err(|cause| format!("cannot make the device {}: {cause}", device.path().display()))?;
    }
    for (path, target) in LINKS {
        let made = Place::find(&root, Path::new(path))
            .and_then(|place| or_there(symlinkat(target, &place.directory, &place.name)));
        made.map_err(|cause| format!("cannot make the link /{path}: {cause}"))?;
    }
    Ok(())
}

fn one(root: &OwnedFd, device: &LinuxDevice) -> io::Result<()> {
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::C | LinuxDeviceType::U | LinuxDeviceType::A => FileType::CharacterDevice,
    };
    let number = |value: i64| u32::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let place = Place::find(root, &below_root(device.path()))?;
    place.node(kind, device.file_mode().unwrap_or(0o666), makedev(number(device.major())?, number(device.minor())?))?;
    let owner = (Uid::from_raw(device.uid().unwrap_or(0)), Gid::from_raw(device.gid().unwrap_or(0)));
    chownat(&place.directory, &place.name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
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

    fn node(&self, kind: FileType, mode: u32, device: u64) -> io::Result<()> {
        or_there(mknodat(&self.directory, &self.name, kind, Mode::from_raw_mode(mode), device))
    }
}

/// What is there is the image's own, or in both lists.
fn or_there(made: rustix::io::Result<()>) -> io::Result<()> {
    match made {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(cause) => Err(cause.into()),
    }
}
