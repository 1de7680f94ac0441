//! A process that is waited for: its signals, its terminal, its status.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use super::error::OciError;
use crate::container::host::{self, Made};
use crate::container::signal_from;

/// Bytes that are carried at once.
const CHUNK: usize = 16 * 1024;

/// The signals that this process passes on, held back until it asks for them.
#[derive(Debug)]
pub(super) struct Signals(OwnedFd);

impl Signals {
    /// Holds back all that can be, but for those that tell of an error in this program.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn hold() -> io::Result<Self> {
        // SAFETY: the set is initialised before it is used, and all calls only touch it.
        let fd = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigfillset(&raw mut set);
            for own in
                [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS]
            {
                libc::sigdelset(&raw mut set, own);
            }
            // Of the terminal's session: not the container's.
            for own in [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU, libc::SIGCHLD, libc::SIGPIPE, libc::SIGURG] {
                libc::sigdelset(&raw mut set, own);
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else has.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next one that has come.
    fn next(&self) -> Option<u32> {
        let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer is as long as said.
        let read = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        // SAFETY: all of it was written.
        (usize::try_from(read) == Ok(size)).then(|| unsafe { info.assume_init() }.ssi_signo)
    }
}

/// Waits for a process's end; returns its status.
///
/// # Errors
/// The kernel's answer.
pub(super) fn attend(made: &Made, signals: &Signals) -> Result<u8, OciError> {
    let attempt = || -> io::Result<u8> {
        let mut terminal = made.terminal.as_ref().map(Relay::begin).transpose()?;
        loop {
            let mut fds = vec![PollFd::new(&made.pidfd, PollFlags::IN), PollFd::new(&signals.0, PollFlags::IN)];
            // A terminal that nobody has would be ready for ever.
            if let Some(relay) = terminal.as_ref().filter(|relay| relay.output) {
                fds.extend(relay.waited_for());
            }
            rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            while let Some(signal) = signals.next() {
                pass_on(made, terminal.as_ref(), signal);
            }
            if let Some(relay) = &mut terminal {
                relay.carry(ready.get(2) == Some(&true), ready.get(3) == Some(&true));
            }
            if ready.first() == Some(&true) {
                if let Some(relay) = &mut terminal {
                    relay.carry_rest();
                }
                let pid = rustix::process::Pid::from_raw(made.pid.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
                return Ok(u8::try_from(host::wait_for(pid)?).unwrap_or(u8::MAX));
            }
        }
    };
    attempt().map_err(|cause| format!("cannot wait for the process {}: {cause}", made.pid).into())
}

fn pass_on(made: &Made, terminal: Option<&Relay<'_>>, signal: u32) {
    if signal == Signal::WINCH.as_raw().unsigned_abs() {
        if let Some(relay) = terminal {
            relay.resize();
        }
    } else if let Some(signal) = signal_from(signal) {
        // The only error is that it has ended.
        let _ = rustix::process::pidfd_send_signal(&made.pidfd, signal);
    }
}

/// Carries bytes between this process's streams and a terminal.
struct Relay<'a> {
    controller: &'a OwnedFd,
    /// What this process's own terminal was before.
    before: Option<Termios>,
    input: bool,
    /// Whether somebody has the other side.
    output: bool,
    /// Typed, and not taken yet.
    typed: Vec<u8>,
}

impl<'a> Relay<'a> {
    fn begin(controller: &'a OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(controller, true)?;
        let stdin = rustix::stdio::stdin();
        let mut before = None;
        if isatty(stdin) {
            let mut attributes = tcgetattr(stdin)?;
            before = Some(attributes.clone());
            attributes.make_raw();
            tcsetattr(stdin, OptionalActions::Now, &attributes)?;
        }
        let relay = Self { controller, before, input: true, output: true, typed: Vec::new() };
        relay.resize();
        Ok(relay)
    }

    /// As large as this process's own terminal, if it has one.
    fn resize(&self) {
        if self.before.is_some()
            && let Ok(size) = tcgetwinsize(rustix::stdio::stdin())
        {
            // The terminal is gone with its last process.
            let _ = tcsetwinsize(self.controller, size);
        }
    }

    fn waited_for(&self) -> [PollFd<'_>; 2] {
        let mut controller = PollFlags::IN;
        controller.set(PollFlags::OUT, !self.typed.is_empty());
        let wanted = self.input && self.typed.is_empty();
        // A descriptor tells of its end also where nothing is asked of it: one that is not wanted has another in its place.
        let input: BorrowedFd<'_> = if wanted { rustix::stdio::stdin() } else { self.controller.as_fd() };
        let flags = if wanted { PollFlags::IN } else { PollFlags::empty() };
        [PollFd::new(self.controller, controller), PollFd::from_borrowed_fd(input, flags)]
    }

    fn carry(&mut self, controller: bool, input: bool) {
        let mut bytes = [0; CHUNK];
        if input && self.input && self.typed.is_empty() {
            match rustix::io::read(rustix::stdio::stdin(), &mut bytes) {
                Ok(0) | Err(_) => self.input = false,
                Ok(count) => self.typed.extend_from_slice(bytes.get(..count).unwrap_or_default()),
            }
        }
        if !self.typed.is_empty()
            && let Ok(count) = rustix::io::write(self.controller, &self.typed)
        {
            self.typed.drain(..count);
        }
        if controller && self.output {
            self.take(&mut bytes);
        }
    }

    /// Takes once what is there; false: nothing is.
    fn take(&mut self, bytes: &mut [u8]) -> bool {
        match rustix::io::read(self.controller, &mut *bytes) {
            Ok(count @ 1..) => {
                let mut rest = bytes.get(..count).unwrap_or_default();
                while let Ok(written @ 1..) = rustix::io::write(rustix::stdio::stdout(), rest) {
                    rest = rest.get(written..).unwrap_or_default();
                }
                true
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
            // EIO: nobody has the other side any more.
            Ok(0) | Err(_) => {
                self.output = false;
                false
            }
        }
    }

    /// What the process has left: it has ended, and what it has started may go on.
    fn carry_rest(&mut self) {
        let mut bytes = [0; CHUNK];
        // A terminal holds no more than this (N_TTY_BUF_SIZE, and the kernel's buffers behind it).
        for _ in 0..16 {
            if !self.output || !self.take(&mut bytes) {
                return;
            }
        }
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}
