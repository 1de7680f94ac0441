//! The seam between the file device, which parses the guest's requests, and whoever opens files for it.
//!
//! Files are named by numbers that [`FileAccess`] hands out ([`Found::node`]); nobody above it can name a path of the
//! host. Only descriptors of regular files cross the seam, and reading and writing happen on those. Errors are
//! [`io::Error`]s with an errno, which the guest gets as it is.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// The directory whose entries are the shares.
pub const ROOT: u64 = 1;

/// File systems that show a kernel and its processes, by their numbers (linux/magic.h): a guest has its own, and the
/// host's are never shared.
pub const KERNEL_FILE_SYSTEMS: [i64; 9] = [
    0x9fa0,      // PROC_SUPER_MAGIC
    0x6265_6572, // SYSFS_MAGIC
    0x6367_7270, // CGROUP2_SUPER_MAGIC
    0x27_e0eb,   // CGROUP_SUPER_MAGIC
    0x6462_6720, // DEBUGFS_MAGIC
    0x7472_6163, // TRACEFS_MAGIC
    0x7363_6673, // SECURITYFS_MAGIC
    0xcafe_4a11, // BPF_FS_MAGIC
    0x1cd1,      // DEVPTS_SUPER_MAGIC
];

/// `struct stat`, as far as a guest sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Inode number.
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Links.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred size of a transfer in bytes.
    pub blksize: u32,
    /// Last access, change of content, change of status.
    pub times: [Time; 3],
}

/// Seconds and nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds.
    pub nanoseconds: u32,
}

/// A file that was found: its number counts one more reference, until it is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its number.
    pub node: u64,
    /// What it is.
    pub attributes: Attributes,
    /// Nobody else changes it: it may be cached without limit.
    pub exclusive: bool,
    /// A directory where another file system begins: its inode numbers say nothing about those above.
    pub mount: bool,
}

/// A share, as its files see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// Its number: no other share of this guest has ever had it.
    pub number: u32,
    /// Nobody else changes its files.
    pub exclusive: bool,
    /// The device number of the file's file system.
    pub device: u64,
}

/// Who asks: owns what is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A file to make that is not opened.
#[derive(Debug, Clone, Copy)]
pub enum New<'a> {
    /// A directory with these permissions.
    Directory(u32),
    /// A symbolic link with this target.
    Link(&'a CStr),
    /// A node of this type and these permissions, and device number.
    Node(u32, u64),
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// Leave it.
    Keep,
    /// The host's clock.
    Now,
    /// This one.
    At(Time),
}

/// What is to be changed of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last access.
    pub accessed: SetTime,
    /// Last change of content.
    pub modified: SetTime,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    /// Inode number.
    pub ino: u64,
    /// Where the next entry is.
    pub next: u64,
    /// DT_* of readdir(3).
    pub kind: u8,
    /// Its name.
    pub name: Vec<u8>,
}

/// `struct statvfs`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Bytes per block.
    pub block_size: u64,
    /// Blocks: in all, free, free for users.
    pub blocks: [u64; 3],
    /// Inodes: in all, free, free for users.
    pub inodes: [u64; 3],
}

/// Opens and changes files on behalf of a guest. Nothing here follows a link or leaves a share.
#[expect(clippy::missing_errors_doc, reason = "each fails with the errno of the system call that its name says")]
pub trait FileAccess: Send + Sync {
    /// The entry `name` of the directory `parent`.
    fn lookup(&self, parent: u64, name: &CStr) -> io::Result<Found>;
    /// Takes `count` references back.
    fn forget(&self, node: u64, count: u64);
    /// What the file is.
    fn attributes(&self, node: u64) -> io::Result<Attributes>;
    /// What holds for the file because of the share that it is in; none: it is in none.
    fn share_of(&self, node: u64) -> Option<Shared>;
    /// Whether nobody else changes the file.
    fn is_exclusive(&self, node: u64) -> bool {
        self.share_of(node).is_some_and(|share| share.exclusive)
    }
    /// Changes a file.
    fn change(&self, node: u64, change: Change) -> io::Result<Attributes>;
    /// A link's target.
    fn read_link(&self, node: u64) -> io::Result<Vec<u8>>;
    /// Makes a file that is not opened.
    fn make(&self, parent: u64, name: &CStr, new: New<'_>, caller: Caller) -> io::Result<Found>;
    /// Makes a regular file, or opens the one that is there unless `flags` has `O_EXCL`.
    fn create(&self, parent: u64, name: &CStr, mode: u32, flags: i32, caller: Caller) -> io::Result<(Found, OwnedFd)>;
    /// Opens a regular file.
    fn open(&self, node: u64, flags: i32) -> io::Result<OwnedFd>;
    /// Another name for a file.
    fn link(&self, node: u64, parent: u64, name: &CStr) -> io::Result<Found>;
    /// Takes a name away: a directory's if `directory`.
    fn unlink(&self, parent: u64, name: &CStr, directory: bool) -> io::Result<()>;
    /// Moves a name; `flags` as in renameat2(2).
    fn rename(&self, from: (u64, &CStr), to: (u64, &CStr), flags: u32) -> io::Result<()>;
    /// Opens a directory for reading; the number is good until it is closed.
    fn open_directory(&self, node: u64) -> io::Result<u64>;
    /// Entries from `offset` on, as many as fit into about `bytes`; none at the end.
    fn read_directory(&self, handle: u64, offset: u64, bytes: usize) -> io::Result<Vec<DirectoryEntry>>;
    /// Closes a directory.
    fn close_directory(&self, handle: u64);
    /// Writes a directory's changes to the disk.
    fn sync_directory(&self, handle: u64, data_only: bool) -> io::Result<()>;
    /// What the file system has room for.
    fn statistics(&self, node: u64) -> io::Result<Statistics>;
    /// An extended attribute's value.
    fn xattr(&self, node: u64, name: &CStr) -> io::Result<Vec<u8>>;
    /// The names of all extended attributes, each with its terminating zero.
    fn xattr_names(&self, node: u64) -> io::Result<Vec<u8>>;
    /// Sets an extended attribute; `flags` as in setxattr(2).
    fn set_xattr(&self, node: u64, name: &CStr, value: &[u8], flags: u32) -> io::Result<()>;
    /// Removes an extended attribute.
    fn remove_xattr(&self, node: u64, name: &CStr) -> io::Result<()>;
}
