//! Paths of a container, walked inside its root: no link in the image leads out of it, whatever is changed meanwhile.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, mknodat, openat, openat2, readlinkat};
use rustix::io::Errno;

/// What is made where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Directory,
    /// An empty regular file.
    File,
}

/// Links that one path may have, as the kernel counts them (path_resolution(7)).
const MOST_LINKS: u32 = 40;

/// Opens `path` below `root`; links are followed inside of it.
fn open_below(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Opens the directory `path` below `root`, and makes what is missing of it.
pub(super) fn directory_below(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let found = place_below(root, path, Missing::Directory)?;
    if !FileType::from_raw_mode(fstat(&found)?.st_mode).is_dir() {
        return Err(Errno::NOTDIR.into());
    }
    Ok(found)
}

/// Opens `path` below `root`, and makes what is missing of it: directories, and at its end what is wanted there. A link
/// to what does not exist is followed, inside the root, and its target is made (so do runc and filepath-securejoin).
pub(super) fn place_below(root: &OwnedFd, path: &Path, missing: Missing) -> io::Result<OwnedFd> {
    match open_below(root, path) {
        Err(Errno::NOENT) => {}
        other => return Ok(other?),
    }
    let mut rest: VecDeque<OsString> = parts(path).collect();
    // Without links, so that its last part can be taken off.
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            done.pop();
            continue;
        }
        // Whoever changes the image meanwhile does not lead out of it: each step is walked from the root.
        let parent = open_below(root, &done)?;
        match openat(&parent, &part, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(found) if FileType::from_raw_mode(fstat(&found)?.st_mode).is_symlink() => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = readlinkat(&found, "", Vec::new())?;
                let target = Path::new(OsStr::from_bytes(target.as_bytes())).to_owned();
                if target.is_absolute() {
                    done.clear();
                }
                for part in parts(&target).rev() {
                    rest.push_front(part);
                }
                continue;
            }
            Ok(_) => {}
            Err(Errno::NOENT) => make(&parent, &part, if rest.is_empty() { missing } else { Missing::Directory })?,
            Err(cause) => return Err(cause.into()),
        }
        done.push(part);
    }
    Ok(open_below(root, &done)?)
}

/// The parts of a path that lead somewhere.
fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
}

fn make(parent: &OwnedFd, name: &OsString, missing: Missing) -> io::Result<()> {
    let made = match missing {
        Missing::Directory => mkdirat(parent, name, Mode::from_raw_mode(0o755)),
        Missing::File => mknodat(parent, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0),
    };
    match made {
        // Somebody else has made it meanwhile.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(cause) => Err(cause.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    struct Image {
        base: tempfile::TempDir,
        root: OwnedFd,
    }

    impl Image {
        fn new() -> Self {
            let base = tempfile::tempdir().unwrap();
            fs::create_dir_all(base.path().join("root/etc")).unwrap();
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let root = rustix::fs::open(base.path().join("root"), flags, Mode::empty()).unwrap();
            Self { base, root }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.base.path().join("root").join(path)
        }

        /// What is beside the root.
        fn outside(&self) -> usize {
            fs::read_dir(self.base.path()).unwrap().count() - 1
        }
    }

    #[test]
    fn links_lead_nowhere_but_into_the_root() {
        let image = Image::new();
        symlink("/abs", image.path("link")).unwrap();
        fs::create_dir(image.path("abs")).unwrap();
        directory_below(&image.root, Path::new("link/deep/er")).unwrap();
        assert!(image.path("abs/deep/er").is_dir());
        symlink("../../../../outside", image.path("etc/up")).unwrap();
        directory_below(&image.root, Path::new("etc/up/x")).unwrap();
        // Inside the root there is nothing above it.
        assert!(image.path("outside/x").is_dir());
        assert_eq!(image.outside(), 0);
        directory_below(&image.root, Path::new("")).unwrap();
    }

    #[test]
    fn a_file_is_made_where_a_dangling_link_points_to() {
        let image = Image::new();
        symlink("../run/systemd/resolve/stub", image.path("etc/resolv.conf")).unwrap();
        place_below(&image.root, Path::new("etc/resolv.conf"), Missing::File).unwrap();
        assert!(image.path("run/systemd/resolve/stub").is_file());
        // What is there stays what it is.
        assert!(directory_below(&image.root, Path::new("etc/resolv.conf")).is_err());
        place_below(&image.root, Path::new("etc/resolv.conf"), Missing::Directory).unwrap();
        assert!(directory_below(&image.root, Path::new("etc/resolv.conf/x")).is_err());
    }

    #[test]
    fn links_in_a_circle_are_an_error() {
        let image = Image::new();
        symlink("b", image.path("a")).unwrap();
        symlink("a", image.path("b")).unwrap();
        let cause = place_below(&image.root, Path::new("a/x"), Missing::File).unwrap_err();
        assert_eq!(cause.raw_os_error(), Some(libc::ELOOP));
        // So is one that grows, whose target never exists.
        symlink("c/d", image.path("c")).unwrap();
        assert!(place_below(&image.root, Path::new("c"), Missing::File).is_err());
    }
}
