//! Limits of a document that name a block device of the host (`linux.resources.blockIO.throttle*Device`, `io.max` of
//! `unified`). A guest has none of the host's devices: the VMM limits the files that come from them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use husk_protocol::control::{Rates, ShareLimit};
use log::info;
use oci_spec::runtime::{LinuxResources, LinuxThrottleDevice};

use crate::host::block::{self, Device};
use crate::vm::{ControlError, Machine};

/// Rates by device.
pub type Throttles = BTreeMap<Device, Rates>;

/// Why a document's limits of devices are none.
#[derive(Debug, thiserror::Error)]
pub enum ThrottleError {
    /// A value.
    #[error("{field}: {why}")]
    Invalid {
        /// Which.
        field: String,
        /// What is wrong.
        why: String,
    },
    /// Where files come from.
    #[error("cannot see which device {} comes from: {cause}", path.display())]
    Files {
        /// The files.
        path: PathBuf,
        /// The kernel's answer.
        cause: std::io::Error,
    },
    /// The VMM.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// A share of a container, and where its files come from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The share's name.
    pub share: String,
    /// Directories and files of the host.
    pub paths: Vec<PathBuf>,
}

/// What the document limits, by device, added to what was limited before. A rate of zero is none.
///
/// # Errors
/// A device that is none, or a rate.
pub fn read(resources: &LinuxResources, before: &Throttles) -> Result<Throttles, ThrottleError> {
    let mut throttles = before.clone();
    if let Some(block_io) = resources.block_io() {
        type Of = fn(&mut Rates) -> &mut u64;
        let kinds: [(&str, &Option<Vec<LinuxThrottleDevice>>, Of); 4] = [
            ("throttleReadBpsDevice", block_io.throttle_read_bps_device(), |rates| &mut rates.read_bytes),
            ("throttleWriteBpsDevice", block_io.throttle_write_bps_device(), |rates| &mut rates.written_bytes),
            ("throttleReadIOPSDevice", block_io.throttle_read_iops_device(), |rates| &mut rates.reads),
            ("throttleWriteIOPSDevice", block_io.throttle_write_iops_device(), |rates| &mut rates.writes),
        ];
        for (name, devices, of) in kinds {
            for (index, throttle) in devices.iter().flatten().enumerate() {
                let field = || format!("linux.resources.blockIO.{name}[{index}]");
                let device = known(&format!("{}:{}", throttle.major(), throttle.minor()), field)?;
                *of(throttles.entry(device).or_default()) = throttle.rate();
            }
        }
    }
    let io_max = resources.unified().as_ref().and_then(|unified| unified.get("io.max"));
    for line in io_max.map_or("", String::as_str).lines().map(str::trim).filter(|line| !line.is_empty()) {
        let field = || format!("linux.resources.unified \"io.max\" {line:?}");
        let mut words = line.split_whitespace();
        let device = known(words.next().unwrap_or_default(), field)?;
        let rates = throttles.entry(device).or_default();
        for word in words {
            let invalid = |why: &str| ThrottleError::Invalid { field: field(), why: format!("{word:?} {why}") };
            let (key, value) = word.split_once('=').ok_or_else(|| invalid("is not KEY=RATE"))?;
            let rate = match value {
                "max" => 0,
                number => number
                    .parse()
                    .ok()
                    .filter(|rate| *rate > 0)
                    .ok_or_else(|| invalid("has no rate: a number greater than 0, in a second, or max"))?,
            };
            match key {
                "rbps" => rates.read_bytes = rate,
                "wbps" => rates.written_bytes = rate,
                "riops" => rates.reads = rate,
                "wiops" => rates.writes = rate,
                _ => return Err(invalid("has none of the keys rbps, wbps, riops and wiops")),
            }
        }
    }
    Ok(throttles)
}

/// The device of this number, which the host has.
fn known(number: &str, field: impl Fn() -> String) -> Result<Device, ThrottleError> {
    let device: Device = number
        .parse()
        .map_err(|cause: block::NoDevice| ThrottleError::Invalid { field: field(), why: cause.to_string() })?;
    if device.exists() {
        return Ok(device);
    }
    let why = format!("the host has no block device {device}: see /sys/dev/block");
    Err(ThrottleError::Invalid { field: field(), why })
}

/// Limits a container's files. Those of its shares that come from a device have its rates together.
///
/// # Errors
/// The host, or the VMM.
pub async fn apply(
    machine: &Machine,
    id: &str,
    sources: &[Source],
    throttles: &Throttles,
) -> Result<(), ThrottleError> {
    if throttles.is_empty() {
        return Ok(());
    }
    let mut shares: BTreeMap<Device, BTreeSet<&str>> = BTreeMap::new();
    for source in sources {
        for path in &source.paths {
            let devices = block::behind(path).map_err(|cause| ThrottleError::Files { path: path.clone(), cause })?;
            for device in devices {
                shares.entry(device).or_default().insert(&source.share);
            }
        }
    }
    for (device, rates) in throttles {
        match shares.get(device) {
            Some(shares) => {
                let shares = shares.iter().map(|share| (*share).to_owned()).collect();
                machine.limit_shares(ShareLimit { name: format!("{id} {device}"), shares, rates: *rates }).await?;
            }
            None => {
                info!(container = id, stage = "host"; "none of its files come from the block device {device}, whose limits are kept that way")
            }
        }
    }
    Ok(())
}

/// Lifts all limits: who is killed does not wait for them.
pub async fn lift(machine: &Machine, id: &str, throttles: &Throttles) -> Result<(), ControlError> {
    for device in throttles.keys() {
        let limit = ShareLimit { name: format!("{id} {device}"), shares: Vec::new(), rates: Rates::default() };
        machine.limit_shares(limit).await?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "throttle_tests.rs"]
mod tests;
