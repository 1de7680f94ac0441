//! How large a pod's machine is.

use oci_spec::runtime::Spec;

use crate::config;

/// Most CPUs of a machine (the VMM's limit).
const MOST_CPUS: u64 = 32;
/// Memory of a machine is a multiple of this, in MiB.
const STEP_MIB: u64 = 2;

/// Memory and CPUs of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Guest RAM in MiB.
    pub memory_mib: u32,
    /// vCPUs.
    pub vcpus: u8,
}

impl Size {
    /// For a lone container: its memory limit and the guest's overhead, its CPU quota rounded up (but not to more than
    /// the host has: more would only wait for each other); where there is no limit, the configured size.
    #[must_use]
    pub fn of_container(spec: &Spec, config: &config::Vm, host_cpus: usize) -> Self {
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let limit = resources.and_then(|resources| resources.memory().as_ref()).and_then(|memory| memory.limit());
        let memory_mib = match limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0) {
            None => config.memory_mib,
            Some(bytes) => {
                let mib = bytes.div_ceil(1 << 20).saturating_add(config.overhead_mib.into());
                let mib = mib.checked_next_multiple_of(STEP_MIB).unwrap_or(u64::MAX);
                // The VMM refuses what cannot be, and says so.
                u32::try_from(mib).unwrap_or(u32::MAX)
            }
        };
        let cpu = resources.and_then(|resources| resources.cpu().as_ref());
        let quota = cpu.and_then(|cpu| cpu.quota()).and_then(|quota| u64::try_from(quota).ok()).filter(|q| *q > 0);
        let period = cpu.and_then(|cpu| cpu.period()).filter(|period| *period > 0).unwrap_or(100_000);
        let most = MOST_CPUS.min(u64::try_from(host_cpus).unwrap_or(MOST_CPUS)).max(1);
        let vcpus = quota.map_or(u64::from(config.vcpus), |quota| quota.div_ceil(period).clamp(1, most));
        Self { memory_mib, vcpus: u8::try_from(vcpus).unwrap_or(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(resources: &str, host_cpus: usize) -> (u32, u8) {
        let text = format!(r#"{{"ociVersion": "1.0.2", "linux": {{"resources": {resources}}}}}"#);
        let spec: Spec = serde_json::from_str(&text).unwrap();
        let size = Size::of_container(&spec, &config::Vm::default(), host_cpus);
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
    fn the_configured_cpus_are_taken_as_they_are() {
        let spec: Spec = serde_json::from_str(r#"{"ociVersion": "1.0.2"}"#).unwrap();
        let config = config::Vm { vcpus: 4, ..config::Vm::default() };
        assert_eq!(Size::of_container(&spec, &config, 1).vcpus, 4);
    }

    #[test]
    fn no_limit_is_said_in_more_than_one_way() {
        assert_eq!(size(r#"{"memory": {"limit": -1}, "cpu": {"quota": -1, "period": 0}}"#, 8), (512, 1));
        assert_eq!(size(r#"{"memory": {"limit": 0}, "cpu": {"quota": 0}}"#, 8), (512, 1));
        assert_eq!(size(r#"{"memory": {"limit": 9223372036854775807}}"#, 8).0, u32::MAX, "refused by the VMM");
    }
}
