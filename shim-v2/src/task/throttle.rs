//! Limits of a document that name a block device of the host (`linux.resources.blockIO.throttle*Device`, `io.max` of
//! `unified`). A guest has none of the host's devices: the VMM limits the files that come from them.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use husk_protocol::control::{Limit, LimitedFiles, LimitedShare, Rates};
use log::{info, warn};
use oci_spec::runtime::{LinuxResources, LinuxThrottleDevice};

use crate::host::block::{self, Device, Mounted};
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
}

/// A share of a container, and which of the host's files it has.
#[derive(Debug, Clone)]
pub struct Source {
    /// The share's name.
    pub share: String,
    /// The files.
    pub files: Files,
}

/// Files of the host's in a share.
#[derive(Debug, Clone)]
pub enum Files {
    /// Those of these directories, as one.
    Layers(Vec<PathBuf>),
    /// Those in one place.
    At {
        /// The device number of the file system.
        device: u64,
        /// The place.
        path: PathBuf,
        /// With what is mounted below.
        recursive: bool,
    },
    /// Those that are nobody's to limit.
    Nothing,
}

impl Files {
    /// Which of them come from a device; none: none of them.
    fn of(&self, device: Device, mounts: &[Mounted]) -> Option<LimitedFiles> {
        match self {
            Self::Nothing => None,
            Self::Layers(layers) => {
                let number = |layer: &PathBuf| Some((std::fs::metadata(layer).ok()?.dev(), layer.clone()));
                let mut layers = layers.iter().filter_map(number);
                // An overlay has numbers of its own.
                let is_one = layers.any(|(number, layer)| block::behind(number, &layer, mounts).contains(&device));
                is_one.then(|| LimitedFiles::AllBut(Vec::new()))
            }
            Self::At { device: number, path, recursive } => {
                let path = path.canonicalize().unwrap_or_else(|_| path.clone());
                let below =
                    mounts.iter().filter(|mount| *recursive && mount.point != path && mount.point.starts_with(&path));
                let (from, others): (Vec<_>, Vec<_>) = below
                    .map(|mount| (mount.number, block::behind(mount.number, &mount.point, mounts).contains(&device)))
                    .partition(|(_, comes)| *comes);
                let numbers = |of: Vec<(u64, bool)>| of.into_iter().map(|(number, _)| number).collect::<Vec<_>>();
                if block::behind(*number, &path, mounts).contains(&device) {
                    return Some(LimitedFiles::AllBut(numbers(others)));
                }
                (!from.is_empty()).then(|| LimitedFiles::Only(numbers(from)))
            }
        }
    }
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

/// Limits a container's files: those that come from a device have its rates together.
///
/// # Errors
/// The VMM's.
pub async fn apply(machine: &Machine, id: &str, sources: &[Source], throttles: &Throttles) -> Result<(), ControlError> {
    if throttles.is_empty() {
        return Ok(());
    }
    let mounts = block::mounts().unwrap_or_else(|cause| {
        warn!(container = id, stage = "host"; "what is mounted where is not known: {cause}");
        Vec::new()
    });
    for (device, rates) in throttles {
        let limited = sources.iter().filter_map(|source| Some((source, source.files.of(*device, &mounts)?)));
        let limited: Vec<_> = limited.collect();
        if limited.is_empty() {
            info!(container = id, stage = "host"; "none of its files come from the block device {device}, whose limits are kept that way");
            continue;
        }
        let name = device.to_string();
        machine.limit(Limit { owner: id.to_owned(), name: name.clone(), rates: *rates }).await?;
        for (source, files) in limited {
            let (limit, share) = ((id.to_owned(), name.clone()), source.share.clone());
            machine.limit_share(LimitedShare { limit, share, files }).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "throttle_tests.rs"]
mod tests;
