//! Between FUSE's structures and those of the seam.

use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{ATTR_SUBMOUNT, Attr, SetattrValid, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{Context, Entry};
use husk_protocol::files::{Attributes, Caller, Change, Found, SetTime, Statistics, Time};

/// How long the guest may believe what nobody else changes: longer than any guest lives.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long it may believe what others change too.
const SHARED: Duration = Duration::from_secs(1);
/// Longest file name (NAME_MAX).
const NAME_MAX: u64 = 255;

/// How long the guest may believe what it is told of a file.
pub fn validity(exclusive: bool) -> Duration {
    if exclusive { FOREVER } else { SHARED }
}

/// FUSE carries 32 bits of some numbers; what is larger stays at the largest.
fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

pub fn stat(attributes: &Attributes) -> stat64 {
    let [accessed, modified, changed] = attributes.times;
    Attr {
        ino: attributes.ino,
        size: attributes.size,
        blocks: attributes.blocks,
        atime: accessed.seconds.cast_unsigned(),
        mtime: modified.seconds.cast_unsigned(),
        ctime: changed.seconds.cast_unsigned(),
        atimensec: accessed.nanoseconds,
        mtimensec: modified.nanoseconds,
        ctimensec: changed.nanoseconds,
        mode: attributes.mode,
        nlink: narrow(attributes.nlink),
        uid: attributes.uid,
        gid: attributes.gid,
        // The kernel's 32-bit encoding (new_encode_dev), which is the low half of glibc's.
        rdev: narrow(attributes.rdev),
        blksize: attributes.blksize,
        flags: 0,
    }
    .into()
}

pub fn entry(found: &Found) -> Entry {
    let validity = validity(found.exclusive);
    Entry {
        inode: found.node,
        attr: stat(&found.attributes),
        attr_timeout: validity,
        entry_timeout: validity,
        // The guest's kernel mounts what is there by itself, with a device number of its own.
        attr_flags: if found.mount { ATTR_SUBMOUNT } else { 0 },
        ..Entry::default()
    }
}

/// "There is no such name", which the guest may believe as long as nobody else makes one.
pub fn nothing() -> Entry {
    Entry { entry_timeout: FOREVER, ..Entry::default() }
}

pub fn caller(context: &Context) -> Caller {
    Caller { uid: context.uid, gid: context.gid }
}

/// What SETATTR asks for.
pub fn change(attr: &stat64, valid: SetattrValid) -> Change {
    let time = |now: SetattrValid, given: SetattrValid, seconds: i64, nanoseconds: i64| {
        if valid.contains(now) {
            SetTime::Now
        } else if valid.contains(given) {
            SetTime::At(Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) })
        } else {
            SetTime::Keep
        }
    };
    Change {
        mode: valid.contains(SetattrValid::MODE).then_some(attr.st_mode),
        uid: valid.contains(SetattrValid::UID).then_some(attr.st_uid),
        gid: valid.contains(SetattrValid::GID).then_some(attr.st_gid),
        size: valid.contains(SetattrValid::SIZE).then_some(attr.st_size.cast_unsigned()),
        accessed: time(SetattrValid::ATIME_NOW, SetattrValid::ATIME, attr.st_atime, attr.st_atime_nsec),
        modified: time(SetattrValid::MTIME_NOW, SetattrValid::MTIME, attr.st_mtime, attr.st_mtime_nsec),
    }
}

pub fn statistics(from: &Statistics) -> statvfs64 {
    // SAFETY: a C structure of integers, for which zeros are values.
    let mut to: statvfs64 = unsafe { std::mem::zeroed() };
    to.f_bsize = from.block_size;
    to.f_frsize = from.block_size;
    [to.f_blocks, to.f_bfree, to.f_bavail] = from.blocks;
    [to.f_files, to.f_ffree, to.f_favail] = from.inodes;
    to.f_namemax = NAME_MAX;
    to
}
