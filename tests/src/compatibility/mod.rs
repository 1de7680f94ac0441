//! What husk does with each field of an OCI runtime document, and the test that tries it: `tests/compatibility.toml` says
//! it, and the table in `docs/compatibility.md` is made from that. A field of `oci-spec` that has no row, and a row whose test
//! does not exist, fail a unit test here.

mod fields;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::Deserialize;

/// Where the table begins in the page; it goes on to the page's end.
const BEGIN: &str =
    "<!-- made from tests/compatibility.toml by `cargo run -p husk-tests --bin husk-compatibility` -->\n";

/// Words for fields that do not take any.
const WORDS: [(&str, &str); 7] = [
    ("process.execCPUAffinity.initial", "0"),
    ("process.execCPUAffinity.final", "0"),
    ("process.capabilities.ambient[]", "CAP_CHOWN"),
    ("process.capabilities.bounding[]", "CAP_CHOWN"),
    ("process.capabilities.effective[]", "CAP_CHOWN"),
    ("process.capabilities.inheritable[]", "CAP_CHOWN"),
    ("process.capabilities.permitted[]", "CAP_CHOWN"),
];

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Done {
    /// It holds in the guest.
    Guest,
    /// It holds on the host.
    Host,
    /// A document with it is refused, by name.
    Refused,
    /// It is taken, has no effect, and the log says so.
    Said,
    /// It has no effect, and none is wanted: a note says why.
    Nothing,
}

impl Done {
    fn name(self) -> &'static str {
        match self {
            Self::Guest => "in the guest",
            Self::Host => "by the host",
            Self::Refused => "refused",
            Self::Said => "no effect, said in the log",
            Self::Nothing => "no effect",
        }
    }
}

/// A row of the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    done: Done,
    /// `module::case` of `tests/cases/`, or `path/of/file.rs::test`.
    test: String,
    #[serde(default)]
    note: String,
    /// The fields below it that it stands for, too, without the `[].` of a list. One that a later version of the specification adds
    /// has to be looked at.
    #[serde(default)]
    with: Vec<String>,
    /// It stands for all fields below it: of what is refused as a whole, or said to have no effect.
    #[serde(default)]
    below: bool,
}

/// The files of a repository.
#[derive(Debug)]
pub struct Repository(PathBuf);

impl Repository {
    /// The one that this was built in.
    #[must_use]
    pub fn this() -> Self {
        Self(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
    }

    /// `docs/compatibility.md`.
    #[must_use]
    pub fn page(&self) -> PathBuf {
        self.0.join("docs/compatibility.md")
    }

    fn read(&self, path: &str) -> Result<String, String> {
        fs::read_to_string(self.0.join(path)).map_err(|cause| format!("cannot read {path}: {cause}"))
    }

    fn rows(&self) -> Result<BTreeMap<String, Row>, String> {
        toml::from_str(&self.read("tests/compatibility.toml")?)
            .map_err(|cause| format!("tests/compatibility.toml: {cause}"))
    }

    /// The page as it has to be.
    ///
    /// # Errors
    /// A file that cannot be read, a page without a table; fields without a row, rows without a field or a test.
    pub fn made(&self) -> Result<String, String> {
        let page = self.read("docs/compatibility.md")?;
        let wrong = self.wrong()?;
        if !wrong.is_empty() {
            return Err(format!("tests/compatibility.toml:\n{}", wrong.join("\n")));
        }
        let (before, _) = page.split_once(BEGIN).ok_or("docs/compatibility.md: where does the table begin?")?;
        Ok(format!("{before}{BEGIN}{}", table(&self.rows()?)))
    }

    fn wrong(&self) -> Result<Vec<String>, String> {
        let (rows, fields) = (self.rows()?, fields::of::<Spec>(&WORDS)?);
        let mut wrong = unfit(&rows, &fields);
        for (path, row) in &rows {
            if !self.has(&row.test) {
                wrong.push(format!("{path}: no test {}", row.test));
            }
            if row.done == Done::Nothing && row.note.is_empty() {
                wrong.push(format!("{path}: why has it no effect?"));
            }
        }
        Ok(wrong)
    }

    /// Whether there is a test of this name.
    fn has(&self, test: &str) -> bool {
        let Some((place, name)) = test.rsplit_once("::") else { return false };
        let path = if place.contains('/') { place.to_owned() } else { format!("tests/cases/{place}.rs") };
        self.read(&path).is_ok_and(|source| is_test(&source, name))
    }
}

/// Whether the function `name` of a source is a test.
fn is_test(source: &str, name: &str) -> bool {
    let (function, mut attribute) = (format!("fn {name}()"), false);
    for line in source.lines().map(str::trim) {
        if attribute && line.trim_start_matches("async ").starts_with(&function) {
            return true;
        }
        attribute = line.starts_with("#[") && (attribute || line.contains("test]") || line.contains("::test("));
    }
    false
}

fn table(rows: &BTreeMap<String, Row>) -> String {
    let mut text = String::from("\n| field | husk | tried by | |\n|---|---|---|---|\n");
    for (path, row) in rows {
        let below = match &row.with[..] {
            [] if row.below => " and all below".to_owned(),
            [] => String::new(),
            with => format!(": `{}`", with.join("`, `")),
        };
        let _ = writeln!(text, "| `{path}`{below} | {} | `{}` | {} |", row.done.name(), row.test, row.note);
    }
    text
}

/// The rest of a field's path that is below another one.
fn below<'a>(field: &'a str, path: &str) -> Option<&'a str> {
    field.strip_prefix(path).filter(|rest| rest.starts_with(['.', '[', '{']))
}

