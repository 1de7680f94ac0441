use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use husk_protocol::files::SetTime;
use tempfile::TempDir;

use super::*;

const CALLER: Caller = Caller { uid: 1234, gid: 567 };

fn directory(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

/// A broker with the share `s`, the number of its directory, and the directory.
fn shared(read_only: bool) -> (Broker, u64, TempDir) {
    rustix::process::umask(Mode::empty());
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::new().unwrap();
    let share = Share { name: "s".to_owned(), read_only, exclusive: true };
    broker.add_share(&share, directory(dir.path())).unwrap();
    let node = broker.lookup(ROOT, c"s").unwrap().node;
    (broker, node, dir)
}

fn errno_of<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|cause| cause.raw_os_error())
}

fn nothing_changed() -> Change {
    Change { mode: None, uid: None, gid: None, size: None, accessed: SetTime::Keep, modified: SetTime::Keep }
}

/// Changing a file's owner takes root; these tests run in CI as root, and say so elsewhere.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

#[test]
fn a_file_is_shared_without_its_neighbours() {
    let (broker, _, dir) = shared(false);
    fs::write(dir.path().join("file"), "content").unwrap();
    let share = Share { name: "f".to_owned(), read_only: true, exclusive: false };
    broker.add_share(&share, directory(&dir.path().join("file"))).unwrap();
    let found = broker.lookup(ROOT, c"f").unwrap();
    assert_eq!((found.attributes.size, found.mount), (7, false));
    let mut content = String::new();
    io::Read::read_to_string(&mut fs::File::from(broker.open(found.node, libc::O_RDONLY).unwrap()), &mut content)
        .unwrap();
    assert_eq!(content, "content");
    assert_eq!(errno_of(broker.open(found.node, libc::O_WRONLY)), Some(libc::EROFS));
    // It is no directory: nothing is found below it, and nothing beside it.
    assert_eq!(errno_of(broker.lookup(found.node, c"file")), Some(libc::ENOTDIR));
    assert_eq!(errno_of(broker.lookup(found.node, c"..")), Some(libc::EINVAL));
    let handle = broker.open_directory(ROOT).unwrap();
    let entries = broker.read_directory(handle, 0, 4096).unwrap();
    let kinds: Vec<_> = entries.iter().map(|entry| (entry.name.as_slice(), entry.kind)).collect();
    assert_eq!(kinds, [(&b"f"[..], libc::DT_REG), (b"s", libc::DT_DIR)]);
}

#[test]
fn another_file_system_is_told_and_the_kernels_own_are_not_shown() {
    let broker = Broker::new().unwrap();
    let share = Share { name: "all".to_owned(), read_only: true, exclusive: false };
    broker.add_share(&share, directory(Path::new("/"))).unwrap();
    let root = broker.lookup(ROOT, c"all").unwrap();
    // A share is a file system of its own, whatever it is on the host.
    assert!(root.mount);
    for name in [c"proc", c"sys"] {
        assert_eq!(errno_of(broker.lookup(root.node, name)), Some(libc::EACCES), "{name:?}");
    }
    // `/dev` is one wherever this runs, `/` is in its own.
    let device = |path| fs::metadata(path).unwrap().dev();
    assert_ne!(device("/dev"), device("/"));
    for (name, path) in [(c"usr", "/usr"), (c"dev", "/dev")] {
        let found = broker.lookup(root.node, name).unwrap();
        assert_eq!(found.mount, device(path) != device("/"), "{path}");
    }
}

#[test]
fn a_share_is_an_entry_of_the_root() {
    let (broker, _, dir) = shared(false);
    let share = Share { name: "s".to_owned(), read_only: false, exclusive: true };
    assert!(matches!(broker.add_share(&share, directory(dir.path())), Err(ShareError::Exists(_))));
    for name in ["", ".", "..", "a/b"] {
        let share = Share { name: name.to_owned(), ..share.clone() };
        assert!(matches!(broker.add_share(&share, directory(dir.path())), Err(ShareError::Name(_))), "{name:?}");
    }
    let share = Share { name: "t".to_owned(), ..share };
    assert!(matches!(broker.add_share(&share, directory(Path::new("/dev/null"))), Err(ShareError::Kind(_))));
    let handle = broker.open_directory(ROOT).unwrap();
    let entries = broker.read_directory(handle, 0, 4096).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].name, b"s");
    assert!(broker.read_directory(handle, entries[0].next, 4096).unwrap().is_empty());
}

