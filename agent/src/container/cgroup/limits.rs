//! `linux.resources` of the OCI document as files of a cgroup of version 2 (Documentation/admin-guide/cgroup-v2.rst).
//!
//! The document speaks of version 1. Values are translated as runc translates them; what version 2 does not have is said or
//! refused. Everything is checked before anything is written, by the document's name of the field.

use std::borrow::Cow;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use husk_protocol::cpus;
use log::warn;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::super::place::Place;
use super::super::plan::PlanError;
use super::devices::Rule;
use super::{Cgroup, CgroupError, others};

/// Limits, checked.
#[derive(Debug, Default)]
pub struct Limits {
    place: Place,
    settings: Vec<Setting>,
    /// Bytes of memory, and of memory and swap, that must not be in use already.
    free: Option<(i64, i64)>,
    /// None: those that there are stay.
    devices: Option<Vec<Rule>>,
    notices: Vec<&'static str>,
}

/// What is to be in one file of the cgroup.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The document's field and its value.
    pub(super) field: String,
    pub(super) file: Cow<'static, str>,
    pub(super) text: Text,
    /// A file that is not there says the same.
    pub(super) optional: bool,
}

/// What is written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// These lines, each for itself.
    Lines(String),
    /// This behind the word that is there.
    Second(u64),
    /// The first CPUs of the guest, as many of them.
    Cpus(u32),
}

impl Setting {
    pub(super) fn new(field: String, file: impl Into<Cow<'static, str>>, text: impl Into<String>) -> Self {
        Self { field, file: file.into(), text: Text::Lines(text.into()), optional: false }
    }

    fn write(&self, cgroup: &Path) -> Result<(), CgroupError> {
        let path = cgroup.join(&*self.file);
        let failed = |text: &str, cause| CgroupError::Limit {
            field: self.field.clone(),
            file: self.file.to_string(),
            text: text.to_owned(),
            cause,
        };
        let text: Cow<'_, str> = match &self.text {
            Text::Lines(text) => text.into(),
            Text::Second(second) => {
                let there = fs::read_to_string(&path).map_err(|cause| failed(&second.to_string(), cause))?;
                format!("{} {second}", there.split_whitespace().next().unwrap_or("max")).into()
            }
            Text::Cpus(members) => {
                let guest = guest_cpus().map_err(|cause| failed("the guest's CPUs", cause))?;
                format!("0-{}", guest.min(*members).saturating_sub(1)).into()
            }
        };
        match write_lines(&path, &text) {
            Err(cause) if self.optional && cause.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|cause| failed(&text, cause)),
        }
    }
}

/// Each line is a write of its own: so files of several lines take them.
fn write_lines(path: &Path, text: &str) -> io::Result<()> {
    // No such file is an error, and not one to be made.
    let mut file = OpenOptions::new().write(true).open(path)?;
    text.lines().try_for_each(|line| file.write_all(format!("{line}\n").as_bytes()))
}

/// CPUs that this kernel may have, those included that are not up yet.
fn guest_cpus() -> io::Result<u32> {
    let list = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    cpus::members(&list).map_err(io::Error::other)
}

impl Limits {
    /// Checks what a document asks of a new container: without rules for devices it gets those that every container has.
    ///
    /// # Errors
    /// The field that cannot be.
    pub fn of_new(resources: Option<&LinuxResources>, place: Place) -> Result<Self, PlanError> {
        let mut limits = resources.map(|resources| Self::of(resources, place)).transpose()?.unwrap_or_default();
        if limits.devices.is_none() {
            limits.devices = Some(Rule::all(&[], place)?);
        }
        Ok(limits)
    }

    /// Checks what is to change; what is not named stays.
    ///
    /// # Errors
    /// The field that cannot be.
    pub fn of(resources: &LinuxResources, place: Place) -> Result<Self, PlanError> {
        let mut limits = Self { place, ..Self::default() };
        others::refuse(resources, place)?;
        if let Some(pids) = resources.pids() {
            limits.pids(pids)?;
        }
        if let Some(memory) = resources.memory() {
            limits.memory(memory)?;
        }
        if let Some(cpu) = resources.cpu() {
            limits.cpu(cpu)?;
        }
        if let Some(block_io) = resources.block_io() {
            others::block_io(block_io, place, &mut limits.settings, &mut limits.notices)?;
        }
        for limit in resources.hugepage_limits().iter().flatten() {
            others::huge_pages(limit, &mut limits.settings)?;
        }
        if place.is_host() {
            others::rdma(resources, &mut limits.settings);
        }
        // The last, so that they go before all others, as with runc.
        others::unified(resources.unified().as_ref(), place, &mut limits.settings, &mut limits.notices)?;
        if let Some(rules) = resources.devices().as_ref().filter(|rules| !rules.is_empty()) {
            limits.devices = Some(Rule::all(rules, place)?);
        }
        Ok(limits)
    }

    /// What is accepted and does nothing: for the log.
    #[must_use]
    pub fn notices(&self) -> &[&'static str] {
        &self.notices
    }

