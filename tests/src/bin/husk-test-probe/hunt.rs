//! Looks at processes of the container that are not its programs yet: what an exec is before it executes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::Report;
use crate::system::{aside_or, call, name, outcome};

/// Watches the processes until there is a file `mark`.
///
/// Each that is seen is said with its program, and with what could be had of it while that was not one of the container's.
pub(crate) fn until(mark: &str, report: &mut Report) {
    let own = fs::metadata("/").map(|root| root.dev()).unwrap_or(0);
    let mut found: BTreeMap<String, u32> = BTreeMap::new();
    let mut caught: Vec<File> = Vec::new();
    while !Path::new(mark).exists() {
        for pid in processes() {
            let exe = format!("/proc/{pid}/exe");
            let first = fs::read_link(&exe).map_or_else(|cause| name(&cause), |to| to.display().to_string());
            // A process that is the container's program was executed from the container's file systems.
            let file = File::open(&exe);
            if let Ok(file) = file {
                if file.metadata().is_ok_and(|file| file.dev() != own) && caught.len() < 8 {
                    caught.push(file);
                    *found.entry(format!("caught {first}")).or_default() += 1;
                }
                continue;
            }
            *found.entry(format!("program {first}")).or_default() += 1;
            // Not readable: what can be had of it all the same?
            let traced = aside_or(|| call(libc::SYS_ptrace, &[0x4206, pid, 0, 0]));
            let tries = [
                ("mem", outcome(OpenOptions::new().read(true).open(format!("/proc/{pid}/mem")))),
                ("fd", outcome(descriptor(pid))),
                ("root", outcome(fs::read_dir(format!("/proc/{pid}/root/")))),
                ("cwd", outcome(fs::read_dir(format!("/proc/{pid}/cwd/")))),
                ("ns", outcome(File::open(format!("/proc/{pid}/ns/mnt")))),
                ("ptrace", traced),
            ];
            // It may have become its program in between, and ended: then all of it is the container's own.
            if !matches!(fs::read_link(&exe), Err(cause) if cause.kind() == ErrorKind::PermissionDenied) {
                continue;
            }
            for (what, gave) in tries {
                *found.entry(format!("{what} {gave}")).or_default() += 1;
            }
        }
    }
    for (what, count) in found {
        report.say(&what, count);
    }
    let mut gave: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for file in caught {
        let again = OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        gave.entry("overwrite").or_default().insert(outcome(again));
        let path = std::ffi::CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
        let truncated = outcome(call(libc::SYS_truncate, &[path.as_ptr() as usize, 4096]));
        gave.entry("truncate").or_default().insert(truncated);
    }
    for (what, outcomes) in gave {
        report.say(what, outcomes.into_iter().collect::<Vec<_>>().join(" "));
    }
}

/// What the first descriptor of a process leads to. (Which there are root can list, as of every process of its user.)
fn descriptor(pid: usize) -> io::Result<fs::Metadata> {
    let first = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().next().ok_or(ErrorKind::NotFound)?;
    fs::metadata(first.path())
}

/// All but this one and init.
fn processes() -> Vec<usize> {
    let own = std::process::id() as usize;
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|pid| *pid != own && *pid != 1).collect()
}
