//! `linux.sysctl` (runtime-spec, config-linux.md, "Sysctl"): those of the container's own namespaces. All others are the
//! whole kernel's, and refused, as runc does.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::plan::PlanError;

/// Sysctls of an IPC namespace (ipc_namespaces(7)), beside all of `fs.mqueue`.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// The checked sysctls of a document.
#[derive(Debug, Default)]
pub(super) struct Sysctls {
    /// Of the container's namespaces: set inside.
    own: Vec<Sysctl>,
    /// Of the network, which in a guest is the guest's.
    network: Vec<Sysctl>,
}

#[derive(Debug)]
struct Sysctl {
    key: String,
    path: PathBuf,
    value: String,
}

impl Sysctls {
    /// Checks those of a document whose container has these namespaces (flags of clone(2)) of its own, and a network that is
    /// not everybody's if `network`.
    ///
    /// # Errors
    /// The key that is no name, or of no namespace of the container's.
    pub(super) fn of(
        sysctls: Option<&HashMap<String, String>>,
        namespaces: u64,
        network: bool,
    ) -> Result<Self, PlanError> {
        let has = |flag: libc::c_int| namespaces & u64::from(flag.unsigned_abs()) != 0;
        let mut all: Vec<_> = sysctls.into_iter().flatten().collect();
        // The same ones in the same order each time.
        all.sort_unstable();
        let mut checked = Self::default();
        for (key, value) in all {
            let invalid = |why| PlanError::Invalid { what: format!("linux.sysctl {key:?}"), why };
            let path = path_of(key).ok_or_else(|| invalid("is no name of a sysctl"))?;
            let sysctl = Sysctl { key: key.clone(), path: Path::new("/proc/sys").join(&path), value: value.clone() };
            let is_network = path.starts_with("net/");
            let (there, why) = if IPC.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
                (has(libc::CLONE_NEWIPC), "the document has to have an IPC namespace of its own")
            } else if is_network {
                (network, "the document has to have a network namespace of its own")
            } else if path == "kernel/domainname" {
                (has(libc::CLONE_NEWUTS), "the document has to have a UTS namespace of its own")
            } else {
                // runc's words.
                (false, "is not in a separate kernel namespace")
            };
            if !there {
                return Err(invalid(why));
            }
            if is_network { checked.network.push(sysctl) } else { checked.own.push(sysctl) }
        }
        Ok(checked)
    }

    /// Sets those of the container's namespaces.
    ///
    /// # Errors
    /// The one that the kernel refuses.
    pub(super) fn set_own(&self) -> Result<(), String> {
        self.own.iter().try_for_each(Sysctl::set)
    }

    /// Sets those of the network.
    ///
    /// # Errors
    /// The one that the kernel refuses.
    pub(super) fn set_network(&self) -> Result<(), String> {
        self.network.iter().try_for_each(Sysctl::set)
    }
}

impl Sysctl {
    fn set(&self) -> Result<(), String> {
        let Self { key, path, value } = self;
        fs::write(path, value).map_err(|cause| format!("cannot set the sysctl {key} to {value}: {cause}"))
    }
}

/// The file below `/proc/sys`. Of `.` and `/` the first to come separates, and the other is in names (sysctl(8)).
fn path_of(key: &str) -> Option<String> {
    let dots = key.find(['.', '/']).is_some_and(|at| key.as_bytes()[at] == b'.');
    let swap = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path: String = if dots { key.chars().map(swap).collect() } else { key.to_owned() };
    let good = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    (path.contains('/') && path.split('/').all(good)).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(key: &str, namespaces: libc::c_int) -> Result<Sysctls, String> {
        let one = HashMap::from([(key.to_owned(), "1".to_owned())]);
        Sysctls::of(Some(&one), namespaces.unsigned_abs().into(), namespaces & libc::CLONE_NEWNET != 0)
            .map_err(|cause| cause.to_string())
    }

    #[test]
    fn names_are_paths_below_proc_sys() {
        assert_eq!(path_of("kernel.shmmax").as_deref(), Some("kernel/shmmax"));
        assert_eq!(path_of("net.ipv4.conf.eth0/100.forwarding").as_deref(), Some("net/ipv4/conf/eth0.100/forwarding"));
        assert_eq!(path_of("net/ipv4/conf/eth0.100/forwarding").as_deref(), Some("net/ipv4/conf/eth0.100/forwarding"));
        for bad in
            ["", "kernel", "/etc/passwd", "net..x", "net/../kernel/core_pattern", "net.//.kernel", "kernel.", "net.a\0"]
        {
            assert_eq!(path_of(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_those_of_own_namespaces_are_taken() {
        for key in ["kernel.shmmax", "kernel.sem", "fs.mqueue.msg_max"] {
            assert_eq!(checked(key, libc::CLONE_NEWIPC).unwrap().own.len(), 1);
            assert!(checked(key, libc::CLONE_NEWUTS).unwrap_err().contains("an IPC namespace of its own"), "{key}");
        }
        assert_eq!(checked("kernel.domainname", libc::CLONE_NEWUTS).unwrap().own.len(), 1);
        assert_eq!(checked("net.ipv4.ip_forward", libc::CLONE_NEWNET).unwrap().network.len(), 1);
        assert!(
            checked("net.ipv4.ip_forward", libc::CLONE_NEWIPC).unwrap_err().contains("a network namespace of its own")
        );
        let all = libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNS | libc::CLONE_NEWNET;
        for key in ["kernel.core_pattern", "vm.max_map_count", "fs.file-max", "kernel.hostname", "net/../kernel/panic"]
        {
            let cause = checked(key, all).unwrap_err();
            assert!(cause.starts_with(&format!("linux.sysctl {key:?}: ")), "{cause}");
        }
    }
}