    /// Sets them on a new cgroup, whose maker removes it if this fails.
    pub(super) fn set(&self, cgroup: &Cgroup) -> Result<(), CgroupError> {
        for setting in &self.settings {
            setting.write(cgroup.path())?;
        }
        self.devices.as_ref().map_or(Ok(()), |rules| cgroup.filter_devices(rules))
    }

    /// Sets them on a cgroup in use; one that cannot be leaves everything as it was.
    pub(super) fn change(&self, cgroup: &Cgroup) -> Result<(), CgroupError> {
        if let Some(limits) = self.free {
            check_free(cgroup.path(), limits)?;
        }
        let mut before: Vec<(&Setting, String)> = Vec::new();
        let changed = self.settings.iter().try_for_each(|setting| {
            // One that cannot be read cannot be written either, and the write says why.
            if let Ok(there) = fs::read_to_string(cgroup.path().join(&*setting.file)) {
                before.push((setting, there));
            }
            setting.write(cgroup.path())
        });
        let changed = changed.and_then(|()| self.devices.as_ref().map_or(Ok(()), |rules| cgroup.filter_devices(rules)));
        if changed.is_err() {
            for (setting, there) in before.into_iter().rev() {
                // An empty line is no set.
                let there = if there.trim().is_empty() { "\n" } else { &there };
                if let Err(cause) = write_lines(&cgroup.path().join(&*setting.file), there) {
                    warn!("{} is as it was asked for, after another limit failed: {cause}", setting.file);
                }
            }
        }
        changed
    }

    fn add(&mut self, field: String, file: &'static str, text: impl Into<String>) {
        self.settings.push(Setting::new(field, file, text));
    }

    fn notice(&mut self, is_set: bool, notice: &'static str) {
        if is_set {
            self.notices.push(notice);
        }
    }

    fn pids(&mut self, pids: &LinuxPids) -> Result<(), PlanError> {
        if let Some((field, text)) = limit("linux.resources.pids.limit", Some(pids.limit()))? {
            self.add(field, "pids.max", text);
        }
        Ok(())
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<(), PlanError> {
        let both = memory.swap().filter(|both| *both != 0);
        let limited = memory.limit().filter(|limit| *limit != 0);
        if let Some(bytes) = limited.filter(|bytes| (1..PAGE).contains(bytes)) {
            let what = format!("linux.resources.memory.limit {bytes}");
            return Err(PlanError::Invalid { what, why: "is less than a page (4096), in which no program runs" });
        }
        // The document counts memory and swap together, the cgroup swap alone.
        let field = "linux.resources.memory.swap";
        if let Some((named, mut text)) = limit(field, both)? {
            let invalid = |why| Err(PlanError::Invalid { what: named.clone(), why });
            if let Some(both) = both.filter(|both| *both > 0) {
                text = match limited {
                    None => return invalid("counts memory and swap together, and there is no memory.limit"),
                    Some(limit) if limit < 0 => both.to_string(),
                    Some(limit) if both < limit => {
                        return invalid("counts memory and swap together, and is less than memory.limit");
                    }
                    Some(limit) => (both - limit).to_string(),
                };
            }
            self.add(named, "memory.swap.max", text);
        } else if limited == Some(-1) {
            self.add("linux.resources.memory.limit -1".to_owned(), "memory.swap.max", "max");
        }
        if let Some((field, text)) = limit("linux.resources.memory.limit", limited)? {
            self.add(field, "memory.max", text);
        }
        if let Some((field, text)) = limit("linux.resources.memory.reservation", memory.reservation())? {
            self.add(field, "memory.low", text);
        }
        if memory.check_before_update() == Some(true) {
            self.free = Some((limited.unwrap_or(0), both.unwrap_or(0)));
        }
        #[allow(deprecated, reason = "documents have it all the same, and it is to be said that it does nothing")]
        let kernel = memory.kernel().is_some();
        self.notice(
            kernel || memory.kernel_tcp().is_some(),
            "linux.resources.memory.kernel and kernelTCP do nothing: cgroup v2 counts the kernel's memory into memory.limit",
        );
        self.notice(
            memory.swappiness().is_some(),
            "linux.resources.memory.swappiness does nothing: cgroup v2 has none",
        );
        self.notice(
            memory.disable_oom_killer() == Some(true),
            "linux.resources.memory.disableOOMKiller does nothing: cgroup v2 cannot do without it",
        );
        self.notice(
            memory.use_hierarchy() == Some(false),
            "linux.resources.memory.useHierarchy false does nothing: cgroup v2 always counts what is below a group",
        );
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu) -> Result<(), PlanError> {
        let field = |name: &str, value: &dyn std::fmt::Display| format!("linux.resources.cpu.{name} {value}");
        let idle = cpu.idle().map(|idle| (field("idle", &idle), idle.to_string()));
        // A group that is idle takes no weight, so that one has to be the first here, and the last there.
        let first = cpu.idle() == Some(0);
        if let Some((field, text)) = idle.clone().filter(|_| first) {
            self.add(field, "cpu.idle", text);
        }
        if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
            let what = field("shares", &shares);
            if shares > MOST_SHARES {
                return Err(PlanError::Invalid { what, why: "is more than 262144, the most that there can be" });
            }
            self.add(what, "cpu.weight", weight(shares).to_string());
        }
        if let Some((field, text)) = idle.filter(|_| !first) {
            self.add(field, "cpu.idle", text);
        }
        let burst = cpu.burst().map(|burst| (field("burst", &burst), burst.to_string()));
        let period = cpu.period().filter(|period| *period != 0);
        let quota = limit("linux.resources.cpu.quota", cpu.quota())?;
        if let Some((field, _)) = burst.as_ref().filter(|_| quota.is_some()) {
            // The kernel compares it with the quota, the old one here and the new one there.
            self.add(field.clone(), "cpu.max.burst", "0");
        }
        match (quota, period) {
            (Some((quota, text)), Some(period)) => {
                self.add(format!("{quota} with cpu.period {period}"), "cpu.max", format!("{text} {period}"));
            }
            // The period stays, 100000 at first.
            (Some((quota, text)), None) => self.add(quota, "cpu.max", text),
            (None, Some(period)) => {
                let text = Text::Second(period);
                let field = field("period", &period);
                self.settings.push(Setting { field, file: "cpu.max".into(), text, optional: false });
            }
            (None, None) => {}
        }
        if let Some((field, text)) = burst {
            self.add(field, "cpu.max.burst", text);
        }
        self.notice(
            cpu.realtime_runtime().is_some_and(|runtime| runtime != 0)
                || cpu.realtime_period().is_some_and(|period| period != 0),
            "linux.resources.cpu.realtimeRuntime and realtimePeriod do nothing: cgroup v2 has none, and real-time processes are not limited",
        );
        for (name, file, list) in [("cpus", "cpuset.cpus", cpu.cpus()), ("mems", "cpuset.mems", cpu.mems())] {
            if let Some(list) = list {
                self.settings.extend(cpu_set(format!("linux.resources.cpu.{name} {list:?}"), file, list, self.place)?);
            }
        }
        Ok(())
    }
}

