//! `ctr`, as people use it: containers are measured through it, and removed with it.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::BenchError;

/// A command that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// Where `ctr` keeps the fifos of its containers.
const FIFOS: &str = "/run/containerd/fifo";

/// What a command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status; none: it was killed, or ended by the time limit.
    pub status: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Whether its status is 0.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.status == Some(0)
    }

    /// What went wrong, in its own words.
    #[must_use]
    pub fn complaint(&self) -> String {
        let words = self.stderr.trim();
        match (self.status, words) {
            (None, _) => format!("it was killed, or did not end in {} s: {words}", LIMIT.as_secs()),
            (Some(status), "") => format!("status {status}"),
            (Some(_), words) => words.to_owned(),
        }
    }
}

/// Runs `ctr` with these arguments; address and namespace are its environment's.
///
/// # Errors
/// It cannot be run; that it fails is none.
pub async fn ctr<S: AsRef<str>>(words: &[S]) -> Result<Output, BenchError> {
    let mut command = Command::new("ctr");
    command.args(words.iter().map(AsRef::as_ref)).kill_on_drop(true);
    // Its own process group: a terminal's Ctrl-C is for this process, which lets it finish.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(BenchError::Ctr)?;
    // `ctr run` with an input that ends at once hangs with every runtime.
    let stdin = child.stdin.take();
    let Ok(ended) = tokio::time::timeout(LIMIT, child.wait_with_output()).await else {
        return Ok(Output { status: None, stdout: String::new(), stderr: String::new() });
    };
    drop(stdin);
    let output = ended.map_err(BenchError::Ctr)?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Output { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) })
}

/// Runs `ctr`, which has to succeed.
///
/// # Errors
/// It does not.
pub async fn must<S: AsRef<str>>(words: &[S]) -> Result<String, BenchError> {
    let output = ctr(words).await?;
    if output.is_success() {
        return Ok(output.stdout);
    }
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    Err(BenchError::Failed { what: format!("ctr {}", words.join(" ")), why: output.complaint() })
}

/// Whether the task runs.
///
/// # Errors
/// `ctr` fails.
pub async fn is_running(id: &str) -> Result<bool, BenchError> {
    let tasks = must(&["task", "ls"]).await?;
    Ok(tasks.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some(id) && words.nth(1) == Some("RUNNING")
    }))
}

/// Removes a container, whatever it is at.
///
/// # Errors
/// It is still there.
pub async fn remove(id: &str) -> Result<(), BenchError> {
    // There may be no task.
    let _ = ctr(&["task", "delete", "-f", id]).await?;
    let _ = ctr(&["container", "delete", id]).await?;
    if must(&["container", "ls", "-q"]).await?.lines().any(|line| line == id) {
        let why = "it is still there: ctr task delete -f, then ctr container delete".to_owned();
        return Err(BenchError::Failed { what: format!("remove the container {id}"), why });
    }
    Ok(())
}

/// Removes every container whose name begins with `prefix`, and the fifos that a killed `ctr` has left of them.
///
/// # Errors
/// One is still there.
pub async fn remove_all(prefix: &str) -> Result<(), BenchError> {
    let mut result = Ok(());
    for id in must(&["container", "ls", "-q"]).await?.lines().filter(|id| id.starts_with(prefix)) {
        result = result.and(remove(id).await);
    }
    for directory in std::fs::read_dir(FIFOS).into_iter().flatten().flatten() {
        remove_fifos_of(&directory.path(), prefix);
    }
    result
}

/// Each container has a directory of its own there, with `<id>-stdin` and the like in it. Fifos only: what is not one stays,
/// and the directory with it.
fn remove_fifos_of(directory: &Path, prefix: &str) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| {
        let is_fifo = entry.file_type().is_ok_and(|kind| kind.is_fifo());
        is_fifo && entry.file_name().to_string_lossy().starts_with(prefix)
    });
    let removed = ours.filter(|entry| std::fs::remove_file(entry.path()).is_ok()).count();
    if removed > 0 {
        let _ = std::fs::remove_dir(directory);
    }
}
