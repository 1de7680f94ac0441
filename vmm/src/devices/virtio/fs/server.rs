//! What a request does.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::{CreateIn, FsOptions, OpenOptions, SetattrValid, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, GetxattrReply, ListxattrReply, ZeroCopyReader, ZeroCopyWriter,
};
use husk_protocol::files::{FileAccess, New, ROOT, Shared};
use rustix::fs::{FallocateFlags, SeekFrom};

use super::convert;
use super::limits::{Limits, Way};

/// The file system of one guest; clones are the same.
pub struct Files<A> {
    inner: Arc<Inner<A>>,
}

impl<A> Clone for Files<A> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

struct Inner<A> {
    access: Arc<A>,
    open: Mutex<Open>,
    mounted: AtomicBool,
    limits: Arc<Limits>,
}

/// Regular files that the guest has open, by the numbers that it has for them. The limit is the process's of
/// descriptors.
#[derive(Default)]
struct Open {
    files: HashMap<u64, Opened>,
    next: u64,
}

#[derive(Clone)]
struct Opened {
    file: Arc<File>,
    share: Option<Shared>,
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl<A> Files<A> {
    pub fn new(access: Arc<A>) -> Self {
        let open = Mutex::new(Open::default());
        let limits = Arc::new(Limits::default());
        Self { inner: Arc::new(Inner { access, open, mounted: AtomicBool::new(false), limits }) }
    }

    /// What limits reading and writing.
    pub fn limits(&self) -> &Arc<Limits> {
        &self.inner.limits
    }

    /// The share of an open file.
    pub fn share_of(&self, handle: u64) -> Option<Shared> {
        self.open().files.get(&handle)?.share
    }

    /// Whether the guest has begun a session.
    pub fn mounted(&self) -> bool {
        self.inner.mounted.load(Ordering::Acquire)
    }

    /// Ends the session: closes all files.
    pub fn close_all(&self) {
        self.inner.mounted.store(false, Ordering::Release);
        self.open().files.clear();
    }

    fn access(&self) -> &A {
        &self.inner.access
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, file: File, share: Option<Shared>) -> u64 {
        let opened = Opened { file: Arc::new(file), share };
        let mut open = self.open();
        let handle = open.next;
        open.next += 1;
        open.files.insert(handle, opened);
        handle
    }

    fn opened(&self, handle: u64) -> io::Result<Opened> {
        self.open().files.get(&handle).cloned().ok_or_else(|| errno(libc::EBADF))
    }

    fn file(&self, handle: u64) -> io::Result<Arc<File>> {
        Ok(self.opened(handle)?.file)
    }

    /// The file, for so many bytes that its share's limits let through. The queue has waited for them already: only a guest
    /// that has changed its request meanwhile is told to come again.
    fn file_for(&self, handle: u64, way: Way, size: u32) -> io::Result<Arc<File>> {
        let Opened { file, share } = self.opened(handle)?;
        match share {
            Some(share) if !self.inner.limits.take(share, way, size, Instant::now()) => Err(errno(libc::EAGAIN)),
            _ => Ok(file),
        }
    }
}

/// The file as the crate wants it, which takes no shared reference; not to be dropped, and not to outlive `file`.
fn borrowed(file: &Arc<File>) -> ManuallyDrop<File> {
    // SAFETY: the descriptor is open as long as `file`, which the caller holds, and is not closed by what is returned.
    ManuallyDrop::new(unsafe { File::from_raw_fd(file.as_raw_fd()) })
}

/// Flags for the host's open. An exclusive file's end is where the guest thinks it is, and its kernel writes mapped
/// pages through any descriptor that can write: one with `O_APPEND` would put them at the end.
fn host_flags(flags: u32, exclusive: bool) -> i32 {
    let flags = flags.cast_signed();
    if exclusive { flags & !libc::O_APPEND } else { flags }
}

/// What the guest's kernel may keep of a file across its opening.
fn caching(exclusive: bool) -> OpenOptions {
    if exclusive { OpenOptions::KEEP_CACHE | OpenOptions::CACHE_DIR } else { OpenOptions::empty() }
}

impl<A: FileAccess> FileSystem for Files<A> {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.open().files.clear();
        self.inner.mounted.store(true, Ordering::Release);
        // Not among them: the write-back cache (what the guest has written is on the host when it ends), locks (the
        // guest's kernel keeps them itself), access control lists (guests see them as attributes only).
        let wanted = FsOptions::ASYNC_READ
            | FsOptions::BIG_WRITES
            | FsOptions::MAX_PAGES
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::DO_READDIRPLUS
            | FsOptions::READDIRPLUS_AUTO
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::CACHE_SYMLINKS
            | FsOptions::SUBMOUNTS
            | FsOptions::INIT_EXT;
        Ok(capable & wanted)
    }

