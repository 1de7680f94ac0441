//! Create: from containerd's request to a container that waits for Start.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskRequest;
use husk_protocol::agent::{self, CreateContainerRequest};
use husk_protocol::control::Share;
use husk_protocol::document::PER_MOUNT;
use husk_protocol::runtimeoptions;
use log::{info, warn};
use oci_spec::runtime;
use protobuf::{Message, MessageField};

use super::container::{Container, Made};
use super::document::{self, Read};
use super::error::TaskError;
use super::netns::Netns;
use super::pod::{Pod, Sandbox};
use super::process::Process;
use super::stdio::{Names, Owner, Stdio};
use super::throttle::{self, Files, Source, Throttles};
use crate::bootstrap::are_runcs;
use crate::config::{Config, limits};
use crate::host::cgroup::Cgroup;
use crate::host::hooks::Hooks;
use crate::host::installed;
use crate::host::process::Child;
use crate::host::program::{Network, Program};
use crate::phases::{self, Stamp};
use crate::vm::AgentError;
use crate::volumes::{self, Volume};
use crate::{VERSION, rootfs};

/// What CRI says of a container: `sandbox`, or `container` in one.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// The document goes to the agent in one message, beside little else (ttrpc's largest is 4 MiB).
const LARGEST_DOCUMENT: usize = (4 << 20) - (64 << 10);

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
    let spec_error = |cause| TaskError::Spec { id: id.to_owned(), cause };
    let document = std::fs::read(&spec_path).map_err(|cause| spec_error(cause.into()))?;
    if document.len() > LARGEST_DOCUMENT {
        let length = document.len();
        return Err(invalid(format!("its config.json has {length} bytes, and husk takes up to {LARGEST_DOCUMENT}")));
    }
    let Read { document: spec, unknown, text: document } = document::read(document).map_err(spec_error)?;
    if !unknown.is_empty() {
        warn!(container = id, stage = "request"; "config.json has what husk does not know, and what does nothing: {unknown}");
    }
    // Until the pod has its network, or this one has failed: what one Create makes in the namespace is another pod's to a second one.
    let first = pod.first().await;
    let netns = Netns::of(id, pod, &spec)?;
    let hooks = Hooks::of(id, &spec, &bundle)?;
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let throttles =
        resources.map(|resources| throttle::read(resources, &Throttles::new())).transpose()?.unwrap_or_default();
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
        let volumes = volumes::open(&spec, &bundle)?;
        let programs = volumes::programs(&spec)?;
        let stub = spawn_stub(netns.of_stub(pod), pod.cgroup().as_ref())?;
        let devices = netns.devices(pod, &stub, &spec, &config).await?;
        Ok::<_, TaskError>((Opened { root, volumes, programs }, stub, devices))
    };
    let (sandbox, host) = tokio::join!(pod.sandbox_for(&spec, &config), host);
    let (sandbox, (opened, stub, devices)) = match (sandbox, host) {
        (Ok(sandbox), Ok(host)) => (sandbox, host),
        (Err(cause), host) => {
            if let Ok((_, _, Some(devices))) = host {
                devices.end().await;
            }
            return Err(cause);
        }
        (_, Err(cause)) => return Err(cause),
    };
    let adopted = pod.adopt(id, &stub);
    if let Some(devices) = devices {
        if let Err(cause) = adopted {
            devices.end().await;
            return Err(cause);
        }
        pod.has_network(devices.follow(sandbox.agent.clone()).await?);
    } else {
        adopted?;
    }
    drop(first);
    let lone = spec.annotations().as_ref().is_none_or(|annotations| !annotations.contains_key(CONTAINER_TYPE));
    let mut shares = Vec::with_capacity(1 + opened.volumes.len());
    let made = async {
        // Before the guest looks at the root, and keeps what it has seen: a hook may change it.
        hooks.create(stub.pid()).await?;
        let root_files = rootfs::files(&request.rootfs, &spec, &bundle);
        let (volumes, hook_shares) = opened.share(sandbox, id, root_files, &mut shares).await?;
        throttle::apply(&sandbox.machine, id, &shares, &throttles).await?;
        let request = CreateContainerRequest {
            id: id.to_owned(),
            oci_spec: document,
            root_share: root_share(id),
            volumes,
            hook_shares,
            bundle: bundle.to_string_lossy().into_owned(),
            hook_s: u32::try_from(limits().hook().as_secs()).unwrap_or(u32::MAX),
            ..CreateContainerRequest::default()
        };
        let mounts = u32::try_from(spec.mounts().as_ref().map_or(0, Vec::len)).unwrap_or(u32::MAX);
        let more = hooks.creating().saturating_add(PER_MOUNT * mounts);
        in_guest(pod, sandbox, &bundle, request, &names, more).await
    };
    let made = made.await;
    // What hangs on them is in the VMM now.
    drop(opened);
    let (stdio, guest_pid) = match made {
        Ok(made) => made,
        Err(cause) => {
            // A hook comes before the guest; refused is not made; after any other failure it may have it all the same.
            if !matches!(cause, TaskError::Hook(_) | TaskError::Agent(AgentError::Refused { .. }))
                && let Err(cause) = sandbox.agent.remove_container(id).await
            {
                warn!(container = id, stage = "create"; "{cause}");
            }
            sandbox.machine.remove_shares(shares.iter().map(|source| source.share.as_str())).await;
            drop(stub);
            hooks.poststop().await;
            return Err(cause);
        }
    };
    phases::stamp(Stamp::ContainerMade);
    info!(container = id, stage = "create"; "the container is made");
    let init = Process::new(names);
    init.opened(stdio);
    let made = Made { id: id.to_owned(), bundle, stub, guest_pid, shares, lone, hooks };
    Ok(Container::new(made, init, throttles))
}

