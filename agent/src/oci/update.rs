//! `update`: new limits for a container.

use std::fs;
use std::io::Read;
use std::path::Path;

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::args::{Flag, Words, value};
use super::error::{OciError, on};
use super::state::{Status, Stored};
use crate::container::{Limits, Place};

/// Its flags.
pub(super) const FLAGS: &[Flag] = &[
    value(&["resources", "r"]),
    value(&["blkio-weight"]),
    value(&["cpu-period"]),
    value(&["cpu-quota"]),
    value(&["cpu-burst"]),
    value(&["cpu-share"]),
    value(&["cpu-rt-period"]),
    value(&["cpu-rt-runtime"]),
    value(&["cpuset-cpus"]),
    value(&["cpuset-mems"]),
    value(&["cpu-idle"]),
    value(&["memory"]),
    value(&["memory-reservation"]),
    value(&["memory-swap"]),
    value(&["kernel-memory"]),
    value(&["kernel-memory-tcp"]),
    value(&["pids-limit"]),
];

/// Where a flag's value is in the document, and whether it is a size.
const FIELDS: [(&str, [&str; 2], Kind); 15] = [
    ("blkio-weight", ["blockIO", "weight"], Kind::Number),
    ("cpu-period", ["cpu", "period"], Kind::Number),
    ("cpu-quota", ["cpu", "quota"], Kind::Number),
    ("cpu-burst", ["cpu", "burst"], Kind::Number),
    ("cpu-share", ["cpu", "shares"], Kind::Number),
    ("cpu-rt-period", ["cpu", "realtimePeriod"], Kind::Number),
    ("cpu-rt-runtime", ["cpu", "realtimeRuntime"], Kind::Number),
    ("cpuset-cpus", ["cpu", "cpus"], Kind::Text),
    ("cpuset-mems", ["cpu", "mems"], Kind::Text),
    ("cpu-idle", ["cpu", "idle"], Kind::Number),
    ("memory", ["memory", "limit"], Kind::Size),
    ("memory-reservation", ["memory", "reservation"], Kind::Size),
    ("memory-swap", ["memory", "swap"], Kind::Size),
    ("kernel-memory", ["memory", "kernel"], Kind::Size),
    ("pids-limit", ["pids", "limit"], Kind::Number),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    Size,
    Text,
}

/// Changes the limits, all of them or none.
pub(super) fn update(root: &Path, words: &Words) -> Result<(), OciError> {
    let container = Stored::open(root, words.only("update")?)?;
    if container.status() == Status::Stopped {
        return Err(OciError::NotRunning);
    }
    let mut resources = match words.value("resources") {
        None => from_flags(words)?,
        Some(path) => read(path)?,
    };
    let there = container.document.linux().as_ref().and_then(|linux| linux.resources().clone());
    let rules = |resources: &LinuxResources| resources.devices().clone().unwrap_or_default();
    if rules(&resources) == there.as_ref().map(rules).unwrap_or_default() {
        // Kubernetes repeats all that there is.
        resources.set_devices(None);
    } else if !rules(&resources).is_empty() {
        return Err("update: linux.resources.devices: rules for devices are given once, at the creation".into());
    }
    let limits = Limits::of(&resources, Place::Host)?;
    for notice in limits.notices() {
        log::warn!("{notice}");
    }
    Ok(container.cgroup().change(&limits)?)
}

fn read(path: &str) -> Result<LinuxResources, OciError> {
    let text = if path == "-" {
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text).map_err(on("read", Path::new("/dev/stdin")))?;
        text
    } else {
        fs::read(path).map_err(on("read", Path::new(path)))?
    };
    serde_json::from_slice(&text).map_err(|cause| OciError::Document { path: path.into(), cause })
}

fn from_flags(words: &Words) -> Result<LinuxResources, OciError> {
    let mut document = Map::new();
    for (flag, [part, field], kind) in FIELDS {
        let Some(text) = words.value(flag) else { continue };
        let value = match kind {
            Kind::Text => Some(json!(text)),
            Kind::Number => text.parse::<i64>().ok().map(|number| json!(number)),
            Kind::Size => size(text).map(|number| json!(number)),
        };
        let value = value.ok_or_else(|| format!("invalid value for {flag}: {text:?}"))?;
        if let Some(part) = document.entry(part).or_insert_with(|| json!({})).as_object_mut() {
            part.insert(field.to_owned(), value);
        }
    }
    if document.is_empty() {
        return Err("update: there is nothing to change: give --resources, or a limit".into());
    }
    serde_json::from_slice(Value::Object(document).to_string().as_bytes())
        .map_err(|cause| format!("update: {cause}").into())
}

/// Bytes: a number, with k, m, g or t for powers of 1024 (`go-units`).
fn size(text: &str) -> Option<i64> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_suffix("ib").or_else(|| text.strip_suffix('b')).unwrap_or(&text);
    let shift = match text.chars().last()? {
        'k' => 10,
        'm' => 20,
        'g' => 30,
        't' => 40,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { text.get(..text.len() - 1)? };
    digits.parse::<i64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::args::Flags;

    #[test]
    fn flags_are_fields_of_the_document() {
        let words = |words: &[&str]| {
            Words::parse(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>(), FLAGS, Flags::Anywhere)
                .unwrap()
        };
        let of = |flags: &[&str]| from_flags(&words(flags));
        let resources = of(&["id", "--memory", "64m", "--pids-limit=7", "--cpuset-cpus", "0-1"]).unwrap();
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(64 << 20));
        assert_eq!(resources.pids().as_ref().unwrap().limit(), 7);
        assert_eq!(resources.cpu().as_ref().unwrap().cpus().as_deref(), Some("0-1"));
        assert!(of(&["id"]).unwrap_err().to_string().contains("nothing to change"));
        assert!(of(&["--memory", "much"]).unwrap_err().to_string().contains("memory"));
        assert!(of(&["--pids-limit", "many"]).is_err());
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("4096", 4096), ("64M", 64 << 20), ("1gb", 1 << 30), ("2KiB", 2048), ("-1", -1)] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        assert_eq!((size(""), size("m"), size("99999999999t")), (None, None, None));
    }
}
