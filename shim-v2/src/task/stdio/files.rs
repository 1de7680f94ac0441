//! The files, fifos and programs that containerd names.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, fstat, open};

use super::{Names, Owner, StdioError};
use crate::host::logging::{LogUri, Logger};

/// Where an output goes.
pub(super) enum Output {
    /// A fifo: both ends, so that a client that went away gives no EPIPE.
    Fifo {
        /// What is written.
        write: OwnedFd,
        /// What is only held.
        read: OwnedFd,
        /// Where it is.
        path: PathBuf,
    },
    /// A file, which never blocks for long, and which the event loop does not watch.
    File(OwnedFd),
    /// A logging program's.
    Pipe(OwnedFd),
}

/// Where both outputs go; none: nowhere.
pub(super) struct Outputs {
    pub(super) stdout: Option<Output>,
    pub(super) stderr: Option<Output>,
    /// The program behind them.
    pub(super) logger: Option<Logger>,
}

/// The path behind what containerd says; none if it says nothing.
fn path_of(name: &'static str, uri: &str) -> Result<Option<PathBuf>, StdioError> {
    let path = match uri.split_once("://") {
        None => uri,
        Some(("fifo" | "file", path)) => path,
        Some(_) => return Err(StdioError::Uri { name, uri: uri.to_owned() }),
    };
    Ok((!path.is_empty()).then(|| PathBuf::from(path)))
}

fn open_file(name: &'static str, path: &PathBuf, flags: OFlags) -> Result<OwnedFd, StdioError> {
    open(path, flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
        .map_err(|cause| StdioError::Open { name, path: path.clone(), cause: cause.into() })
}

/// Both ends of the fifo of standard input.
pub(super) fn input(uri: &str) -> Result<Option<(OwnedFd, OwnedFd)>, StdioError> {
    let Some(path) = path_of("stdin", uri)? else { return Ok(None) };
    let read = open_file("stdin", &path, OFlags::RDONLY)?;
    let write = open_file("stdin", &path, OFlags::WRONLY)?;
    Ok(Some((read, write)))
}

/// Where the outputs go, as runc's shim does it: standard output's scheme counts for both.
pub(super) async fn outputs(names: &Names, owner: Owner<'_>) -> Result<Outputs, StdioError> {
    if let Some(uri) = LogUri::parse(&names.stdout)? {
        let (logger, pipes) = Logger::start(&uri, owner.id, owner.namespace, owner.bundle).await?;
        let stderr = (!names.terminal).then_some(Output::Pipe(pipes.stderr));
        return Ok(Outputs { stdout: Some(Output::Pipe(pipes.stdout)), stderr, logger: Some(logger) });
    }
    let stdout = output("stdout", &names.stdout)?;
    let stderr = match &stdout {
        // A terminal has one output.
        _ if names.terminal => None,
        // One file for both.
        Some(Output::File(file)) if names.stdout.starts_with("file://") => {
            let again = file.try_clone();
            let path = PathBuf::from(&names.stdout);
            Some(Output::File(again.map_err(|cause| StdioError::Open { name: "stderr", path, cause })?))
        }
        _ => output("stderr", &names.stderr)?,
    };
    Ok(Outputs { stdout, stderr, logger: None })
}

fn output(name: &'static str, uri: &str) -> Result<Option<Output>, StdioError> {
    let Some(path) = path_of(name, uri)? else { return Ok(None) };
    if uri.starts_with("file://") {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(|cause| StdioError::Open { name, path: path.clone(), cause })?;
        }
        return Ok(Some(Output::File(open_file(name, &path, OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND)?)));
    }
    let read = open_file(name, &path, OFlags::RDONLY)?;
    let stat = fstat(&read).map_err(|cause| StdioError::Open { name, path: path.clone(), cause: cause.into() })?;
    let write = open_file(name, &path, OFlags::WRONLY | OFlags::APPEND)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
        Ok(Some(Output::Fifo { write, read, path }))
    } else {
        Ok(Some(Output::File(write)))
    }
}
