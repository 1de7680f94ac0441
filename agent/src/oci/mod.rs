//! `husk-agent oci`: the container code of the guest as an OCI runtime's command line, on any host with cgroup v2, as root. So that
//! what people hold against runc can be held against it: their suites, containerd's shim for runc (`BinaryName=`), podman (`--runtime`).
//!
//! Flags, states, statuses and the words of errors are runc's. There is no daemon: every command reads what the one before has left
//! ([`state`]), and a container's init waits for its start by itself ([`crate::container::host`]).

mod args;
mod bundle;
mod cgroup;
mod console;
mod create;
mod error;
mod exec;
mod foreground;
mod hooks;
mod keyring;
mod life;
mod logger;
mod ps;
mod sealed;
mod state;
mod stats;
mod update;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use husk_protocol::features::{Can, features};

use self::args::{Flag, Flags, Words, switch, value};
use self::error::OciError;

/// Flags before the command.
const GLOBAL: &[Flag] = &[
    value(&["root"]),
    value(&["log"]),
    value(&["log-format"]),
    switch(&["debug"]),
    // Paths for systemd are known by their form; rootless is refused.
    switch(&["systemd-cgroup"]),
    value(&["rootless"]),
    switch(&["version", "v"]),
    switch(&["help", "h"]),
];

const HELP: &str = "husk-agent oci: husk's container code as an OCI runtime, on this host's kernel

usage: husk-agent oci [--root DIR] [--log FILE] [--log-format text|json] [--debug] COMMAND [FLAGS] [ARGUMENTS]

  create [--bundle DIR] [--console-socket FILE] [--pid-file FILE] [--preserve-fds N] ID
  run [--detach] [--keep] [as create] ID
  start | state | pause | resume ID
  kill [--all] ID [SIGNAL]
  delete [--force] ID
  exec [--process FILE] [--tty] [--detach] [--cwd DIR] [--env K=V] [--user UID[:GID]] ID PROGRAM [ARGUMENTS]
  ps [--format json|table] ID
  events [--stats] [--interval 5s] ID
  update [--resources FILE|-] [--memory BYTES] [--pids-limit N] ... ID
  features";

/// Runs one command; its status is runc's: 0, 1 for an error, the program's own for `run` and `exec`, 255 for an `exec` that fails.
pub(crate) fn run() -> ExitCode {
    let words: Result<Vec<String>, _> = std::env::args_os().skip(2).map(std::ffi::OsString::into_string).collect();
    let (status, error) = match words {
        Ok(words) => match dispatch(&words) {
            Ok(status) => (status, None),
            Err((status, error)) => (status, Some(error)),
        },
        Err(word) => (1, Some(format!("{}: arguments have to be UTF-8", word.to_string_lossy()))),
    };
    if let Some(error) = error {
        logger::fatal(&error);
    }
    ExitCode::from(status)
}

/// Runs the command of a command line; returns its status, and why it failed.
fn dispatch(words: &[String]) -> Result<u8, (u8, String)> {
    let failed = |error: String| (1, error);
    let global = Words::parse(words, GLOBAL, Flags::InFront).map_err(failed)?;
    logger::init(global.value("log").map(Path::new), global.value("log-format"), global.has("debug"))
        .map_err(failed)?;
    let said = |text: &str| print(text).map(|()| 0).map_err(|error| failed(error.to_string()));
    let Some((command, words)) = global.rest.split_first().filter(|_| !global.has("help")) else {
        return if global.has("version") { said(&version()) } else { said(HELP) };
    };
    if let Some(value) = global.value("rootless").filter(|value| !["auto", "false"].contains(value)) {
        return Err(failed(format!("--rootless {value}: it takes root")));
    }
    let root = Path::new(global.value("root").filter(|root| !root.is_empty()).unwrap_or(state::ROOT));
    let code = if command == "exec" { 255 } else { 1 };
    run_command(command, words, root).map_err(|error| match (command.as_str(), error) {
        ("exec", error) => (code, format!("exec failed: {error}")),
        (_, error) => (code, error.to_string()),
    })
}

fn run_command(command: &str, words: &[String], root: &Path) -> Result<u8, OciError> {
    let parsed = |known: &[Flag]| Words::parse(words, known, Flags::Anywhere);
    let done = |()| 0;
    match command {
        "create" => entering(|| create::create(root, &parsed(create::FLAGS)?).map(done)),
        "run" => entering(|| create::run(root, &parsed(create::FLAGS)?)),
        "exec" => entering(|| exec::exec(root, &Words::parse(words, exec::FLAGS, Flags::InFront)?)),
        "start" => life::start(root, &parsed(&[])?).map(done),
        "state" => life::state(root, &parsed(&[])?).map(done),
        "kill" => life::kill(root, &parsed(life::KILL)?).map(done),
        "delete" => life::delete(root, &parsed(life::DELETE)?).map(done),
        "pause" => life::pause(root, &parsed(&[])?).map(done),
        "resume" => life::resume(root, &parsed(&[])?).map(done),
        "ps" => ps::ps(root, &Words::parse(words, ps::FLAGS, Flags::Anywhere)?).map(done),
        "events" => stats::events(root, &parsed(stats::FLAGS)?).map(done),
        "update" => update::update(root, &parsed(update::FLAGS)?).map(done),
        "features" => print(&self_description()?).map(done),
        other => Err(format!("no command {other:?}; husk-agent oci --help lists them").into()),
    }
}

/// Runs what has a copy of this process in a container.
fn entering(command: impl FnOnce() -> Result<u8, OciError>) -> Result<u8, OciError> {
    sealed::enter()?;
    // As the agent: processes of the container cannot look at what becomes one of them.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|cause| format!("cannot hide from containers: {cause}"))?;
    command()
}

fn version() -> String {
    format!("husk-agent oci version {}\nspec: {}", env!("CARGO_PKG_VERSION"), oci_spec::runtime::VERSION)
}

fn self_description() -> Result<String, OciError> {
    let made = features(&Can { mapped_mounts: false, systemd: false }).map_err(|cause| cause.to_string())?;
    let bytes = serde_json::to_vec(&made).map_err(|cause| OciError::Other(cause.to_string()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Prints a line. A reader that has gone away wants no more of it.
fn print(text: &str) -> Result<(), OciError> {
    match std::io::stdout().write_all(format!("{text}\n").as_bytes()) {
        Err(cause) if cause.kind() != std::io::ErrorKind::BrokenPipe => Err(format!("cannot print: {cause}").into()),
        _ => Ok(()),
    }
}

/// Waits for what the container code does in an event loop.
fn wait<T, E: Into<OciError>>(future: impl Future<Output = Result<T, E>>) -> Result<T, OciError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = runtime.map_err(|cause| format!("cannot make an event loop: {cause}"))?;
    runtime.block_on(future).map_err(Into::into)
}