/// The name of a root's share.
fn root_share(id: &str) -> String {
    format!("root-{id}")
}

/// What of the host's a container is given.
struct Opened {
    root: OwnedFd,
    volumes: Vec<Volume>,
    /// Of its createContainer hooks.
    programs: Vec<OwnedFd>,
}

impl Opened {
    /// Shares all of it with the guest, and says which share is which mount's, and which have the programs. `shares` has those that
    /// were made, also when this fails. `root_files` are the files of the root, where that matters.
    async fn share(
        &self,
        sandbox: &Sandbox,
        id: &str,
        root_files: Vec<PathBuf>,
        shares: &mut Vec<Source>,
    ) -> Result<(Vec<agent::Volume>, Vec<String>), TaskError> {
        let mut add = async |share: Share, files, opened| {
            let name = share.name.clone();
            sandbox.machine.add_share(share, opened).await?;
            shares.push(Source { share: name, files });
            Ok::<_, TaskError>(())
        };
        add(Share { name: root_share(id), read_only: false, exclusive: true }, Files::Layers(root_files), &self.root)
            .await?;
        let mut told = Vec::with_capacity(self.volumes.len());
        for Volume { mount, path, device, recursive, source, read_only } in &self.volumes {
            // The host's files are the host's: others change them too.
            let share = Share { name: format!("mount-{mount}-{id}"), read_only: *read_only, exclusive: false };
            let mount = u32::try_from(*mount).unwrap_or(u32::MAX);
            told.push(agent::Volume { mount, share: share.name.clone(), ..agent::Volume::default() });
            let files = Files::At { device: *device, path: path.clone(), recursive: *recursive };
            add(share, files, source).await?;
        }
        let mut programs = Vec::with_capacity(self.programs.len());
        for (index, program) in self.programs.iter().enumerate() {
            let share = Share { name: format!("hook-{index}-{id}"), read_only: true, exclusive: false };
            programs.push(share.name.clone());
            add(share, Files::Nothing, program).await?;
        }
        Ok((told, programs))
    }
}

/// The container inside the guest: its streams, and its init's process id there. That takes `more` time than other calls.
async fn in_guest(
    pod: &Pod,
    sandbox: &Arc<Sandbox>,
    bundle: &Path,
    request: CreateContainerRequest,
    names: &Names,
    more: Duration,
) -> Result<(Stdio, u32), TaskError> {
    let owner = Owner { id: &request.id, namespace: pod.publisher.namespace(), bundle };
    let (stdio, streams) = Stdio::open(names, owner, sandbox.machine.streams()).await?;
    let request = CreateContainerRequest { streams: MessageField::some(streams), ..request };
    match sandbox.agent.create_container(request, more).await {
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

/// The task's process on the host: in the pod's network namespace, where containerd and CNI look for it.
fn spawn_stub(network: Network<'_>, cgroup: Option<&Cgroup>) -> Result<Child, TaskError> {
    let path = installed(VERSION, "husk-stub");
    let cgroup = cgroup.map(Cgroup::open).transpose()?;
    let program = Program {
        path: &path,
        arguments: &[],
        stderr: None,
        descriptor: None,
        network,
        cgroup: cgroup.as_ref().map(AsFd::as_fd),
    };
    program.start().map_err(|cause| TaskError::Host { what: "start the task's husk-stub", cause })
}
