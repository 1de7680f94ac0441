//! Device nodes and links that every container has (OCI runtime spec, config-linux, "Default Devices" and
//! "Dev symbolic links"), and those of the document.

use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, chownat, makedev, mknodat};

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

/// Makes them below the working directory, where `/dev` is mounted already; the umask is zero.
///
/// # Errors
/// The one that failed.
pub(super) fn make_all(devices: &[LinuxDevice]) -> Result<(), String> {
    for (path, major, minor) in DEFAULT {
        node(Path::new(path), FileType::CharacterDevice, 0o666, makedev(major, minor))
            .map_err(|cause| format!("cannot make /{path}: {cause}"))?;
    }
    for device in devices {
        one(device).map_err(|cause| format!("cannot make the device {}: {cause}", device.path().display()))?;
    }
    for (path, target) in LINKS {
        match symlink(target, path) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
                return Err(format!("cannot make the link /{path}: {cause}"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn one(device: &LinuxDevice) -> io::Result<()> {
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::C | LinuxDeviceType::U | LinuxDeviceType::A => FileType::CharacterDevice,
    };
    let number = |value: i64| u32::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let path = below_root(device.path());
    node(&path, kind, device.file_mode().unwrap_or(0o666), makedev(number(device.major())?, number(device.minor())?))?;
    let (uid, gid) = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    chownat(CWD, &path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn node(path: &Path, kind: FileType, mode: u32, device: u64) -> io::Result<()> {
    match mknodat(CWD, path, kind, Mode::from_raw_mode(mode), device) {
        // The image's own, or one that is in both lists.
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(cause) => Err(cause.into()),
    }
}
