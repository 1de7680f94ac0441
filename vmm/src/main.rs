//! `husk-vmm --control-fd N`: runs one machine for the shim at the other end of descriptor N.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::time::Instant;

use husk_protocol::control::Socket;
use husk_vmm::{control, logger};

const USAGE: &str = "usage: husk-vmm --control-fd N | --version
Started by containerd-shim-husk-v2, with one end of a SEQPACKET socket pair as descriptor N.";

fn main() -> ExitCode {
    let start = Instant::now();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let fd = match arguments[..] {
        ["--version"] => {
            println!("husk-vmm {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        ["--control-fd", number] => match number.parse::<RawFd>() {
            Ok(fd) if fd > 2 => fd,
            _ => {
                eprintln!("husk-vmm: --control-fd {number}: not the number of an inherited descriptor\n{USAGE}");
                return ExitCode::from(2);
            }
        },
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    logger::init();
    // Files are made with the permissions that the guest asks for.
    rustix::process::umask(rustix::fs::Mode::empty());
    if let Err(cause) = run(fd, start) {
        log::error!("{cause}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(fd: RawFd, start: Instant) -> Result<(), control::ControlError> {
    // F_GETFD touches nothing: a number that is not open is refused before it is taken over.
    // SAFETY: no memory is involved.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(control::ControlError::Inherited { fd, cause: std::io::Error::last_os_error() });
    }
    // SAFETY: the descriptor is open, was inherited for this, and nothing else in this process uses it.
    let socket = Socket::from_inherited(unsafe { OwnedFd::from_raw_fd(fd) })?;
    control::serve(socket, start)
}
