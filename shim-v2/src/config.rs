//! `/etc/husk/config.toml`, and what containerd's options say instead.
//!
//! Every key has a default; a key that is not known is an error, because a misspelt limit that silently means nothing is
//! worse than a pod that does not start. `deploy/config.toml` documents them; a test holds the two together.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// Where the configuration is unless containerd says otherwise.
pub const PATH: &str = "/etc/husk/config.toml";

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
        cause: toml::de::Error,
    },
    /// A value cannot be.
    #[error("configuration {origin}: {key} = {value}: {why}")]
    Value {
        /// The file, or containerd's options.
        origin: String,
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it would have to be.
        why: &'static str,
    },
}

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The virtual machine.
    pub vm: Vm,
    /// How long something may take.
    pub limits: Limits,
    /// The log.
    pub log: Log,
}

/// The virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vm {
    /// Memory of a pod without a limit, in MiB.
    pub memory_mib: u32,
    /// CPUs of a pod without a limit.
    pub vcpus: u8,
    /// What the guest's kernel and agent need beside a container's memory limit, in MiB.
    pub overhead_mib: u32,
    /// Appended to the guest kernel's command line.
    pub kernel_cmdline: String,
    /// The console's log ends after so many KiB.
    pub console_kib: u32,
}

/// How long something may take, in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// From the machine's start to the agent's answer.
    pub ready_s: u32,
    /// One call of the agent's.
    pub call_s: u32,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// error, warn, info, debug or trace.
    pub level: String,
    /// Where the time stamps of every container's start are appended ([`crate::phases`]); empty: nowhere.
    pub phases_file: PathBuf,
}

impl Default for Vm {
    fn default() -> Self {
        Self { memory_mib: 512, vcpus: 1, overhead_mib: 64, kernel_cmdline: String::new(), console_kib: 64 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { ready_s: 30, call_s: 30 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), phases_file: PathBuf::new() }
    }
}

impl Limits {
    /// From the machine's start to the agent's answer.
    #[must_use]
    pub fn ready(&self) -> Duration {
        Duration::from_secs(self.ready_s.into())
    }

    /// One call of the agent's.
    #[must_use]
    pub fn call(&self) -> Duration {
        Duration::from_secs(self.call_s.into())
    }
}

impl Config {
    /// The file at `path`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
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
        let config: Self =
            toml::from_str(text).map_err(|cause| ConfigError::Parse { origin: origin.to_owned(), cause })?;
        config.check(origin)?;
        Ok(config)
    }

    fn check(&self, origin: &str) -> Result<(), ConfigError> {
        let wrong = |key, value: &dyn ToString, why| {
            Err(ConfigError::Value { origin: origin.to_owned(), key, value: value.to_string(), why })
        };
        if self.vm.memory_mib < 64 {
            return wrong("vm.memory_mib", &self.vm.memory_mib, "at least 64");
        }
        if !(1..=32).contains(&self.vm.vcpus) {
            return wrong("vm.vcpus", &self.vm.vcpus, "1 to 32");
        }
        if self.limits.ready_s == 0 {
            return wrong("limits.ready_s", &self.limits.ready_s, "at least 1");
        }
        if self.limits.call_s == 0 {
            return wrong("limits.call_s", &self.limits.call_s, "at least 1");
        }
        if self.log.level.parse::<log::LevelFilter>().is_err() {
            return wrong("log.level", &self.log.level, "error, warn, info, debug or trace");
        }
        let phases = &self.log.phases_file;
        if !phases.as_os_str().is_empty() && !phases.is_absolute() {
            return wrong("log.phases_file", &phases.display(), "an absolute path, or empty");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_says_the_defaults() {
        let text = include_str!("../../deploy/config.toml");
        assert_eq!(Config::parse(text, "deploy/config.toml").unwrap(), Config::default());
        // And leaves no key out: with one line less the rest still parses, with one word more it does not.
        let keys = text.lines().filter(|line| line.split_once('=').is_some() && !line.starts_with('#')).count();
        assert_eq!(keys, 9, "a new key belongs into deploy/config.toml");
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
        ] {
            let cause = Config::parse(text, "x").unwrap_err().to_string();
            assert!(cause.contains(key), "{cause}");
        }
        assert!(Config::parse("[vm]\nvcpus = 300", "x").is_err());
    }

    #[test]
    fn a_missing_file_is_said() {
        let cause = Config::read(Path::new("/nonexistent/husk.toml")).unwrap_err().to_string();
        assert!(cause.contains("/nonexistent/husk.toml"), "{cause}");
    }
}
