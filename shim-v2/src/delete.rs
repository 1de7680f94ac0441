//! `delete`: removes what a shim has left. Runs when containerd has lost the shim, and after every normal end; never
//! waits for an agent, and does nothing twice.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::SystemTime;

use containerd_shim_protos::api::DeleteResponse;
use protobuf::{Message, MessageField};

use crate::args::Arguments;
use crate::host::state::{EndError, State, remove_directory};
use crate::host::{SOCKETS, pod_directory};
use crate::start::socket_path;

/// A process that does not die in this time is said; containerd kills `delete` itself after 5 s.
const KILL_MS: i64 = 1000;
/// Milliseconds for a shim whose pod has ended to end by itself.
const LAST_EVENTS_MS: i64 = 2000;
/// What a killed container's status is: 128 and SIGKILL.
const KILLED: u32 = 137;

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// The state file.
    #[error("cannot read what pod {0} has on the host: {1}")]
    State(String, io::Error),
    /// The cgroup, or the network.
    #[error(transparent)]
    End(#[from] EndError),
    /// The directory.
    #[error("cannot remove the directory of pod {0}: {1}")]
    Directory(String, io::Error),
    /// The answer.
    #[error("cannot answer on the standard output: {0}")]
    Answer(io::Error),
}

/// Runs `delete`.
///
/// # Errors
/// Something is left; containerd tries again.
pub fn run(arguments: &Arguments) -> Result<(), DeleteError> {
    let id = &arguments.id;
    let directory = pod_directory(&arguments.namespace, id);
    // Not understood: it stays, because nothing else says what is to be ended. It is written whole or not at all.
    let read = || State::read(&directory).map_err(|cause| DeleteError::State(id.clone(), cause));
    if let Some(state) = read()? {
        // It has nothing left but events that containerd has not taken yet.
        if state.ended {
            state.shim.wait(LAST_EVENTS_MS);
        }
        // The shim first: nobody else starts something then. With it go its children; the cgroup has them all.
        state.shim.kill(KILL_MS);
        // Again: what it wrote last is what there is.
        if let Some(state) = read()? {
            state.end()?;
        }
        let _ = std::fs::remove_file(&state.socket);
    }
    // Of a `start` that was killed before there was a shim.
    let socket = socket_path(Path::new(SOCKETS), arguments);
    if matches!(UnixStream::connect(&socket), Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused) {
        let _ = std::fs::remove_file(&socket);
    }
    remove_directory(&directory).map_err(|cause| DeleteError::Directory(id.clone(), cause))?;
    let mut answer = DeleteResponse::new();
    answer.set_exit_status(KILLED);
    answer.exited_at = MessageField::some(SystemTime::now().into());
    let bytes = answer.write_to_bytes().map_err(|cause| DeleteError::Answer(cause.into()))?;
    io::stdout().write_all(&bytes).map_err(DeleteError::Answer)
}
