//! `husk`: the command that people type. One command is one module.

mod audit;
mod capabilities;
mod check;
mod host;
mod installed;
mod logs;
mod pods;
mod process;
mod ps;
mod seccomp;
mod terminal;
mod version;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use husk_cli::bench;

/// A container runtime that gives every pod its own virtual machine.
#[derive(Parser)]
#[command(name = "husk", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say whether this host can run pods, and what to do if not
    Check(check::Arguments),
    /// List the pods, their containers, memory and uptime
    Ps(ps::Arguments),
    /// Show husk's log of a pod and its guest's console
    Logs(logs::Arguments),
    /// Say what a container or an OCI document allows, by severity
    Audit(audit::Arguments),
    /// Print the default seccomp profile, or make one of what a program does
    Seccomp(seccomp::Arguments),
    /// Measure starts, execs and idle memory of containerd's runtimes
    Bench(bench::Arguments),
    /// Say which version this is, and which are installed
    Version(version::Arguments),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Check(arguments) => check::run(&arguments),
        Command::Ps(arguments) => ps::run(&arguments),
        Command::Logs(arguments) => logs::run(&arguments),
        Command::Audit(arguments) => audit::run(&arguments),
        Command::Seccomp(arguments) => seccomp::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Version(arguments) => version::run(&arguments),
    }
}

/// Prints a text. A reader that has gone away (`husk ps | head -n 1`) wants no more of it; every other failure ends this
/// program with status 1, because what was asked for has not arrived.
fn print(text: &str) {
    if let Err(cause) = std::io::stdout().write_all(text.as_bytes())
        && cause.kind() != std::io::ErrorKind::BrokenPipe
    {
        complain(&format!("cannot print: {cause}"));
        std::process::exit(1);
    }
}

/// Says what went wrong, if there is somebody to hear it.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "husk: {text}");
}

/// Prints a value as JSON.
fn print_json(value: &impl serde::Serialize) {
    // What is printed are texts and numbers, whose JSON cannot fail.
    print(&serde_json::to_string_pretty(value).map(|text| text + "\n").unwrap_or_default());
}