/// What does not fit together: fields without a row, rows without a field.
fn unfit(rows: &BTreeMap<String, Row>, fields: &BTreeSet<String>) -> Vec<String> {
    // A structure's own field is in its parts.
    let has_parts = |field: &str| fields.iter().any(|other| below(other, field).is_some());
    let bare: BTreeSet<&str> = fields.iter().map(|field| &**field).filter(|field| !has_parts(field)).collect();
    let name = |rest: &'_ str| rest.trim_start_matches("[]").trim_start_matches('.').to_owned();
    let mut covered = BTreeSet::new();
    let mut wrong = Vec::new();
    for (path, row) in rows {
        if !fields.contains(path) {
            wrong.push(format!("{path}: no field"));
        }
        if row.below && !matches!(row.done, Done::Refused | Done::Said) {
            wrong.push(format!("{path}: which fields below it?"));
        }
        if row.below && !row.with.is_empty() {
            wrong.push(format!("{path}: all below, or these?"));
        }
        let mut with: BTreeSet<&str> = row.with.iter().map(|name| &**name).collect();
        for field in &bare {
            let covers = match below(field, path) {
                Some(rest) => with.remove(&*name(rest)) || row.below,
                None => field == path,
            };
            if covers && !covered.insert(*field) {
                wrong.push(format!("{field}: two rows"));
            }
        }
        wrong.extend(with.iter().map(|name| format!("{path}: no field {name} below it")));
    }
    wrong.extend(bare.difference(&covered).map(|field| format!("{field}: no row")));
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_a_row_and_every_row_a_test() {
        let fields = fields::of::<Spec>(&WORDS).unwrap();
        assert!(fields.contains("linux.resources.cpu.burst") && fields.len() > 200, "{fields:?}");
        assert_eq!(Repository::this().wrong().unwrap(), [] as [&str; 0]);
    }

    #[test]
    fn the_page_is_made_from_the_rows() {
        let repository = Repository::this();
        let page = fs::read_to_string(repository.page()).unwrap();
        assert_eq!(page, repository.made().unwrap(), "run `cargo run -p husk-tests --bin husk-compatibility`");
    }

    #[test]
    fn what_does_not_fit_is_found() {
        let row = |done, below, with: &[&str]| {
            let with = with.iter().map(|name| (*name).to_owned()).collect();
            Row { done, test: String::new(), note: String::new(), with, below }
        };
        let fields = ["a", "a.b", "a.b[].c", "ab", "d", "d.e", "l", "l[].x", "l[].y"];
        let fields: BTreeSet<String> = fields.into_iter().map(str::to_owned).collect();
        let rows = |rows: &[(&str, bool, &[&str])], done| -> BTreeMap<String, Row> {
            rows.iter().map(|(path, below, with)| ((*path).to_owned(), row(done, *below, with))).collect()
        };
        let some = rows(&[("a", true, &[]), ("f", false, &[]), ("l", false, &["x", "z"])], Done::Said);
        let wrong = ["f: no field", "l: no field z below it", "ab: no row", "d.e: no row", "l[].y: no row"];
        assert_eq!(unfit(&some, &fields), wrong);
        let all =
            rows(&[("a", true, &[]), ("ab", false, &[]), ("d.e", false, &[]), ("l", false, &["x", "y"])], Done::Guest);
        assert_eq!(unfit(&all, &fields), ["a: which fields below it?"]);
        let twice =
            [("a", true, &["b[].c"][..]), ("ab", false, &[]), ("d", true, &[]), ("d.e", false, &[]), ("l", true, &[])];
        assert_eq!(unfit(&rows(&twice, Done::Refused), &fields), ["a: all below, or these?", "d.e: two rows"]);
        assert_eq!(
            unfit(
                &rows(
                    &[("a", false, &["b[].c"]), ("ab", false, &[]), ("d", false, &["e"]), ("l", false, &["x", "y"])],
                    Done::Guest
                ),
                &fields
            ),
            [""; 0]
        );
    }

    #[test]
    fn only_tests_are_tests() {
        let source = "fn helper() {}\n#[test]\nfn a() {}\n    #[tokio::test]\n    async fn b() {}\n#[test]\n#[ignore]\nfn c() {}\n#[cfg(x)]\nfn d() {}\n";
        let tests: Vec<_> =
            ["helper", "a", "b", "c", "d", "e"].into_iter().filter(|name| is_test(source, name)).collect();
        assert_eq!(tests, ["a", "b", "c"]);
    }
}
