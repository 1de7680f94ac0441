//! `husk seccomp`: the default profile, and profiles made of what programs do.

mod profile;
mod record;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use husk_shim::host::file::read_small;

use self::profile::Profile;
use self::record::{RecordError, Recorded, record};
use crate::capabilities;

/// A profile has at most so many bytes: all calls of all architectures are a tenth of it.
const MOST: u64 = 1 << 20;

/// What may be asked.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    default: DefaultArguments,
}

#[derive(clap::Subcommand)]
enum What {
    /// Print the default profile (also without this word)
    Default(DefaultArguments),
    /// Run a program and make a profile of the system calls that it makes
    Record(RecordArguments),
}

/// For whom.
#[derive(clap::Args)]
#[command(after_help = "The profile is the one that containerd gives to a container with the same capabilities: \
    linux.seccomp of the OCI document, or a file of Kubernetes' localhostProfile. Without --cap and --cap-drop they are \
    containerd's default ones.")]
struct DefaultArguments {
    /// A capability that the container has beside containerd's default ones, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap: Vec<String>,
    /// A capability of containerd's default ones that it has not, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
}

/// What is recorded.
#[derive(clap::Args)]
#[command(
    after_help = "The profile allows what the program and all that it starts have called, and the few calls that a \
    runtime makes between the filter and the program; all else fails with EPERM. What did not happen is not in it: let the \
    program do all it can, and add the runs up with --add. Without --output the profile goes to the standard output, and \
    the program's own output to the standard error."
)]
struct RecordArguments {
    /// Write the profile to this file
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Allow what this profile allows, too: that of another run
    #[arg(long, value_name = "FILE")]
    add: Vec<PathBuf>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
enum SeccompError {
    #[error("{0}")]
    Capability(String),
    #[error("{0}")]
    List(String),
    #[error("cannot read the profile {}: {cause}", .path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error("{} is no seccomp profile (linux.seccomp of an OCI document): {cause}", .path.display())]
    Parse { path: PathBuf, cause: serde_json::Error },
    #[error("{} is no profile that can be added: {why}", .path.display())]
    Other { path: PathBuf, why: String },
    #[error("cannot give the program this one's standard error: {0}")]
    Output(io::Error),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("cannot write the profile {}: {cause}", .path.display())]
    Write { path: PathBuf, cause: io::Error },
}

/// Prints or makes a profile.
pub fn run(arguments: &Arguments) -> ExitCode {
    let result = match &arguments.what {
        None => print_default(&arguments.default),
        Some(What::Default(arguments)) => print_default(arguments),
        Some(What::Record(arguments)) => make(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            crate::complain(&cause.to_string());
            ExitCode::FAILURE
        }
    }
}

fn print_default(arguments: &DefaultArguments) -> Result<(), SeccompError> {
    let mut capabilities: BTreeSet<String> = capabilities::DEFAULT.map(str::to_owned).into();
    for name in &arguments.cap_drop {
        let dropped = capabilities::named(name).map_err(SeccompError::Capability)?;
        capabilities.retain(|name| !dropped.contains(name));
    }
    for name in &arguments.cap {
        capabilities.extend(capabilities::named(name).map_err(SeccompError::Capability)?);
    }
    crate::print_json(&profile::default(&capabilities).map_err(SeccompError::List)?);
    Ok(())
}

fn make(arguments: &RecordArguments) -> Result<(), SeccompError> {
    // Before the program runs, so that a slip does not cost the run.
    let mut names = profile::always().map_err(SeccompError::List)?;
    let mut architectures = BTreeSet::new();
    for path in &arguments.add {
        let added = read(path)?;
        names.extend(added.allowed());
        architectures.extend(added.architectures);
    }
    let Some((program, words)) = arguments.program.split_first() else { return Ok(()) };
    let mut command = Command::new(program);
    command.args(words);
    if arguments.output.is_none() {
        let error = io::stderr().as_fd().try_clone_to_owned().map_err(SeccompError::Output)?;
        command.stdout(Stdio::from(error));
    }
    let recorded = record(&mut command)?;
    tell(program, &recorded);
    names.extend(recorded.names);
    architectures.extend(recorded.architectures);
    let profile = Profile::of(names, architectures);
    match &arguments.output {
        None => crate::print_json(&profile),
        Some(path) => {
            // What is printed are texts, whose JSON cannot fail.
            let text = serde_json::to_string_pretty(&profile).unwrap_or_default() + "\n";
            fs::write(path, text).map_err(|cause| SeccompError::Write { path: path.clone(), cause })?;
        }
    }
    Ok(())
}

/// Reads a profile of another run. Only a list of what is allowed can be added to another one.
fn read(path: &Path) -> Result<Profile, SeccompError> {
    let text = read_small(path, MOST).map_err(|cause| SeccompError::Read { path: path.to_owned(), cause })?;
    let profile: Profile =
        serde_json::from_slice(&text).map_err(|cause| SeccompError::Parse { path: path.to_owned(), cause })?;
    let other = profile.syscalls.iter().find(|calls| calls.action != profile::ALLOW || !calls.args.is_empty());
    let why = if profile.default_action != profile::ERRNO {
        format!("its defaultAction is {}, and {} is meant", profile.default_action, profile::ERRNO)
    } else if let Some(calls) = other {
        format!("it has conditions or other actions, for {}", calls.names.join(" "))
    } else {
        return Ok(profile);
    };
    Err(SeccompError::Other { path: path.to_owned(), why })
}

/// What whoever uses the profile has to know of the run.
fn tell(program: &OsString, recorded: &Recorded) {
    if !recorded.status.success() {
        let program = program.to_string_lossy();
        crate::complain(&format!(
            "{program} {}: what it calls when it does not fail may be missing",
            ending(recorded.status)
        ));
    }
    if !recorded.unknown.is_empty() {
        let numbers: Vec<String> = recorded.unknown.iter().map(u64::to_string).collect();
        crate::complain(&format!(
            "no system calls are known with these numbers, which are not in the profile: {}",
            numbers.join(" ")
        ));
    }
}

fn ending(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("ended with status {code}"),
        None => format!("was ended by a signal ({status})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lists_of_what_is_allowed_are_added() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("profile.json");
        let why = |text: &str| {
            fs::write(&file, text).unwrap();
            read(&file).map(|profile| profile.allowed()).map_err(|cause| cause.to_string())
        };
        let good = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#;
        assert_eq!(why(good), Ok(BTreeSet::from(["read".to_owned()])));
        assert!(why("{").unwrap_err().contains("no seccomp profile"));
        assert!(why(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap_err().contains("defaultAction is SCMP_ACT_ALLOW"));
        let other = good.replace("SCMP_ACT_ALLOW", "SCMP_ACT_LOG");
        assert!(why(&other).unwrap_err().contains("other actions, for read"));
        fs::remove_file(&file).unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("cannot read the profile"));
    }
}
