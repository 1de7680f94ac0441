//! `containerd-shim-husk-v2`: see the library.

use std::process::ExitCode;

use husk_shim::args::{Arguments, Verb};
use husk_shim::{VERSION, delete, start};

fn main() -> ExitCode {
    let mut words = std::env::args();
    let name = words.next().unwrap_or_default();
    let words: Vec<String> = words.collect();
    let arguments = match Arguments::parse(&words) {
        Ok(arguments) => arguments,
        Err(cause) => {
            eprintln!("{name}: {cause}");
            return ExitCode::from(2);
        }
    };
    let result = match arguments.verb {
        Verb::Version => {
            println!("{name}:\n  Version: {VERSION}");
            return ExitCode::SUCCESS;
        }
        Verb::Start => start::run(&arguments, &name).map_err(|cause| cause.to_string()),
        Verb::Delete => delete::run(&arguments).map_err(|cause| cause.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            // containerd shows this to its caller.
            eprintln!("husk: {cause}");
            ExitCode::FAILURE
        }
    }
}
