//! A container's shares in the agent's own mount namespace, for as long as there is the container.
//!
//! A directory that the host shares is a file system of its own (a submount of FUSE), which the kernel mounts where somebody walks into
//! it first. Were that the container's namespace, it would be unmounted with the container's last process; and Linux (6.12) does
//! not wait there for what is still under way, as the read-ahead of a program that has ended: the inodes outlive their file
//! system ("Busy inodes after unmount"), and the guest panics at the answer, in `fuse_readpages_end`. So the agent mounts them first,
//! and unmounts them when nothing can be under way.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use log::warn;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};

use crate::reaper::Reaper;

/// Time for shares to come and go: the host may be slow, and nobody waits for ever.
const LIMIT: Duration = Duration::from_secs(10);

/// Mounts shares. One that cannot be is told by whoever uses it, who knows what for.
pub async fn hold(shares: Vec<PathBuf>, reaper: &Reaper) {
    let mount = move || {
        for share in &shares {
            // Walking to it is what mounts it.
            let _ = open_tree(CWD, share, OpenTreeFlags::OPEN_TREE_CLOEXEC);
        }
        true
    };
    apart("mount the container's shares", Some(LIMIT), reaper, mount).await;
}

/// Unmounts shares, when no process of the container is left.
pub async fn let_go(shares: Vec<PathBuf>, reaper: &Reaper) {
    let release = move || {
        let let_go_one = |share: &PathBuf| {
            // Answers come in the order of the questions: after the first one no read is under way, after the second none of
            // the closings that those had put off.
            for _ in 0..2 {
                let _ = rustix::fs::statfs(share);
            }
            match unmount(share, UnmountFlags::DETACH) {
                // A file, which is none of its own, or one that was never mounted.
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => true,
                Err(_) => false,
            }
        };
        // All of them, also behind one that stays.
        shares.iter().filter(|share| !let_go_one(share)).count() == 0
    };
    apart("unmount the container's shares", Some(LIMIT), reaper, release).await;
}

/// Runs something in a process of its own: it may wait for the host, and the agent does not.
pub async fn apart(what: &str, limit: Option<Duration>, reaper: &Reaper, f: impl FnOnce() -> bool) {
    // SAFETY: this process has one thread, so the child's copy of it is complete.
    let pid = match unsafe { libc::fork() } {
        0 => {
            let done = f();
            // SAFETY: ends the copy at once, without the agent's exit handlers.
            unsafe { libc::_exit(i32::from(!done)) }
        }
        pid => pid,
    };
    let Ok(pid) = u32::try_from(pid) else {
        warn!("cannot {what}: fork: {}", io::Error::last_os_error());
        return;
    };
    let exit = reaper.watch(pid);
    let status = match limit {
        None => exit.await,
        Some(limit) => match tokio::time::timeout(limit, exit).await {
            Ok(status) => status,
            Err(_) => return warn!("cannot {what} in {} s: the host does not answer", limit.as_secs()),
        },
    };
    if status != Ok(0) {
        warn!("cannot {what}: see the guest's console");
    }
}
