//! `start`: makes the socket, forks the shim, and says where it listens.
//!
//! containerd waits for this, so it does little: no event loop, no second execution of the program. The shim is a fork of
//! this process, whose memory is already there.

use std::cell::Cell;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::pipe::PipeFlags;
use sha2::{Digest, Sha256};

use crate::args::Arguments;
use crate::bootstrap::{Bootstrap, BootstrapError, address_of};
use crate::daemon::Inherited;
use crate::phases::{self, Stamp};

/// Why no shim starts.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Something of the host's.
    #[error("cannot {what}: {cause}")]
    Host {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// What containerd says.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The shim.
    #[error("{0}")]
    Shim(String),
}

/// The shim's word to its `start`: that it is named on the host, or why it cannot run. Said once.
pub struct Named(Cell<Option<OwnedFd>>);

/// Everything is well.
const READY: &[u8] = &[0];
/// Bytes of a reason at most: what a pipe takes in one piece (pipe(7), PIPE_BUF).
const LONGEST_REASON: usize = 4096;

impl Named {
    fn new(pipe: OwnedFd) -> Self {
        Self(Cell::new(Some(pipe)))
    }

    /// The shim is named, or is not and will tell why when a container is made.
    pub fn ready(&self) {
        self.say(READY);
    }

    /// The shim ends.
    pub fn failed(&self, why: &str) {
        self.say(&why.as_bytes()[..why.len().min(LONGEST_REASON)]);
    }

    fn say(&self, word: &[u8]) {
        if let Some(pipe) = self.0.take() {
            // A `start` that was killed needs none.
            let _ = rustix::io::write(pipe, word);
        }
    }