/// A set of the host's CPUs or memory nodes, as one of the guest's: the guest is made with as many CPUs as the set has
/// members (shim-v2/src/vm/sizing.rs), so that the n-th of the set is the guest's n-th, as far as it has so many. It has one
/// memory node. On the host the set is what it says.
pub(super) fn cpu_set(
    field: String,
    file: &'static str,
    list: &str,
    place: Place,
) -> Result<Option<Setting>, PlanError> {
    let members = cpus::members(list).map_err(|cause| PlanError::Invalid {
        what: field.clone(),
        why: match cause {
            cpus::ListError::Syntax => "is no list of numbers and ranges (0-3,8)",
            cpus::ListError::Backwards => "has a range that ends before it begins",
            cpus::ListError::TooLarge => "has a number above 8191, and no kernel has so many",
        },
    })?;
    let text = match (place, file) {
        (Place::Host, _) => Text::Lines(list.to_owned()),
        (Place::Guest, "cpuset.mems") => Text::Lines("0".to_owned()),
        (Place::Guest, _) => Text::Cpus(members),
    };
    Ok((members > 0).then_some(Setting { field, file: file.into(), text, optional: false }))
}

/// Bytes of the guest's pages, the smallest memory that can be counted.
const PAGE: i64 = 4096;

/// The most shares of cgroup v1 (MAX_SHARES of kernel/sched/sched.h).
const MOST_SHARES: u64 = 262_144;

/// The field with its value, and what is written for it. Zero is unset, as with runc: clients fill structures with it. -1 is no
/// limit.
fn limit(name: &str, value: Option<i64>) -> Result<Option<(String, String)>, PlanError> {
    let Some(value) = value.filter(|value| *value != 0) else { return Ok(None) };
    let field = format!("{name} {value}");
    match value {
        -1 => Ok(Some((field, "max".to_owned()))),
        1.. => Ok(Some((field, value.to_string()))),
        _ => Err(PlanError::Invalid { what: field, why: "is negative: only -1 is, for no limit" }),
    }
}

/// cgroup v1's shares (2 to 262144) as a weight (1 to 10000): runc's formula, so that ratios are the same.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, MOST_SHARES) - 2) * 9999 / (MOST_SHARES - 2)
}

/// `checkBeforeUpdate`: limits below what is in use are refused, instead of enforced by the OOM killer.
fn check_free(cgroup: &Path, (memory, both): (i64, i64)) -> Result<(), CgroupError> {
    let path = cgroup.join("memory.current");
    let step = |cause| CgroupError::Step { what: "read", path: path.clone(), cause };
    let used = fs::read_to_string(&path).map_err(step)?;
    let used: i64 = used.trim().parse().map_err(|cause| step(io::Error::other(cause)))?;
    for (field, limit) in [("swap", both), ("limit", memory)] {
        if limit > 0 && limit <= used {
            return Err(CgroupError::InUse { field: format!("linux.resources.memory.{field} {limit}"), used });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
