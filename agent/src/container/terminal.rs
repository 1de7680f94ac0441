//! A process's terminal: a pair of the container's own devpts, so that the program finds it by its name.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, Uid, open};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::pty::OpenptFlags;
use rustix::termios::{Winsize, tcsetwinsize};

/// Where the container sees its console.
const CONSOLE: &str = "/dev/console";

/// Opens a terminal in the container, which is the root already, makes it the session's, and makes it the standard
/// streams. Returns the controlling side.
///
/// # Errors
/// The step, and the kernel's answer.
pub(super) fn take(size: Option<(u16, u16)>, user: u32) -> Result<OwnedFd, String> {
    let step = |what: &'static str| move |cause: io::Error| format!("cannot {what}: {cause}");
    // The path of an instance of devpts: `/dev/ptmx` is a link to it, and the image's.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let controller = open("/dev/pts/ptmx", flags, Mode::empty())
        .map_err(|cause| step("open /dev/pts/ptmx for a terminal (is a devpts mounted there?)")(cause.into()))?;
    rustix::pty::unlockpt(&controller).map_err(|cause| step("unlock the terminal")(cause.into()))?;
    // By the descriptor and not by a path, which the container can change.
    let peer =
        rustix::pty::ioctl_tiocgptpeer(&controller, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .map_err(|cause| step("open the terminal")(cause.into()))?;
    if let Some((columns, rows)) = size {
        set_size(&controller, columns, rows).map_err(step("set the terminal's size"))?;
    }
    rustix::fs::fchown(&peer, Some(Uid::from_raw(user)), None)
        .map_err(|cause| format!("cannot give the terminal to user {user}: {cause}"))?;
    rustix::process::ioctl_tiocsctty(&peer).map_err(|cause| step("make the terminal the session's")(cause.into()))?;
    rustix::stdio::dup2_stdin(&peer)
        .and_then(|()| rustix::stdio::dup2_stdout(&peer))
        .and_then(|()| rustix::stdio::dup2_stderr(&peer))
        .map_err(|cause| step("take the standard streams")(cause.into()))?;
    Ok(controller)
}

/// Makes standard input's terminal the container's `/dev/console` (OCI runtime specification, config, "terminal").
///
/// # Errors
/// The kernel's answer.
pub(super) fn make_console() -> Result<(), String> {
    let attempt = || -> rustix::io::Result<()> {
        // A file to mount onto; one that is there is the image's.
        let file = open(
            CONSOLE,
            OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o666),
        )?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(rustix::stdio::stdin(), "", flags)?;
        // Onto what was opened, whatever has this name by now.
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&tree, "", &file, "", flags)
    };
    attempt().map_err(|cause| format!("cannot make {CONSOLE}: {cause}"))
}

/// Sets a terminal's size; the program is told by SIGWINCH.
///
/// # Errors
/// The kernel's answer.
pub(super) fn set_size(terminal: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    Ok(tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}