    /// Waits for the word.
    fn wait(word: &OwnedFd) -> Result<(), StartError> {
        let mut buffer = [0; LONGEST_REASON];
        match rustix::io::retry_on_intr(|| rustix::io::read(word, &mut buffer)) {
            Ok(count) => match &buffer[..count] {
                READY => Ok(()),
                [] => Err(StartError::Shim("the shim ended before it had begun".to_owned())),
                reason => Err(StartError::Shim(String::from_utf8_lossy(reason).into_owned())),
            },
            Err(cause) => Err(failed("wait for the shim")(cause.into())),
        }
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    move |cause| StartError::Host { what: what.into(), cause }
}

/// The socket of the shim of this container: a name of its own for every containerd, namespace and container.
pub(crate) fn socket_path(directory: &Path, arguments: &Arguments) -> PathBuf {
    let name = format!("{}/{}/{}", arguments.address, arguments.namespace, arguments.id);
    let digest = Sha256::digest(name.as_bytes());
    directory.join(digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// Runs `start`. `shim` is what the fork does; there this does not return before the shim's end.
///
/// # Errors
/// See [`StartError`]; nothing is left behind.
pub fn run(arguments: &Arguments, name: &str, shim: impl FnOnce(&Arguments, Inherited)) -> Result<(), StartError> {
    phases::stamp(Stamp::Start);
    let told = Bootstrap::read(arguments)?;
    let path = socket_path(&told.sockets, arguments);
    let bundle = std::env::current_dir().map_err(failed("find the bundle, the working directory"))?;
    // In every bundle: containerd 1.6 and 1.7 find the shim by it after a restart.
    std::fs::write("address", address_of(&path))
        .map_err(failed(format!("write {}", bundle.join("address").display())))?;
    let Some(listener) = listen(&path)? else {
        // It runs already.
        return answer(&told, &path);
    };
    let pipe = || {
        let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
        pipe.map_err(|cause| failed("make a pipe to the shim")(cause.into())).inspect_err(|_| {
            let _ = std::fs::remove_file(&path);
        })
    };
    // Says to the shim that its address was told. Without that, nobody will ever call or end it.
    let (answered, answer_told) = pipe()?;
    // What the shim says of its beginning. It is named on the host then: from the answer on, `delete` has to find it.
    let (word, named) = pipe()?;
    let inherited = Inherited {
        bundle,
        socket: path.clone(),
        listener,
        name: name.to_owned(),
        oom_score: oom_score_of_parent(),
        events: told.events.clone(),
        debug: told.debug,
        cgroup: told.cgroup.clone(),
        answered,
        named: Rc::new(Named::new(named)),
    };
    // SAFETY: this process has one thread, so that the child may do whatever the parent might.
    match unsafe { libc::fork() } {
        -1 => {
            let cause = io::Error::last_os_error();
            let _ = std::fs::remove_file(&path);
            Err(failed("fork the shim")(cause))
        }
        0 => {
            drop((answer_told, word));
            shim(arguments, inherited);
            Ok(())
        }
        _ => {
            drop(inherited.named);
            Named::wait(&word).inspect_err(|_| {
                let _ = std::fs::remove_file(&path);
            })?;
            answer(&told, &path)?;
            // A shim that has ended already needs none.
            let _ = rustix::io::write(&answer_told, &[1]);
            Ok(())
        }
    }
}

/// Where the shim listens. Nothing else may come on either output.
fn answer(told: &Bootstrap, socket: &Path) -> Result<(), StartError> {
    let mut out = io::stdout().lock();
    let written = told.answer(socket).and_then(|bytes| out.write_all(&bytes)).and_then(|()| out.flush());
    written.map_err(failed("answer on the standard output"))
}

/// Listens at `path`; none if somebody does already.
fn listen(path: &Path) -> Result<Option<UnixListener>, StartError> {
    let what = || format!("listen at {}", path.display());
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed(format!("make {}", directory.display())))?;
    }
    for _ in 0..2 {
        // Mode 0600, from the first moment.
        let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(old);
        match bound {
            Ok(listener) => return Ok(Some(listener)),
            Err(cause) if cause.kind() == io::ErrorKind::AddrInUse => {
                if UnixStream::connect(path).is_ok() {
                    return Ok(None);
                }
                // A shim's that was killed.
                match std::fs::remove_file(path) {
                    Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(failed(what())(cause)),
                    _ => {}
                }
            }
            Err(cause) => return Err(failed(what())(cause)),
        }
    }
    Err(failed(what())(io::ErrorKind::AddrInUse.into()))
}

/// The shim dies before its containerd does when memory runs out: one more than the parent's, as runc's shim has it.
fn oom_score_of_parent() -> Option<i32> {
    let parent = rustix::process::getppid()?;
    let text = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", parent.as_raw_nonzero())).ok()?;
    Some(text.trim().parse::<i32>().ok()?.saturating_add(1).min(1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Verb;
    use crate::host::SOCKETS;

    #[test]
    fn the_shims_word_is_told() {
        let word = |say: &dyn Fn(Named)| {
            let (read, write) = rustix::pipe::pipe().unwrap();
            say(Named::new(write));
            Named::wait(&read).map_err(|cause| cause.to_string())
        };
        assert_eq!(word(&|named| named.ready()), Ok(()));
        let twice = word(&|named| {
            named.ready();
            named.failed("later");
        });
        assert_eq!(twice, Ok(()));
        assert_eq!(word(&|named| named.failed("no room")), Err("no room".to_owned()));
        assert_eq!(word(&drop), Err("the shim ended before it had begun".to_owned()));
        assert_eq!(word(&|named| named.failed(&"x".repeat(9000))).unwrap_err().len(), 4096);
    }

    #[test]
    fn sockets_have_short_names_of_their_own() {
        let arguments = |namespace: &str, id: &str| Arguments {
            verb: Verb::Start,
            namespace: namespace.into(),
            address: "/run/containerd/containerd.sock".into(),
            id: id.into(),
            bundle: String::new(),
            debug: false,
        };
        let socket_path = |arguments| socket_path(Path::new(SOCKETS), &arguments);
        let path = socket_path(arguments("default", &"x".repeat(76)));
        // sun_path, with its zero: 108.
        assert!(path.as_os_str().len() <= 106);
        assert_ne!(path, socket_path(arguments("k8s.io", &"x".repeat(76))));
        assert_ne!(socket_path(arguments("a", "b")), socket_path(arguments("a", "c")));
    }
}
