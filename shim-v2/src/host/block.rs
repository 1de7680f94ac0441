//! Block devices of the host, and which of them files come from.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{major, makedev, minor};

/// Devices below devices: more than anybody stacks.
const DEEPEST: usize = 8;

/// The number of a block device, as cgroups and documents write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Of its driver.
    pub major: u32,
    /// Of it among its driver's.
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.major, self.minor)
    }
}

/// No number of a device.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not the number of a device (MAJOR:MINOR)")]
pub struct NoDevice(String);

impl FromStr for Device {
    type Err = NoDevice;

    fn from_str(text: &str) -> Result<Self, NoDevice> {
        let numbers = text.trim().split_once(':');
        let parsed = numbers.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        parsed.map(|(major, minor)| Self { major, minor }).ok_or_else(|| NoDevice(text.to_owned()))
    }
}

impl Device {
    fn of(number: u64) -> Self {
        Self { major: major(number), minor: minor(number) }
    }

    fn in_sysfs(self, sysfs: &Path) -> PathBuf {
        sysfs.join("dev/block").join(self.to_string())
    }

    /// Whether the host has it.
    #[must_use]
    pub fn exists(self) -> bool {
        self.in_sysfs(Path::new("/sys")).exists()
    }

    fn with_all_below(self, found: &mut BTreeSet<Self>) {
        self.and_below(Path::new("/sys"), 0, found);
    }

    /// This one, the disk that it is a part of, and what those are made of (device mapper, RAID, loop).
    fn and_below(self, sysfs: &Path, depth: usize, found: &mut BTreeSet<Self>) {
        if depth > DEEPEST || !found.insert(self) {
            return;
        }
        let directory = self.in_sysfs(sysfs);
        let number = |directory: &Path| std::fs::read_to_string(directory.join("dev")).ok()?.parse::<Self>().ok();
        // A part's directory is in its disk's (Documentation/ABI/testing/sysfs-block).
        let disk = directory.join("partition").exists().then(|| directory.canonicalize().ok()).flatten();
        let disk = disk.and_then(|part| number(part.parent()?));
        let slaves = std::fs::read_dir(directory.join("slaves")).into_iter().flatten().flatten();
        // A loop device is a file of another one's.
        let file = std::fs::read_to_string(directory.join("loop/backing_file")).ok();
        let file = file.and_then(|file| std::fs::metadata(file.trim_end()).ok()).map(|file| Self::of(file.dev()));
        let below: Vec<Self> = slaves.filter_map(|slave| number(&slave.path())).chain(disk).chain(file).collect();
        for device in below {
            device.and_below(sysfs, depth + 1, found);
        }
    }
}

/// A line of the table of mounts (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// The device number of the file system.
    pub number: u64,
    /// Where it is.
    pub point: PathBuf,
    kind: String,
    source: PathBuf,
}

/// The mounts of this process's namespace.
///
/// # Errors
/// `/proc` is missing.
pub fn mounts() -> io::Result<Vec<Mounted>> {
    Ok(std::fs::read_to_string("/proc/self/mountinfo")?.lines().filter_map(mounted).collect())
}

fn mounted(line: &str) -> Option<Mounted> {
    let (mount, file_system) = line.split_once(" - ")?;
    let (mut mount, mut file_system) = (mount.split(' ').skip(2), file_system.split(' '));
    let number: Device = mount.next()?.parse().ok()?;
    let point = unescaped(mount.nth(1)?);
    let (kind, source) = (file_system.next()?.to_owned(), unescaped(file_system.next()?));
    Some(Mounted { number: makedev(number.major, number.minor), point, kind, source })
}

/// A path whose blanks are written as `\040`.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\').and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// The devices that files come from, by the device number of their file system and where they are; none for those of no block
/// device (tmpfs, NFS). Asks the file system nothing: its server may be gone.
#[must_use]
pub fn behind(number: u64, path: &Path, mounts: &[Mounted]) -> BTreeSet<Device> {
    let mut found = BTreeSet::new();
    if major(number) != 0 {
        Device::of(number).with_all_below(&mut found);
        return found;
    }
    // The number is the file system's own (btrfs), or of its sub-volume: the table has what is mounted there.
    let there = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    let Some(mount) = there.max_by_key(|mount| mount.point.as_os_str().len()) else { return found };
    let is_device = |found: &std::fs::Metadata| found.file_type().is_block_device();
    if let Some(source) = mount.source.metadata().ok().filter(is_device) {
        let device = Device::of(source.rdev());
        device.with_all_below(&mut found);
        if mount.kind == "btrfs" {
            beside(device, Path::new("/sys")).into_iter().for_each(|other| other.with_all_below(&mut found));
        }
    }
    found
}

