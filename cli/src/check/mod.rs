//! `husk check`: whether a pod would run on this host, point by point, and what to do where not.

pub mod containerd;
mod files;
mod guest;
mod kernel;
mod kvm;
mod network;
mod registration;

use std::process::ExitCode;

use serde::Serialize;

use crate::host::Host;
use crate::terminal::{escaped, wants_colour, width, wrapped};

/// The argument that makes this program the test guest's process.
const PROBE: &str = "--probe-kvm";
/// What stands before a point's text: its state and its name.
const INDENT: usize = 28;

/// What only root may try.
const AS_ROOT: &str = "try again as root: sudo husk check";

/// What may be asked.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON: an object with `able`, `version`, and `points`, each with `name`, `state`, `what` and `remedy`
    #[arg(long)]
    json: bool,
    /// Run the test guest on the KVM that is the standard input
    #[arg(long = "probe-kvm", hide = true)]
    probe: bool,
}

/// How a point stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is to be done.
    Note,
    /// Pods run, but something is not as it should be.
    Warning,
    /// It could not be found out, so nobody knows whether pods run.
    Unknown,
    /// No pod runs.
    Failed,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Failed => "FAILED",
        }
    }

    /// Its colour, as a terminal's attribute (ECMA-48, SGR).
    fn colour(self) -> &'static str {
        match self {
            Self::Ok => "32",
            Self::Note => "36",
            Self::Warning | Self::Unknown => "33",
            Self::Failed => "1;31",
        }
    }
}

/// One point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Point {
    /// Its name, which stays the same from version to version.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
    /// What was found, in words.
    pub what: String,
    /// What to do, where something is not as it should be.
    pub remedy: Option<String>,
}

impl Point {
    /// As it should be.
    pub fn ok(name: &'static str, what: impl Into<String>) -> Self {
        Self { name, state: State::Ok, what: what.into(), remedy: None }
    }

    /// Worth knowing.
    pub fn note(name: &'static str, what: impl Into<String>) -> Self {
        Self { name, state: State::Note, what: what.into(), remedy: None }
    }

    /// Not as it should be.
    pub fn warning(name: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, state: State::Warning, what: what.into(), remedy: Some(remedy.into()) }
    }

    /// Not found out.
    pub fn unknown(name: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, state: State::Unknown, what: what.into(), remedy: Some(remedy.into()) }
    }

    /// No pod runs.
    pub fn failed(name: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, state: State::Failed, what: what.into(), remedy: Some(remedy.into()) }
    }
}

