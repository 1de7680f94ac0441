//! Reading the runtime document: what is wrong with it is told by the name of the field, and a field that nobody here knows
//! is told, not passed over.

use std::fmt;

use husk_protocol::document::{shortened, without_unknown_capabilities};
use oci_spec::runtime::{Process, Spec};
use serde::de::{DeserializeOwned, Error as _};

/// Names of unknown fields that one message has.
const MOST_NAMES: usize = 16;

/// Why a document cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The file.
    #[error("{0}")]
    File(#[from] std::io::Error),
    /// It is no document.
    #[error("{field}: {}", shortened(&cause.to_string()))]
    Content {
        /// The field, as `mounts[3].destination`; `.` for the whole.
        field: String,
        /// What is wrong, and where.
        cause: serde_json::Error,
    },
}

/// Fields of a document that mean nothing here: of a later version of the specification, or misspelled.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unknown(Vec<String>);

impl Unknown {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0[..self.0.len().min(MOST_NAMES)].join(", "))?;
        match self.0.len().saturating_sub(MOST_NAMES) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// What was read.
#[derive(Debug)]
pub struct Read<T> {
    /// The document.
    pub document: T,
    /// What means nothing.
    pub unknown: Unknown,
    /// The same document as text, which others can read too.
    pub text: Vec<u8>,
}

/// Reads a document.
///
/// # Errors
/// See [`DocumentError`].
pub fn read(text: Vec<u8>) -> Result<Read<Spec>, DocumentError> {
    read_with(text, "/process/capabilities")
}

/// Reads the `process` of an exec.
///
/// # Errors
/// See [`DocumentError`].
pub fn read_process(text: Vec<u8>) -> Result<Read<Process>, DocumentError> {
    read_with(text, "/capabilities")
}

/// Capabilities that husk does not know are passed over, and said, as with runc: a client on a host with a later kernel gives a
/// privileged container all that this has. `capabilities` is where they are (RFC 6901).
fn read_with<T: DeserializeOwned>(text: Vec<u8>, capabilities: &str) -> Result<Read<T>, DocumentError> {
    let cause = match parse(&text) {
        Ok((document, unknown)) => return Ok(Read { document, unknown, text }),
        Err(cause) => cause,
    };
    // Only now: whoever has none of these does not pay for them.
    let Some((text, left_out)) = without_unknown_capabilities(&text, capabilities) else {
        return Err(named::<T>(&text, cause));
    };
    let (document, mut unknown) = parse(&text).map_err(|cause| named::<T>(&text, cause))?;
    unknown.0.extend(left_out);
    Ok(Read { document, unknown, text })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<(T, Unknown)> {
    // A list would be taken for an object's values in their order, of which none has to be there.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(serde_json::Error::custom("invalid type: list, expected an object"));
    }
    let mut unknown = Unknown::default();
    let mut content = serde_json::Deserializer::from_slice(bytes);
    let document = serde_ignored::deserialize(&mut content, |path| {
        // It writes ".?" for what may be missing.
        unknown.0.push(path.to_string().replace(".?", ""));
    });
    let document = document?;
    content.end()?;
    Ok((document, unknown))
}

