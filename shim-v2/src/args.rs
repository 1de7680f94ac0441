//! The command line that containerd runs the shim with: Go's flags (one dash or two, `-name value` or `-name=value`)
//! before a verb.

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Start a shim and say where it listens.
    Start,
    /// Remove what a shim has left behind.
    Delete,
    /// Say which version this is.
    Version,
    /// Say what runtime this is, as a message.
    Info,
}

/// What containerd says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// What is asked.
    pub verb: Verb,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's own address.
    pub address: String,
    /// The container.
    pub id: String,
    /// Its bundle; empty: the working directory.
    pub bundle: String,
    /// Log more.
    pub debug: bool,
}

/// Why a command line is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgumentError {
    /// Not a flag of a shim.
    #[error("unknown flag {0}")]
    Unknown(String),
    /// A flag without its value.
    #[error("flag {0} has no value")]
    NoValue(String),
    /// Not a verb.
    #[error("{0:?} is not a command: this is run by containerd, with start or delete")]
    Verb(String),
    /// A flag is missing.
    #[error("flag -{0} is missing")]
    Missing(&'static str),
    /// The id or the namespace cannot be a name of a directory.
    #[error("{what} {value:?}: not a name (letters, digits, and - _ . inside)")]
    Name {
        /// Which.
        what: &'static str,
        /// The value.
        value: String,
    },
}

impl Arguments {
    /// Parses everything after the program's name.
    ///
    /// # Errors
    /// See [`ArgumentError`].
    pub fn parse(words: &[String]) -> Result<Self, ArgumentError> {
        let mut parsed = Self {
            verb: Verb::Version,
            namespace: String::new(),
            address: String::new(),
            id: String::new(),
            bundle: String::new(),
            debug: false,
        };
        let mut words = words.iter();
        let verb = loop {
            let Some(word) = words.next() else { break None };
            let Some(flag) = word.strip_prefix('-') else { break Some(word) };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (flag, value) = flag.split_once('=').map_or((flag, None), |(flag, value)| (flag, Some(value)));
            match flag {
                "v" | "version" => return Ok(parsed),
                "info" => {
                    parsed.verb = Verb::Info;
                    return Ok(parsed);
                }
                "debug" => parsed.debug = value.is_none_or(|value| value == "true"),
                "namespace" | "address" | "id" | "bundle" | "publish-binary" | "socket" => {
                    let value = match value {
                        Some(value) => value.to_owned(),
                        None => words.next().ok_or_else(|| ArgumentError::NoValue(word.clone()))?.clone(),
                    };
                    match flag {
                        "namespace" => parsed.namespace = value,
                        "address" => parsed.address = value,
                        "id" => parsed.id = value,
                        "bundle" => parsed.bundle = value,
                        // Events go over TTRPC_ADDRESS, the socket has a name of its own.
                        _ => {}
                    }
                }
                _ => return Err(ArgumentError::Unknown(word.clone())),
            }
        };
        parsed.verb = match verb.map(String::as_str) {
            Some("start") => Verb::Start,
            Some("delete") => Verb::Delete,
            other => return Err(ArgumentError::Verb(other.unwrap_or_default().to_owned())),
        };
        check_name("namespace", &parsed.namespace)?;
        check_name("id", &parsed.id)?;
        Ok(parsed)
    }
}

/// A name of containerd's (its identifiers package), which becomes the name of a directory here.
fn check_name(what: &'static str, value: &str) -> Result<(), ArgumentError> {
    if value.is_empty() {
        return Err(ArgumentError::Missing(what));
    }
    let edges = |byte: &u8| byte.is_ascii_alphanumeric();
    let inside = |byte: &u8| edges(byte) || b"-_.".contains(byte);
    let bytes = value.as_bytes();
    let good = bytes.iter().all(inside) && bytes.first().is_some_and(edges) && bytes.len() <= 76;
    if good { Ok(()) } else { Err(ArgumentError::Name { what, value: value.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, ArgumentError> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Arguments::parse(&words)
    }

    #[test]
    fn containerds_own_lines() {
        let got = parse("-namespace default -address /run/c.sock -publish-binary /usr/bin/containerd -id c1 start");
        let wanted = Arguments {
            verb: Verb::Start,
            namespace: "default".into(),
            address: "/run/c.sock".into(),
            id: "c1".into(),
            bundle: String::new(),
            debug: false,
        };
        assert_eq!(got, Ok(wanted.clone()));
        let got = parse("--namespace=default --address=/run/c.sock -id c1 -bundle /b -debug delete");
        assert_eq!(got, Ok(Arguments { verb: Verb::Delete, bundle: "/b".into(), debug: true, ..wanted }));
        assert_eq!(parse("-v").unwrap().verb, Verb::Version);
        assert_eq!(parse("-info").unwrap().verb, Verb::Info);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(parse("-nonsense start"), Err(ArgumentError::Unknown("-nonsense".into())));
        assert_eq!(parse("-id"), Err(ArgumentError::NoValue("-id".into())));
        assert_eq!(parse("-id a -namespace n stop"), Err(ArgumentError::Verb("stop".into())));
        assert_eq!(parse("-namespace n start"), Err(ArgumentError::Missing("id")));
        for id in ["../x", "a/b", ".", "..", "-a", "a b"] {
            let words = ["-namespace", "n", "-id", id, "start"].map(str::to_owned);
            assert!(matches!(Arguments::parse(&words), Err(ArgumentError::Name { what: "id", .. })), "{id}");
        }
    }
}
