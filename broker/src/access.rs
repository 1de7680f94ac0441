//! [`FileAccess`], in this process.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use husk_protocol::control::Share;
use husk_protocol::files::{
    Attributes, Caller, Change, DirectoryEntry, FileAccess, Found, New, ROOT, Shared, Statistics,
};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, XattrFlags, fstat, linkat, mkdirat, mknodat, openat,
    renameat_with, symlinkat, unlinkat,
};

use crate::names;
use crate::nodes::{Node, Nodes};
use crate::operations::{self as op, Descriptors};
use crate::shares::{ShareError, Terms};

/// Descriptors that are left to the rest of the process.
const RESERVED: u64 = 1024;
/// Directories that a guest has open at once.
const MOST_DIRECTORIES: usize = 4096;
/// Largest value of an extended attribute, and largest list of names (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const LARGEST_XATTR: usize = 64 * 1024;

/// Opens files for one guest. No lock is held while a system call runs. The process's umask has to be zero: files are
/// made with the permissions that the guest asks for.
#[derive(Debug)]
pub struct Broker {
    descriptors: Descriptors,
    tables: Mutex<Tables>,
}

#[derive(Debug)]
struct Tables {
    /// Entries of the root: the number of each share, and its directory or file. A share's own reference is never forgotten.
    shares: BTreeMap<CString, Entry>,
    next_share: u32,
    nodes: Nodes,
    directories: HashMap<u64, Directory>,
    next_directory: u64,
}

#[derive(Debug)]
struct Entry {
    number: u32,
    node: Node,
}

/// An open directory.
#[derive(Debug, Clone)]
enum Directory {
    Root,
    Open(Arc<OwnedFd>),
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl Broker {
    /// A broker without shares.
    ///
    /// # Errors
    /// `/proc` is missing.
    pub fn new() -> io::Result<Self> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let most = usize::try_from(limit.saturating_sub(RESERVED).max(RESERVED)).unwrap_or(usize::MAX);
        Ok(Self::with_limit(Descriptors::open()?, most))
    }

