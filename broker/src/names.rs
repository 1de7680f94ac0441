//! Names that a guest gives.

use std::ffi::CStr;
use std::io;

/// Longest name of a file (NAME_MAX).
const LONGEST: usize = 255;

/// One component of a path, and neither `.` nor `..`: what is below the directory that it is looked up in.
pub(crate) fn check(name: &CStr) -> io::Result<&CStr> {
    let bytes = name.to_bytes();
    let errno = match bytes {
        b"" => libc::ENOENT,
        b"." | b".." => libc::EINVAL,
        _ if bytes.contains(&b'/') => libc::EINVAL,
        _ if bytes.len() > LONGEST => libc::ENAMETOOLONG,
        _ => return Ok(name),
    };
    Err(io::Error::from_raw_os_error(errno))
}

/// Extended attributes that a guest may see and set: those that mean something inside of it alone. `trusted.overlay.*`
/// would change what the host's overlay shows, `security.selinux` what the host's policy says.
pub(crate) fn check_xattr(name: &CStr) -> io::Result<&CStr> {
    let bytes = name.to_bytes();
    if bytes.starts_with(b"user.") || bytes == b"security.capability" {
        return Ok(name);
    }
    Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_components_pass() {
        for good in [c"a", c"...", c".hidden", c"with space", c"\xff\xfe"] {
            assert!(check(good).is_ok());
        }
        for bad in [c"", c".", c"..", c"a/b", c"/", c"../x"] {
            assert!(check(bad).is_err());
        }
        let long = std::ffi::CString::new(vec![b'x'; 256]).unwrap();
        assert_eq!(check(&long).unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
    }

    #[test]
    fn attributes_of_the_host_are_out_of_reach() {
        assert!(check_xattr(c"user.x").is_ok() && check_xattr(c"security.capability").is_ok());
        for bad in [c"trusted.overlay.opaque", c"security.selinux", c"system.posix_acl_access", c"user"] {
            assert!(check_xattr(bad).is_err());
        }
    }
}
