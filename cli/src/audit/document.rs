//! What of an OCI document the rules look at. It is not oci-spec's structure: that one refuses a document in which a single
//! name (of a capability, of an action) is newer than itself, and an audit must not end there. Names stay texts.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer};

/// Why a text is no OCI document.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// A field has what it cannot have, or it is no JSON.
    #[error("{cause} (field {field})")]
    Field {
        /// The field's path in the document.
        field: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A list would be taken for the values of an object.
    #[error("it is no JSON object, so it is no OCI runtime document")]
    NoObject,
    /// It may be JSON of anything.
    #[error("it has no ociVersion, so it is no OCI runtime document (config.json of a bundle)")]
    NoVersion,
    /// A document of a specification that does not exist yet.
    #[error("its ociVersion is {0:?}, and husk knows 1.x only")]
    Version(String),
}

/// A document.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Document {
    oci_version: Option<String>,
    /// `process`.
    #[serde(deserialize_with = "or_default")]
    pub process: Process,
    /// `root`.
    #[serde(deserialize_with = "or_default")]
    pub root: Root,
    /// `mounts`, in their order.
    #[serde(deserialize_with = "or_default")]
    pub mounts: Vec<Mount>,
    /// `hooks`, by when they run.
    #[serde(deserialize_with = "or_default")]
    pub hooks: BTreeMap<String, Option<Vec<Hook>>>,
    /// `annotations`.
    #[serde(deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
    /// `linux`.
    #[serde(deserialize_with = "or_default")]
    pub linux: Linux,
}

/// `process`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Process {
    /// `user`.
    #[serde(deserialize_with = "or_default")]
    pub user: User,
    /// `env`.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The five sets of `capabilities`.
    #[serde(deserialize_with = "or_default")]
    pub capabilities: BTreeMap<String, Option<Vec<String>>>,
    /// `rlimits`.
    #[serde(deserialize_with = "or_default")]
    pub rlimits: Vec<Rlimit>,
    /// `noNewPrivileges`.
    #[serde(deserialize_with = "or_default")]
    pub no_new_privileges: bool,
}

/// `process.user`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct User {
    /// The user's number.
    #[serde(deserialize_with = "or_default")]
    pub uid: u32,
}

/// One of `process.rlimits`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Rlimit {
    /// Its name.
    #[serde(rename = "type")]
    pub kind: String,
    /// The limit that the process can raise its own to; the highest number is "unlimited".
    pub hard: u64,
}

/// `root`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Root {
    /// Whether nothing can be written there.
    #[serde(deserialize_with = "or_default")]
    pub readonly: bool,
}

/// One of `mounts`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Where in the container.
    #[serde(deserialize_with = "or_default")]
    pub destination: String,
    /// The file system, or `bind`.
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// Of a bind mount the file or directory of the host.
    #[serde(deserialize_with = "or_default")]
    pub source: String,
    /// Flags and data.
    #[serde(deserialize_with = "or_default")]
    pub options: Vec<String>,
    /// Where the source's links lead on this host; none of a document that is not of this host.
    #[serde(skip)]
    pub resolved: Option<String>,
}

impl Mount {
    /// Whether it has this option.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|given| given == option)
    }

    /// Whether it shows a part of the host's files.
    pub fn is_bind(&self) -> bool {
        self.kind == "bind" || self.has("bind") || self.has("rbind")
    }

    /// Whether nothing can be written there: of the options that say it, the last one counts.
    pub fn is_read_only(&self) -> bool {
        let said = self.options.iter().rev().find(|option| matches!(option.as_str(), "ro" | "rro" | "rw" | "rrw"));
        said.is_some_and(|option| option == "ro" || option == "rro")
    }

    /// Whether mounts below it can be written to though it cannot itself: `ro` is not recursive, `rro` is.
    pub fn is_writable_below(&self) -> bool {
        let recursive = self.has("rbind") || (self.kind == "rbind");
        recursive && self.is_read_only() && !self.has("rro")
    }
}

/// One of `hooks`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Hook {
    /// The program.
    #[serde(deserialize_with = "or_default")]
    pub path: String,
}