    fn with_limit(descriptors: Descriptors, most: usize) -> Self {
        let tables = Tables {
            shares: BTreeMap::new(),
            next_share: 0,
            nodes: Nodes::new(most),
            directories: HashMap::new(),
            next_directory: 0,
        };
        Self { descriptors, tables: Mutex::new(tables) }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a directory or a regular file as an entry of the root.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub fn add_share(&self, share: &Share, shared: OwnedFd) -> Result<(), ShareError> {
        let bad_name = || ShareError::Name(share.name.clone());
        let name = CString::new(share.name.as_str()).map_err(|_| bad_name())?;
        names::check(&name).map_err(|_| bad_name())?;
        let io = |cause| ShareError::Io { name: share.name.clone(), cause };
        let stat = fstat(&shared).map_err(|cause| io(cause.into()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !kind.is_dir() && !kind.is_file() {
            return Err(ShareError::Kind(share.name.clone()));
        }
        let mut tables = self.tables();
        if tables.shares.contains_key(&name) {
            return Err(ShareError::Exists(share.name.clone()));
        }
        let number = tables.next_share;
        tables.next_share += 1;
        let terms = Terms { number, read_only: share.read_only, exclusive: share.exclusive };
        let node = Node { fd: Arc::new(shared), kind, device: stat.st_dev, terms };
        tables.shares.insert(name, Entry { number, node });
        Ok(())
    }

    /// The number of a share ([`Shared::number`]).
    ///
    /// # Errors
    /// There is none of this name.
    pub fn share_number(&self, name: &str) -> Result<u32, ShareError> {
        let not_found = || ShareError::NotFound(name.to_owned());
        let key = CString::new(name).map_err(|_| not_found())?;
        self.tables().shares.get(&key).map(|entry| entry.number).ok_or_else(not_found)
    }

    /// Takes a share away: what the guest still knows of it is stale. Returns its number.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn remove_share(&self, name: &str) -> Result<u32, ShareError> {
        let not_found = || ShareError::NotFound(name.to_owned());
        let key = CString::new(name).map_err(|_| not_found())?;
        let mut tables = self.tables();
        let entry = tables.shares.remove(&key).ok_or_else(not_found)?;
        tables.nodes.forget_share(entry.number);
        Ok(entry.number)
    }

    fn node(&self, number: u64) -> io::Result<Node> {
        self.tables().nodes.get(number)
    }

    /// A file that is changed, or a directory in which something is.
    fn writable(&self, number: u64) -> io::Result<Node> {
        if number == ROOT {
            return Err(errno(libc::EROFS));
        }
        let node = self.node(number)?;
        if node.terms.read_only { Err(errno(libc::EROFS)) } else { Ok(node) }
    }

    /// A reference to what was found in `parent`.
    fn found(&self, fd: OwnedFd, parent: &Node) -> io::Result<Found> {
        let stat = fstat(&fd)?;
        let mount = stat.st_dev != parent.device;
        if mount && op::is_of_the_kernel(&fd)? {
            return Err(errno(libc::EACCES));
        }
        self.reference(fd, &stat, parent.terms, mount)
    }

    fn reference(&self, fd: OwnedFd, stat: &Stat, terms: Terms, mount: bool) -> io::Result<Found> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let node = Node { fd: Arc::new(fd), kind, device: stat.st_dev, terms };
        let number = self.tables().nodes.add(node, stat.st_ino)?;
        let (attributes, mount) = (op::attributes(stat), mount && kind.is_dir());
        Ok(Found { node: number, attributes, exclusive: terms.exclusive, mount })
    }

    fn lookup_share(&self, name: &CStr) -> io::Result<Found> {
        let (fd, terms) = {
            let tables = self.tables();
            let entry = tables.shares.get(name).ok_or_else(|| errno(libc::ENOENT))?;
            (entry.node.fd.try_clone()?, entry.node.terms)
        };
        let stat = fstat(&fd)?;
        let found = self.reference(fd, &stat, terms, true)?;
        // Shares come and go: the entry is not to be cached, whatever holds for what is below it.
        Ok(Found { exclusive: false, ..found })
    }

    /// What `make` has made, given to its owner; taken back if that fails.
    fn adopt(&self, parent: &Node, name: &CStr, caller: Caller, mode: u32) -> io::Result<OwnedFd> {
        let made = op::find(&parent.fd, name)?;
        op::give_to(&self.descriptors, &parent.fd, &made, caller, mode)?;
        Ok(made)
    }

    /// Adopts what was just made at `name`, or takes it back.
    fn adopt_or_undo(&self, parent: &Node, name: &CStr, caller: Caller, mode: u32, dir: bool) -> io::Result<OwnedFd> {
        self.adopt(parent, name, caller, mode).inspect_err(|_| {
            let flags = if dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            // The first error is what the guest gets.
            let _ = unlinkat(&parent.fd, name, flags);
        })
    }

    fn directory(&self, handle: u64) -> io::Result<Directory> {
        self.tables().directories.get(&handle).cloned().ok_or_else(|| errno(libc::EBADF))
    }

    /// Entries of the root: the shares, numbered in the order of their names.
    fn root_entries(&self, offset: u64) -> Vec<DirectoryEntry> {
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let tables = self.tables();
        let entries = tables.shares.iter().zip(1..).skip(skip);
        entries
            .map(|((name, entry), next)| DirectoryEntry {
                ino: u64::from(entry.number) + 2,
                next,
                kind: op::kind(entry.node.kind),
                name: name.to_bytes().to_vec(),
            })
            .collect()
    }
}

fn root_attributes() -> Attributes {
    Attributes { ino: ROOT, mode: libc::S_IFDIR | 0o755, nlink: 2, blksize: 4096, ..Attributes::default() }
}

/// Takes back a name that was made and cannot be used: else the guest denies what the host has.
fn undo(parent: &OwnedFd, name: &CStr, directory: bool) {
    let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    let _ = unlinkat(parent, name, flags);
}

impl FileAccess for Broker {
    fn lookup(&self, parent: u64, name: &CStr) -> io::Result<Found> {
        let name = names::check(name)?;
        if parent == ROOT {
            return self.lookup_share(name);
        }
        let parent = self.node(parent)?;
        self.found(op::find(&parent.fd, name)?, &parent)
    }

    fn forget(&self, node: u64, count: u64) {
        self.tables().nodes.forget(node, count);
    }

    fn attributes(&self, node: u64) -> io::Result<Attributes> {
        if node == ROOT {
            return Ok(root_attributes());
        }
        Ok(op::attributes(&fstat(&self.node(node)?.fd)?))
    }

