//! The command `husk`, as a person uses it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use containerd_shim_protos::TaskClient;
use serde_json::Value;

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
