//! What happens to a container that there is: `start`, `state`, `kill`, `pause`, `resume`, `delete`.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use super::args::{Flag, Words, switch};
use super::error::{OciError, on};
use super::hooks::RuntimeHooks;
use super::state::{START, Status, Stored, check_id};
use super::wait;
use crate::container::{host, signal_from};

/// Flags of `kill`.
pub(super) const KILL: &[Flag] = &[switch(&["all", "a"])];
/// Flags of `delete`.
pub(super) const DELETE: &[Flag] = &[switch(&["force", "f"])];

/// Time for a killed process to be gone.
const KILLED: Duration = Duration::from_secs(10);

/// `state`.
pub(super) fn state(root: &Path, words: &Words) -> Result<(), OciError> {
    let container = Stored::open(root, words.only("state")?)?;
    super::print(&format!("{:#}", container.told_to_people()))
}

/// `start`.
pub(super) fn start(root: &Path, words: &Words) -> Result<(), OciError> {
    start_container(&Stored::open(root, words.only("start")?)?)
}

/// Starts a container, and runs its hooks; it is killed if one of them fails.
pub(super) fn start_container(container: &Stored) -> Result<(), OciError> {
    let hooks = RuntimeHooks::of(&container.document)?;
    let lock = container.lock()?;
    match container.status() {
        Status::Created => {}
        Status::Stopped => return Err(OciError::Stopped),
        Status::Running => return Err(OciError::Started),
        other => return Err(format!("cannot start a container in the {} state", other.name()).into()),
    }
    host::start(&container.directory, START)?;
    let socket = container.directory.join(START);
    fs::remove_file(&socket).map_err(on("remove", &socket))?;
    // Hooks may ask for it.
    drop(lock);
    hooks.poststart(container).map_err(|why| {
        if let Some(init) = container.init() {
            // The only error is that it has ended.
            let _ = pidfd_send_signal(&init, Signal::KILL);
        }
        why.into()
    })
}

/// `kill`.
pub(super) fn kill(root: &Path, words: &Words) -> Result<(), OciError> {
    let (id, signal) = match words.rest.as_slice() {
        [id] => (id, "SIGTERM"),
        [id, signal] => (id, signal.as_str()),
        words => return Err(format!("kill: {} arguments: it takes a container's id and a signal", words.len()).into()),
    };
    let container = Stored::open(root, id)?;
    let number = signal_number(signal).ok_or_else(|| format!("unknown signal {signal:?}"))?;
    let Some(init) = container.init() else {
        // Its init may have left others.
        if words.has("all") {
            return signal_all(&container, number);
        }
        return Err(OciError::NotRunning);
    };
    if words.has("all") {
        return signal_all(&container, number);
    }
    // Zero asks whether there is one.
    let Some(signal) = signal_from(number) else { return Ok(()) };
    match pidfd_send_signal(&init, signal) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::SRCH) => Err(OciError::NotRunning),
        Err(cause) => Err(format!("cannot send the signal {number}: {cause}").into()),
    }
}

fn signal_all(container: &Stored, number: u32) -> Result<(), OciError> {
    let Some(signal) = signal_from(number) else { return Ok(()) };
    match container.cgroup().signal(signal) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(format!("cannot send the signal {number}: {cause}").into())
        }
        _ => Ok(()),
    }
}

/// A signal by its number or its name, with or without `SIG`.
fn signal_number(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return (number == 0 || signal_from(number).is_some()).then_some(number);
    }
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time = |from: i32, text: &str| {
        let offset = if text.is_empty() { 0 } else { text.parse::<i32>().ok()? };
        u32::try_from(from + offset).ok().filter(|number| signal_from(*number).is_some())
    };
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(libc::SIGRTMIN(), offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(libc::SIGRTMAX(), offset);
    }
    // Numbered from 1 (signal(7), x86).
    (1..).zip(NAMES).find_map(|(number, known)| (known == name).then_some(number))
}

/// `pause`.
pub(super) fn pause(root: &Path, words: &Words) -> Result<(), OciError> {
    let container = Stored::open(root, words.only("pause")?)?;
    match container.status() {
        Status::Created | Status::Running => Ok(wait(container.cgroup().freeze(true))?),
        _ => Err(OciError::NotRunning),
    }
}

/// `resume`.
pub(super) fn resume(root: &Path, words: &Words) -> Result<(), OciError> {
    let container = Stored::open(root, words.only("resume")?)?;
    match container.status() {
        Status::Paused => Ok(wait(container.cgroup().freeze(false))?),
        _ => Err(OciError::NotPaused),
    }
}

/// `delete`.
pub(super) fn delete(root: &Path, words: &Words) -> Result<(), OciError> {
    let (id, force) = (words.only("delete")?, words.has("force"));
    let container = match Stored::open(root, id) {
        // Of a creation that was killed.
        Err(OciError::NotFound) if force => return forget(&root.join(id)),
        other => other?,
    };
    match container.status() {
        Status::Stopped | Status::Created => {}
        _ if force => {}
        status => return Err(OciError::NotStopped { id: id.to_owned(), status: status.name() }),
    }
    destroy(&container)
}

/// Ends what there is of a container, and removes all that is known of it.
pub(super) fn destroy(container: &Stored) -> Result<(), OciError> {
    check_id(&container.record.id)?;
    if let Some(init) = container.init() {
        // The only error is that it has ended.
        let _ = pidfd_send_signal(&init, Signal::KILL);
        ends(&init)?;
    }
    // With whatever it has left.
    wait(container.cgroup().remove())?;
    forget(&container.directory)?;
    RuntimeHooks::of(&container.document)?.poststop(container);
    Ok(())
}

fn forget(directory: &Path) -> Result<(), OciError> {
    match fs::remove_dir_all(directory) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(on("remove", directory)(cause)),
        _ => Ok(()),
    }
}

/// Waits for a killed process.
fn ends(process: &OwnedFd) -> Result<(), OciError> {
    let limit = Timespec::try_from(KILLED).ok();
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| poll(&mut fds, limit.as_ref())) {
        Ok(0) => Err(format!("the container's init was killed and does not end in {} s", KILLED.as_secs()).into()),
        Ok(_) => Ok(()),
        Err(cause) => Err(format!("cannot wait for the container's init: {cause}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_numbers_and_names() {
        for (text, number) in
            [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("sigterm", 15), ("hup", 1), ("SYS", 31), ("0", 0)]
        {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        assert_eq!(signal_number("RTMIN+1"), signal_number(&(libc::SIGRTMIN() + 1).to_string()));
        assert_eq!(signal_number("SIGRTMAX"), Some(64));
        for text in ["", "SIG", "NOSUCH", "65", "-1", "RTMAX+1"] {
            assert_eq!(signal_number(text), None, "{text}");
        }
    }
}
