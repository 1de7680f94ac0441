//! `/etc/husk/config.toml`, and what containerd's options say instead.
//!
//! Every key has a default; a key that is not known is an error, because a misspelt limit that silently means nothing is
//! worse than a pod that does not start. [`keys`] is the list of them, from which their documents are made.

mod keys;

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::host::file::read_small_text;
use keys::Wrong;
pub use keys::{Config, Key, Limits, Log, Network, Section, Vm};

/// Where the configuration is unless containerd says otherwise.
pub const PATH: &str = "/etc/husk/config.toml";

/// Bytes of a configuration at most.
const MOST: u64 = 1 << 20;
/// Characters of a parser's message at most: it repeats the line, whatever that is.
const LONGEST_MESSAGE: usize = 1024;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {cause}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// Its text is wrong.
    #[error("configuration {origin}: {cause}")]
    Parse {
        /// The file, or containerd's options.
        origin: String,
        /// The key and its line.
        cause: String,
    },
    /// A value cannot be.
    #[error("configuration {origin}: {key} = {value} is not possible: it has to be {allowed}")]
    Value {
        /// The file, or containerd's options.
        origin: String,
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it would have to be.
        allowed: &'static str,
    },
}

/// The limits of this process's pod, once its configuration is known: before that, the defaults.
static LIMITS: OnceLock<Limits> = OnceLock::new();

/// How long things may take in this process, which is one pod's.
#[must_use]
pub fn limits() -> Limits {
    LIMITS.get().cloned().unwrap_or_default()
}

/// Sets what [`limits`] gives; the first container's configuration is the pod's.
pub fn set_limits(limits: &Limits) {
    let _ = LIMITS.set(limits.clone());
}

impl Config {
    /// The file at `path`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = read_small_text(path, MOST).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// The file at [`PATH`], or the defaults where there is none.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read_default() -> Result<Self, ConfigError> {
        match Self::read(Path::new(PATH)) {
            Err(ConfigError::Read { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            other => other,
        }
    }

    /// A text that comes from `origin`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|cause| ConfigError::Parse { origin: origin.to_owned(), cause: cut(&cause) })?;
        config.check().map_err(|Wrong { key, value, allowed }| ConfigError::Value {
            origin: origin.to_owned(),
            key,
            value,
            allowed,
        })?;
        Ok(config)
    }

    /// A file that says every key, what it means, and its default: `deploy/config.toml`.
    #[must_use]
    pub fn documented() -> String {
        let mut text = String::from(HEADER);
        for section in Self::keys() {
            let _ = write!(text, "\n[{}]\n", section.name);
            for key in section.keys {
                for line in key.about {
                    let _ = writeln!(text, "#{line}");
                }
                let _ = writeln!(text, "# ({})\n{} = {}", key.allowed, key.name, key.default);
            }
        }
        text
    }

    /// The same as a table of Markdown, for `docs/operations.md`.
    #[must_use]
    pub fn table() -> String {
        let mut text = String::from("| key | default | may be | what |\n|---|---|---|---|\n");
        for section in Self::keys() {
            for key in section.keys {
                let about: Vec<&str> = key.about.iter().map(|line| line.trim()).collect();
                let (section, name) = (section.name, key.name);
                let _ = writeln!(
                    text,
                    "| `{section}.{name}` | `{}` | {} | {} |",
                    key.default,
                    key.allowed,
                    about.join(" ")
                );
            }
        }
        text
    }
}

/// A parser's message, cut.
fn cut(cause: &toml::de::Error) -> String {
    let text = cause.to_string();
    match text.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The beginning of [`Config::documented`].
const HEADER: &str = "\
# /etc/husk/config.toml: every key with its default. An unknown key is an error.
# containerd's options for the runtime (config_body, then ConfigPath) replace this file as a whole.
";

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares a file of the repository with what the code says; with HUSK_UPDATE set, it is written.
    fn is_up_to_date(path: &str, wanted: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        if std::env::var_os("HUSK_UPDATE").is_some() {
            std::fs::write(&path, wanted).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap();
        assert!(
            found == wanted,
            "{} is not what the code says: HUSK_UPDATE=1 cargo test -p containerd-shim-husk-v2 config",
            path.display()
        );
    }

    #[test]
    fn the_documents_say_what_the_code_does() {
        let text = Config::documented();
        assert_eq!(Config::parse(&text, "deploy/config.toml").unwrap(), Config::default());
        is_up_to_date("deploy/config.toml", &text);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (before, rest) = page.split_once("<!-- keys: made from the code -->\n").unwrap();
        let (_, after) = rest.split_once("<!-- end of the keys -->").unwrap();
        let table = Config::table();
        let wanted = format!("{before}<!-- keys: made from the code -->\n{table}<!-- end of the keys -->{after}");
        is_up_to_date("docs/operations.md", &wanted);
    }

    #[test]
    fn there_are_about_thirty_keys() {
        let keys: usize = Config::keys().iter().map(|section| section.keys.len()).sum();
        assert!((15..=35).contains(&keys), "{keys}: who is to read them all?");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let cause = Config::parse("[vm]\nvcpus = 2\nmemory = 3\n", "x.toml").unwrap_err().to_string();
        assert!(cause.contains("x.toml") && cause.contains("line 3") && cause.contains("`memory`"), "{cause}");
        let cause = Config::parse("[wm]\n", "x.toml").unwrap_err().to_string();
        assert!(cause.contains("line 1") && cause.contains("`wm`"), "{cause}");
    }

    #[test]
    fn a_value_that_cannot_be_is_named() {
        for (text, key) in [
            ("[vm]\nvcpus = 0", "vm.vcpus"),
            ("[vm]\nmemory_mib = 1", "vm.memory_mib"),
            ("[log]\nlevel = \"loud\"", "log.level"),
            ("[log]\nphases_file = \"phases\"", "log.phases_file"),
            ("[limits]\nready_s = 0", "limits.ready_s"),
            ("[vm]\nkernel_cmdline = \"a\\u0000b\"", "vm.kernel_cmdline"),
        ] {
            let cause = Config::parse(text, "x").unwrap_err().to_string();
            assert!(cause.contains(key) && cause.contains("it has to be"), "{cause}");
        }
        assert!(Config::parse("[vm]\nvcpus = 300", "x").is_err());
    }

    #[test]
    fn a_parsers_message_is_cut() {
        let cause = Config::parse(&format!("[x{}]", "y".repeat(1 << 20)), "x").unwrap_err().to_string();
        assert!(cause.len() < 2000, "{}", cause.len());
    }

    #[test]
    fn a_missing_file_is_said() {
        let cause = Config::read(Path::new("/nonexistent/husk.toml")).unwrap_err().to_string();
        assert!(cause.contains("/nonexistent/husk.toml"), "{cause}");
    }
}
