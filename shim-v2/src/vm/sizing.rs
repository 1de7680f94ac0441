//! How large a pod's machine is.

use husk_protocol::cpus;
use oci_spec::runtime::Spec;

use crate::config;

/// Most CPUs of a machine (the VMM's limit).
const MOST_CPUS: u64 = 32;
/// The largest limit that cgroup v1 knows (whole pages), which means none.
const UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;
/// Memory of a machine is a multiple of this, in MiB.
const STEP_MIB: u64 = 2;

/// Why a machine of this size cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// More memory than there is.
    #[error("the machine would get {wanted_mib} MiB of memory ({from}), and this host has {host_mib} MiB")]
    Memory {
        /// What was asked for.
        wanted_mib: u64,
        /// By whom.
        from: &'static str,
        /// What there is.
        host_mib: u64,
    },
}

/// What the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// CPUs that this process may use.
    pub cpus: usize,
    /// RAM in MiB.
    pub memory_mib: u64,
}

impl Host {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        let info = rustix::system::sysinfo();
        // A product of two of the kernel's words, which is RAM that exists.
        let bytes = u128::from(info.totalram) * u128::from(info.mem_unit);
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: u64::try_from(bytes >> 20).unwrap_or(u64::MAX),
        }
    }
}

/// Memory and CPUs of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Guest RAM in MiB.
    pub memory_mib: u32,
    /// vCPUs.
    pub vcpus: u8,
}

