//! What containerd says on the standard input of `start` and `-info`, and in which form it wants its answer.
//!
//! Up to containerd 2.2, `start` gets flags, environment variables and, on its input, the runtime options or nothing; every
//! one of these versions takes the plain address. From 2.3 on its input is a `BootstrapParams` and its answer has to be a
//! `BootstrapResult` (containerd's `docs/runtime-v2.md`, "Bootstrap protocol").

use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, LogLevel};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use husk_protocol::runc;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

use crate::VERSION;
use crate::args::Arguments;
use crate::features::features;
use crate::host::SOCKETS;

/// Bytes of an input at most; containerd's own shims take as many.
const MOST: u64 = 10 << 20;
/// The task interface that we serve, and tell who asks (`containerd.task.v3.Task`).
const TASK_VERSION: i32 = 3;
/// The type of the options of runc's shim.
const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";
/// How a path is written in an address.
const UNIX: &str = "unix://";

/// Why an input means nothing.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// It cannot be read.
    #[error("cannot read what containerd says on the standard input: {0}")]
    Read(io::Error),
    /// It is another container's.
    #[error(
        "containerd's parameters on the standard input are for container {id} of namespace {namespace}, its flags for \
         another: this is a defect of the caller's"
    )]
    Other {
        /// The id in them.
        id: String,
        /// The namespace in them.
        namespace: String,
    },
    /// The options of a known type are none.
    #[error("the runtime options on the standard input are no {RUNC_OPTIONS}: {0}")]
    RuncOptions(protobuf::Error),
    /// It is no message.
    #[error("the runtime options on the standard input are no protobuf Any: {0}")]
    Options(protobuf::Error),
    /// The features cannot be said: a defect.
    #[error("cannot say what a container can have: {0}")]
    Features(oci_spec::OciSpecError),
}

/// What `start` was told.
#[derive(Debug, Clone, PartialEq)]
pub struct Bootstrap {
    /// The directory of the shim's socket.
    pub sockets: PathBuf,
    /// The path of containerd's ttrpc socket; empty: there is none.
    pub events: String,
    /// containerd wants more in the log.
    pub debug: bool,
    /// A cgroup that the shim is to be in, from the tree's root.
    pub cgroup: Option<String>,
    /// The answer has to be a message.
    message: bool,
}

impl Bootstrap {
    /// Reads this process's input.
    ///
    /// # Errors
    /// See [`BootstrapError`].
    pub fn read(arguments: &Arguments) -> Result<Self, BootstrapError> {
        let events = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
        Self::of(&input().map_err(BootstrapError::Read)?, arguments, events)
    }

    fn of(input: &[u8], arguments: &Arguments, events: String) -> Result<Self, BootstrapError> {
        let mut plain = Self {
            sockets: SOCKETS.into(),
            events: path_of(&events),
            debug: arguments.debug,
            cgroup: None,
            message: false,
        };
        let with_options = |mut plain: Self| {
            // What is none means nothing to us.
            let any = Any::parse_from_bytes(input).unwrap_or_default();
            plain.cgroup = shim_cgroup(&any)?;
            Ok(plain)
        };
        let Ok(params) = BootstrapParams::parse_from_bytes(input) else { return with_options(plain) };
        if params.instance_id != arguments.id || params.namespace != arguments.namespace {
            // The runtime options, an `Any`, parse as one: the type's name is the id, the value the namespace.
            let any = BootstrapParams {
                instance_id: params.instance_id.clone(),
                namespace: params.namespace.clone(),
                ..BootstrapParams::default()
            };
            if params == any {
                return with_options(plain);
            }
            return Err(BootstrapError::Other { id: params.instance_id, namespace: params.namespace });
        }
        for extension in &params.extensions {
            plain.cgroup = shim_cgroup(&extension.value)?.or(plain.cgroup);
        }
        let sockets = params.socket_dir.filter(|directory| !directory.is_empty());
        Ok(Self {
            sockets: sockets.map_or(plain.sockets, PathBuf::from),
            events: match params.containerd_ttrpc_address {
                address if address.is_empty() => plain.events,
                address => path_of(&address),
            },
            // Levels are numbers, the more is said the lower.
            debug: plain.debug || params.log_level.value() <= LogLevel::LOG_LEVEL_DEBUG as i32,
            cgroup: plain.cgroup,
            message: true,
        })
    }