    fn share_of(&self, node: u64) -> Option<Shared> {
        let Node { terms, device, .. } = self.node(node).ok()?;
        Some(Shared { number: terms.number, exclusive: terms.exclusive, device })
    }

    fn change(&self, node: u64, change: Change) -> io::Result<Attributes> {
        let node = self.writable(node)?;
        if change.mode.is_some() && node.kind.is_symlink() {
            return Err(errno(libc::EOPNOTSUPP));
        }
        if let Some(size) = change.size {
            if node.kind != FileType::RegularFile {
                return Err(errno(libc::EINVAL));
            }
            let file = self.descriptors.reopen(&node.fd, OFlags::WRONLY)?;
            rustix::fs::ftruncate(&file, size)?;
        }
        op::change(&self.descriptors, &node.fd, &change)?;
        Ok(op::attributes(&fstat(&node.fd)?))
    }

    fn read_link(&self, node: u64) -> io::Result<Vec<u8>> {
        let target = rustix::fs::readlinkat(&self.node(node)?.fd, c"", Vec::new())?;
        Ok(target.into_bytes())
    }

    fn make(&self, parent: u64, name: &CStr, new: New<'_>, caller: Caller) -> io::Result<Found> {
        let (parent, name) = (self.writable(parent)?, names::check(name)?);
        let (mode, dir) = match new {
            New::Directory(mode) => {
                mkdirat(&parent.fd, name, Mode::from_raw_mode(mode & 0o7777))?;
                (mode, true)
            }
            New::Link(target) => {
                symlinkat(target, &parent.fd, name)?;
                (0, false)
            }
            New::Node(mode, device) => {
                let kind = FileType::from_raw_mode(mode);
                // Useless in the guest, whose shares are mounted nodev, and a way to the disks for whoever else sees a
                // shared directory. 0:0 is an overlay's whiteout.
                if !parent.terms.exclusive && (kind.is_char_device() || kind.is_block_device()) && device != 0 {
                    return Err(errno(libc::EPERM));
                }
                mknodat(&parent.fd, name, kind, Mode::from_raw_mode(mode & 0o7777), device)?;
                (mode, false)
            }
        };
        let made = self.adopt_or_undo(&parent, name, caller, mode, dir)?;
        self.found(made, &parent).inspect_err(|_| undo(&parent.fd, name, dir))
    }

    fn create(&self, parent: u64, name: &CStr, mode: u32, flags: i32, caller: Caller) -> io::Result<(Found, OwnedFd)> {
        let (parent, name) = (self.writable(parent)?, names::check(name)?);
        let ours = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match openat(&parent.fd, name, op::open_flags(flags) | ours, Mode::from_raw_mode(mode & 0o7777)) {
            Ok(file) => {
                let made = self.adopt_or_undo(&parent, name, caller, mode, false)?;
                let found = self.found(made, &parent).inspect_err(|_| undo(&parent.fd, name, false))?;
                Ok((found, file))
            }
            // Somebody else made it meanwhile.
            Err(rustix::io::Errno::EXIST) if flags & libc::O_EXCL == 0 => {
                let found = self.found(op::find(&parent.fd, name)?, &parent)?;
                let opened = self.open(found.node, flags);
                opened.map(|file| (found, file)).inspect_err(|_| self.forget(found.node, 1))
            }
            Err(cause) => Err(cause.into()),
        }
    }

    fn open(&self, node: u64, flags: i32) -> io::Result<OwnedFd> {
        let node = self.node(node)?;
        if node.kind != FileType::RegularFile {
            return Err(errno(if node.kind.is_dir() { libc::EISDIR } else { libc::ENXIO }));
        }
        if node.terms.read_only && op::writes(flags) {
            return Err(errno(libc::EROFS));
        }
        self.descriptors.reopen(&node.fd, op::open_flags(flags))
    }

    fn link(&self, node: u64, parent: u64, name: &CStr) -> io::Result<Found> {
        let (parent, name) = (self.writable(parent)?, names::check(name)?);
        let node = self.node(node)?;
        if node.terms.number != parent.terms.number {
            return Err(errno(libc::EXDEV));
        }
        linkat(&node.fd, c"", &parent.fd, name, AtFlags::EMPTY_PATH)?;
        let linked = op::find(&parent.fd, name).and_then(|linked| self.found(linked, &parent));
        linked.inspect_err(|_| undo(&parent.fd, name, false))
    }

