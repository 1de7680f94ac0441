//! Two transcripts of one sequence, line by line, and the differences that are meant.

use std::cell::Cell;
use std::fmt::Write;

use serde::Deserialize;

use super::execute::Line;

/// A difference that is meant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// The call, or what else was looked at.
    call: String,
    /// What it is about, as the step says it.
    #[serde(default = "anything")]
    step: String,
    /// What that was at.
    #[serde(default = "anything")]
    state: String,
    /// What the first one answers.
    runc: String,
    /// What the second one answers.
    husk: String,
    /// Why.
    reason: String,
    /// Nothing after it can be the same.
    #[serde(default)]
    ends: bool,
    #[serde(skip)]
    used: Cell<usize>,
}

fn anything() -> String {
    "*".to_owned()
}

/// All of them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differences {
    /// In the order in which they are tried.
    #[serde(default)]
    difference: Vec<Difference>,
}

impl Differences {
    /// The reviewed ones, of runc's shim and husk's.
    ///
    /// # Panics
    /// The file is not what it has to be.
    #[must_use]
    pub fn reviewed() -> Self {
        let all: Self = toml::from_str(include_str!("../../sequences/differences.toml")).unwrap();
        assert!(all.difference.iter().all(|one| one.reason.len() > 20), "every difference has a reason");
        all
    }

    /// Those that nothing has matched, in words.
    #[must_use]
    pub fn unused(&self) -> Vec<String> {
        let unused = self.difference.iter().filter(|one| one.used.get() == 0);
        unused.map(|one| format!("{} {} [{}]: {} / {}", one.call, one.step, one.state, one.runc, one.husk)).collect()
    }

    /// How often one was met.
    #[must_use]
    pub fn met(&self) -> usize {
        self.difference.iter().map(|one| one.used.get()).sum()
    }

    /// Where two transcripts differ though they should not: the first such place. A line of one alone counts too.
    #[must_use]
    pub fn first(&self, one: &[Line], other: &[Line]) -> Option<usize> {
        for at in 0..one.len().max(other.len()) {
            let (Some(a), Some(b)) = (one.get(at), other.get(at)) else { return Some(at) };
            if (&a.call, &a.target) != (&b.call, &b.target) {
                return Some(at);
            }
            if a.answer.text == b.answer.text {
                continue;
            }
            let Some(meant) = self.difference.iter().find(|meant| meant.is(a, b)) else { return Some(at) };
            meant.used.set(meant.used.get() + 1);
            if meant.ends {
                return None;
            }
        }
        None
    }
}

impl Difference {
    fn is(&self, a: &Line, b: &Line) -> bool {
        let on = [(&self.call, &a.call), (&self.step, &a.target), (&self.state, &a.state)];
        let answers = captures(&self.runc, &a.answer.text).zip(captures(&self.husk, &b.answer.text));
        // What is left open is not left to differ.
        let same = answers.is_some_and(|(a, b)| a.len() != b.len() || a == b);
        same && on.into_iter().all(|(pattern, text)| captures(pattern, text).is_some())
    }
}

/// What `*` stands for in a text of the pattern's form, each time; none if it is of another.
fn captures<'a>(pattern: &str, text: &'a str) -> Option<Vec<&'a str>> {
    let mut parts: Vec<&str> = pattern.split('*').collect();
    let mut rest = text.strip_prefix(parts.remove(0))?;
    let Some(last) = parts.pop() else { return rest.is_empty().then(Vec::new) };
    let mut found = Vec::new();
    for part in parts {
        let at = rest.find(part)?;
        found.push(&rest[..at]);
        rest = &rest[at + part.len()..];
    }
    found.push(rest.strip_suffix(last)?);
    Some(found)
}

