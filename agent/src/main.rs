//! `/init` of the guest.

use std::process::ExitCode;

fn main() -> ExitCode {
    husk_agent::run()
}
