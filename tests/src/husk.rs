//! The command `husk`, as a person uses it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use containerd_shim_protos::TaskClient;
use containerd_shim_protos::api::{DeleteRequest, DeleteResponse, ExecProcessRequest, StartRequest, WaitRequest};
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use serde_json::Value;
use ttrpc::context::with_timeout;

use crate::ctr::Output;

/// Seconds after which a command counts as hung.
const LIMIT_S: &str = "60";

/// A `husk` with these arguments, which a time limit ends.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", LIMIT_S, "husk"]).args(args).stdin(Stdio::null());
    command
}

/// Runs a command to its end.
///
/// # Panics
/// It cannot be started.
#[must_use]
pub fn output_of(mut command: Command) -> Output {
    let output = command.output().unwrap();
    Output { status: output.status.code().unwrap_or(124), stdout: output.stdout, stderr: output.stderr }
}

/// Runs `husk` to its end.
///
/// # Panics
/// It cannot be started.
#[must_use]
pub fn husk(args: &[&str]) -> Output {
    output_of(command(args))
}

/// Starts `husk`, its output in a pipe.
///
/// # Panics
/// It cannot be started.
#[must_use]
pub fn start(args: &[&str]) -> Child {
    command(args).stdout(Stdio::piped()).spawn().unwrap()
}

/// The JSON that a command printed.
///
/// # Panics
/// It is none.
#[must_use]
pub fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|cause| panic!("{cause}: {}{}", output.text(), output.errors()))
}

/// The shim of a container of the namespace `default`, as containerd calls it.
///
/// # Panics
/// There is none.
#[must_use]
pub fn shim_of(id: &str) -> TaskClient {
    let bundle = Path::new("/run/containerd/io.containerd.runtime.v2.task/default").join(id);
    let address = fs::read_to_string(bundle.join("address")).unwrap();
    TaskClient::new(ttrpc::Client::connect(address.trim()).unwrap())
}

/// Where the streams of a process go, as containerd names them to a shim: fifos, `file://`; empty: there is none.
#[derive(Debug, Default, Clone)]
pub struct Streams {
    /// What it reads.
    pub stdin: String,
    /// What it says; all that it shows, if it has a terminal.
    pub stdout: String,
    /// Its errors.
    pub stderr: String,
}

/// Time for a call that does something.
fn limit() -> ttrpc::context::Context {
    with_timeout(i64::try_from(Duration::from_secs(120).as_nanos()).unwrap_or(i64::MAX))
}

/// Runs a process (a document's) in a container to its end, as containerd asks the shim for it, without containerd and `ctr`;
/// returns its exit status. It is not deleted.
///
/// # Panics
/// The shim refuses.
#[must_use]
pub fn end_of_exec(shim: &TaskClient, id: &str, exec_id: &str, process: &Value, streams: Streams) -> u32 {
    let spec = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
        value: process.to_string().into_bytes(),
        ..Any::default()
    };
    let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
    let request = ExecProcessRequest {
        id: id.clone(),
        exec_id: exec_id.clone(),
        spec: MessageField::some(spec),
        terminal: process["terminal"] == true,
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
        ..ExecProcessRequest::default()
    };
    shim.exec(limit(), &request).unwrap();
    let request = StartRequest { id: id.clone(), exec_id: exec_id.clone(), ..StartRequest::default() };
    assert_ne!(shim.start(limit(), &request).unwrap().pid, 0);
    let request = WaitRequest { id, exec_id, ..WaitRequest::default() };
    shim.wait(limit(), &request).unwrap().exit_status
}

/// Deletes a process that has ended; no `exec_id` is the container's own.
///
/// # Panics
/// The shim refuses.
#[must_use]
pub fn delete(shim: &TaskClient, id: &str, exec_id: &str) -> DeleteResponse {
    let request = DeleteRequest { id: id.to_owned(), exec_id: exec_id.to_owned(), ..DeleteRequest::default() };
    shim.delete(limit(), &request).unwrap()
}

/// Runs a program in a container to its end and deletes it; returns its exit status. `terminal`: it has one.
///
/// # Panics
/// The shim refuses.
#[must_use]
pub fn exec_in(shim: &TaskClient, id: &str, exec_id: &str, words: &[&str], terminal: bool, streams: Streams) -> u32 {
    let process = serde_json::json!({
        "args": words, "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"], "terminal": terminal,
    });
    let status = end_of_exec(shim, id, exec_id, &process, streams);
    assert_eq!(delete(shim, id, exec_id).exit_status, status);
    status
}
