//! Create: from containerd's request to a container that waits for Start.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as ProcessStdio};
use std::sync::Arc;

use containerd_shim_protos::api::CreateTaskRequest;
use husk_protocol::agent::CreateContainerRequest;
use husk_protocol::control::Share;
use husk_protocol::runtimeoptions;
use log::{info, warn};
use oci_spec::runtime::{self, LinuxNamespace, LinuxNamespaceType, Spec};
use protobuf::{Message, MessageField};
use rustix::fs::{Mode, OFlags};

use super::container::{Container, Made};
use super::error::TaskError;
use super::pod::{Pod, Sandbox};
use super::process::Process;
use super::stdio::{Names, Owner, Stdio};
use crate::bootstrap::are_runcs;
use crate::config::{Config, limits};
use crate::host::hooks::Hooks;
use crate::host::installed;
use crate::host::process::{Child, Inheritance, Network};
use crate::phases::{self, Stamp};
use crate::vm::AgentError;
use crate::{VERSION, rootfs};

/// What CRI says of a container: `sandbox`, or `container` in one.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// Makes a container. What was made of it is gone when this fails, all but the machine, which is the pod's.
pub async fn create(pod: &Arc<Pod>, request: &CreateTaskRequest) -> Result<Container, TaskError> {
    phases::stamp(Stamp::CreateReceived);
    let id = request.id();
    let invalid = |what: String| TaskError::Invalid { id: id.to_owned(), what };
    if !request.checkpoint().is_empty() {
        return Err(invalid("husk cannot restore checkpoints".to_owned()));
    }
    let config = configuration(pod, request)?;
    let bundle = PathBuf::from(request.bundle());
    let spec_path = bundle.join("config.json");
    let spec_error = |cause: std::io::Error| TaskError::Spec { id: id.to_owned(), cause };
    let document = std::fs::read(&spec_path).map_err(spec_error)?;
    let spec: Spec = serde_json::from_slice(&document).map_err(|cause| spec_error(cause.into()))?;
    if let Some(path) = network_namespace(&spec).and_then(|namespace| namespace.path().as_ref())
        && !path.is_absolute()
    {
        return Err(invalid(format!("the network namespace {} is not an absolute path", path.display())));
    }
    let hooks = Hooks::of(id, &spec, &bundle)?;
    let terminal = spec.process().as_ref().and_then(runtime::Process::terminal).unwrap_or(false);
    if terminal != request.terminal() {
        let (asked, document) = (request.terminal(), terminal);
        return Err(invalid(format!(
            "process.terminal is {document} in its config.json, and {asked} in the request: they must agree"
        )));
    }
    let names = Names {
        stdin: request.stdin().to_owned(),
        stdout: request.stdout().to_owned(),
        stderr: request.stderr().to_owned(),
        terminal: request.terminal(),
    };
    // The guest boots while the host's side is made.
    let host = async {
        let root = rootfs::open(&request.rootfs, &spec, &bundle, pod.directory())?;
        let stub = spawn_stub(&spec, &hooks)?;
        Ok::<_, TaskError>((root, stub))
    };
    let (sandbox, host) = tokio::join!(pod.sandbox_for(&spec, &config), host);
    let (sandbox, (root, stub)) = (sandbox?, host?);
    pod.adopt(id, &stub)?;
    let lone = spec.annotations().as_ref().is_none_or(|annotations| !annotations.contains_key(CONTAINER_TYPE));
    let share = Share { name: format!("root-{id}"), read_only: false, exclusive: true };
    let share_name = share.name.clone();
    let made = async {
        // Before the guest looks at the root, and keeps what it has seen: a hook may change it.
        hooks.create(stub.pid()).await?;
        sandbox.machine.add_share(share, &root).await?;
        in_guest(pod, sandbox, &bundle, id, document, &share_name, &names).await
    };
    let (stdio, guest_pid) = match made.await {
        Ok(made) => made,
        Err(cause) => {
            // A hook comes before the guest; refused is not made; after any other failure it may have it all the same.
            if !matches!(cause, TaskError::Hook(_) | TaskError::Agent(AgentError::Refused { .. }))
                && let Err(cause) = sandbox.agent.remove_container(id).await
            {
                warn!(container = id, stage = "create"; "{cause}");
            }
            if !matches!(cause, TaskError::Hook(_))
                && let Err(cause) = sandbox.machine.remove_share(&share_name).await
            {
                warn!(container = id, stage = "create"; "{cause}");
            }
            drop(stub);
            hooks.poststop().await;
            return Err(cause);
        }
    };
    phases::stamp(Stamp::ContainerMade);
    info!(container = id, stage = "create"; "the container is made");
    let init = Process::new(names);
    init.opened(stdio);
    let made = Made { id: id.to_owned(), bundle, stub, guest_pid, share: share_name, lone, hooks };
    Ok(Container::new(made, init))
}

