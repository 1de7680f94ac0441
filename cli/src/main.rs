//! `husk`: the command that people type. One command is one module.

mod version;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A container runtime that gives every pod its own virtual machine.
#[derive(Parser)]
#[command(name = "husk", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say which version this is, and which are installed
    Version(version::Arguments),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Version(arguments) => version::run(&arguments),
    }
}
