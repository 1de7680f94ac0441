//! A container's root that is a whole Debian: the test bed's own, on which the container writes for itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// See [`self`]; unmounted when this is dropped.
pub struct Debian {
    directory: TempDir,
    root: PathBuf,
}

fn mount(words: &[&str]) {
    let output = Command::new("mount").args(words).output().unwrap();
    assert!(output.status.success(), "mount {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Debian {
    /// Mounts it.
    ///
    /// # Panics
    /// It cannot be mounted.
    #[must_use]
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        // What is written has to be on another file system than what is below it.
        mount(&["-t", "tmpfs", "tmpfs", path.to_str().unwrap()]);
        let [upper, work, root] = ["upper", "work", "root"].map(|name| path.join(name));
        for directory in [&upper, &work, &root] {
            std::fs::create_dir(directory).unwrap();
        }
        let debian = Self { root, directory };
        let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
        mount(&["-t", "overlay", "overlay", "-o", &options, debian.root.to_str().unwrap()]);
        debian
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Writes a file of it.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write(&self, path: &str, contents: &str) {
        let path = self.root.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, contents).unwrap();
    }
}

impl Default for Debian {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        for mounted in [&*self.root, self.directory.path()] {
            let _ = Command::new("umount").arg(mounted).output();
        }
    }
}