/// The devices of the btrfs that this one is a part of (fs/btrfs/sysfs.c).
fn beside(device: Device, sysfs: &Path) -> Vec<Device> {
    let number =
        |device: std::fs::DirEntry| std::fs::read_to_string(device.path().join("dev")).ok()?.trim().parse().ok();
    let all = std::fs::read_dir(sysfs.join("fs/btrfs")).into_iter().flatten().flatten();
    let members = all.map(|of| -> Vec<Device> {
        let devices = std::fs::read_dir(of.path().join("devices")).into_iter().flatten().flatten();
        devices.filter_map(number).collect()
    });
    members.into_iter().find(|devices| devices.contains(&device)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> Device {
        text.parse().unwrap()
    }

    #[test]
    fn numbers_are_read_and_written() {
        assert_eq!(device("254:16").to_string(), "254:16");
        for wrong in ["", "8", "8:", ":0", "-1:0", "8:0:0", "sda", "99999999999:0"] {
            assert!(wrong.parse::<Device>().unwrap_err().to_string().contains("MAJOR:MINOR"), "{wrong}");
        }
    }

    #[test]
    fn parts_and_mapped_devices_lead_to_their_disks() {
        let sysfs = tempfile::tempdir().unwrap();
        let make = |directory: &str, number: &str| {
            let path = sysfs.path().join("devices").join(directory);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("dev"), format!("{number}\n")).unwrap();
            std::fs::create_dir_all(sysfs.path().join("dev/block")).unwrap();
            std::os::unix::fs::symlink(&path, sysfs.path().join("dev/block").join(number)).unwrap();
            path
        };
        make("sda", "8:0");
        let part = make("sda/sda2", "8:2");
        std::fs::write(part.join("partition"), "2\n").unwrap();
        let mapped = make("dm-0", "253:0");
        std::fs::create_dir(mapped.join("slaves")).unwrap();
        std::os::unix::fs::symlink(&part, mapped.join("slaves/sda2")).unwrap();
        // Not possible, and not for ever.
        std::fs::create_dir(part.join("slaves")).unwrap();
        std::os::unix::fs::symlink(&mapped, part.join("slaves/dm-0")).unwrap();
        let below = |number: &str| {
            let mut found = BTreeSet::new();
            device(number).and_below(sysfs.path(), 0, &mut found);
            found.iter().map(Device::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(below("253:0"), "8:0 8:2 253:0");
        assert_eq!(below("8:0"), "8:0");
        assert_eq!(below("7:7"), "7:7", "nothing is known of it");
    }

    #[test]
    fn the_table_of_mounts_is_read() {
        let line = "36 35 0:40 /sub /mnt/a\\040b rw,noatime master:1 - btrfs /dev/vdb rw,subvol=/sub";
        let mount = mounted(line).unwrap();
        assert_eq!(
            (mount.number, mount.point.to_str(), mount.kind.as_str()),
            (makedev(0, 40), Some("/mnt/a b"), "btrfs")
        );
        assert_eq!(mount.source, Path::new("/dev/vdb"));
        assert_eq!(unescaped("\\134x\\"), Path::new("\\x\\"));
        let all = mounts().unwrap();
        assert!(all.iter().any(|mount| mount.point == Path::new("/")), "{all:?}");
        assert!(behind(makedev(0, 5), Path::new("/proc/self"), &all).is_empty());
        let (other, one) = (makedev(7, 200), Device { major: 7, minor: 200 });
        assert!(behind(other, Path::new("/anywhere"), &[]).contains(&one));
    }

    #[test]
    fn a_file_system_of_several_devices_has_all() {
        let sysfs = tempfile::tempdir().unwrap();
        for (of, name, number) in [("one", "vda", "254:0"), ("two", "vdb", "254:16"), ("two", "vdc", "254:32")] {
            let device = sysfs.path().join("fs/btrfs").join(of).join("devices").join(name);
            std::fs::create_dir_all(&device).unwrap();
            std::fs::write(device.join("dev"), format!("{number}\n")).unwrap();
        }
        let mut found = beside(device("254:16"), sysfs.path());
        found.sort();
        assert_eq!(found, [device("254:16"), device("254:32")]);
        assert!(beside(device("8:0"), sysfs.path()).is_empty());
    }
}
