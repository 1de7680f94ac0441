//! System calls on descriptors: what [`crate::access`] is made of.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use husk_protocol::files::{Attributes, Caller, Change, DirectoryEntry, SetTime, Statistics, Time};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RawDir, SeekFrom, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, chmodat,
    chownat, fstat, openat, utimensat,
};

/// Flags of open(2) that a guest decides on; the others are ours or mean nothing on the host.
const OPEN_FLAGS: i32 = libc::O_ACCMODE | libc::O_APPEND | libc::O_TRUNC | libc::O_DSYNC | libc::O_SYNC;
/// Bytes of a directory that are read at once.
const DIRECTORY_CHUNK: usize = 32 * 1024;

/// `/proc/self/fd`: the only way from an `O_PATH` descriptor to an open file.
#[derive(Debug)]
pub(crate) struct Descriptors(OwnedFd);

impl Descriptors {
    pub(crate) fn open() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open("/proc/self/fd", flags, Mode::empty())?))
    }

    /// Opens what `fd` stands for, which is known to be a regular file or a directory.
    pub(crate) fn reopen(&self, fd: &OwnedFd, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(openat(&self.0, name_of(fd), flags, Mode::empty())?)
    }

    /// Changes the permissions of what `fd` stands for, which is not a link.
    pub(crate) fn chmod(&self, fd: &OwnedFd, mode: u32) -> io::Result<()> {
        Ok(chmodat(&self.0, name_of(fd), Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?)
    }

    /// A path to what `fd` stands for, for the calls on extended attributes, which take no descriptor of this kind.
    pub(crate) fn path(fd: &OwnedFd) -> CString {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        // A number has no zero byte.
        CString::new(path).unwrap_or_default()
    }
}

fn name_of(fd: &OwnedFd) -> String {
    fd.as_raw_fd().to_string()
}

/// Flags for opening on behalf of a guest.
pub(crate) fn open_flags(flags: i32) -> OFlags {
    OFlags::from_bits_retain((flags & OPEN_FLAGS).cast_unsigned())
}

/// Whether these flags open for writing.
pub(crate) fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0
}

pub(crate) fn attributes(stat: &Stat) -> Attributes {
    let time = |seconds: i64, nanoseconds: u64| Time { seconds, nanoseconds: nanoseconds.try_into().unwrap_or(0) };
    Attributes {
        ino: stat.st_ino,
        mode: stat.st_mode,
        nlink: stat.st_nlink,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev,
        size: stat.st_size.try_into().unwrap_or(0),
        blocks: stat.st_blocks.try_into().unwrap_or(0),
        blksize: stat.st_blksize.try_into().unwrap_or(4096),
        times: [
            time(stat.st_atime, stat.st_atime_nsec),
            time(stat.st_mtime, stat.st_mtime_nsec),
            time(stat.st_ctime, stat.st_ctime_nsec),
        ],
    }
}

/// Gives a file that was made as root to whom it belongs: the caller, but the group of a set-group-ID directory stays,
/// as if the caller had made it (inode_init_owner of the kernel). `mode` is what was asked for: a change of owner takes
/// its set-user-ID and set-group-ID bits away.
pub(crate) fn give_to(
    descriptors: &Descriptors,
    parent: &OwnedFd,
    made: &OwnedFd,
    caller: Caller,
    mode: u32,
) -> io::Result<()> {
    if caller.uid == u32::MAX || caller.gid == u32::MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let inherits_group = fstat(parent)?.st_mode & libc::S_ISGID != 0;
    let gid = if inherits_group { None } else { Some(caller.gid).filter(|gid| *gid != 0) };
    let uid = Some(caller.uid).filter(|uid| *uid != 0);
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    chownat(made, c"", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)?;
    let stat = fstat(made)?;
    let lost = mode & (libc::S_ISUID | libc::S_ISGID) & !stat.st_mode;
    if lost != 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG {
        descriptors.chmod(made, stat.st_mode | lost)?;
    }
    Ok(())
}

/// Everything of a change but the size.
pub(crate) fn change(descriptors: &Descriptors, fd: &OwnedFd, change: &Change) -> io::Result<()> {
    // -1 is no owner: chown(2) takes it as "keep".
    if change.uid == Some(u32::MAX) || change.gid == Some(u32::MAX) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    if change.uid.is_some() || change.gid.is_some() {
        let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
        chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)?;
    }
    // After the owner, whose change takes bits of the mode away.
    if let Some(mode) = change.mode {
        descriptors.chmod(fd, mode)?;
    }
    if change.accessed != SetTime::Keep || change.modified != SetTime::Keep {
        let time = |time| match time {
            SetTime::Keep => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            SetTime::Now => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            SetTime::At(Time { seconds, nanoseconds }) => Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
        };
        let times = Timestamps { last_access: time(change.accessed), last_modification: time(change.modified) };
        utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

/// Entries of an open directory from `offset` on, as many as fit into about `bytes`.
pub(crate) fn read_directory(fd: &OwnedFd, offset: u64, bytes: usize) -> io::Result<Vec<DirectoryEntry>> {
    /// What FUSE adds to a name (struct fuse_dirent).
    const HEADER: usize = 24;
    /// A guest that asks for more gets the rest with its next question: what it asks for is not what we allocate.
    const LARGEST_ANSWER: usize = 64 * 1024;
    rustix::fs::seek(fd, SeekFrom::Start(offset))?;
    let mut buffer = Vec::with_capacity(DIRECTORY_CHUNK.min(bytes.max(1024)));
    let mut entries = Vec::new();
    let mut room = bytes.min(LARGEST_ANSWER);
    let mut directory = RawDir::new(fd, buffer.spare_capacity_mut());
    while let Some(entry) = directory.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let size = HEADER + name.len();
        if size > room {
            break;
        }
        room -= size;
        entries.push(DirectoryEntry {
            ino: entry.ino(),
            next: entry.next_entry_cookie(),
            kind: kind(entry.file_type()),
            name: name.to_vec(),
        });
    }
    Ok(entries)
}

/// DT_* of readdir(3).
pub(crate) fn kind(kind: rustix::fs::FileType) -> u8 {
    use rustix::fs::FileType;
    match kind {
        FileType::RegularFile => libc::DT_REG,
        FileType::Directory => libc::DT_DIR,
        FileType::Symlink => libc::DT_LNK,
        FileType::Fifo => libc::DT_FIFO,
        FileType::Socket => libc::DT_SOCK,
        FileType::CharacterDevice => libc::DT_CHR,
        FileType::BlockDevice => libc::DT_BLK,
        FileType::Unknown => libc::DT_UNKNOWN,
    }
}

pub(crate) fn statistics(fd: BorrowedFd<'_>) -> io::Result<Statistics> {
    let stat = rustix::fs::fstatvfs(fd)?;
    Ok(Statistics {
        block_size: stat.f_frsize,
        blocks: [stat.f_blocks, stat.f_bfree, stat.f_bavail],
        inodes: [stat.f_files, stat.f_ffree, stat.f_favail],
    })
}

/// Whether this is of a file system that shows the host's kernel and processes: a guest has its own, and through
/// `/proc` of the host it would reach this process.
pub(crate) fn is_of_the_kernel(fd: &OwnedFd) -> io::Result<bool> {
    let magic = rustix::fs::fstatfs(fd)?.f_type;
    Ok(husk_protocol::files::KERNEL_FILE_SYSTEMS.contains(&magic))
}

/// Finds `name` below `parent` without following a link.
pub(crate) fn find(parent: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent.as_fd(), name, flags, Mode::empty())?)
}