#[test]
fn the_root_itself_cannot_be_changed() {
    let (broker, node, _dir) = shared(false);
    assert_eq!(errno_of(broker.make(ROOT, c"x", New::Directory(0o755), CALLER)), Some(libc::EROFS));
    assert_eq!(errno_of(broker.unlink(ROOT, c"s", true)), Some(libc::EROFS));
    assert_eq!(errno_of(broker.rename((node, c"a"), (ROOT, c"b"), 0)), Some(libc::EROFS));
    assert_eq!(broker.attributes(ROOT).unwrap().mode & libc::S_IFMT, libc::S_IFDIR);
}

#[test]
fn names_are_single_components() {
    let (broker, node, dir) = shared(false);
    fs::create_dir(dir.path().join("d")).unwrap();
    for name in [c"", c".", c"..", c"../etc", c"d/..", c"/etc"] {
        assert!(broker.lookup(node, name).is_err(), "{name:?}");
        assert!(broker.create(node, name, 0o644, libc::O_RDWR, CALLER).is_err(), "{name:?}");
        assert!(broker.make(node, name, New::Directory(0o755), CALLER).is_err(), "{name:?}");
        assert!(broker.rename((node, c"d"), (node, name), 0).is_err(), "{name:?}");
    }
    assert!(dir.path().join("d").exists());
}

#[test]
fn links_are_not_followed() {
    let (broker, node, dir) = shared(false);
    symlink("/etc", dir.path().join("etc")).unwrap();
    symlink("/etc/passwd", dir.path().join("passwd")).unwrap();
    let link = broker.lookup(node, c"etc").unwrap();
    assert_eq!(link.attributes.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(broker.read_link(link.node).unwrap(), b"/etc");
    assert!(broker.lookup(link.node, c"passwd").is_err());
    assert!(broker.open_directory(link.node).is_err());
    let file = broker.lookup(node, c"passwd").unwrap().node;
    assert!(broker.open(file, libc::O_RDONLY).is_err());
    // A file that is there under this name is opened by its own name: the link is not.
    assert!(broker.create(node, c"passwd", 0o644, libc::O_RDWR | libc::O_TRUNC, CALLER).is_err());
    assert!(fs::metadata("/etc/passwd").unwrap().len() > 0);
}

#[test]
fn what_is_made_belongs_to_the_caller() {
    if !is_root() {
        return;
    }
    let (broker, node, dir) = shared(false);
    let (found, file) = broker.create(node, c"f", 0o4755, libc::O_RDWR, CALLER).unwrap();
    rustix::io::write(&file, b"text").unwrap();
    let dir_node = broker.make(node, c"d", New::Directory(0o1777), CALLER).unwrap();
    let link = broker.make(node, c"l", New::Link(c"f"), CALLER).unwrap();
    for (node, name, mode) in
        [(found.node, "f", 0o104_755), (dir_node.node, "d", 0o041_777), (link.node, "l", 0o120_777)]
    {
        let meta = fs::symlink_metadata(dir.path().join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode()), (1234, 567, mode), "{name}");
        let seen = broker.attributes(node).unwrap();
        assert_eq!((seen.uid, seen.gid, seen.mode), (1234, 567, mode), "{name}");
    }
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"text");
}

#[test]
fn a_device_node_is_an_entry_and_never_opened() {
    if !is_root() {
        return;
    }
    let (broker, node, _dir) = shared(false);
    let null = broker.make(node, c"null", New::Node(libc::S_IFCHR | 0o666, libc::makedev(1, 3)), CALLER).unwrap();
    assert_eq!(null.attributes.rdev, libc::makedev(1, 3));
    assert_eq!(errno_of(broker.open(null.node, libc::O_RDWR)), Some(libc::ENXIO));
    let fifo = broker.make(node, c"fifo", New::Node(libc::S_IFIFO | 0o666, 0), CALLER).unwrap();
    assert_eq!(errno_of(broker.open(fifo.node, libc::O_RDONLY)), Some(libc::ENXIO));
}

