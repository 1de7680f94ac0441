//! A shim without containerd: its bundle, its start as containerd does it, its calls, and its end.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::shim_async::Client;
use protobuf::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, mknodat};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use tokio::net::UnixStream;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::proto::Request;

use crate::host::{patience, processes_of};

/// The namespace of the containers. It has none of containerd's own.
pub const NAMESPACE: &str = "husk-sequences";
/// The interface that every shim serves.
const SERVICE: &str = "containerd.task.v2.Task";
/// Time for a call; `start` and `delete` too.
const CALL: Duration = Duration::from_secs(60);
/// Time for a shim that was shut down to end.
const END: Duration = Duration::from_secs(30);

/// Time for a call.
#[must_use]
pub fn call_limit() -> Duration {
    CALL * patience()
}

/// A shim that runs.
pub struct Shim {
    program: PathBuf,
    id: String,
    bundle: PathBuf,
    socket: PathBuf,
    pidfd: OwnedFd,
    client: Client,
    log: OwnedFd,
    events: PathBuf,
}

/// Makes what containerd makes before it starts a shim: a directory with the document and the fifo of the log.
///
/// # Panics
/// The host refuses.
#[must_use]
pub fn make_bundle(parent: &Path, id: &str, spec: &Value) -> PathBuf {
    let bundle = parent.join(id);
    fs::create_dir(&bundle).unwrap();
    fs::create_dir(bundle.join("rootfs")).unwrap();
    fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    make_fifo(&bundle.join("log"));
    bundle
}

/// Makes a fifo.
///
/// # Panics
/// The host refuses.
pub fn make_fifo(path: &Path) {
    mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

/// Opens a fifo at both ends, so that nobody waits for another and it never ends.
///
/// # Panics
/// The host refuses.
#[must_use]
pub fn open_fifo(path: &Path) -> OwnedFd {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).unwrap()
}

/// All that is in a fifo now.
#[must_use]
pub fn read_all(fifo: impl AsFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = rustix::io::read(&fifo, &mut buffer) {
        bytes.extend(&buffer[..count]);
    }
    bytes
}

impl Shim {
    /// Runs `start` in the bundle, as containerd does, and connects to the shim.
    ///
    /// # Errors
    /// What `start` says.
    ///
    /// # Panics
    /// The host refuses.
    pub async fn start(program: &Path, id: &str, bundle: &Path, events: &Path) -> Result<Self, String> {
        let log = open_fifo(&bundle.join("log"));
        let output = run(program, id, bundle, events, &["start"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let address = match serde_json::from_str::<Value>(&text) {
            Ok(answer) => answer["address"].as_str().unwrap_or_default().to_owned(),
            Err(_) => text.trim().to_owned(),
        };
        let Some(socket) = address.strip_prefix("unix://").filter(|_| output.status.success()) else {
            let log = String::from_utf8_lossy(&read_all(&log)).into_owned();
            return Err(format!("{text}{}{log}", String::from_utf8_lossy(&output.stderr)));
        };
        let stream = UnixStream::connect(socket).await.map_err(|cause| format!("{socket}: {cause}"))?;
        let pid = process_of(program, id).ok_or("`start` has answered, and no shim runs")?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        Ok(Self {
            program: program.to_owned(),
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            socket: socket.into(),
            pidfd,
            client: Client::new(Socket::new(stream)),
            log,
            events: events.to_owned(),
        })
    }

    /// One call, which can outlive the borrow.
    pub fn call<R: Message>(
        &self,
        method: &str,
        request: &impl Message,
        limit: Duration,
    ) -> impl Future<Output = ttrpc::Result<R>> + Send + 'static {
        let client = self.client.clone();
        let request = Request {
            service: SERVICE.to_owned(),
            method: method.to_owned(),
            timeout_nano: limit.as_nanos().try_into().unwrap(),
            payload: request.write_to_bytes().unwrap(),
            ..Request::default()
        };
        async move {
            let response = client.request(request).await?;
            R::parse_from_bytes(&response.payload).map_err(|cause| ttrpc::Error::Others(cause.to_string()))
        }
    }

    /// What is in the log and was not read.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&read_all(&self.log)).into_owned()
    }

    /// Whether the shim has ended by itself, after a Shutdown.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ends_within(END * patience())
    }

    /// Runs `delete`, and returns what it answers in words.
    #[must_use]
    pub fn delete(&self) -> String {
        let bundle = self.bundle.to_str().unwrap();
        let output = run(&self.program, &self.id, &self.bundle, &self.events, &["-bundle", bundle, "delete"]);
        if !output.status.success() {
            return format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        match DeleteResponse::parse_from_bytes(&output.stdout) {
            Ok(answer) => format!("OK status={}", answer.exit_status),
            Err(cause) => cause.to_string(),
        }
    }

    fn ends_within(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::try_from(limit).unwrap())).unwrap() == 1
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // A shim that has ended by itself has taken its container with it.
        if !self.ends_within(Duration::ZERO) {
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
            let _ = self.ends_within(END);
            let _ = self.delete();
        }
        let _ = fs::remove_file(&self.socket);
    }
}

/// Runs the shim's program with these words after the flags that it always gets.
fn run(program: &Path, id: &str, bundle: &Path, events: &Path, words: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", &call_limit().as_secs().to_string()]).arg(program).current_dir(bundle);
    command.args(["-namespace", NAMESPACE, "-address", "/run/containerd/containerd.sock"]);
    command.args(["-publish-binary", "/usr/bin/containerd", "-id", id]).args(words);
    command.env("TTRPC_ADDRESS", events).env("GRPC_ADDRESS", "/run/containerd/containerd.sock");
    command.env("NAMESPACE", NAMESPACE).env("MAX_SHIM_VERSION", "2").env("GOMAXPROCS", "2");
    command.stdin(Stdio::null()).output().unwrap()
}

/// The process of the shim: its socket was made by the one that `start` was, so that the socket's peer says nothing.
fn process_of(program: &Path, id: &str) -> Option<Pid> {
    let name = program.file_name()?.to_str()?;
    let named = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
        words.windows(2).any(|pair| pair == [b"-id", id.as_bytes()])
    };
    processes_of(name).into_iter().find(named).and_then(Pid::from_raw)
}