    /// The answer of `start`, for a shim that listens at `socket`.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn answer(&self, socket: &Path) -> io::Result<Vec<u8>> {
        let address = address_of(socket);
        if !self.message {
            return Ok(address.into_bytes());
        }
        let result = BootstrapResult {
            version: TASK_VERSION,
            address,
            protocol: "ttrpc".to_owned(),
            ..BootstrapResult::default()
        };
        Ok(result.write_to_bytes()?)
    }
}

/// Whether these are the options of runc's shim: containerd gives them to a shim in its place too.
pub(crate) fn are_runcs(options: &Any) -> bool {
    options.type_url.rsplit('/').next() == Some(RUNC_OPTIONS)
}

/// The shim's cgroup in options of runc's shim.
fn shim_cgroup(options: &Any) -> Result<Option<String>, BootstrapError> {
    if !are_runcs(options) {
        return Ok(None);
    }
    let options = runc::Options::parse_from_bytes(&options.value).map_err(BootstrapError::RuncOptions)?;
    Ok(Some(options.shim_cgroup).filter(|path| !path.is_empty()))
}

/// A socket as containerd has it.
#[must_use]
pub fn address_of(socket: &Path) -> String {
    format!("{UNIX}{}", socket.display())
}

/// The path of a socket that containerd names with or without the word before it.
fn path_of(address: &str) -> String {
    address.strip_prefix(UNIX).unwrap_or(address).to_owned()
}

/// The answer to `-info`: what runtime this is, and the options that the question came with (containerd 2.0 and later).
///
/// # Errors
/// The options are none.
pub fn info() -> Result<Vec<u8>, BootstrapError> {
    info_for(&input().map_err(BootstrapError::Read)?)
}

fn info_for(options: &[u8]) -> Result<Vec<u8>, BootstrapError> {
    let options = match options {
        [] => MessageField::none(),
        bytes => MessageField::some(Any::parse_from_bytes(bytes).map_err(BootstrapError::Options)?),
    };
    // No annotations: mounts come to us mounted or as bind and overlay, never raw (`containerd.io/runtime-allow-mounts`).
    let info = RuntimeInfo {
        name: "io.containerd.husk.v2".to_owned(),
        version: MessageField::some(RuntimeVersion { version: VERSION.to_owned(), ..RuntimeVersion::default() }),
        options,
        features: MessageField::some(told_features().map_err(BootstrapError::Features)?),
        ..RuntimeInfo::default()
    };
    info.write_to_bytes().map_err(BootstrapError::Options)
}

/// What a document may ask for, as containerd's Go types are marshalled: JSON behind a name.
fn told_features() -> Result<Any, oci_spec::OciSpecError> {
    Ok(Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/features/Features".to_owned(),
        value: serde_json::to_vec(&features()?)?,
        ..Any::default()
    })
}