#[test]
fn changes_what_is_asked_and_nothing_else() {
    let (broker, node, dir) = shared(false);
    let path = dir.path().join("f");
    fs::write(&path, "0123456789").unwrap();
    let file = broker.lookup(node, c"f").unwrap().node;
    let after = broker.change(file, Change { size: Some(4), ..nothing_changed() }).unwrap();
    assert_eq!((after.size, fs::read(&path).unwrap()), (4, b"0123".to_vec()));
    let after = broker.change(file, Change { mode: Some(0o600), ..nothing_changed() }).unwrap();
    assert_eq!(after.mode & 0o7777, 0o600);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    let time = husk_protocol::files::Time { seconds: 1_000_000_000, nanoseconds: 5 };
    let before = broker.attributes(file).unwrap();
    let after = broker.change(file, Change { modified: SetTime::At(time), ..nothing_changed() }).unwrap();
    assert_eq!((after.times[1], after.times[0]), (time, before.times[0]));
    assert_eq!(errno_of(broker.change(node, Change { size: Some(0), ..nothing_changed() })), Some(libc::EINVAL));
}

#[test]
fn a_link_has_no_permissions_of_its_own() {
    let (broker, node, dir) = shared(false);
    let outside = tempfile::NamedTempFile::new().unwrap();
    let mode = outside.as_file().metadata().unwrap().mode();
    symlink(outside.path(), dir.path().join("l")).unwrap();
    let link = broker.lookup(node, c"l").unwrap().node;
    let change = Change { mode: Some(0o777), ..nothing_changed() };
    assert_eq!(errno_of(broker.change(link, change)), Some(libc::EOPNOTSUPP));
    assert_eq!(outside.as_file().metadata().unwrap().mode(), mode);
}

#[test]
fn names_move_and_go() {
    let (broker, node, dir) = shared(false);
    fs::write(dir.path().join("a"), "a").unwrap();
    fs::write(dir.path().join("b"), "b").unwrap();
    let a = broker.lookup(node, c"a").unwrap().node;
    assert_eq!(errno_of(broker.rename((node, c"a"), (node, c"b"), libc::RENAME_NOREPLACE)), Some(libc::EEXIST));
    broker.rename((node, c"a"), (node, c"b"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(dir.path().join("b")).unwrap(), b"a");
    let linked = broker.link(a, node, c"c").unwrap();
    assert_eq!((linked.node, linked.attributes.nlink), (a, 2), "one file is one number");
    broker.unlink(node, c"b", false).unwrap();
    broker.unlink(node, c"c", false).unwrap();
    assert_eq!(errno_of(broker.lookup(node, c"c")), Some(libc::ENOENT));
    let file = fs::File::from(broker.open(a, libc::O_RDONLY).unwrap());
    assert_eq!(io::read_to_string(file).unwrap(), "a", "an unlinked file that the guest knows can be opened");
}

#[test]
fn nothing_crosses_shares() {
    let (broker, node, dir) = shared(false);
    let other = tempfile::tempdir().unwrap();
    let share = Share { name: "t".to_owned(), read_only: false, exclusive: false };
    broker.add_share(&share, directory(other.path())).unwrap();
    let there = broker.lookup(ROOT, c"t").unwrap().node;
    fs::write(dir.path().join("f"), "").unwrap();
    let file = broker.lookup(node, c"f").unwrap().node;
    assert_eq!(errno_of(broker.rename((node, c"f"), (there, c"f"), 0)), Some(libc::EXDEV));
    assert_eq!(errno_of(broker.link(file, there, c"f")), Some(libc::EXDEV));
    assert!(broker.is_exclusive(node) && !broker.is_exclusive(there));
}

#[test]
fn a_read_only_share_refuses_every_change() {
    let (broker, node, dir) = shared(true);
    fs::write(dir.path().join("f"), "text").unwrap();
    let file = broker.lookup(node, c"f").unwrap().node;
    let erofs = Some(libc::EROFS);
    assert_eq!(errno_of(broker.open(file, libc::O_WRONLY)), erofs);
    assert_eq!(errno_of(broker.open(file, libc::O_RDONLY | libc::O_TRUNC)), erofs);
    assert_eq!(errno_of(broker.create(node, c"g", 0o644, libc::O_RDWR, CALLER)), erofs);
    assert_eq!(errno_of(broker.make(node, c"g", New::Directory(0o755), CALLER)), erofs);
    assert_eq!(errno_of(broker.unlink(node, c"f", false)), erofs);
    assert_eq!(errno_of(broker.rename((node, c"f"), (node, c"g"), 0)), erofs);
    assert_eq!(errno_of(broker.link(file, node, c"g")), erofs);
    assert_eq!(errno_of(broker.change(file, Change { size: Some(0), ..nothing_changed() })), erofs);
    assert_eq!(errno_of(broker.set_xattr(file, c"user.a", b"b", 0)), erofs);
    assert_eq!(errno_of(broker.remove_xattr(file, c"user.a")), erofs);
    assert!(broker.open(file, libc::O_RDONLY).is_ok());
}

#[test]
fn a_share_that_is_gone_is_stale() {
    let (broker, node, dir) = shared(false);
    fs::write(dir.path().join("f"), "text").unwrap();
    let file = broker.lookup(node, c"f").unwrap().node;
    broker.remove_share("s").unwrap();
    assert!(matches!(broker.remove_share("s"), Err(ShareError::NotFound(_))));
    assert_eq!(errno_of(broker.lookup(ROOT, c"s")), Some(libc::ENOENT));
    assert_eq!(errno_of(broker.attributes(file)), Some(libc::ESTALE));
    assert_eq!(errno_of(broker.open(file, libc::O_RDONLY)), Some(libc::ESTALE));
    assert_eq!(errno_of(broker.lookup(node, c"f")), Some(libc::ESTALE));
}

#[test]
fn a_guest_cannot_hold_more_files_than_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    let broker = Broker::with_limit(Descriptors::open().unwrap(), 2);
    let share = Share { name: "s".to_owned(), read_only: false, exclusive: true };
    broker.add_share(&share, directory(dir.path())).unwrap();
    let node = broker.lookup(ROOT, c"s").unwrap().node;
    let a = broker.lookup(node, c"a").unwrap().node;
    assert_eq!(errno_of(broker.lookup(node, c"b")), Some(libc::ENFILE));
    broker.lookup(node, c"a").unwrap();
    broker.forget(a, 1);
    assert!(broker.attributes(a).is_ok(), "one reference is left");
    broker.forget(a, 1);
    assert!(broker.lookup(node, c"b").is_ok());
}

