//! `husk version`: which version this is, and what is installed.

use std::process::ExitCode;

use husk_shim::VERSION;
use serde::Serialize;

use crate::host::Host;
use crate::installed::Installed;
use crate::terminal::table;

/// What may be asked.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON: an object with `version`, and `installed`, each with `version`, `directory`, `guest_kernel` and `files`
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Answer {
    version: &'static str,
    installed: Vec<Version>,
}

#[derive(Serialize)]
struct Version {
    #[serde(flatten)]
    installed: Installed,
    guest_kernel: Option<String>,
}

/// Prints the version of this program and the installed ones; says in the exit status whether they could be read.
pub fn run(arguments: &Arguments) -> ExitCode {
    let host = Host::this();
    let installed = match Installed::all(&host) {
        Ok(installed) => installed,
        Err(cause) => {
            crate::complain(&format!("cannot read {}: {cause}", host.lib.display()));
            return ExitCode::FAILURE;
        }
    };
    let look = |installed: Installed| Version { guest_kernel: installed.guest_kernel().ok(), installed };
    let answer = Answer { version: VERSION, installed: installed.into_iter().map(look).collect() };
    if arguments.json {
        crate::print_json(&answer)
    } else {
        crate::print(&text(&answer, &host))
    }
    ExitCode::SUCCESS
}

fn text(answer: &Answer, host: &Host) -> String {
    let mut text = format!("husk {}\n", answer.version);
    if answer.installed.is_empty() {
        text.push_str(&format!("nothing is installed in {}\n", host.lib.display()));
    }
    for Version { installed, guest_kernel } in &answer.installed {
        let linux = guest_kernel.as_deref().unwrap_or("unknown");
        text.push_str(&format!("\n{}: guests have Linux {linux}\n", installed.directory.display()));
        let rows = installed.files.iter().map(|file| {
            let size = file.size.map_or_else(|| "-".to_owned(), |size| format!("{:>7} KiB", size.div_ceil(1024)));
            vec![format!("  {}", file.name), size, file.problem.clone().unwrap_or_default()]
        });
        text.push_str(&table(&rows.collect::<Vec<_>>()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::installed::make;

    #[test]
    fn versions_are_listed_with_what_is_wrong() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::below(root.path());
        let answer = |versions: &[&str]| {
            let look = |version: &&str| {
                let installed = Installed::of(&host, version);
                Version { guest_kernel: installed.guest_kernel().ok(), installed }
            };
            text(&Answer { version: "1.2.3", installed: versions.iter().map(look).collect() }, &host)
        };
        assert!(answer(&[]).contains("nothing is installed"));
        make(&host, "1.2.3");
        std::fs::remove_file(host.lib.join("1.2.3/initrd")).unwrap();
        let text = answer(&["1.2.3"]);
        assert!(text.starts_with("husk 1.2.3\n") && text.contains("guests have Linux 6.12.9-husk"), "{text}");
        assert!(text.lines().any(|line| line.contains("initrd") && line.ends_with("is not there")), "{text}");
    }
}