/// All of the standard input; nothing of a person's terminal.
fn input() -> io::Result<Vec<u8>> {
    let stdin = io::stdin().lock();
    let mut bytes = Vec::new();
    if !stdin.is_terminal() {
        stdin.take(MOST).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::Extension;
    use husk_protocol::runtimeoptions::Options;
    use protobuf::EnumOrUnknown;

    const TTRPC: &str = "/run/containerd/containerd.sock.ttrpc";

    fn arguments() -> Arguments {
        let words = ["-namespace", "default", "-address", "/run/c.sock", "-id", "c1", "start"].map(str::to_owned);
        Arguments::parse(&words).unwrap()
    }

    fn told(input: &[u8]) -> Result<Bootstrap, BootstrapError> {
        Bootstrap::of(input, &arguments(), TTRPC.to_owned())
    }

    fn params() -> BootstrapParams {
        BootstrapParams {
            instance_id: "c1".into(),
            namespace: "default".into(),
            containerd_ttrpc_address: "unix:///run/other.ttrpc".into(),
            ..BootstrapParams::default()
        }
    }

    #[test]
    fn up_to_2_2_the_plain_address_is_the_answer() {
        let options = Options { config_path: "/etc/x.toml".into(), ..Options::default() };
        let any = Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: options.write_to_bytes().unwrap(),
            ..Any::default()
        };
        for input in [Vec::new(), any.write_to_bytes().unwrap(), b"\xff\xff".to_vec()] {
            let told = told(&input).unwrap();
            assert_eq!((told.events.as_str(), told.sockets.as_path()), (TTRPC, Path::new(SOCKETS)));
            assert_eq!(told.answer(Path::new("/run/s")).unwrap(), b"unix:///run/s");
        }
    }

    #[test]
    fn the_shims_cgroup_is_in_the_options_of_runcs_shim() {
        let any = |shim_cgroup: &str, type_url: &str| Any {
            type_url: type_url.into(),
            value: runc::Options { shim_cgroup: shim_cgroup.into(), ..Default::default() }.write_to_bytes().unwrap(),
            ..Any::default()
        };
        let of = |any: &Any| told(&any.write_to_bytes().unwrap()).map(|told| told.cgroup);
        assert_eq!(of(&any("/a/b", RUNC_OPTIONS)).unwrap().as_deref(), Some("/a/b"));
        assert_eq!(
            of(&any("/a/b", "type.googleapis.com/containerd.runc.v1.Options")).unwrap().as_deref(),
            Some("/a/b")
        );
        assert_eq!(of(&any("", RUNC_OPTIONS)).unwrap(), None);
        assert_eq!(of(&any("/a/b", "runtimeoptions.v1.Options")).unwrap(), None);
        // What another field has is not read, but has to be one.
        let mut broken = any("/a/b", RUNC_OPTIONS);
        broken.value = b"\xff".to_vec();
        assert!(of(&broken).unwrap_err().to_string().contains(RUNC_OPTIONS));
        let mut params = params();
        params.extensions = vec![Extension { value: Some(any("/c", RUNC_OPTIONS)).into(), ..Default::default() }];
        assert_eq!(told(&params.write_to_bytes().unwrap()).unwrap().cgroup.as_deref(), Some("/c"));
    }

    #[test]
    fn from_2_3_on_a_message_is() {
        let told = told(&params().write_to_bytes().unwrap()).unwrap();
        assert_eq!((told.events.as_str(), told.debug), ("/run/other.ttrpc", false));
        let answer = BootstrapResult::parse_from_bytes(&told.answer(Path::new("/run/s")).unwrap()).unwrap();
        assert_eq!((answer.version, &*answer.address, &*answer.protocol), (3, "unix:///run/s", "ttrpc"));
    }

    #[test]
    fn its_directory_and_its_level_are_taken() {
        let mut params = params();
        params.socket_dir = Some("/run/d".into());
        // Below what has a name.
        params.log_level = EnumOrUnknown::from_i32(-20);
        let told = told(&params.write_to_bytes().unwrap()).unwrap();
        assert_eq!((told.sockets.as_path(), told.debug), (Path::new("/run/d"), true));
    }

    #[test]
    fn parameters_of_another_container_are_refused() {
        let mut params = params();
        params.instance_id = "c2".into();
        let cause = told(&params.write_to_bytes().unwrap()).unwrap_err().to_string();
        assert!(cause.contains("c2") && cause.contains("default"), "{cause}");
    }

    #[test]
    fn info_names_the_runtime_and_gives_the_options_back() {
        let info = RuntimeInfo::parse_from_bytes(&info_for(&[]).unwrap()).unwrap();
        assert_eq!((&*info.name, &*info.version.version), ("io.containerd.husk.v2", VERSION));
        assert!(info.options.is_none());
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        assert!(features["mountOptions"].as_array().unwrap().contains(&"rro".into()), "{features}");
        assert!(features["hooks"].as_array().unwrap().contains(&"startContainer".into()), "{features}");
        assert!(features["linux"]["namespaces"].as_array().unwrap().contains(&"time".into()), "{features}");
        let any = Any { type_url: "runtimeoptions.v1.Options".into(), ..Any::default() };
        let info = RuntimeInfo::parse_from_bytes(&info_for(&any.write_to_bytes().unwrap()).unwrap()).unwrap();
        assert_eq!(info.options.type_url, any.type_url);
        assert!(info_for(b"\xff\xff").is_err());
    }
}
