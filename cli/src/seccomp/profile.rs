//! Seccomp profiles as the OCI runtime specification has them (`linux.seccomp`, config-linux.md "Seccomp").

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Allowed.
pub const ALLOW: &str = "SCMP_ACT_ALLOW";
/// Refused with an error number.
pub const ERRNO: &str = "SCMP_ACT_ERRNO";
/// The list that both profiles are made of.
const LIST: &str = include_str!("profiles.toml");

/// A profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    /// What happens to a call that no entry names.
    pub default_action: String,
    /// The number with which it is refused; without it, EPERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// Which system calls the names are of.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// The entries.
    #[serde(default)]
    pub syscalls: Vec<Calls>,
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Calls {
    /// The calls.
    pub names: Vec<String>,
    /// What happens to them.
    pub action: String,
    /// The number with which they are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// For which arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Argument {
    /// Which argument, from 0.
    pub index: u32,
    /// What it is compared with.
    pub value: u64,
    /// Of a masked comparison, what has to be left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_two: Option<u64>,
    /// How.
    pub op: String,
}

/// The list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    default: Vec<Entry>,
    recorded: Vec<Entry>,
}

/// An entry of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// For the reader of the list.
    #[serde(rename = "why")]
    _why: String,
    names: Vec<String>,
    #[serde(default)]
    with: Vec<String>,
    without: Option<String>,
    argument: Option<Condition>,
    errno: Option<u32>,
}

/// A condition of the list: one of these values.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    index: u32,
    op: String,
    values: Vec<u64>,
    and: Option<u64>,
}

impl List {
    fn read() -> Result<Self, String> {
        // It is part of the program, and a test reads it.
        toml::from_str(LIST).map_err(|cause| format!("husk's own list of system calls is damaged: {cause}"))
    }
}

impl Entry {
    fn is_for(&self, capabilities: &BTreeSet<String>) -> bool {
        let wanted = self.with.is_empty() || self.with.iter().any(|name| capabilities.contains(name));
        wanted && self.without.as_ref().is_none_or(|name| !capabilities.contains(name))
    }

    /// Entries of a profile: of one list there is one for each value, because conditions of one entry all have to hold.
    fn calls(&self) -> Vec<Calls> {
        let entry = |args| Calls {
            names: self.names.clone(),
            action: if self.errno.is_some() { ERRNO } else { ALLOW }.to_owned(),
            errno_ret: self.errno,
            args,
        };
        let Some(condition) = &self.argument else { return vec![entry(Vec::new())] };
        let argument = |value: &u64| Argument {
            index: condition.index,
            value: *value,
            value_two: condition.and,
            op: condition.op.clone(),
        };
        condition.values.iter().map(|value| entry(vec![argument(value)])).collect()
    }
}

/// The default profile for a container with these capabilities. As containerd does it, for x86-64 with its 32-bit programs.
///
/// # Errors
/// The list is damaged.
pub fn default(capabilities: &BTreeSet<String>) -> Result<Profile, String> {
    let entries = List::read()?.default;
    let entries = entries.iter().filter(|entry| entry.is_for(capabilities));
    Ok(Profile {
        default_action: ERRNO.to_owned(),
        default_errno_ret: None,
        architectures: ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"].map(str::to_owned).to_vec(),
        syscalls: entries.flat_map(Entry::calls).collect(),
    })
}

/// The calls that every recorded profile allows beside what was seen.
///
/// # Errors
/// The list is damaged.
pub fn always() -> Result<BTreeSet<String>, String> {
    Ok(List::read()?.recorded.into_iter().flat_map(|entry| entry.names).collect())
}

impl Profile {
    /// A profile that allows these calls of these architectures and refuses all others.
    pub fn of(names: BTreeSet<String>, architectures: BTreeSet<String>) -> Self {
        let allowed =
            Calls { names: names.into_iter().collect(), action: ALLOW.to_owned(), errno_ret: None, args: Vec::new() };
        Self {
            default_action: ERRNO.to_owned(),
            default_errno_ret: None,
            architectures: architectures.into_iter().collect(),
            syscalls: vec![allowed],
        }
    }

