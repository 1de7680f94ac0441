//! A container's network namespace on the host: the pod's.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};

use super::error::TaskError;
use super::pod::Pod;
use crate::config::Config;
use crate::host::process::Child;
use crate::host::program::Network;
use crate::network::namespace::{is_network, is_own, open_namespace};
use crate::network::{Devices, Offer};
use crate::vm::{Host, Size};

/// Where a container's network is.
pub enum Netns {
    /// Where somebody has made it.
    At(PathBuf, OwnedFd),
    /// In one of its own, which is made with its task's process.
    New,
    /// Where that of the pod's first container is.
    Pods,
}

impl Netns {
    /// What a container's document says of it.
    ///
    /// # Errors
    /// It is the host's, another one than the pod's, or not there.
    pub fn of(id: &str, pod: &Pod, spec: &Spec) -> Result<Self, TaskError> {
        let invalid = |what: String| TaskError::Invalid { id: id.to_owned(), what };
        let host = || {
            invalid(
                "it is to have the host's network, and a virtual machine has a network of its own: give it a network namespace (without --net-host, hostNetwork)"
                    .to_owned(),
            )
        };
        let failed = |cause| TaskError::Host { what: "open the pod's network namespace", cause };
        let Some(path) = entry(spec).map(LinuxNamespace::path) else {
            return if pod.network().is_some() { Ok(Self::Pods) } else { Err(host()) };
        };
        let Some(path) = path.as_ref().filter(|path| !path.as_os_str().is_empty()) else {
            return Ok(if pod.network().is_some() { Self::Pods } else { Self::New });
        };
        if !path.is_absolute() {
            return Err(invalid(format!("the network namespace {} is not an absolute path", path.display())));
        }
        let opened = open_namespace(path)
            .map_err(|cause| invalid(format!("cannot open its network namespace {}: {cause}", path.display())))?;
        if !is_network(opened.as_fd()) {
            return Err(invalid(format!("{} is no network namespace", path.display())));
        }
        if is_own(opened.as_fd()).map_err(failed)? {
            return Err(host());
        }
        if let Some(network) = pod.network()
            && !network.is_of(opened.as_fd()).map_err(failed)?
        {
            return Err(invalid(format!("the network namespace {} is not its pod's", path.display())));
        }
        Ok(Self::At(path.clone(), opened))
    }

    /// Where the task's process is to be: containerd and CNI look for the namespace there.
    pub fn of_stub<'a>(&'a self, pod: &'a Pod) -> Network<'a> {
        match self {
            Self::At(_, opened) => Network::At(opened.as_fd()),
            Self::New => Network::New,
            Self::Pods => pod.network().map_or(Network::New, |network| Network::At(network.namespace())),
        }
    }

    /// Gives the pod's machine its devices, if this is its first container.
    ///
    /// # Errors
    /// See [`crate::network::NetworkError`].
    pub async fn devices(
        &self,
        pod: &Arc<Pod>,
        stub: &Child,
        spec: &Spec,
        config: &Config,
    ) -> Result<Option<Devices>, TaskError> {
        let failed = |cause| TaskError::Host { what: "open the pod's network namespace", cause };
        let (namespace, path) = match self {
            _ if pod.network().is_some() => return Ok(None),
            Self::At(path, opened) => (opened.try_clone().map_err(failed)?, Some(path.clone())),
            Self::New | Self::Pods => {
                let path = format!("/proc/{}/ns/net", stub.pid());
                (open_namespace(Path::new(&path)).map_err(failed)?, None)
            }
        };
        // None: it could not be started, which is told elsewhere.
        let Some(machine) = pod.machine() else { return Ok(None) };
        let size = Size::of_container(spec, &config.vm, Host::here())?;
        let offer = Offer::of(&config.network, size.vcpus);
        let told = Arc::downgrade(pod);
        let left = move |left| {
            if let Some(pod) = told.upgrade() {
                pod.leaves(left);
            }
        };
        Ok(Some(Devices::add(namespace, path, machine, offer, left).await?))
    }
}

/// The document's entry for the network namespace.
fn entry(spec: &Spec) -> Option<&LinuxNamespace> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Network)
}
