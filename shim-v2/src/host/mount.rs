//! Attributes of detached mounts (mount_setattr(2)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// What is in the mount means nothing to the host: no set-user-ID program, no device, no link is followed there. The
/// guest sees all of them. `recursive`: also in the mounts below it.
///
/// # Errors
/// The mount is not detached, or the kernel is older than 5.14.
pub fn restrict(tree: &OwnedFd, recursive: bool) -> io::Result<()> {
    let nothing = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSYMFOLLOW;
    set_attributes(tree, nothing, None, recursive)
}

/// Adds to a mount's attributes; MOUNT_ATTR_IDMAP takes a user namespace.
///
/// # Errors
/// The kernel's answer.
pub fn set_attributes(tree: &OwnedFd, set: u64, namespace: Option<&OwnedFd>, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        // An open descriptor's number is not negative.
        userns_fd: namespace.map_or(0, |namespace| u64::from(namespace.as_raw_fd().unsigned_abs())),
    };
    // SAFETY: the path is an empty C string and the structure is as large as it says; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 },
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