impl Size {
    /// For a lone container: its memory limit and the guest's overhead; its CPU quota rounded up and the members of its set of
    /// CPUs, the fewer of them (but not more than the host has: more would only wait for each other); where there is no limit,
    /// the configured size.
    ///
    /// # Errors
    /// More memory than the host has: such a guest dies when it uses it, or takes the host with it.
    pub fn of_container(spec: &Spec, config: &config::Vm, host: Host) -> Result<Self, SizeError> {
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let limit = resources.and_then(|resources| resources.memory().as_ref()).and_then(|memory| memory.limit());
        let limit = limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| (1..UNLIMITED).contains(limit));
        let (wanted_mib, from) = match limit {
            None => (u64::from(config.memory_mib), "vm.memory_mib"),
            Some(bytes) => {
                let mib = bytes.div_ceil(1 << 20).saturating_add(config.overhead_mib.into());
                (mib.checked_next_multiple_of(STEP_MIB).unwrap_or(u64::MAX), "its memory limit and vm.overhead_mib")
            }
        };
        let refused = SizeError::Memory { wanted_mib, from, host_mib: host.memory_mib };
        let memory_mib = u32::try_from(wanted_mib).ok().filter(|_| wanted_mib <= host.memory_mib).ok_or(refused)?;
        let cpu = resources.and_then(|resources| resources.cpu().as_ref());
        let quota = cpu.and_then(|cpu| cpu.quota()).and_then(|quota| u64::try_from(quota).ok()).filter(|q| *q > 0);
        let period = cpu.and_then(|cpu| cpu.period()).filter(|period| *period > 0).unwrap_or(100_000);
        let most = MOST_CPUS.min(u64::try_from(host.cpus).unwrap_or(MOST_CPUS)).max(1);
        let quota = quota.map(|quota| quota.div_ceil(period));
        // What is no list is refused by the agent, by its field.
        let set = cpu.and_then(|cpu| cpu.cpus().as_deref()).and_then(|list| cpus::members(list).ok());
        let set = set.map(u64::from).filter(|members| *members > 0);
        let limit = quota.into_iter().chain(set).min();
        let vcpus = limit.map_or(u64::from(config.vcpus), |limit| limit.clamp(1, most));
        Ok(Self { memory_mib, vcpus: u8::try_from(vcpus).unwrap_or(1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY_MIB: u64 = 8192;

    fn try_size(resources: &str, cpus: usize) -> Result<Size, SizeError> {
        let text = format!(r#"{{"ociVersion": "1.0.2", "linux": {{"resources": {resources}}}}}"#);
        let spec: Spec = serde_json::from_str(&text).unwrap();
        Size::of_container(&spec, &config::Vm::default(), Host { cpus, memory_mib: MEMORY_MIB })
    }

    fn size(resources: &str, cpus: usize) -> (u32, u8) {
        let size = try_size(resources, cpus).unwrap();
        (size.memory_mib, size.vcpus)
    }

    #[test]
    fn limits_size_the_machine() {
        assert_eq!(size("{}", 8), (512, 1));
        assert_eq!(size(r#"{"memory": {"limit": 134217728}}"#, 8), (192, 1));
        assert_eq!(size(r#"{"memory": {"limit": 134217729}}"#, 8), (194, 1));
        assert_eq!(size(r#"{"cpu": {"quota": 250000, "period": 100000}}"#, 8), (512, 3));
        assert_eq!(size(r#"{"cpu": {"quota": 250000, "period": 100000}}"#, 2), (512, 2));
        assert_eq!(size(r#"{"cpu": {"quota": 50000}}"#, 8), (512, 1));
    }

    #[test]
    fn a_set_of_cpus_is_as_many_of_the_machine() {
        assert_eq!(size(r#"{"cpu": {"cpus": "4-6"}}"#, 8).1, 3);
        assert_eq!(size(r#"{"cpu": {"cpus": "0-63"}}"#, 8).1, 8);
        assert_eq!(size(r#"{"cpu": {"cpus": "1,3", "quota": 400000}}"#, 8).1, 2);
        assert_eq!(size(r#"{"cpu": {"cpus": "0-5", "quota": 150000}}"#, 8).1, 2);
        assert_eq!((size(r#"{"cpu": {"cpus": ""}}"#, 8).1, size(r#"{"cpu": {"cpus": "0-"}}"#, 8).1), (1, 1));
    }

    #[test]
    fn the_configured_cpus_are_taken_as_they_are() {
        let spec: Spec = serde_json::from_str(r#"{"ociVersion": "1.0.2"}"#).unwrap();
        let config = config::Vm { vcpus: 4, ..config::Vm::default() };
        let host = Host { cpus: 1, memory_mib: MEMORY_MIB };
        assert_eq!(Size::of_container(&spec, &config, host).unwrap().vcpus, 4);
    }

    #[test]
    fn no_limit_is_said_in_more_than_one_way() {
        assert_eq!(size(r#"{"memory": {"limit": -1}, "cpu": {"quota": -1, "period": 0}}"#, 8), (512, 1));
        assert_eq!(size(r#"{"memory": {"limit": 0}, "cpu": {"quota": 0}}"#, 8), (512, 1));
        assert_eq!(size(r#"{"memory": {"limit": 9223372036854775807}}"#, 8), (512, 1));
        assert_eq!(size(r#"{"memory": {"limit": 9223372036854771712}}"#, 8), (512, 1));
    }

    #[test]
    fn more_memory_than_the_host_has_is_refused() {
        // 8 GiB with the overhead, and 1 TiB.
        assert_eq!(size(r#"{"memory": {"limit": 8522825728}}"#, 8).0, 8192);
        for limit in ["8522825729", "1099511627776", "1152921504606846976"] {
            let cause = try_size(&format!(r#"{{"memory": {{"limit": {limit}}}}}"#), 8).unwrap_err().to_string();
            assert!(cause.contains("this host has 8192 MiB"), "{cause}");
        }
        let spec: Spec = serde_json::from_str(r#"{"ociVersion": "1.0.2"}"#).unwrap();
        let config = config::Vm { memory_mib: u32::MAX, ..config::Vm::default() };
        let host = Host { cpus: 1, memory_mib: MEMORY_MIB };
        let cause = Size::of_container(&spec, &config, host).unwrap_err().to_string();
        assert!(cause.contains("vm.memory_mib"), "{cause}");
    }

    #[test]
    fn this_host_has_something() {
        let host = Host::here();
        assert!(host.cpus > 0 && host.memory_mib > 64, "{host:?}");
    }
}