/// The error with its field, for which everything is read once more: only who fails pays for the names.
fn named<T: DeserializeOwned>(bytes: &[u8], cause: serde_json::Error) -> DocumentError {
    let mut content = serde_json::Deserializer::from_slice(bytes);
    match serde_path_to_error::deserialize::<_, T>(&mut content) {
        Err(found) => DocumentError::Content { field: found.path().to_string(), cause: found.into_inner() },
        // What comes behind the document.
        Ok(_) => DocumentError::Content { field: ".".to_owned(), cause },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        read(text.into()).unwrap_err().to_string()
    }

    #[test]
    fn an_error_names_its_field() {
        assert!(error("").starts_with(".: EOF while parsing"));
        assert!(error(" []").starts_with(".: invalid type: list"), "{}", error(" []"));
        assert!(error("7").starts_with(".: invalid type: integer `7`, expected struct Spec"), "{}", error("7"));
        assert!(error("{\"ociVersion\":\"1.0\"} x").starts_with(".: trailing characters"));
        let text = r#"{"ociVersion":"1.0","linux":{"resources":{"memory":{"limit":"1g"}}}}"#;
        assert!(error(text).starts_with("linux.resources.memory.limit: invalid type: string \"1g\", expected i64"));
        let text = r#"{"ociVersion":"1.0","mounts":[{"destination":"/a"},{"destination":7}]}"#;
        assert!(error(text).starts_with("mounts[1].destination: invalid type: integer `7`"), "{}", error(text));
        let text = r#"{"ociVersion":"1.0","process":{"cwd":"/","user":{"uid":0,"gid":0},"rlimits":[{"type":"RLIMIT_X","hard":1,"soft":1}]}}"#;
        assert!(error(text).starts_with("process.rlimits[0].type: unknown variant `RLIMIT_X`"), "{}", error(text));
        let text = r#"{"ociVersion":"1.0","linux":{"namespaces":[{"type":"universe"}]}}"#;
        assert!(error(text).starts_with("linux.namespaces[0].type: unknown variant `universe`"), "{}", error(text));
        let text = format!(r#"{{"ociVersion":"1.0","linux":{{"namespaces":[{{"type":"{}"}}]}}}}"#, "x".repeat(10_000));
        assert!(error(&text).len() < 400 && error(&text).starts_with("linux.namespaces[0].type: "), "{}", error(&text));
    }

    #[test]
    fn capabilities_of_later_kernels_are_passed_over() {
        let process = r#"{"cwd":"/","user":{"uid":0,"gid":0},"colour":1,"capabilities":{"bounding":["CAP_CHOWN","CAP_NEW"],"effective":["CAP_NEW"]}}"#;
        let text = format!(r#"{{"ociVersion":"1.0","process":{process}}}"#);
        let Read { document: spec, unknown, text: clean } = read(text.clone().into()).unwrap();
        // Who reads it next finds none.
        assert!(read(clean).unwrap().document == spec);
        let told =
            r#"process.colour, process.capabilities.bounding[] "CAP_NEW", process.capabilities.effective[] "CAP_NEW""#;
        assert_eq!(unknown.to_string(), told);
        let sets = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        assert!(sets.effective().as_ref().unwrap().is_empty());
        let unknown = read_process(process.into()).unwrap().unknown;
        assert!(unknown.to_string().ends_with(r#"capabilities.effective[] "CAP_NEW""#), "{unknown}");
        // What else is wrong is told all the same, and a name has to be text.
        let wrong = text.replace("\"cwd\":\"/\"", "\"cwd\":7");
        assert!(error(&wrong).starts_with("process.cwd: invalid type: integer `7`"), "{}", error(&wrong));
        let wrong = text.replace("\"CAP_CHOWN\"", "7");
        assert!(error(&wrong).starts_with("process.capabilities.bounding[0]: "), "{}", error(&wrong));
    }

    #[test]
    fn what_nobody_knows_is_named() {
        let text =
            r#"{"ociVersion":"1.0","colour":1,"linux":{"resources":{"memory":{"limitt":1}}},"annotations":{"a":"b"}}"#;
        let Read { document: spec, unknown, .. } = read(text.into()).unwrap();
        assert_eq!(unknown.to_string(), "colour, linux.resources.memory.limitt");
        assert_eq!(spec.annotations().as_ref().unwrap()["a"], "b");
        let many: Vec<_> = (0..20).map(|number| format!("\"x{number}\":0")).collect();
        let unknown = read(format!("{{\"ociVersion\":\"1.0\",{}}}", many.join(",")).into()).unwrap().unknown;
        assert!(unknown.to_string().ends_with("x15 and 4 more"), "{unknown}");
        assert!(read(br#"{"ociVersion":"1.0"}"#.to_vec()).unwrap().unknown.is_empty());
    }
}
