//! Limits of devices and files that differ from machine to machine: block I/O, huge pages, network, RDMA, and whatever files
//! a document names itself.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxBlockIo, LinuxHugepageLimit, LinuxResources, LinuxThrottleDevice};

use super::super::place::Place;
use super::super::plan::PlanError;
use super::limits::{Setting, cpu_set};

/// Refuses what cannot be had.
///
/// # Errors
/// The first such field.
pub(super) fn refuse(resources: &LinuxResources, place: Place) -> Result<(), PlanError> {
    let refused = |what, remedy| Err(PlanError::Refused { what, remedy });
    if let Some(network) = resources.network() {
        let remedy = ": cgroup v2 marks no traffic";
        if let Some(class) = network.class_id().filter(|class| *class != 0) {
            return refused(format!("linux.resources.network.classID {class}"), remedy);
        }
        if let Some(first) = network.priorities().iter().flatten().next() {
            let (name, priority) = (first.name(), first.priority());
            return refused(format!("linux.resources.network.priorities {name}={priority}"), remedy);
        }
    }
    match resources.rdma().iter().flatten().map(|(name, _)| name).min() {
        Some(name) if !place.is_host() => {
            refused(format!("linux.resources.rdma {name}"), ": the guest has no RDMA device")
        }
        _ => Ok(()),
    }
}

/// `rdma`: handles and objects of a device.
pub(super) fn rdma(resources: &LinuxResources, settings: &mut Vec<Setting>) {
    let mut devices: Vec<_> = resources.rdma().iter().flatten().collect();
    devices.sort_unstable_by_key(|(name, _)| name.as_str());
    for (name, limits) in devices {
        let values = [("hca_handle", limits.hca_handles()), ("hca_object", limits.hca_objects())];
        let values = values.into_iter().filter_map(|(key, value)| value.map(|value| format!(" {key}={value}")));
        let text: String = std::iter::once(name.clone()).chain(values).collect();
        settings.push(Setting::new(format!("linux.resources.rdma {name}"), "rdma.max", text));
    }
}

/// What a weight is good for in a guest.
const WITHOUT_DEVICE: &str = "weights of block I/O are set, and do nothing: the guest's files come from the host, and not from a block device whose time is shared out";
/// Files that share out the time of block devices, by other words.
const SHARES_OF_TIME: [&str; 2] = ["io.weight", "io.bfq.weight"];

/// Weights of version 1.
const WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