    /// The calls that are allowed whatever their arguments are.
    pub fn allowed(&self) -> BTreeSet<String> {
        let entries = self.syscalls.iter().filter(|calls| calls.action == ALLOW && calls.args.is_empty());
        entries.flat_map(|calls| calls.names.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities;
    use std::str::FromStr;
    use syscalls::{x86, x86_64};

    fn with(extra: &[&str]) -> Profile {
        default(&capabilities::DEFAULT.iter().chain(extra).map(|name| (*name).to_owned()).collect()).unwrap()
    }

    #[test]
    fn every_name_is_a_system_call_and_stands_once() {
        // Some that the tables of today's kernel have no more, or never had on this architecture; libseccomp knows them.
        let gone =
            ["epoll_ctl_old", "epoll_wait_old", "lookup_dcookie", "umount", "recv", "send", "fstatat64", "stime"];
        let list = List::read().unwrap();
        let known = |name: &str| {
            x86_64::Sysno::from_str(name).is_ok() || x86::Sysno::from_str(name).is_ok() || gone.contains(&name)
        };
        for entry in list.default.iter().chain(&list.recorded) {
            for name in &entry.names {
                assert!(known(name), "{name}");
            }
        }
        let always: Vec<&String> =
            list.default.iter().filter(|entry| entry.with.is_empty()).flat_map(|entry| &entry.names).collect();
        let once: BTreeSet<_> = always.iter().collect();
        // `socket` has three entries.
        assert_eq!(once.len() + 2, always.len());
        let recorded: Vec<&String> = list.recorded.iter().flat_map(|entry| &entry.names).collect();
        assert_eq!(recorded.iter().collect::<BTreeSet<_>>().len(), recorded.len());
    }

    #[test]
    fn capabilities_change_the_default() {
        let profile = with(&[]);
        let allowed = profile.allowed();
        assert!(allowed.contains("read") && allowed.contains("chroot"));
        assert!(
            !["mount", "clone", "clone3", "bpf", "socket", "personality", "io_uring_setup", "keyctl"]
                .iter()
                .any(|name| allowed.contains(*name))
        );
        let of = |name: &str| -> Vec<&Calls> {
            profile.syscalls.iter().filter(|calls| calls.names.iter().any(|known| known == name)).collect()
        };
        let [clone] = of("clone")[..] else { panic!("{:?}", of("clone")) };
        let flags = u64::try_from(
            libc::CLONE_NEWNS
                | libc::CLONE_NEWCGROUP
                | libc::CLONE_NEWUTS
                | libc::CLONE_NEWIPC
                | libc::CLONE_NEWUSER
                | libc::CLONE_NEWPID
                | libc::CLONE_NEWNET,
        );
        assert_eq!((clone.args[0].value, clone.args[0].value_two), (flags.unwrap(), Some(0)));
        assert_eq!(of("clone3")[0].errno_ret, Some(u32::try_from(libc::ENOSYS).unwrap()));
        assert_eq!(of("personality").len(), 5);
        let family = |family: libc::c_int| {
            let family = u64::try_from(family).unwrap();
            of("socket").iter().any(|calls| match (calls.args[0].op.as_str(), calls.args[0].value) {
                ("SCMP_CMP_LT", value) => family < value,
                ("SCMP_CMP_EQ", value) => family == value,
                ("SCMP_CMP_GT", value) => family > value,
                other => panic!("{other:?}"),
            })
        };
        assert!([libc::AF_UNIX, libc::AF_INET6, libc::AF_NETLINK, libc::AF_NFC, libc::AF_XDP].into_iter().all(family));
        assert!(!family(libc::AF_VSOCK) && !family(libc::AF_ALG));

        let admin = with(&["CAP_SYS_ADMIN"]);
        let allowed = admin.allowed();
        assert!(["mount", "clone", "clone3", "unshare"].iter().all(|name| allowed.contains(*name)));
        assert!(admin.syscalls.iter().all(|calls| calls.errno_ret.is_none()));
        assert!(!default(&BTreeSet::new()).unwrap().allowed().contains("chroot"));
    }

    #[test]
    fn a_profile_is_the_specifications_json() {
        let profile = Profile::of(BTreeSet::from(["read".to_owned()]), BTreeSet::from(["SCMP_ARCH_X86_64".to_owned()]));
        let json = serde_json::to_string(&profile).unwrap();
        assert_eq!(
            json,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#
        );
        assert_eq!(serde_json::from_str::<Profile>(&json).unwrap(), profile);
    }
}