/// `linux`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Linux {
    /// `namespaces`.
    #[serde(deserialize_with = "or_default")]
    pub namespaces: Vec<Namespace>,
    /// `uidMappings`.
    #[serde(deserialize_with = "or_default")]
    pub uid_mappings: Vec<Mapping>,
    /// `devices`.
    #[serde(deserialize_with = "or_default")]
    pub devices: Vec<Device>,
    /// `resources`.
    #[serde(deserialize_with = "or_default")]
    pub resources: Resources,
    /// `seccomp`.
    pub seccomp: Option<Seccomp>,
    /// `sysctl`.
    #[serde(deserialize_with = "or_default")]
    pub sysctl: BTreeMap<String, String>,
    /// `maskedPaths`.
    #[serde(deserialize_with = "or_default")]
    pub masked_paths: Vec<String>,
    /// `readonlyPaths`.
    #[serde(deserialize_with = "or_default")]
    pub readonly_paths: Vec<String>,
    /// `rootfsPropagation`.
    #[serde(deserialize_with = "or_default")]
    pub rootfs_propagation: String,
}

/// One of `linux.namespaces`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Which.
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// One that exists, to be joined.
    #[serde(deserialize_with = "or_default")]
    pub path: String,
}

/// One of `linux.uidMappings`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Mapping {
    /// The first id in the container.
    #[serde(rename = "containerID", deserialize_with = "or_default")]
    pub container: u32,
    /// The first id outside.
    #[serde(rename = "hostID", deserialize_with = "or_default")]
    pub host: u32,
    /// How many.
    #[serde(deserialize_with = "or_default")]
    pub size: u32,
}

/// One of `linux.devices`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Device {
    /// Its place in the container.
    #[serde(deserialize_with = "or_default")]
    pub path: String,
    /// `c`, `u`, `b` or `p`.
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// Its driver's number.
    #[serde(deserialize_with = "or_default")]
    pub major: i64,
    /// Its number there.
    #[serde(deserialize_with = "or_default")]
    pub minor: i64,
}

/// `linux.resources`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Resources {
    /// `devices`: rules, of which the last that applies counts.
    #[serde(deserialize_with = "or_default")]
    pub devices: Vec<DeviceRule>,
    /// `memory`.
    #[serde(deserialize_with = "or_default")]
    pub memory: Memory,
    /// `pids`.
    #[serde(deserialize_with = "or_default")]
    pub pids: Pids,
    /// `cpu`.
    #[serde(deserialize_with = "or_default")]
    pub cpu: Cpu,
    /// `unified`: files of cgroup v2.
    #[serde(deserialize_with = "or_default")]
    pub unified: BTreeMap<String, String>,
}

/// One of `linux.resources.devices`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct DeviceRule {
    /// Whether it allows.
    #[serde(deserialize_with = "or_default")]
    pub allow: bool,
    /// `a` or nothing: all; `c`, `b`.
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// Nothing or -1: all.
    pub major: Option<i64>,
    /// Nothing or -1: all.
    pub minor: Option<i64>,
    /// Letters of `rwm`; nothing: all.
    #[serde(deserialize_with = "or_default")]
    pub access: String,
}

/// `linux.resources.memory`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Memory {
    /// In bytes.
    pub limit: Option<i64>,
}

/// `linux.resources.pids`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Pids {
    /// How many.
    pub limit: Option<i64>,
}

/// `linux.resources.cpu`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// Microseconds in a period.
    pub quota: Option<i64>,
    /// Which CPUs.
    #[serde(deserialize_with = "or_default")]
    pub cpus: String,
}

/// `linux.seccomp`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Seccomp {
    /// What happens to a call that no entry names.
    #[serde(deserialize_with = "or_default")]
    pub default_action: String,
    /// The entries.
    #[serde(deserialize_with = "or_default")]
    pub syscalls: Vec<SeccompCalls>,
}

/// One of `linux.seccomp.syscalls`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct SeccompCalls {
    /// What happens.
    #[serde(deserialize_with = "or_default")]
    pub action: String,
}

