//! What the containers run on.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::BenchError;

/// Where a busybox may be.
const BUSYBOXES: [&str; 3] = ["/usr/bin/busybox", "/bin/busybox", "/usr/local/bin/busybox"];
/// ELF's program header that names an interpreter: a program with one is not static (elf(5)).
const PT_INTERP: u32 = 3;

/// What the containers run on: it has `/bin/echo`, `/bin/sleep` and `/bin/dd`.
#[derive(Debug)]
pub enum Root {
    /// An image that containerd has.
    Image(String),
    /// A directory.
    Directory(PathBuf),
    /// A directory that was made for this, and goes with it.
    Made(TempDir),
}

impl Root {
    /// The image, the directory, or one that is made of this host's busybox.
    ///
    /// # Errors
    /// The directory is none; there is no static busybox.
    pub fn new(image: Option<&str>, directory: Option<&Path>) -> Result<Self, BenchError> {
        match (image, directory) {
            (Some(image), _) => Ok(Self::Image(image.to_owned())),
            (None, Some(directory)) => {
                let whole = directory.canonicalize().map_err(|cause| BenchError::File(directory.to_owned(), cause))?;
                if !whole.is_dir() {
                    return Err(BenchError::File(whole, io::ErrorKind::NotADirectory.into()));
                }
                Ok(Self::Directory(whole))
            }
            (None, None) => {
                let found = BUSYBOXES.map(Path::new).into_iter().find(|path| is_static(path).unwrap_or(false));
                let busybox = found.ok_or(BenchError::NoBusybox)?;
                make(busybox).map(Self::Made).map_err(|cause| BenchError::File(std::env::temp_dir(), cause))
            }
        }
    }

    /// In words.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Image(image) => format!("image {image}"),
            Self::Directory(path) => format!("directory {}", path.display()),
            Self::Made(_) => "a directory with busybox".to_owned(),
        }
    }

    /// The words of `ctr run` for it, flags and argument. More than one container at once do not write to it.
    #[must_use]
    pub fn words(&self, at_once: bool) -> (Vec<&'static str>, String) {
        let path = match self {
            Self::Image(image) => return (Vec::new(), image.clone()),
            Self::Directory(path) => path.as_path(),
            Self::Made(directory) => directory.path(),
        };
        let flags = if at_once { vec!["--rootfs", "--read-only"] } else { vec!["--rootfs"] };
        (flags, path.display().to_string())
    }
}

fn make(busybox: &Path) -> io::Result<TempDir> {
    let directory = tempfile::Builder::new().prefix("husk-bench-").tempdir()?;
    let root = directory.path();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    for name in ["bin", "dev", "etc", "proc", "run", "sys", "tmp"] {
        fs::create_dir(root.join(name))?;
    }
    fs::copy(busybox, root.join("bin/busybox"))?;
    for program in ["echo", "sleep", "dd", "sh"] {
        symlink("busybox", root.join("bin").join(program))?;
    }
    Ok(directory)
}

/// Whether this is a 64-bit ELF program without an interpreter.
fn is_static(path: &Path) -> io::Result<bool> {
    // The program headers come right after the ELF header, of 64 bytes.
    let mut head = Vec::new();
    fs::File::open(path)?.take(4096).read_to_end(&mut head)?;
    Ok(has_no_interpreter(&head).unwrap_or(false))
}

/// None if this is not the beginning of a little-endian 64-bit ELF file.
fn has_no_interpreter(head: &[u8]) -> Option<bool> {
    head.starts_with(b"\x7fELF\x02\x01").then_some(())?;
    let u16_at = |at: usize| Some(usize::from(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?)));
    let offset = usize::try_from(u64::from_le_bytes(head.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (u16_at(54)?, u16_at(56)?);
    for n in 0..count {
        let at = offset.checked_add(n.checked_mul(size)?)?;
        let kind = u32::from_le_bytes(head.get(at..at.checked_add(4)?)?.try_into().ok()?);
        if kind == PT_INTERP {
            return Some(false);
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with program headers of these kinds.
    fn elf(kinds: &[u32]) -> Vec<u8> {
        let mut head = vec![0; 64];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        head[32] = 64;
        head[54] = 56;
        head[56] = u8::try_from(kinds.len()).unwrap();
        for kind in kinds {
            head.extend(kind.to_le_bytes());
            head.extend([0; 52]);
        }
        head
    }

    #[test]
    fn a_program_with_an_interpreter_is_not_static() {
        assert_eq!(has_no_interpreter(&elf(&[1, 1, 4])), Some(true));
        assert_eq!(has_no_interpreter(&elf(&[6, PT_INTERP, 1])), Some(false));
        // Cut off, or something else.
        assert_eq!(has_no_interpreter(&elf(&[1, 1])[..100]), None);
        assert_eq!(has_no_interpreter(b"#!/bin/sh"), None);
        assert_eq!(has_no_interpreter(b""), None);
    }

    #[test]
    fn a_root_that_is_not_there_is_named() {
        let cause = Root::new(None, Some(Path::new("/nonexistent/root"))).unwrap_err().to_string();
        assert!(cause.contains("/nonexistent/root"), "{cause}");
        let cause = Root::new(None, Some(Path::new("/etc/passwd"))).unwrap_err().to_string();
        assert!(cause.contains("/etc/passwd"), "{cause}");
    }

    #[test]
    fn containers_at_once_do_not_write_to_a_directory() {
        let root = Root::new(None, Some(Path::new("/tmp"))).unwrap();
        assert_eq!(root.words(true), (vec!["--rootfs", "--read-only"], "/tmp".to_owned()));
        assert_eq!(root.words(false), (vec!["--rootfs"], "/tmp".to_owned()));
        let image = Root::new(Some("busybox"), None).unwrap();
        assert_eq!(image.words(true), (vec![], "busybox".to_owned()));
    }
}