impl Point {
    /// With something to do.
    fn with_remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

/// A cause of several lines, as a parser shows it, in one: without the lines that draw the place.
fn one_line(cause: &impl std::fmt::Display) -> String {
    let text = cause.to_string();
    let lines = text.lines().map(str::trim).filter(|line| {
        let drawn = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').starts_with('|');
        !(line.is_empty() || drawn)
    });
    lines.collect::<Vec<_>>().join(": ")
}

/// The whole answer.
#[derive(Serialize)]
struct Answer {
    able: bool,
    version: &'static str,
    points: Vec<Point>,
}

/// Checks this host; the exit status is 0 only if a pod would run.
pub fn run(arguments: &Arguments) -> ExitCode {
    if arguments.probe {
        return guest::run();
    }
    let points = points(&Host::this());
    let able = points.iter().all(|point| !matches!(point.state, State::Failed | State::Unknown));
    let answer = Answer { able, version: husk_shim::VERSION, points };
    if arguments.json {
        crate::print_json(&answer);
    } else {
        crate::print(&text(&answer, width(), wants_colour()));
    }
    if able { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// All points, in the order in which a person mends them.
fn points(host: &Host) -> Vec<Point> {
    let containerd = containerd::Containerd::find(host);
    let (shim, files) = files::points(host, &containerd);
    [
        kvm::points(host),
        vec![kernel::virtualisation(host), kernel::cgroup(host)],
        kernel::system_calls(),
        network::points(),
        vec![files::run_space(host), shim],
        files,
        vec![files::configuration(host)],
        containerd::points(host, &containerd),
    ]
    .concat()
}

/// The answer as a person reads it, in lines of `width` characters if its words allow it.
fn text(answer: &Answer, width: usize, colour: bool) -> String {
    let mut text = String::new();
    for point in &answer.points {
        let word = format!("{:8}", point.state.word());
        let word = if colour { format!("\x1b[{}m{word}\x1b[0m", point.state.colour()) } else { word };
        let mut lines = wrapped(&escaped(&point.what, false), width - INDENT).into_iter();
        text.push_str(&format!("{word}{:20}{}\n", point.name, lines.next().unwrap_or_default()));
        let remedy =
            point.remedy.iter().flat_map(|remedy| wrapped(&format!("-> {}", escaped(remedy, false)), width - INDENT));
        for line in lines.chain(remedy) {
            text.push_str(&format!("{:INDENT$}{line}\n", ""));
        }
    }
    let count = |state| answer.points.iter().filter(|point| point.state == state).count();
    let amount = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let verdict = match (count(State::Failed), count(State::Unknown), count(State::Warning)) {
        (0, 0, 0) => "husk can run pods on this host.".to_owned(),
        (0, 0, warnings) => format!("husk can run pods on this host, with {}.", amount(warnings, "warning")),
        (0, unknown, _) => {
            format!("It is not known whether husk can run pods on this host: {} not tried.", amount(unknown, "point"))
        }
        (failed, unknown, _) => {
            let untried = if unknown == 0 { String::new() } else { format!(", {unknown} not tried") };
            format!(
                "husk cannot run pods on this host: {} failed{untried}; -> says what to do.",
                amount(failed, "point")
            )
        }
    };
    text.push_str(&format!("\n{verdict}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(points: Vec<Point>) -> Answer {
        Answer { able: false, version: "1.2.3", points }
    }

    const WIDTH: usize = 80;

    #[test]
    fn a_person_reads_the_verdict_and_the_remedy() {
        let long = "word ".repeat(40);
        let points = vec![Point::ok("a", "fine"), Point::failed("b.c", long.trim(), "do this\x1b[2J")];
        let shown = text(&answer(points), WIDTH, false);
        assert!(
            shown.starts_with("ok      a                   fine\nFAILED  b.c                 word word"),
            "{shown}"
        );
        assert!(shown.lines().all(|line| line.len() <= WIDTH), "{shown}");
        assert!(shown.contains("\n                            -> do this\\x1b[2J\n"), "{shown}");
        assert!(
            shown.ends_with("\nhusk cannot run pods on this host: 1 point failed; -> says what to do.\n"),
            "{shown}"
        );
        assert!(!shown.contains('\x1b'));
        let colours = text(&answer(vec![Point::warning("a", "b", "c")]), WIDTH, true);
        assert!(colours.starts_with("\x1b[33mwarning \x1b[0ma "), "{colours:?}");
        assert!(colours.contains("can run pods on this host, with 1 warning."));
        let unknown = text(&answer(vec![Point::unknown("a", "b", "c")]), WIDTH, false);
        assert!(unknown.contains("It is not known") && unknown.contains("1 point not tried"), "{unknown}");
    }

    #[test]
    fn the_keys_stay_as_they_are() {
        let json = serde_json::to_string(&answer(vec![Point::note("a", "b")])).unwrap();
        assert_eq!(
            json,
            r#"{"able":false,"version":"1.2.3","points":[{"name":"a","state":"note","what":"b","remedy":null}]}"#
        );
    }

    #[test]
    fn causes_are_one_line() {
        let cause = "x.toml: TOML parse error at line 2, column 1\n  |\n2 | a = \n  | ^\nno value\n";
        assert_eq!(one_line(&cause), "x.toml: TOML parse error at line 2, column 1: no value");
    }
}
