//! Where things are on a host. A test has a host of its own below a directory.

use std::path::{Path, PathBuf};

/// The places that the commands look at.
#[derive(Debug, Clone)]
pub struct Host {
    /// `/dev/kvm`.
    pub dev_kvm: PathBuf,
    /// `/etc`: husk's and containerd's configuration.
    pub etc: PathBuf,
    /// `/usr/lib/husk`: a directory per installed version.
    pub lib: PathBuf,
    /// `/run`: pods, containerd's socket.
    pub run: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// Where programs are looked for when no running containerd says it.
    pub path: Vec<PathBuf>,
}

/// The PATH of a service that has none of its own (systemd.exec(5)).
const SERVICE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";

impl Host {
    /// This host.
    #[must_use]
    pub fn this() -> Self {
        Self {
            dev_kvm: "/dev/kvm".into(),
            etc: "/etc".into(),
            lib: "/usr/lib/husk".into(),
            run: "/run".into(),
            proc: "/proc".into(),
            sys: "/sys".into(),
            path: split_path(SERVICE_PATH),
        }
    }

    /// A host that has everything below one directory.
    #[cfg(test)]
    pub fn below(root: &Path) -> Self {
        let at = |path: &str| root.join(path);
        Self {
            dev_kvm: at("dev/kvm"),
            etc: at("etc"),
            lib: at("usr/lib/husk"),
            run: at("run"),
            proc: at("proc"),
            sys: at("sys"),
            path: vec![at("usr/bin")],
        }
    }

    /// Directories of pods.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.run.join("husk")
    }
}

/// The directories of a PATH.
#[must_use]
pub fn split_path(path: &str) -> Vec<PathBuf> {
    path.split(':').filter(|part| !part.is_empty()).map(PathBuf::from).collect()
}

/// The program `name` in these directories, if there is a file of this name.
#[must_use]
pub fn find_program(directories: &[PathBuf], name: &str) -> Option<PathBuf> {
    directories.iter().map(|directory| directory.join(name)).find(|path: &PathBuf| Path::is_file(path))
}
