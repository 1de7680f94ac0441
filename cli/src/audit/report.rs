//! The answer of an audit, for a person and for a program.

use serde::Serialize;

use super::rules::{Boundary, Finding, Severity};
use crate::terminal::{escaped, wrapped};

/// What stands before a finding's text: its severity and its name.
const INDENT: usize = 36;

/// What was looked at.
#[derive(Debug, Serialize)]
pub struct Audited {
    /// containerd's namespace; none of a document.
    pub namespace: Option<String>,
    /// The container; none of a document.
    pub id: Option<String>,
    /// The document's file; `-` is the standard input.
    pub document: String,
    /// The shim's program, or the runtime that a document is meant for.
    pub runtime: Option<String>,
    /// What it is judged by.
    pub boundary: Boundary,
    /// The worst first.
    pub findings: Vec<Finding>,
    /// Why it could not be audited.
    pub error: Option<String>,
}

/// The whole answer.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// husk's.
    pub version: &'static str,
    /// The severity that was asked for.
    pub fail_on: Severity,
    /// Whether a finding is as bad as that.
    pub failed: bool,
    /// What was looked at.
    pub audited: Vec<Audited>,
}

impl Audited {
    fn name(&self) -> String {
        match (&self.namespace, &self.id) {
            (Some(namespace), Some(id)) => format!("{namespace}/{id}"),
            _ => self.document.clone(),
        }
    }

    fn behind(&self) -> String {
        let runtime = self.runtime.as_deref().unwrap_or("no runtime is known");
        let boundary = match self.boundary {
            Boundary::HostKernel => "judged by a kernel that is shared with the host",
            Boundary::VirtualMachine => "judged by a kernel of its own, in a virtual machine",
        };
        format!("{runtime}: {boundary}")
    }
}

/// A severity as a terminal's attribute (ECMA-48, SGR).
fn colour(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical | Severity::High => "1;31",
        Severity::Medium => "33",
        Severity::Low => "36",
        Severity::Info => "0",
    }
}

/// How many findings of each severity.
fn counts<'a>(findings: impl Iterator<Item = &'a Finding> + Clone) -> String {
    let count = |severity| findings.clone().filter(|finding| finding.severity == severity).count();
    let some = Severity::ALL.into_iter().map(|severity| (count(severity), severity)).filter(|(count, _)| *count > 0);
    let words: Vec<String> = some.map(|(count, severity)| format!("{count} {}", severity.word())).collect();
    if words.is_empty() { "nothing found".to_owned() } else { words.join(", ") }
}

/// The answer as a person reads it, in lines of `width` characters if its words allow it.
pub fn text(answer: &Answer, width: usize, colours: bool) -> String {
    let mut text = String::new();
    for audited in &answer.audited {
        text.push_str(&format!("{} ({})\n", escaped(&audited.name(), false), escaped(&audited.behind(), false)));
        if let Some(error) = &audited.error {
            text.push_str(&format!("not audited: {}\n", escaped(error, false)));
        }
        for finding in &audited.findings {
            let word = format!("{:10}", finding.severity.word());
            let word = if colours { format!("\x1b[{}m{word}\x1b[0m", colour(finding.severity)) } else { word };
            let machine = finding.in_machine.map(|why| format!("({why})"));
            let texts = [
                Some(format!("{}: {}", finding.field, finding.allows)),
                machine,
                Some(format!("-> {}", finding.remedy)),
            ];
            let texts = texts.iter().flatten().flat_map(|text| wrapped(&escaped(text, false), width - INDENT));
            for (at, line) in texts.enumerate() {
                let before = if at == 0 { format!("{word}{:26}", finding.id) } else { " ".repeat(INDENT) };
                text.push_str(&format!("{before}{line}\n"));
            }
        }
        if audited.error.is_none() {
            text.push_str(&format!("{}\n", counts(audited.findings.iter())));
        }
        text.push('\n');
    }
    text.push_str(&verdict(answer));
    text
}

fn verdict(answer: &Answer) -> String {
    let number = answer.audited.len();
    let failures = answer.audited.iter().filter(|audited| audited.error.is_some()).count();
    let found = counts(answer.audited.iter().flat_map(|audited| &audited.findings));
    let what = match number {
        0 => return "No container runs.\n".to_owned(),
        1 => "1 document".to_owned(),
        _ => format!("{number} documents"),
    };
    let failures = if failures == 0 { String::new() } else { format!(", {failures} not audited") };
    let fail_on = answer.fail_on.word();
    let judged = if answer.failed { "something is" } else { "nothing is" };
    format!("{what}{failures}: {found}; {judged} {fail_on} or worse.\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(error: Option<&str>) -> Answer {
        let finding = Finding {
            id: "privileged",
            severity: Severity::Medium,
            field: "process.capabilities".to_owned(),
            allows: "all\x1b[2J of it, and more of what does not fit into one line".to_owned(),
            remedy: "do not".to_owned(),
            in_machine: Some("the guest's"),
        };
        let audited = Audited {
            namespace: Some("default".to_owned()),
            id: Some("web".to_owned()),
            document: "/run/x/config.json".to_owned(),
            runtime: Some("containerd-shim-husk-v2".to_owned()),
            boundary: Boundary::VirtualMachine,
            findings: if error.is_none() { vec![finding] } else { Vec::new() },
            error: error.map(str::to_owned),
        };
        Answer { version: "1.2.3", fail_on: Severity::High, failed: false, audited: vec![audited] }
    }

    #[test]
    fn a_person_reads_what_it_allows_and_what_to_do() {
        let shown = text(&answer(None), 80, false);
        let begin = "default/web (containerd-shim-husk-v2: judged by a kernel of its own, in a virtual machine)\n\
            medium    privileged                process.capabilities: all\\x1b[2J of it, and\n";
        assert!(shown.starts_with(begin), "{shown}");
        let indent = " ".repeat(INDENT);
        assert!(shown.contains(&format!("\n{indent}(the guest's)\n{indent}-> do not\n1 medium\n")), "{shown}");
        assert!(shown.ends_with("\n1 document: 1 medium; nothing is high or worse.\n"), "{shown}");
        assert!(!shown.contains('\x1b') && text(&answer(None), 80, true).contains("\x1b[33mmedium"), "{shown}");
    }

    #[test]
    fn what_was_not_audited_is_said() {
        let shown = text(&answer(Some("it is damaged")), 80, false);
        assert!(
            shown.contains("not audited: it is damaged\n")
                && shown.contains("1 document, 1 not audited: nothing found"),
            "{shown}"
        );
        let none = Answer { audited: Vec::new(), ..answer(None) };
        assert_eq!(text(&none, 80, false), "No container runs.\n");
    }

    #[test]
    fn the_keys_stay_as_they_are() {
        let json = serde_json::to_value(answer(None)).unwrap();
        assert_eq!((&json["fail_on"], &json["failed"]), (&"high".into(), &false.into()));
        let audited = &json["audited"][0];
        assert_eq!((&audited["boundary"], &audited["error"]), (&"virtual-machine".into(), &serde_json::Value::Null));
        let finding = audited["findings"][0].as_object().unwrap();
        let keys: Vec<&str> = finding.keys().map(String::as_str).collect();
        assert_eq!(keys, ["allows", "field", "id", "in_machine", "remedy", "severity"]);
    }
}