    fn destroy(&self) {
        self.close_all();
    }

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        match self.access().lookup(parent, name) {
            Err(cause) if cause.raw_os_error() == Some(libc::ENOENT) && self.access().is_exclusive(parent) => {
                Ok(convert::nothing())
            }
            found => Ok(convert::entry(&found?)),
        }
    }

    fn forget(&self, _: &Context, node: u64, count: u64) {
        self.access().forget(node, count);
    }

    fn getattr(&self, _: &Context, node: u64, _: Option<u64>) -> io::Result<(stat64, Duration)> {
        let attributes = self.access().attributes(node)?;
        Ok((convert::stat(&attributes), convert::validity(self.access().is_exclusive(node))))
    }

    fn setattr(
        &self,
        _: &Context,
        node: u64,
        attr: stat64,
        _: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        let attributes = self.access().change(node, convert::change(&attr, valid))?;
        Ok((convert::stat(&attributes), convert::validity(self.access().is_exclusive(node))))
    }

    fn readlink(&self, _: &Context, node: u64) -> io::Result<Vec<u8>> {
        self.access().read_link(node)
    }

    fn symlink(&self, context: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        let found = self.access().make(parent, name, New::Link(target), convert::caller(context))?;
        Ok(convert::entry(&found))
    }

    fn mknod(&self, context: &Context, parent: u64, name: &CStr, mode: u32, rdev: u32, _: u32) -> io::Result<Entry> {
        let found = self.access().make(parent, name, New::Node(mode, rdev.into()), convert::caller(context))?;
        Ok(convert::entry(&found))
    }

    fn mkdir(&self, context: &Context, parent: u64, name: &CStr, mode: u32, _: u32) -> io::Result<Entry> {
        let found = self.access().make(parent, name, New::Directory(mode), convert::caller(context))?;
        Ok(convert::entry(&found))
    }

    fn unlink(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.access().unlink(parent, name, false)
    }

    fn rmdir(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.access().unlink(parent, name, true)
    }

    fn rename(&self, _: &Context, old: u64, name: &CStr, new: u64, new_name: &CStr, flags: u32) -> io::Result<()> {
        self.access().rename((old, name), (new, new_name), flags)
    }

    fn link(&self, _: &Context, node: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        Ok(convert::entry(&self.access().link(node, parent, name)?))
    }

    fn open(&self, _: &Context, node: u64, flags: u32, _: u32) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let share = self.access().share_of(node);
        let exclusive = share.is_some_and(|share| share.exclusive);
        let file = self.access().open(node, host_flags(flags, exclusive))?;
        Ok((Some(self.add(file.into(), share)), caching(exclusive), None))
    }

    fn create(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let share = self.access().share_of(parent);
        let flags = host_flags(args.flags, share.is_some_and(|share| share.exclusive));
        let (found, file) = self.access().create(parent, name, args.mode, flags, convert::caller(context))?;
        Ok((convert::entry(&found), Some(self.add(file.into(), share)), caching(found.exclusive), None))
    }

    fn read(
        &self,
        _: &Context,
        _: u64,
        handle: u64,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        let file = self.file_for(handle, Way::Read, size)?;
        w.write_from(&mut *borrowed(&file), size as usize, offset)
    }

    fn write(
        &self,
        _: &Context,
        _: u64,
        handle: u64,
        r: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: bool,
        _: u32,
        _: u32,
    ) -> io::Result<usize> {
        let file = self.file_for(handle, Way::Write, size)?;
        r.read_to(&mut *borrowed(&file), size as usize, offset)
    }

    fn fsync(&self, _: &Context, _: u64, data_only: bool, handle: u64) -> io::Result<()> {
        let file = self.file(handle)?;
        if data_only { file.sync_data() } else { file.sync_all() }
    }

    fn fallocate(&self, _: &Context, _: u64, handle: u64, mode: u32, offset: u64, length: u64) -> io::Result<()> {
        let file = self.file(handle)?;
        let mode = FallocateFlags::from_bits(mode).ok_or_else(|| errno(libc::EOPNOTSUPP))?;
        Ok(rustix::fs::fallocate(&*file, mode, offset, length)?)
    }

    fn release(&self, _: &Context, _: u64, _: u32, handle: u64, _: bool, _: bool, _: Option<u64>) -> io::Result<()> {
        // Closed outside of the lock: closing may wait for the host's file system.
        let opened = self.open().files.remove(&handle);
        opened.map(drop).ok_or_else(|| errno(libc::EBADF))
    }

    fn statfs(&self, _: &Context, node: u64) -> io::Result<statvfs64> {
        Ok(convert::statistics(&self.access().statistics(node)?))
    }

    fn setxattr(&self, _: &Context, node: u64, name: &CStr, value: &[u8], flags: u32) -> io::Result<()> {
        self.access().set_xattr(node, name, value, flags)
    }

    fn getxattr(&self, _: &Context, node: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        let value = self.access().xattr(node, name)?;
        Ok(match fit(&value, size)? {
            None => GetxattrReply::Value(value),
            Some(count) => GetxattrReply::Count(count),
        })
    }

    fn listxattr(&self, _: &Context, node: u64, size: u32) -> io::Result<ListxattrReply> {
        let names = self.access().xattr_names(node)?;
        Ok(match fit(&names, size)? {
            None => ListxattrReply::Names(names),
            Some(count) => ListxattrReply::Count(count),
        })
    }

    fn removexattr(&self, _: &Context, node: u64, name: &CStr) -> io::Result<()> {
        self.access().remove_xattr(node, name)
    }

    fn opendir(&self, _: &Context, node: u64, _: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        let handle = self.access().open_directory(node)?;
        Ok((Some(handle), caching(self.access().is_exclusive(node))))
    }

    fn readdir(
        &self,
        _: &Context,
        _: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        for entry in self.access().read_directory(handle, offset, size as usize)? {
            let entry = DirEntry { ino: entry.ino, offset: entry.next, type_: entry.kind.into(), name: &entry.name };
            if add(entry)? == 0 {
                break;
            }
        }
        Ok(())
    }

    fn readdirplus(
        &self,
        _: &Context,
        node: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        for entry in self.access().read_directory(handle, offset, size as usize)? {
            let found = self.found_in(node, &entry.name);
            let plain = DirEntry { ino: entry.ino, offset: entry.next, type_: entry.kind.into(), name: &entry.name };
            let added = add(plain, found);
            if !matches!(added, Ok(1..)) {
                // The guest does not get this one, so it will not forget it.
                if found.inode != 0 {
                    self.access().forget(found.inode, 1);
                }
                added?;
                break;
            }
        }
        Ok(())
    }

    fn fsyncdir(&self, _: &Context, _: u64, data_only: bool, handle: u64) -> io::Result<()> {
        self.access().sync_directory(handle, data_only)
    }

    fn releasedir(&self, _: &Context, _: u64, _: u32, handle: u64) -> io::Result<()> {
        self.access().close_directory(handle);
        Ok(())
    }

    fn lseek(&self, _: &Context, _: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        let file = self.file(handle)?;
        // The guest's kernel does the others itself.
        let from = match whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(errno(libc::EINVAL)),
        };
        Ok(rustix::fs::seek(&*file, from)?)
    }

    // flush, at every close of a descriptor, is left out: the guest's kernel asks once and never again. There is
    // nothing to write back, and locks are the guest's own.
}

impl<A: FileAccess> Files<A> {
    /// The entry for a name that a directory has; one that the guest has to look up itself (number 0) where that is
    /// not possible, and for `.` and `..`.
    fn found_in(&self, directory: u64, name: &[u8]) -> Entry {
        if name == b"." || name == b".." {
            return Entry::default();
        }
        let Ok(name) = std::ffi::CString::new(name) else { return Entry::default() };
        self.access().lookup(directory, &name).map_or_else(|_| Entry::default(), |found| convert::entry(&found))
    }
}

/// Whether an attribute's value fits into the guest's buffer: none if so, its length if that was asked for.
fn fit(value: &[u8], size: u32) -> io::Result<Option<u32>> {
    let length = u32::try_from(value.len()).map_err(|_| errno(libc::E2BIG))?;
    if size == 0 {
        Ok(Some(length))
    } else if length > size {
        Err(errno(libc::ERANGE))
    } else {
        Ok(None)
    }
}

// The root is where every session starts.
const _: () = assert!(ROOT == fuse_backend_rs::abi::fuse_abi::ROOT_ID);