#[test]
fn numbers_that_were_never_given_are_refused() {
    let (broker, ..) = shared(false);
    for number in [0, 999, u64::MAX] {
        assert!(broker.attributes(number).is_err());
        assert!(broker.open(number, libc::O_RDONLY).is_err());
        assert!(broker.read_directory(number, 0, 4096).is_err());
        broker.forget(number, u64::MAX);
        broker.close_directory(number);
    }
}

#[test]
fn a_directory_is_read_in_pieces() {
    let (broker, node, dir) = shared(false);
    for number in 0..500 {
        fs::write(dir.path().join(format!("file-{number}")), "").unwrap();
    }
    let handle = broker.open_directory(node).unwrap();
    let (mut seen, mut offset, mut rounds) = (Vec::new(), 0, 0);
    loop {
        let entries = broker.read_directory(handle, offset, 1024).unwrap();
        let Some(last) = entries.last() else { break };
        offset = last.next;
        rounds += 1;
        seen.extend(entries.into_iter().map(|entry| entry.name));
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 502);
    assert!(rounds > 1);
    broker.close_directory(handle);
    assert_eq!(errno_of(broker.read_directory(handle, 0, 1024)), Some(libc::EBADF));
}

#[test]
fn attributes_of_a_user_are_carried_and_those_of_the_host_are_not() {
    let (broker, node, dir) = shared(false);
    fs::write(dir.path().join("f"), "").unwrap();
    let file = broker.lookup(node, c"f").unwrap().node;
    match broker.set_xattr(file, c"user.a", b"value", 0) {
        Err(cause) if cause.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            eprintln!("skipped: the file system here has no extended attributes");
            return;
        }
        result => result.unwrap(),
    }
    assert_eq!(broker.xattr(file, c"user.a").unwrap(), b"value");
    assert_eq!(broker.xattr_names(file).unwrap(), b"user.a\0");
    assert!(broker.set_xattr(file, c"trusted.overlay.opaque", b"y", 0).is_err());
    broker.remove_xattr(file, c"user.a").unwrap();
    assert_eq!(errno_of(broker.xattr(file, c"user.a")), Some(libc::ENODATA));
}
