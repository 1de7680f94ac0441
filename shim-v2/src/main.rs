//! `containerd-shim-husk-v2`: see the library.

use std::io::{self, Write};
use std::process::ExitCode;

use husk_shim::args::{Arguments, Verb};
use husk_shim::{VERSION, bootstrap, daemon, delete, start};

fn main() -> ExitCode {
    // What is no text cannot be a name, and is refused as one.
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let name = words.next().unwrap_or_default();
    let words: Vec<String> = words.collect();
    let arguments = match Arguments::parse(&words) {
        Ok(arguments) => arguments,
        Err(cause) => {
            let _ = writeln!(io::stderr(), "{name}: {cause}");
            return ExitCode::from(2);
        }
    };
    let result = match arguments.verb {
        Verb::Version => {
            let _ = writeln!(io::stdout(), "{name}:\n  Version: {VERSION}");
            return ExitCode::SUCCESS;
        }
        Verb::Info => bootstrap::info().map_err(|cause| cause.to_string()).and_then(|info| {
            io::stdout().write_all(&info).map_err(|cause| format!("cannot answer on the standard output: {cause}"))
        }),
        Verb::Start => start::run(&arguments, &name, daemon::run).map_err(|cause| cause.to_string()),
        Verb::Delete => delete::run(&arguments).map_err(|cause| cause.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            // containerd shows this to its caller.
            let _ = writeln!(io::stderr(), "husk: {cause}");
            ExitCode::FAILURE
        }
    }
}