/// Two transcripts beside each other, the place in question marked; without one, all of them.
#[must_use]
pub fn beside(names: &[String; 2], one: &[Line], other: &[Line], at: Option<usize>) -> String {
    let mut text = String::new();
    let last = at.map_or(one.len().max(other.len()), |at| at + 1);
    for n in 0..last {
        let lines = [one.get(n), other.get(n)];
        let Some(line) = lines[0].or(lines[1]) else { continue };
        let mark = if at == Some(n) { ">>" } else { "  " };
        let what = if line.state.is_empty() { format!("{} {}", line.call, line.target) } else { line.target.clone() };
        let state = if line.state.is_empty() { String::new() } else { format!("   [{}]", line.state) };
        let _ = writeln!(text, "{mark} {what}{state}");
        let [a, b] = lines.map(|line| line.map_or_else(|| "(nothing)".to_owned(), side));
        let sides = if a == b { vec![("both", a)] } else { vec![(&*names[0], a), (&*names[1], b)] };
        for (name, side) in sides {
            for row in side.lines() {
                let _ = writeln!(text, "        {name}: {row}");
            }
        }
    }
    text
}

/// What one side has in a line, in rows.
fn side(line: &Line) -> String {
    let mut rows = format!("{}\n", line.answer.text);
    if !line.answer.words.is_empty() {
        let _ = writeln!(rows, "  in words: {}", line.answer.words.trim_end());
    }
    for event in &line.events {
        let _ = writeln!(rows, "  {event}");
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::words::Answer;
    use super::*;

    fn line(call: &str, state: &str, text: &str) -> Line {
        let answer = Answer { text: text.to_owned(), words: String::new() };
        Line {
            call: call.to_owned(),
            target: format!("{call} init"),
            state: state.to_owned(),
            answer,
            events: Vec::new(),
        }
    }

    #[test]
    fn patterns_are_of_the_whole_text() {
        assert_eq!(captures("OK", "OK"), Some(vec![]));
        assert_eq!(captures("*", ""), Some(vec![""]));
        assert_eq!(captures("a*b*c", "a1b2b3c"), Some(vec!["1", "2b3"]));
        for (pattern, text) in [("OK", "OK pid"), ("OK *", "OK"), ("OK", "not OK"), ("a*b", "ab c"), ("ab*b", "ab")] {
            assert_eq!(captures(pattern, text), None, "{pattern} {text}");
        }
    }

    #[test]
    fn what_a_difference_leaves_open_is_the_same_in_both() {
        let text = r#"
            [[difference]]
            call = "state"
            runc = "OK PAUSED *"
            husk = "OK CREATED *"
            reason = "An exec that was not started is not paused."
        "#;
        let differences: Differences = toml::from_str(text).unwrap();
        let one = [line("state", "added in paused", "OK PAUSED pid=0 stdin")];
        assert_eq!(differences.first(&one, &[line("state", "added in paused", "OK CREATED pid=0 stdin")]), None);
        assert_eq!(differences.first(&one, &[line("state", "added in paused", "OK CREATED pid=0")]), Some(0));
    }

    #[test]
    fn a_difference_that_is_meant_is_none() {
        let text = r#"
            [[difference]]
            call = "delete"
            state = "deleted"
            runc = "NOT_FOUND"
            husk = "OK *"
            reason = "Delete is answered again, so that a repeated one is no error."
        "#;
        let differences: Differences = toml::from_str(text).unwrap();
        let one = [line("delete", "deleted", "NOT_FOUND"), line("delete", "stopped", "OK pid")];
        let mut other = [line("delete", "deleted", "OK pid"), line("delete", "stopped", "OK pid")];
        assert_eq!(differences.first(&one, &other), None);
        assert_eq!((differences.met(), differences.unused()), (1, Vec::new()));
        other[1] = line("delete", "stopped", "NOT_FOUND");
        assert_eq!(differences.first(&one, &other), Some(1));
        assert_eq!(differences.first(&one, &other[..1]), Some(1));
        assert_eq!(differences.first(&one, &one), None);
    }

    #[test]
    fn the_reviewed_file_is_one() {
        let _ = Differences::reviewed();
    }
}
