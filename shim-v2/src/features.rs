//! What a container's document may ask for (runtime-spec, features.md): CRI offers users what is in it, as read-only mounts
//! with all that is below them, and user namespaces.

use husk_protocol::document::{CAPABILITIES, MOUNT_OPTIONS};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    ApparmorBuilder, CgroupBuilder, Features, FeaturesBuilder, IDMapBuilder, IntelRdtBuilder, LinuxFeatureBuilder,
    LinuxNamespaceType, MountExtensionsBuilder, SelinuxBuilder,
};

/// Hooks that are run, wherever.
const HOOKS: [&str; 4] = ["prestart", "createRuntime", "poststart", "poststop"];
/// Namespaces that a container can have of its own.
const NAMESPACES: [LinuxNamespaceType; 7] = [
    LinuxNamespaceType::Cgroup,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Network,
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::User,
    LinuxNamespaceType::Uts,
];

/// The features. What is not in it is not known to work.
///
/// # Errors
/// None: the builders want nothing more.
pub fn features() -> Result<Features, OciSpecError> {
    // The guest has version 2 alone; the host may have either, and systemd on it is asked for a scope.
    let cgroup = CgroupBuilder::default().v1(false).v2(true).systemd(true).systemd_user(false).rdma(false).build()?;
    let idmap = IDMapBuilder::default().enabled(true).build()?;
    let linux = LinuxFeatureBuilder::default()
        .namespaces(NAMESPACES)
        .capabilities(CAPABILITIES.map(str::to_owned))
        .cgroup(cgroup)
        // The guest's kernel has neither.
        .apparmor(ApparmorBuilder::default().enabled(false).build()?)
        .selinux(SelinuxBuilder::default().enabled(false).build()?)
        .intel_rdt(IntelRdtBuilder::default().enabled(false).build()?)
        .mount_extensions(MountExtensionsBuilder::default().idmap(idmap).build()?)
        .build()?;
    FeaturesBuilder::default()
        .oci_version_min("1.0.0")
        .oci_version_max("1.2.1")
        .hooks(HOOKS.map(str::to_owned))
        .mount_options(MOUNT_OPTIONS.map(str::to_owned))
        .linux(linux)
        .build()
}
