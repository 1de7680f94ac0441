//! A container's terminal, whose controlling side somebody else gets.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, sendmsg, socket_with,
};

use super::error::{OciError, on};

/// Whether a terminal has somebody who takes it, and who takes one gets it. In runc's words.
///
/// # Errors
/// It is not so.
pub(super) fn check(terminal: bool, detach: bool, socket: Option<&str>) -> Result<(), OciError> {
    let socket = socket.filter(|socket| !socket.is_empty());
    if terminal && detach && socket.is_none() {
        return Err("cannot allocate tty if husk will detach without setting console socket".into());
    }
    if socket.is_some() && !(terminal && detach) {
        return Err("cannot use console socket if husk will not detach or allocate tty".into());
    }
    Ok(())
}

/// Sends the controlling side to whoever listens at this socket.
///
/// # Errors
/// Nobody does.
pub(super) fn send(to: &Path, terminal: &OwnedFd) -> Result<(), OciError> {
    /// What it is, for who logs it: a message has to have a byte.
    const NAME: &[u8] = b"/dev/ptmx";
    let attempt = || -> io::Result<()> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrUnix::new(to)?)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [terminal.as_fd()];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(&socket, &[IoSlice::new(NAME)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    };
    attempt().map_err(on("send the terminal to", to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_one_who_takes_it() {
        assert!(check(false, true, None).is_ok() && check(true, false, None).is_ok());
        assert!(check(true, true, Some("/x")).is_ok());
        assert!(check(true, true, None).unwrap_err().to_string().contains("cannot allocate tty"));
        for (terminal, detach) in [(false, true), (true, false)] {
            let error = check(terminal, detach, Some("/x")).unwrap_err();
            assert!(error.to_string().contains("cannot use console socket"), "{error}");
        }
    }
}
