//! Roots of containers: a directory with busybox, and an image of it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::ctr::must;

/// The program of containers in tests (`husk-test-probe`), in the test bed.
pub const PROBE: &str = "/husk-testbed/probe";
/// The programs that tests use.
const PROGRAMS: [&str; 45] = [
    "sh",
    "echo",
    "true",
    "false",
    "cat",
    "sleep",
    "uname",
    "ls",
    "id",
    "env",
    "pwd",
    "kill",
    "ps",
    "dd",
    "sha256sum",
    "wc",
    "head",
    "mount",
    "mknod",
    "hostname",
    "touch",
    "mkdir",
    "rm",
    "mv",
    "ln",
    "stat",
    "seq",
    "grep",
    "readlink",
    "chmod",
    "chown",
    "test",
    "printf",
    "cut",
    "taskset",
    "sed",
    "stty",
    "tty",
    "vi",
    "less",
    "md5sum",
    "awk",
    "cp",
    "tr",
    "sort",
];

/// Makes a root with busybox.
pub fn busybox(directory: &Path) {
    // Users other than root enter it too.
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        fs::create_dir_all(directory.join(name)).unwrap();
    }
    fs::copy("/usr/bin/busybox", directory.join("bin/busybox")).unwrap();
    for program in PROGRAMS {
        symlink("busybox", directory.join("bin").join(program)).unwrap();
    }
    fs::write(directory.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n").unwrap();
    fs::write(directory.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
}

/// Imports the directory as an image (an OCI archive made by `husk-oci-image`, which the test bed has).
pub fn import(name: &str, directory: &Path) {
    let archive = tempfile::Builder::new().suffix(".tar").tempfile().unwrap();
    let made = Command::new("husk-oci-image").arg(name).arg(directory).arg(archive.path()).output().unwrap();
    assert!(made.status.success(), "husk-oci-image: {}", String::from_utf8_lossy(&made.stderr));
    must(&["image", "import", archive.path().to_str().unwrap()]);
}
