//! What a document may ask of a runtime (runtime-spec, features.md). What is not in it is not known to work.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    ApparmorBuilder, Arch, CgroupBuilder, Features, FeaturesBuilder, IDMapBuilder, IntelRdtBuilder,
    LinuxFeatureBuilder, LinuxNamespaceType, LinuxSeccompAction, MountExtensionsBuilder, SeccompBuilder,
    SelinuxBuilder,
};

use crate::document::{CAPABILITIES, MOUNT_OPTIONS};

/// In what runtimes of the same container code differ.
#[derive(Debug, Clone, Copy)]
pub struct Can {
    /// Whether mounts can have mapped ids.
    pub mapped_mounts: bool,
    /// Whether a path for systemd is systemd's to make.
    pub systemd: bool,
}

/// Hooks that are run, on the host or in the guest.
const HOOKS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
/// Namespaces that a container can have of its own.
const NAMESPACES: [LinuxNamespaceType; 8] = [
    LinuxNamespaceType::Cgroup,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Network,
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Time,
    LinuxNamespaceType::User,
    LinuxNamespaceType::Uts,
];
/// What a system call can end in: all but SCMP_ACT_NOTIFY, which asks a program of the host.
const ACTIONS: [LinuxSeccompAction; 8] = [
    LinuxSeccompAction::ScmpActKill,
    LinuxSeccompAction::ScmpActKillProcess,
    LinuxSeccompAction::ScmpActKillThread,
    LinuxSeccompAction::ScmpActTrap,
    LinuxSeccompAction::ScmpActErrno,
    LinuxSeccompAction::ScmpActTrace,
    LinuxSeccompAction::ScmpActLog,
    LinuxSeccompAction::ScmpActAllow,
];
const OPERATORS: [&str; 7] =
    ["SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"];
/// Kinds of programs whose calls a filter of an x86-64 kernel can have rules for; which ones run is the kernel's to say.
const ARCHITECTURES: [Arch; 3] = [Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32];
/// How a filter is installed.
const FILTER_FLAGS: [&str; 3] =
    ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"];
/// Known, and nothing happens: it is about who waits for the answer of SCMP_ACT_NOTIFY.
const NOTHING: &str = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";

/// The features document.
///
/// # Errors
/// None: the builders want nothing more.
pub fn features(can: &Can) -> Result<Features, OciSpecError> {
    let cgroup = CgroupBuilder::default().v1(false).v2(true).systemd(can.systemd).systemd_user(false).rdma(false);
    let idmap = IDMapBuilder::default().enabled(can.mapped_mounts).build()?;
    let strings = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let seccomp = SeccompBuilder::default()
        .enabled(true)
        .actions(ACTIONS)
        .operators(strings(&OPERATORS))
        .archs(ARCHITECTURES)
        .known_flags(strings(&[&FILTER_FLAGS[..], &[NOTHING]].concat()))
        .supported_flags(strings(&FILTER_FLAGS));
    let linux = LinuxFeatureBuilder::default()
        .namespaces(NAMESPACES)
        .capabilities(CAPABILITIES.map(str::to_owned))
        .cgroup(cgroup.build()?)
        .seccomp(seccomp.build()?)
        .apparmor(ApparmorBuilder::default().enabled(false).build()?)
        .selinux(SelinuxBuilder::default().enabled(false).build()?)
        .intel_rdt(IntelRdtBuilder::default().enabled(false).build()?)
        .mount_extensions(MountExtensionsBuilder::default().idmap(idmap).build()?)
        .build()?;
    // Mapped ids are options too.
    let options = MOUNT_OPTIONS.iter().filter(|option| can.mapped_mounts || !option.ends_with("idmap"));
    FeaturesBuilder::default()
        .oci_version_min("1.0.0")
        .oci_version_max("1.2.1")
        .hooks(strings(&HOOKS))
        .mount_options(strings(&options.copied().collect::<Vec<_>>()))
        .linux(linux)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Read by programs that know the specification's words alone.
    #[test]
    fn words_are_the_specifications() {
        let told = features(&Can { mapped_mounts: false, systemd: true }).unwrap();
        let told = serde_json::to_value(&told).unwrap();
        assert_eq!(told["linux"]["namespaces"][7], "uts");
        let seccomp = &told["linux"]["seccomp"];
        assert_eq!(seccomp["actions"][1], "SCMP_ACT_KILL_PROCESS");
        assert_eq!(seccomp["archs"], serde_json::json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]));
        assert_eq!(seccomp["supportedFlags"].as_array().unwrap(), &seccomp["knownFlags"].as_array().unwrap()[..3]);
        assert_eq!(told["linux"]["cgroup"]["systemd"], true);
        let options = told["mountOptions"].as_array().unwrap();
        assert!(options.contains(&"rro".into()) && !options.contains(&"idmap".into()), "{told}");
    }
}
