//! The kernel's calls, and the names of its errors.

use std::io;

/// An error as errno(3) names it; what is none of these is its number.
pub(crate) fn name(cause: &io::Error) -> String {
    const NAMES: [(i32, &str); 36] = [
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::ESRCH, "ESRCH"),
        (libc::EINTR, "EINTR"),
        (libc::EIO, "EIO"),
        (libc::ENXIO, "ENXIO"),
        (libc::E2BIG, "E2BIG"),
        (libc::ENOEXEC, "ENOEXEC"),
        (libc::EBADF, "EBADF"),
        (libc::ECHILD, "ECHILD"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EACCES, "EACCES"),
        (libc::EFAULT, "EFAULT"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::ENODEV, "ENODEV"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::EISDIR, "EISDIR"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOTTY, "ENOTTY"),
        (libc::ETXTBSY, "ETXTBSY"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EROFS, "EROFS"),
        (libc::EPIPE, "EPIPE"),
        (libc::ERANGE, "ERANGE"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ELOOP, "ELOOP"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::EAFNOSUPPORT, "EAFNOSUPPORT"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::ECONNRESET, "ECONNRESET"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::ETIMEDOUT, "ETIMEDOUT"),
        (libc::EPROTONOSUPPORT, "EPROTONOSUPPORT"),
        (libc::ESOCKTNOSUPPORT, "ESOCKTNOSUPPORT"),
    ];
    let number = cause.raw_os_error().unwrap_or(-1);
    NAMES
        .iter()
        .find(|(other, _)| *other == number)
        .map_or_else(|| format!("errno {number}"), |(_, name)| (*name).to_owned())
}

/// What an attempt gave, in a word.
pub(crate) fn outcome<T>(result: io::Result<T>) -> String {
    result.map_or_else(|cause| name(&cause), |_| "OK".to_owned())
}

/// `syscall(2)`. Addresses among the arguments are null, invalid or of what `arguments` borrows for the call.
pub(crate) fn call(number: libc::c_long, arguments: &[usize]) -> io::Result<usize> {
    let at = |n: usize| arguments.get(n).copied().unwrap_or(0);
    // SAFETY: the kernel checks what it is given. No caller passes an address that the call would write program memory
    // through: they are null, unmapped, or of buffers that live until after the call.
    let result = unsafe { libc::syscall(number, at(0), at(1), at(2), at(3), at(4), at(5)) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// How a process ended that was made to do something.
pub(crate) enum End {
    Status(i32),
    Signal(i32),
}

/// Does something in a process of its own, so that it changes nothing here; what it returns (below 256) is the status.
pub(crate) fn aside(what: impl FnOnce() -> i32) -> io::Result<End> {
    // SAFETY: this program has one thread, so the copy is whole.
    match unsafe { libc::fork() } {
        0 => {
            let status = what();
            // SAFETY: ends the copy without what the original does at its end.
            unsafe { libc::_exit(status) }
        }
        pid if pid > 0 => {
            let mut status = 0;
            // SAFETY: waits for the child made here, and stores its status in a variable of this frame.
            while unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0 {
                let cause = io::Error::last_os_error();
                if cause.kind() != io::ErrorKind::Interrupted {
                    return Err(cause);
                }
            }
            Ok(if libc::WIFSIGNALED(status) {
                End::Signal(libc::WTERMSIG(status))
            } else {
                End::Status(libc::WEXITSTATUS(status))
            })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Like [`aside`], for something that may fail: in words.
pub(crate) fn aside_or<T>(what: impl FnOnce() -> io::Result<T>) -> String {
    let status = || match what() {
        Ok(_) => 0,
        Err(cause) => cause.raw_os_error().unwrap_or(255),
    };
    match aside(status) {
        Ok(End::Status(0)) => "OK".to_owned(),
        Ok(End::Status(number)) => name(&io::Error::from_raw_os_error(number)),
        Ok(End::Signal(signal)) => format!("signal {signal}"),
        Err(cause) => format!("no process: {}", name(&cause)),
    }
}

/// Makes processes until there are no more; they end with this one, whose children they are.
pub(crate) fn fork_all() -> io::Result<usize> {
    let mut made = Vec::new();
    let cause = loop {
        // SAFETY: this program has one thread, so the copy is whole.
        match unsafe { libc::fork() } {
            0 => loop {
                std::thread::park();
            },
            pid if pid > 0 => made.push(pid),
            _ => break io::Error::last_os_error(),
        }
    };
    for pid in &made {
        // SAFETY: a child that was made here and that nobody has waited for.
        unsafe { libc::kill(*pid, libc::SIGKILL) };
    }
    for pid in &made {
        // SAFETY: as above; no status is stored.
        unsafe { libc::waitpid(*pid, std::ptr::null_mut(), 0) };
    }
    if cause.raw_os_error() == Some(libc::EAGAIN) { Ok(made.len()) } else { Err(cause) }
}

/// Takes memory, and uses it, until somebody ends this.
pub(crate) fn eat() -> ! {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    loop {
        eaten.push(vec![0x5a; 1 << 20]);
        std::hint::black_box(&eaten);
    }
}
