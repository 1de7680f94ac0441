//! What a document may ask of a runtime (runtime-spec, features.md). What is not in it is not known to work.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    ApparmorBuilder, CgroupBuilder, Features, FeaturesBuilder, IDMapBuilder, IntelRdtBuilder, LinuxFeatureBuilder,
    LinuxNamespaceType, MountExtensionsBuilder, SelinuxBuilder,
};

use crate::document::{CAPABILITIES, MOUNT_OPTIONS};

/// In what runtimes of the same container code differ.
#[derive(Debug, Clone, Copy)]
pub struct Can<'a> {
    /// Hooks that are run, wherever.
    pub hooks: &'a [&'a str],
    /// Namespaces that a container can have of its own.
    pub namespaces: &'a [LinuxNamespaceType],
    /// Whether mounts can have mapped ids.
    pub mapped_mounts: bool,
    /// Whether a path for systemd is systemd's to make.
    pub systemd: bool,
}

/// The features document.
///
/// # Errors
/// None: the builders want nothing more.
pub fn features(can: &Can<'_>) -> Result<Features, OciSpecError> {
    let cgroup = CgroupBuilder::default().v1(false).v2(true).systemd(can.systemd).systemd_user(false).rdma(false);
    let idmap = IDMapBuilder::default().enabled(can.mapped_mounts).build()?;
    let linux = LinuxFeatureBuilder::default()
        .namespaces(can.namespaces)
        .capabilities(CAPABILITIES.map(str::to_owned))
        .cgroup(cgroup.build()?)
        .apparmor(ApparmorBuilder::default().enabled(false).build()?)
        .selinux(SelinuxBuilder::default().enabled(false).build()?)
        .intel_rdt(IntelRdtBuilder::default().enabled(false).build()?)
        .mount_extensions(MountExtensionsBuilder::default().idmap(idmap).build()?)
        .build()?;
    let strings = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    // Mapped ids are options too.
    let options = MOUNT_OPTIONS.iter().filter(|option| can.mapped_mounts || !option.ends_with("idmap"));
    FeaturesBuilder::default()
        .oci_version_min("1.0.0")
        .oci_version_max("1.2.1")
        .hooks(strings(can.hooks))
        .mount_options(strings(&options.copied().collect::<Vec<_>>()))
        .linux(linux)
        .build()
}
