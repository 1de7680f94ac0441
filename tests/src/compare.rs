//! What a container's program sees under two runtimes, key by key, and the differences that are meant.

use std::cell::Cell;
use std::collections::BTreeMap;

use serde::Deserialize;

/// What a program saw: `husk-test-probe report`.
pub type Seen = BTreeMap<String, String>;

/// What one side has where the other one says more.
const NOTHING: &str = "(nothing)";
/// Keys that begin so are for the reader: they are the machine's, and differ.
const SAID: &str = "said.";

/// A difference that is meant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// The document's name.
    #[serde(default = "anything")]
    document: String,
    /// The keys, each as a pattern: `*` is any text.
    keys: Vec<String>,
    /// What runc's has, as a pattern.
    runc: String,
    /// What husk's has, as a pattern.
    husk: String,
    /// Why.
    reason: String,
    /// Which of the keys were met.
    #[serde(skip)]
    met: Cell<u64>,
}

fn anything() -> String {
    "*".to_owned()
}

/// All of them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differences {
    #[serde(default)]
    difference: Vec<Difference>,
}

impl Differences {
    /// The reviewed ones.
    ///
    /// # Panics
    /// The file is not what it has to be.
    #[must_use]
    pub fn reviewed() -> Self {
        let all: Self = toml::from_str(include_str!("../compare/differences.toml")).unwrap();
        for one in &all.difference {
            assert!(one.reason.len() > 20, "every difference has a reason: {:?}", one.keys);
            assert!((1..=64).contains(&one.keys.len()), "one to 64 keys share a reason: {:?}", one.keys);
        }
        all
    }

    /// What differs though it should not, in words.
    #[must_use]
    pub fn unknown(&self, document: &str, runc: &Seen, husk: &Seen) -> Vec<String> {
        let keys = runc.keys().chain(husk.keys().filter(|key| !runc.contains_key(*key)));
        let mut unknown: Vec<String> = keys
            .filter(|key| !key.starts_with(SAID))
            .filter_map(|key| {
                let of = |seen: &Seen| seen.get(key).map_or(NOTHING, String::as_str).to_owned();
                let (a, b) = (of(runc), of(husk));
                let is_meant = a == b || self.difference.iter().any(|one| one.is(document, key, &a, &b));
                (!is_meant).then(|| format!("{document}: {key}: {a} / {b}"))
            })
            .collect();
        unknown.sort();
        unknown
    }

    /// Those that nothing has met, in words.
    #[must_use]
    pub fn unused(&self) -> Vec<String> {
        let unused = self.difference.iter().flat_map(|one| {
            let keys = one.keys.iter().enumerate().filter(|(n, _)| one.met.get() & 1 << n == 0);
            keys.map(|(_, key)| format!("{} {key}: {} / {}", one.document, one.runc, one.husk))
        });
        unused.collect()
    }
}

impl Difference {
    fn is(&self, document: &str, key: &str, runc: &str, husk: &str) -> bool {
        let values = [(&self.document, document), (&self.runc, runc), (&self.husk, husk)];
        if !values.into_iter().all(|(pattern, text)| matches(pattern, text)) {
            return false;
        }
        let Some(n) = self.keys.iter().position(|pattern| matches(pattern, key)) else { return false };
        self.met.set(self.met.get() | 1 << n);
        true
    }
}

/// Whether the whole text is of the pattern's form.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Reads what the probe has said.
///
/// # Panics
/// A line is none of its, or a key comes twice.
#[must_use]
pub fn seen(text: &str) -> Seen {
    let mut seen = Seen::new();
    for line in text.lines() {
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{line:?} is no line of the probe's"));
        let before = seen.insert(key.to_owned(), value.to_owned());
        assert_eq!(before, None, "{key} is said twice");
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_of_the_whole_text() {
        for (pattern, text) in [("a", "a"), ("*", ""), ("a*", "ab"), ("*a*b", "xaxb"), ("a*a", "aa")] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a", "ab"), ("a*b", "abc"), ("a*a", "a"), ("*x*", "abc"), ("", "a")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn a_difference_is_met_or_told() {
        let text = r#"
            [[difference]]
            document = "one"
            keys = ["a.*", "b"]
            runc = "1"
            husk = "(nothing)"
            reason = "There is none of it in a virtual machine."
        "#;
        let differences: Differences = toml::from_str(text).unwrap();
        let (runc, mut husk) = (seen("a.x=1\nb=2\nsaid.c=3\n"), seen("b=2\nsaid.c=4\n"));
        assert_eq!(differences.unknown("one", &runc, &husk), Vec::<String>::new());
        assert_eq!(differences.unused(), ["one b: 1 / (nothing)"]);
        assert_eq!(differences.unknown("two", &runc, &husk), ["two: a.x: 1 / (nothing)"]);
        husk.insert("d".to_owned(), "5".to_owned());
        husk.insert("b".to_owned(), "6".to_owned());
        assert_eq!(differences.unknown("one", &runc, &husk), ["one: b: 2 / 6", "one: d: (nothing) / 5"]);
    }

    #[test]
    fn the_reviewed_file_is_one() {
        let _ = Differences::reviewed();
    }
}
