//! What the OCI document asks for of one process, a container's init or an exec: checked before anything is made.

use std::collections::HashSet;

use husk_protocol::document::CAPABILITIES;
use oci_spec::runtime::{Capability, PosixRlimitType, Process};
use rustix::thread::CapabilitySet;

use super::plan::PlanError;
use super::scheduling::Scheduling;

/// The five sets of a process's capabilities.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capabilities {
    pub(super) bounding: CapabilitySet,
    pub(super) effective: CapabilitySet,
    pub(super) inheritable: CapabilitySet,
    pub(super) permitted: CapabilitySet,
    pub(super) ambient: CapabilitySet,
}

/// A limit of setrlimit(2).
pub(super) struct Limit {
    /// As the document has it.
    pub(super) name: PosixRlimitType,
    pub(super) resource: libc::__rlimit_resource_t,
    pub(super) soft: u64,
    pub(super) hard: u64,
}

/// A checked `process`.
#[derive(Debug)]
pub struct ProcessPlan {
    process: Process,
    args: Vec<String>,
    scheduling: Scheduling,
}

impl ProcessPlan {
    /// Checks a `process`.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn new(process: Process) -> Result<Self, PlanError> {
        let args = process.args().clone().filter(|args| !args.is_empty()).ok_or(PlanError::Missing("process.args"))?;
        if !process.cwd().is_absolute() {
            let what = format!("process.cwd {:?}", process.cwd());
            return Err(PlanError::Invalid { what, why: "is not an absolute path" });
        }
        let env = process.env().as_deref().unwrap_or_default();
        for (field, strings) in [("args", &*args), ("env", env)] {
            if let Some(number) = strings.iter().position(|text| text.contains('\0')) {
                return Err(PlanError::Invalid {
                    what: format!("process.{field}[{number}]"),
                    why: "contains a zero byte",
                });
            }
        }
        if let Some(size) = process
            .console_size()
            .filter(|size| process.terminal() == Some(true) && size.width().max(size.height()) > u16::MAX.into())
        {
            let what = format!("process.consoleSize {} x {}", size.width(), size.height());
            return Err(PlanError::Invalid { what, why: "a terminal has at most 65535 columns and rows" });
        }
        let scheduling = Scheduling::of(&process)?;
        Ok(Self { process, args, scheduling })
    }

    /// What is accepted and not done: for the log.
    pub(super) fn notices(&self) -> impl Iterator<Item = &'static str> {
        let set = |label: &Option<String>| label.as_ref().is_some_and(|label| !label.is_empty());
        let labelled = set(self.process.apparmor_profile()) || set(self.process.selinux_label());
        labelled
            .then_some("AppArmor and SELinux do not exist in the guest: profile and label are not applied")
            .into_iter()
    }

    /// Whether a limit is there twice, as clients make it that add theirs to a document's (nerdctl's `--ulimit`, given twice). The last one
    /// counts, as with runc, though the specification wants an error.
    pub(super) fn has_limits_twice(&self) -> bool {
        let limits = self.process.rlimits().as_deref().unwrap_or_default();
        (1..limits.len()).any(|number| limits[..number].iter().any(|limit| limit.typ() == limits[number].typ()))
    }

    /// The document's part.
    pub(super) fn process(&self) -> &Process {
        &self.process
    }

    /// When and where it runs.
    pub(super) fn scheduling(&self) -> &Scheduling {
        &self.scheduling
    }

    /// The program's arguments, of which there is at least its name.
    pub(super) fn args(&self) -> &[String] {
        &self.args
    }

    /// Whether its streams are a terminal.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        self.process.terminal() == Some(true)
    }

    /// The terminal's columns and rows at its start.
    pub(super) fn console_size(&self) -> Option<(u16, u16)> {
        let size = self.process.console_size()?;
        Some((u16::try_from(size.width()).ok()?, u16::try_from(size.height()).ok()?))
    }

    pub(super) fn limits(&self) -> impl Iterator<Item = Limit> {
        let limits = self.process.rlimits().iter().flatten();
        limits.map(|limit| Limit {
            name: limit.typ(),
            resource: resource(limit.typ()),
            soft: limit.soft(),
            hard: limit.hard(),
        })
    }

    /// The capabilities, if the document has any; else none are given.
    pub(super) fn capabilities(&self) -> Capabilities {
        let sets = self.process.capabilities().clone().unwrap_or_default();
        let set = |names: &Option<HashSet<Capability>>| {
            names.iter().flatten().fold(CapabilitySet::empty(), |set, name| set | capability(*name))
        };
        Capabilities {
            bounding: set(sets.bounding()),
            effective: set(sets.effective()),
            inheritable: set(sets.inheritable()),
            permitted: set(sets.permitted()),
            ambient: set(sets.ambient()),
        }
    }
}

fn resource(kind: PosixRlimitType) -> libc::__rlimit_resource_t {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// All that the bounding set can hold.
pub(super) fn all_capabilities() -> impl Iterator<Item = CapabilitySet> {
    (0..CAPABILITIES.len()).map(|number| CapabilitySet::from_bits_retain(1 << number))
}

fn capability(capability: Capability) -> CapabilitySet {
    let name = capability.to_string();
    let number = CAPABILITIES.iter().position(|known| known.strip_prefix("CAP_") == Some(&*name));
    number.map_or(CapabilitySet::empty(), |number| CapabilitySet::from_bits_retain(1 << number))
}
