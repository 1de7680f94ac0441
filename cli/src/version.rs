//! `husk version`.

use std::process::ExitCode;

/// Nothing to ask yet.
#[derive(clap::Args)]
pub struct Arguments {}

/// Prints the version of this program.
pub fn run(_: &Arguments) -> ExitCode {
    println!("husk {}", husk_shim::VERSION);
    ExitCode::SUCCESS
}