    fn unlink(&self, parent: u64, name: &CStr, directory: bool) -> io::Result<()> {
        let (parent, name) = (self.writable(parent)?, names::check(name)?);
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        Ok(unlinkat(&parent.fd, name, flags)?)
    }

    fn rename(&self, from: (u64, &CStr), to: (u64, &CStr), flags: u32) -> io::Result<()> {
        let (old, new) = (self.writable(from.0)?, self.writable(to.0)?);
        let (old_name, new_name) = (names::check(from.1)?, names::check(to.1)?);
        if old.terms.number != new.terms.number {
            return Err(errno(libc::EXDEV));
        }
        let flags = RenameFlags::from_bits(flags).ok_or_else(|| errno(libc::EINVAL))?;
        Ok(renameat_with(&old.fd, old_name, &new.fd, new_name, flags)?)
    }

    fn open_directory(&self, node: u64) -> io::Result<u64> {
        let directory = if node == ROOT {
            Directory::Root
        } else {
            let node = self.node(node)?;
            if !node.kind.is_dir() {
                return Err(errno(libc::ENOTDIR));
            }
            Directory::Open(Arc::new(self.descriptors.reopen(&node.fd, OFlags::RDONLY | OFlags::DIRECTORY)?))
        };
        let mut tables = self.tables();
        if tables.directories.len() >= MOST_DIRECTORIES {
            return Err(errno(libc::ENFILE));
        }
        let handle = tables.next_directory;
        tables.next_directory += 1;
        tables.directories.insert(handle, directory);
        Ok(handle)
    }

    fn read_directory(&self, handle: u64, offset: u64, bytes: usize) -> io::Result<Vec<DirectoryEntry>> {
        match self.directory(handle)? {
            Directory::Root => Ok(self.root_entries(offset)),
            Directory::Open(fd) => op::read_directory(&fd, offset, bytes),
        }
    }

    fn close_directory(&self, handle: u64) {
        self.tables().directories.remove(&handle);
    }

    fn sync_directory(&self, handle: u64, data_only: bool) -> io::Result<()> {
        match self.directory(handle)? {
            Directory::Root => Ok(()),
            Directory::Open(fd) if data_only => Ok(rustix::fs::fdatasync(&fd)?),
            Directory::Open(fd) => Ok(rustix::fs::fsync(&fd)?),
        }
    }

    fn statistics(&self, node: u64) -> io::Result<Statistics> {
        if node == ROOT {
            return Ok(Statistics { block_size: 4096, ..Statistics::default() });
        }
        op::statistics(self.node(node)?.fd.as_fd())
    }

    fn xattr(&self, node: u64, name: &CStr) -> io::Result<Vec<u8>> {
        let (node, name) = (self.node(node)?, names::check_xattr(name)?);
        let mut value = Vec::with_capacity(LARGEST_XATTR);
        rustix::fs::getxattr(Descriptors::path(&node.fd), name, rustix::buffer::spare_capacity(&mut value))?;
        Ok(value)
    }

    fn xattr_names(&self, node: u64) -> io::Result<Vec<u8>> {
        let node = self.node(node)?;
        let mut list = Vec::with_capacity(LARGEST_XATTR);
        rustix::fs::listxattr(Descriptors::path(&node.fd), rustix::buffer::spare_capacity(&mut list))?;
        let names = list
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| CStr::from_bytes_with_nul(name).is_ok_and(|name| names::check_xattr(name).is_ok()));
        Ok(names.flatten().copied().collect())
    }

    fn set_xattr(&self, node: u64, name: &CStr, value: &[u8], flags: u32) -> io::Result<()> {
        let (node, name) = (self.writable(node)?, names::check_xattr(name)?);
        if value.len() > LARGEST_XATTR {
            return Err(errno(libc::E2BIG));
        }
        let flags = XattrFlags::from_bits(flags).ok_or_else(|| errno(libc::EINVAL))?;
        Ok(rustix::fs::setxattr(Descriptors::path(&node.fd), name, value, flags)?)
    }

    fn remove_xattr(&self, node: u64, name: &CStr) -> io::Result<()> {
        let (node, name) = (self.writable(node)?, names::check_xattr(name)?);
        Ok(rustix::fs::removexattr(Descriptors::path(&node.fd), name)?)
    }
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