/// The container inside the guest: its streams, and its init's process id there.
async fn in_guest(
    pod: &Pod,
    sandbox: &Arc<Sandbox>,
    bundle: &Path,
    id: &str,
    document: Vec<u8>,
    share: &str,
    names: &Names,
) -> Result<(Stdio, u32), TaskError> {
    let owner = Owner { id, namespace: pod.publisher.namespace(), bundle };
    let (stdio, streams) = Stdio::open(names, owner, sandbox.machine.streams()).await?;
    let request = CreateContainerRequest {
        id: id.to_owned(),
        oci_spec: document,
        root_share: share.to_owned(),
        streams: MessageField::some(streams),
        bundle: bundle.to_string_lossy().into_owned(),
        hook_s: u32::try_from(limits().hook().as_secs()).unwrap_or(u32::MAX),
        ..CreateContainerRequest::default()
    };
    match sandbox.agent.create_container(request).await {
        Ok(pid) => Ok((stdio, pid)),
        Err(cause) => Err(sandbox.machine.blame(cause).await.map_or_else(TaskError::Agent, TaskError::Ended)),
    }
}

/// The configuration: containerd's options first (their text, then the file that they name), then ours.
fn configuration(pod: &Pod, request: &CreateTaskRequest) -> Result<Config, TaskError> {
    let options = match request.options.as_ref() {
        Some(any) if any.type_url.trim_start_matches("type.googleapis.com/") == "runtimeoptions.v1.Options" => {
            runtimeoptions::Options::parse_from_bytes(&any.value).map_err(|cause| TaskError::Invalid {
                id: request.id().to_owned(),
                what: format!("its runtime options cannot be read: {cause}"),
            })?
        }
        // What there is for a shim in them was taken at its start; the owner of the streams does not matter to one that
        // opens them itself.
        Some(any) if are_runcs(any) => runtimeoptions::Options::new(),
        Some(any) => {
            warn!(stage = "create"; "runtime options of type {:?} mean nothing to husk", any.type_url);
            runtimeoptions::Options::new()
        }
        None => runtimeoptions::Options::new(),
    };
    if pod.kata && (!options.config_path.is_empty() || !options.config_body.is_empty()) {
        warn!(stage = "create"; "called as Kata's shim: the configuration {:?} is Kata's and is not read", options.config_path);
        return Ok(Config::read_default()?);
    }
    if !options.config_body.is_empty() {
        let text = String::from_utf8_lossy(&options.config_body);
        return Ok(Config::parse(&text, "of containerd's options (config_body)")?);
    }
    if !options.config_path.is_empty() {
        return Ok(Config::read(Path::new(&options.config_path))?);
    }
    Ok(Config::read_default()?)
}

/// What the document says of the network namespace; none: the host's.
fn network_namespace(spec: &Spec) -> Option<&LinuxNamespace> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Network)
}

/// The task's process on the host: in the pod's network namespace, where containerd and CNI look for it.
fn spawn_stub(spec: &Spec, hooks: &Hooks) -> Result<Child, TaskError> {
    let namespace = network_namespace(spec);
    let opened = namespace
        .and_then(|namespace| namespace.path().as_ref())
        .map(|path| rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()))
        .transpose()
        .map_err(|cause| TaskError::Host { what: "open the pod's network namespace", cause: cause.into() })?;
    let network = match (&opened, namespace) {
        (Some(opened), _) => Network::At(opened.as_fd()),
        // Nobody but a hook can put something into it.
        (None, Some(_)) if !hooks.is_empty() => Network::New,
        _ => Network::Host,
    };
    let mut command = Command::new(installed(VERSION, "husk-stub"));
    command.env_clear().current_dir("/");
    command.stdin(ProcessStdio::null()).stdout(ProcessStdio::null()).stderr(ProcessStdio::null());
    let inheritance = Inheritance { descriptor: None, network };
    Child::spawn(command, &inheritance).map_err(|cause| TaskError::Host { what: "start the task's husk-stub", cause })
}
