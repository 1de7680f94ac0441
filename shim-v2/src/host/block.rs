//! Block devices of the host, and which of them files come from.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{AtFlags, CWD, StatxFlags, major, minor, statx};

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

    /// This one, the disk that it is a part of, and what those are made of (device mapper, RAID).
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
        let below: Vec<Self> = slaves.filter_map(|slave| number(&slave.path())).chain(disk).collect();
        for device in below {
            device.and_below(sysfs, depth + 1, found);
        }
    }
}

/// The devices that the files at `path` come from; none for those of no block device (tmpfs, NFS).
///
/// # Errors
/// The path cannot be looked at.
pub fn behind(path: &Path) -> io::Result<BTreeSet<Device>> {
    let mut found = BTreeSet::new();
    let number = std::fs::metadata(path)?.dev();
    let device = if major(number) != 0 { Some(Device::of(number)) } else { device_of_mount(path)? };
    if let Some(device) = device {
        device.and_below(Path::new("/sys"), 0, &mut found);
    }
    Ok(found)
}

/// The device that is mounted at `path`, of a file system whose files do not say theirs (btrfs).
fn device_of_mount(path: &Path) -> io::Result<Option<Device>> {
    let mount = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id.to_string();
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let Some(source) = source_of(&table, &mount) else { return Ok(None) };
    let found = std::fs::metadata(source).ok().filter(|found| found.file_type().is_block_device());
    Ok(found.map(|found| Device::of(found.rdev())))
}

/// The source of a mount (proc_pid_mountinfo(5)), if it is a path.
fn source_of<'t>(table: &'t str, mount: &str) -> Option<&'t str> {
    let line = table.lines().find(|line| line.split(' ').next() == Some(mount))?;
    let source = line.split_once(" - ")?.1.split(' ').nth(1)?;
    source.starts_with('/').then_some(source)
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
    fn a_mounts_source_is_found_by_its_number() {
        let table = "22 1 0:21 / /proc rw - proc proc rw\n\
                     36 35 0:40 /sub /mnt rw,noatime master:1 - btrfs /dev/vdb rw,subvol=/sub\n";
        assert_eq!(source_of(table, "36"), Some("/dev/vdb"));
        assert_eq!(source_of(table, "22"), None);
        assert_eq!(source_of(table, "3"), None);
        assert!(behind(Path::new("/proc/self")).unwrap().is_empty());
        assert!(behind(Path::new("/no/such")).is_err());
    }
}
