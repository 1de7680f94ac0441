//! A shim without containerd: its bundle, its start as containerd does it, its calls, and its end.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::{ConnectRequest, DeleteResponse};
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
/// Where containerd would listen.
const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// Time for a call; `start` and `delete` too.
const CALL: Duration = Duration::from_secs(30);
/// Time for a shim that was shut down to end.
const END: Duration = Duration::from_secs(30);

/// Time for a call.
#[must_use]
pub fn call_limit() -> Duration {
    CALL * patience()
}

/// How the program of a shim is called.
#[derive(Debug, Clone)]
struct Program {
    path: PathBuf,
    id: String,
    bundle: PathBuf,
    events: PathBuf,
}

/// A shim that runs.
pub struct Shim {
    socket: PathBuf,
    pidfd: Arc<OwnedFd>,
    client: Client,
    // Last: it ends what is left.
    rest: Rest,
}

/// What a shim may leave, until it was deleted.
struct Rest {
    program: Program,
    deleted: bool,
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
    /// Runs `start` in the bundle, as containerd does, and connects to the shim. Events go to the socket `events`.
    ///
    /// # Errors
    /// What `start` says.
    ///
    /// # Panics
    /// The host refuses.
    pub async fn start(path: &Path, id: &str, bundle: &Path, events: &Path) -> Result<Self, String> {
        let program =
            Program { path: path.to_owned(), id: id.to_owned(), bundle: bundle.to_owned(), events: events.to_owned() };
        let rest = Rest { program: program.clone(), deleted: false };
        let output = tokio::task::spawn_blocking(move || program.run(&["start"])).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let address = match serde_json::from_str::<Value>(&text) {
            Ok(answer) => answer["address"].as_str().unwrap_or_default().to_owned(),
            Err(_) => text.trim().to_owned(),
        };
        let Some(socket) = address.strip_prefix("unix://").filter(|_| output.status.success()) else {
            return Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)));
        };
        let stream = UnixStream::connect(socket).await.map_err(|cause| format!("{socket}: {cause}"))?;
        let client = Client::new(Socket::new(stream));
        // Whatever it answers, it has a command line then: it does not yet where it is still being executed.
        let _ = client.request(request("Connect", &ConnectRequest::new(), call_limit())).await;
        let pid = rest.program.shim().ok_or("`start` has answered, and no shim runs")?;
        let pidfd = Arc::new(pidfd_open(pid, PidfdFlags::empty()).unwrap());
        Ok(Self { socket: socket.into(), pidfd, client, rest })
    }

    /// One call, which can outlive the borrow.
    pub fn call<R: Message>(
        &self,
        method: &str,
        request: &impl Message,
        limit: Duration,
    ) -> impl Future<Output = ttrpc::Result<R>> + Send + 'static {
        let client = self.client.clone();
        let request = self::request(method, request, limit);
        async move {
            // ttrpc's own limit does not cover the write.
            let response = tokio::time::timeout(limit * 2, client.request(request)).await;
            let response = response.map_err(|_| ttrpc::Error::Others("the request cannot be sent".to_owned()))??;
            R::parse_from_bytes(&response.payload).map_err(|cause| ttrpc::Error::Others(cause.to_string()))
        }
    }

    /// Whether the shim ends by itself, in time.
    pub async fn ends(&self) -> bool {
        let pidfd = Arc::clone(&self.pidfd);
        tokio::task::spawn_blocking(move || ends_within(&pidfd, END * patience())).await.unwrap()
    }

    /// Kills what is left, runs `delete`, and returns what that answers, in words.
    pub async fn delete(mut self) -> String {
        // Its socket stays where the shim did not end by itself.
        let _ = fs::remove_file(&self.socket);
        tokio::task::spawn_blocking(move || self.rest.end()).await.unwrap()
    }
}

fn request(method: &str, message: &impl Message, limit: Duration) -> Request {
    Request {
        service: SERVICE.to_owned(),
        method: method.to_owned(),
        timeout_nano: limit.as_nanos().try_into().unwrap(),
        payload: message.write_to_bytes().unwrap(),
        ..Request::default()
    }
}

impl Rest {
    fn end(&mut self) -> String {
        self.deleted = true;
        if let Some(pid) = self.program.shim()
            && let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
        {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            let _ = ends_within(&pidfd, END);
        }
        let bundle = self.program.bundle.to_str().unwrap();
        let output = self.program.run(&["-bundle", bundle, "delete"]);
        if !output.status.success() {
            return format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        match DeleteResponse::parse_from_bytes(&output.stdout) {
            Ok(answer) => format!("OK status={}", answer.exit_status),
            Err(cause) => cause.to_string(),
        }
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        if !self.deleted {
            self.end();
        }
    }
}

impl Program {
    /// Runs it with these words after the flags that it always gets.
    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", &call_limit().as_secs().to_string()]).arg(&self.path).current_dir(&self.bundle);
        command.args(["-namespace", NAMESPACE, "-address", CONTAINERD, "-publish-binary", "/usr/bin/containerd"]);
        command.args(["-id", &self.id]).args(words).stdin(Stdio::null());
        command.env("TTRPC_ADDRESS", &self.events).env("GRPC_ADDRESS", CONTAINERD);
        command.env("NAMESPACE", NAMESPACE).env("MAX_SHIM_VERSION", "2").output().unwrap()
    }

    /// The process of the shim. (The socket's peer says nothing: it was made by the process that `start` was.)
    fn shim(&self) -> Option<Pid> {
        let named = |pid: &i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
            words.windows(2).any(|pair| pair == [b"-id", self.id.as_bytes()])
        };
        processes_of(self.path.file_name()?.to_str()?).into_iter().find(named).and_then(Pid::from_raw)
    }
}

fn ends_within(pidfd: &OwnedFd, limit: Duration) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::try_from(limit).unwrap())).unwrap() == 1
}
