//! The session keyring (session-keyring(7)): without one of its own a container would have its caller's keys.

use std::ffi::CString;

/// Makes this process, and what it clones, join a keyring of the container's. A kernel without keys has none to keep.
pub(super) fn join(id: &str) {
    /// KEYCTL_JOIN_SESSION_KEYRING of include/uapi/linux/keyctl.h.
    const JOIN: libc::c_int = 1;
    // An id has no zero byte.
    let Ok(name) = CString::new(format!("_ses.{id}")) else { return };
    // SAFETY: the name is terminated and lives through the call, which only reads it.
    if unsafe { libc::syscall(libc::SYS_keyctl, JOIN, name.as_ptr(), 0, 0, 0) } < 0 {
        let cause = std::io::Error::last_os_error();
        log::debug!("no session keyring: {cause}");
    }
}