/// Go writes a list or an object that is not there as null.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Document {
    /// Reads a document.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &[u8]) -> Result<Self, DocumentError> {
        if text.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
            return Err(DocumentError::NoObject);
        }
        let mut json = serde_json::Deserializer::from_slice(text);
        let document: Self = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let field = error.path().to_string();
            DocumentError::Field { field, cause: error.into_inner().to_string() }
        })?;
        json.end().map_err(|cause| DocumentError::Field { field: ".".to_owned(), cause: cause.to_string() })?;
        match &document.oci_version {
            None => Err(DocumentError::NoVersion),
            Some(version) if !version.starts_with("1.") => Err(DocumentError::Version(version.clone())),
            Some(_) => Ok(document),
        }
    }

    /// Follows the links of the mounts' sources on this host: `/data` may lead to `/`.
    pub fn resolve_sources(&mut self) {
        for mount in self.mounts.iter_mut().filter(|mount| mount.is_bind()) {
            let resolved = std::fs::canonicalize(&mount.source).ok();
            mount.resolved = resolved.and_then(|path| path.to_str().map(str::to_owned));
        }
    }

    /// The capability sets that have this one; all five count, because the process or one that it executes can use them.
    pub fn sets_with(&self, capability: &str) -> Vec<&str> {
        let sets = self.process.capabilities.iter();
        let with = sets.filter(|(_, names)| names.iter().flatten().any(|name| name == capability));
        with.map(|(set, _)| set.as_str()).collect()
    }

    /// Every capability of any set, once, in the order of the alphabet.
    pub fn capabilities(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.process.capabilities.values().flatten().flatten().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Whether the container has such a namespace that is not the host's: its own, or one with others.
    pub fn has_namespace(&self, kind: &str) -> bool {
        let of_init = |path: &str| path.starts_with("/proc/1/");
        self.linux.namespaces.iter().any(|namespace| namespace.kind == kind && !of_init(&namespace.path))
    }

    /// Whether it has a user namespace in which nobody is the host's root. The mappings of one that it joins are not known.
    pub fn has_user_namespace(&self) -> bool {
        self.has_namespace("user")
            && !self.linux.uid_mappings.iter().any(|mapping| mapping.host == 0 && mapping.size > 0)
    }

    /// Whether the process has the powers of root on the kernel that it runs on.
    pub fn is_root(&self) -> bool {
        self.process.user.uid == 0 && !self.has_user_namespace()
    }

    /// Whether system calls are filtered: a profile that allows all and forbids none is none.
    pub fn has_seccomp(&self) -> bool {
        let allows = |action: &str| matches!(action, "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG");
        self.linux.seccomp.as_ref().is_some_and(|profile| {
            !allows(&profile.default_action) || profile.syscalls.iter().any(|calls| !allows(&calls.action))
        })
    }

    /// The rule by which every character or every block device can be read or written, if one does.
    pub fn all_devices_rule(&self) -> Option<usize> {
        let (mut char_by, mut block_by) = (None, None);
        for (at, rule) in self.linux.resources.devices.iter().enumerate() {
            let all = |number: Option<i64>| number.is_none_or(|number| number < 0);
            let touches = rule.access.is_empty() || rule.access.contains(['r', 'w']);
            if !(all(rule.major) && all(rule.minor) && touches) {
                continue;
            }
            let by = rule.allow.then_some(at);
            match rule.kind.as_str() {
                "" | "a" => (char_by, block_by) = (by, by),
                "c" | "u" => char_by = by,
                "b" => block_by = by,
                _ => {}
            }
        }
        block_by.or(char_by)
    }

    /// The mount at this place in the container; of several the last, which hides the others.
    pub fn mount_at(&self, destination: &str) -> Option<(usize, &Mount)> {
        self.mounts.iter().enumerate().rev().find(|(_, mount)| mount.destination.trim_end_matches('/') == destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Document, DocumentError> {
        Document::parse(text.as_bytes())
    }

    #[test]
    fn what_is_no_document_is_refused_with_the_field() {
        for (text, words) in [
            ("", "EOF"),
            ("[\"1.0.2\"]", "no JSON object"),
            ("{", "EOF"),
            ("{}", "no ociVersion"),
            (r#"{"ociVersion":"2.0.0"}"#, "1.x only"),
            (r#"{"ociVersion":"1.0.2"} x"#, "trailing"),
            (r#"{"ociVersion":"1.0.2","process":{"user":{"uid":-1}}}"#, "field process.user.uid"),
            (r#"{"ociVersion":"1.0.2","mounts":[{},{"options":"ro"}]}"#, "field mounts[1].options"),
            (
                r#"{"ociVersion":"1.0.2","linux":{"resources":{"pids":{"limit":1e99}}}}"#,
                "field linux.resources.pids.limit",
            ),
        ] {
            let cause = parse(text).unwrap_err().to_string();
            assert!(cause.contains(words), "{text}: {cause}");
        }
        let deep = format!(r#"{{"ociVersion":"1.0.2","x":{}}}"#, "[".repeat(100_000));
        // Neither of them takes the stack.
        assert!(parse(&deep).is_err() && parse(&deep.replace("\"x\"", "\"process\"")).is_err());
    }

    #[test]
    fn names_of_tomorrow_and_nulls_are_no_errors() {
        let text = r#"{"ociVersion":"1.3.0","process":{"capabilities":{"bounding":["CAP_NEW"],"ambient":null},"env":null},
            "mounts":null,"hooks":{"prestart":null},"linux":{"seccomp":{"defaultAction":"SCMP_ACT_NEW","syscalls":null}},"new":1}"#;
        let document = parse(text).unwrap();
        assert_eq!((document.capabilities(), document.sets_with("CAP_NEW")), (vec!["CAP_NEW"], vec!["bounding"]));
        assert!(document.has_seccomp());
    }

    #[test]
    fn the_last_rule_of_all_devices_counts() {
        let rule = |rules: &str| {
            let text = format!(r#"{{"ociVersion":"1.0.2","linux":{{"resources":{{"devices":{rules}}}}}}}"#);
            parse(&text).unwrap().all_devices_rule()
        };
        assert_eq!(rule("[]"), None);
        assert_eq!(rule(r#"[{"allow":false},{"allow":true,"access":"rwm"}]"#), Some(1));
        assert_eq!(rule(r#"[{"allow":true,"type":"a"},{"allow":false,"access":"rwm"}]"#), None);
        assert_eq!(rule(r#"[{"allow":true,"type":"a"},{"allow":false,"type":"b","major":-1}]"#), Some(0));
        assert_eq!(
            rule(r#"[{"allow":true,"type":"c","access":"m"},{"allow":true,"type":"c","major":1,"access":"rw"}]"#),
            None
        );
    }

    #[test]
    fn namespaces_of_the_first_process_are_the_hosts() {
        let has = |namespaces: &str| {
            let text = format!(r#"{{"ociVersion":"1.0.2","linux":{{"namespaces":{namespaces}}}}}"#);
            parse(&text).unwrap().has_namespace("pid")
        };
        assert!(has(r#"[{"type":"pid"}]"#) && has(r#"[{"type":"pid","path":"/proc/123/ns/pid"}]"#));
        assert!(!has("[]") && !has(r#"[{"type":"pid","path":"/proc/1/ns/pid"}]"#));
    }

    #[test]
    fn the_last_option_says_whether_a_mount_is_read_only() {
        let mount = |options: &[&str]| {
            let options = options.iter().map(|option| (*option).to_owned()).collect();
            Mount { options, ..Mount::default() }
        };
        assert!(
            mount(&["rw", "ro"]).is_read_only() && !mount(&["ro", "rw"]).is_read_only() && !mount(&[]).is_read_only()
        );
        assert!(mount(&["rbind", "ro"]).is_writable_below() && !mount(&["rbind", "ro", "rro"]).is_writable_below());
        assert!(!mount(&["bind", "ro"]).is_writable_below());
    }
}
