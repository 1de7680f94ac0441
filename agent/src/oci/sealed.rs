//! A copy of this program that nobody can change.
//!
//! What a container runs can be `/proc/self/exe`, which is this program's file for as long as the process has not executed another one.
//! Opened for writing once it is not in use any more, it would be the next thing that root runs on the host (CVE-2019-5736). So what
//! enters a container is a copy in memory, sealed (memfd_create(2)).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create, sendfile};

/// Nothing of it changes any more.
const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Makes sure that this process is such a copy: returns in it.
///
/// # Errors
/// There is no memory for one.
pub(super) fn enter() -> Result<(), String> {
    let attempt = || -> io::Result<()> {
        let own = File::open("/proc/self/exe")?;
        // Files elsewhere have no seals.
        if fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SEALS)) {
            return Ok(());
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // A host may want to be told that it is to be executed (`vm.memfd_noexec`, since Linux 6.3).
        let copy = match memfd_create("husk-agent", flags | MemfdFlags::EXEC) {
            Err(rustix::io::Errno::INVAL) => memfd_create("husk-agent", flags)?,
            other => other?,
        };
        let mut left = usize::try_from(own.metadata()?.len()).map_err(io::Error::other)?;
        while left > 0 {
            match sendfile(&copy, &own, None, left)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                sent => left = left.saturating_sub(sent),
            }
        }
        fcntl_add_seals(&copy, SEALS)?;
        let strings = |strings: Vec<std::ffi::OsString>| -> io::Result<Vec<CString>> {
            strings.into_iter().map(|text| CString::new(text.as_bytes()).map_err(io::Error::other)).collect()
        };
        let pair = |(mut key, value): (std::ffi::OsString, std::ffi::OsString)| {
            key.push("=");
            key.push(value);
            key
        };
        let args = strings(std::env::args_os().collect())?;
        let env = strings(std::env::vars_os().map(pair).collect())?;
        let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
            strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (args_at, env_at) = (pointers(&args), pointers(&env));
        // SAFETY: all strings are terminated and live until after the call, and both arrays end with a null pointer.
        unsafe { libc::fexecve(copy.as_raw_fd(), args_at.as_ptr(), env_at.as_ptr()) };
        Err(io::Error::last_os_error())
    };
    attempt().map_err(|cause| format!("cannot execute a sealed copy of this program: {cause}"))
}