/// `blockIO`: the weight is the kernel's to keep; devices are the host's, of which a guest sees none: the rates of those hold for the files
/// that come from them, which is the VMM's (`shim-v2/src/task/throttle.rs`).
pub(super) fn block_io(
    block_io: &LinuxBlockIo,
    place: Place,
    settings: &mut Vec<Setting>,
    notices: &mut Vec<&'static str>,
) -> Result<(), PlanError> {
    if let Some(weight) = block_io.weight().filter(|weight| *weight != 0) {
        let field = format!("linux.resources.blockIO.weight {weight}");
        if !WEIGHTS.contains(&weight) {
            return Err(PlanError::Invalid { what: field, why: "has to be from 10 to 1000" });
        }
        // runc's formula: from 10..1000 to 1..10000.
        let weight = 1 + (u64::from(weight) - 10) * 9999 / 990;
        settings.push(Setting::new(field, "io.weight", weight.to_string()));
        if !place.is_host() {
            notices.push(WITHOUT_DEVICE);
        }
    }
    if block_io.leaf_weight().is_some_and(|weight| weight != 0) {
        notices.push("linux.resources.blockIO.leafWeight does nothing: cgroup v2 has none");
    }
    let refused = |what| {
        let remedy = ": it names a block device of the host, and the guest's files do not come from one";
        Err(PlanError::Refused { what, remedy })
    };
    for device in block_io.weight_device().iter().flatten().filter(|_| place.is_host()) {
        let Some(weight) = device.weight().filter(|weight| *weight != 0) else { continue };
        let device = format!("{}:{}", device.major(), device.minor());
        let field = format!("linux.resources.blockIO.weightDevice {device} {weight}");
        // By BFQ, which takes the weights as they are.
        settings.push(Setting::new(field, "io.bfq.weight", format!("{device} {weight}")));
    }
    if let Some(device) = block_io.weight_device().iter().flatten().next().filter(|_| !place.is_host()) {
        return refused(format!("linux.resources.blockIO.weightDevice {}:{}", device.major(), device.minor()));
    }
    let throttles: [(&str, &str, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        ("throttleReadBpsDevice", "rbps", block_io.throttle_read_bps_device()),
        ("throttleWriteBpsDevice", "wbps", block_io.throttle_write_bps_device()),
        ("throttleReadIOPSDevice", "riops", block_io.throttle_read_iops_device()),
        ("throttleWriteIOPSDevice", "wiops", block_io.throttle_write_iops_device()),
    ];
    for (name, key, devices) in throttles {
        for throttle in devices.iter().flatten().filter(|_| place.is_host()) {
            let device = format!("{}:{}", throttle.major(), throttle.minor());
            let rate = if throttle.rate() == 0 { "max".to_owned() } else { throttle.rate().to_string() };
            let field = format!("linux.resources.blockIO.{name} {device} {rate}");
            settings.push(Setting::new(field, "io.max", format!("{device} {key}={rate}")));
        }
    }
    Ok(())
}

/// `hugepageLimits`: what is in use, and what is reserved, which is all that can be in use later.
pub(super) fn huge_pages(limit: &LinuxHugepageLimit, settings: &mut Vec<Setting>) -> Result<(), PlanError> {
    let (size, limit) = (limit.page_size(), limit.limit());
    let field = format!("linux.resources.hugepageLimits {size} {limit}");
    let digits = ["KB", "MB", "GB"].into_iter().find_map(|unit| size.strip_suffix(unit));
    if !digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(PlanError::Invalid { what: field, why: "its pageSize is no size of pages (64KB, 2MB, 1GB)" });
    }
    if limit < 0 {
        return Err(PlanError::Invalid { what: field, why: "is negative" });
    }
    // Kubernetes names all sizes of the host with zero. One that the guest does not have is not to be had.
    let mut set = |file: String, optional| {
        let setting = Setting::new(field.clone(), file, limit.to_string());
        settings.push(Setting { optional, ..setting });
    };
    set(format!("hugetlb.{size}.max"), limit == 0);
    set(format!("hugetlb.{size}.rsvd.max"), true);
    Ok(())
}

/// Files of `cgroup.*` that are limits. The others are what a cgroup does.
const CORE: [&str; 3] = ["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"];

/// `unified`: files of the cgroup by their names, in the order of the names.
pub(super) fn unified(
    unified: Option<&HashMap<String, String>>,
    place: Place,
    settings: &mut Vec<Setting>,
    notices: &mut Vec<&'static str>,
) -> Result<(), PlanError> {
    let mut files: Vec<_> = unified.into_iter().flatten().collect();
    files.sort_unstable();
    for (file, value) in files {
        let field = format!("linux.resources.unified {file:?} {value:?}");
        let invalid = |why| Err(PlanError::Invalid { what: field.clone(), why });
        if file.contains('/') || !file.contains('.') || file.starts_with('.') || file.contains('\0') {
            return invalid("its name has to be CONTROLLER.PARAMETER, a file of a cgroup");
        }
        if value.trim().is_empty() {
            return invalid("it has no value");
        }
        if file.starts_with("cgroup.") && !CORE.contains(&file.as_str()) {
            let remedy = ": it is no limit, but something to do";
            return Err(PlanError::Refused { what: field, remedy });
        }
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let names_device = |line: &str| {
            let first = line.split_whitespace().next().unwrap_or_default();
            first.split_once(':').is_some_and(|(major, minor)| is_number(major) && is_number(minor))
        };
        if !place.is_host() && file == "io.max" {
            // As the rates of `blockIO`.
            continue;
        }
        if !place.is_host() && file.starts_with("io.") && value.lines().any(names_device) {
            let remedy = ": it names a block device of the host, and the guest's files do not come from one";
            return Err(PlanError::Refused { what: field, remedy });
        }
        if !place.is_host() && SHARES_OF_TIME.contains(&file.as_str()) && !notices.contains(&WITHOUT_DEVICE) {
            notices.push(WITHOUT_DEVICE);
        }
        // These name the host's, in whatever words.
        match file.as_str() {
            "cpuset.cpus" => settings.extend(cpu_set(field, "cpuset.cpus", value, place)?),
            "cpuset.mems" => settings.extend(cpu_set(field, "cpuset.mems", value, place)?),
            _ => settings.push(Setting::new(field, file.clone(), value.as_str())),
        }
    }
    Ok(())
}
