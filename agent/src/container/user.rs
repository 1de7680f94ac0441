//! A container's user namespace: which ids of the guest, and so of the host's files, its ids are (user_namespaces(7)).

use std::fs;
use std::io;

use oci_spec::runtime::{Linux, LinuxIdMapping, User};

use super::plan::PlanError;

/// Mappings of one kind at most (user_namespaces(7), since Linux 4.15).
const MOST: usize = 340;

/// The checked mappings of a document.
#[derive(Debug, Clone)]
pub(super) struct IdMappings {
    users: Vec<LinuxIdMapping>,
    groups: Vec<LinuxIdMapping>,
}

impl IdMappings {
    /// The mappings of a document that has a user namespace.
    ///
    /// # Errors
    /// The kernel would refuse them, or nobody could prepare the container: id 0 of the namespace does.
    pub(super) fn of(linux: &Linux) -> Result<Self, PlanError> {
        let users = linux.uid_mappings().clone().unwrap_or_default();
        let groups = linux.gid_mappings().clone().unwrap_or_default();
        if users.is_empty() {
            return Err(PlanError::Missing("linux.uidMappings, without which a user namespace has no user"));
        }
        if groups.is_empty() {
            return Err(PlanError::Missing("linux.gidMappings, without which a user namespace has no group"));
        }
        check_all("linux.uidMappings", &users)?;
        check_all("linux.gidMappings", &groups)?;
        Ok(Self { users, groups })
    }

    /// Whether a process can be this user.
    ///
    /// # Errors
    /// The id that is not mapped.
    pub(super) fn check(&self, user: &User) -> Result<(), PlanError> {
        let unmapped = |what| Err(PlanError::Invalid { what, why: "is not in the mappings of the user namespace" });
        if self.user(user.uid()).is_none() {
            return unmapped(format!("process.user.uid {}", user.uid()));
        }
        let groups = [user.gid()].into_iter().chain(user.additional_gids().iter().flatten().copied());
        for group in groups {
            if self.group(group).is_none() {
                return unmapped(format!("group {group} of process.user"));
            }
        }
        Ok(())
    }

    /// The guest's id of this user of the namespace.
    pub(super) fn user(&self, id: u32) -> Option<u32> {
        outside(&self.users, id)
    }

    /// The guest's id of this group of the namespace.
    pub(super) fn group(&self, id: u32) -> Option<u32> {
        outside(&self.groups, id)
    }

    /// Maps the ids of the namespace that the process `pid` was cloned into. Groups first, as everybody does; setgroups
    /// stays allowed, because the agent has the privileges that it takes.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn write(&self, pid: u32) -> Result<(), String> {
        for (file, mappings) in [("gid_map", &self.groups), ("uid_map", &self.users)] {
            // In one write: there is no second one.
            fs::write(format!("/proc/{pid}/{file}"), lines(mappings))
                .map_err(|cause: io::Error| format!("cannot write the user namespace's {file}: {cause}"))?;
        }
        Ok(())
    }
}

fn outside(mappings: &[LinuxIdMapping], id: u32) -> Option<u32> {
    mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id()).filter(|offset| *offset < mapping.size())?;
        mapping.host_id().checked_add(offset)
    })
}

fn lines(mappings: &[LinuxIdMapping]) -> String {
    let line = |one: &LinuxIdMapping| format!("{} {} {}\n", one.container_id(), one.host_id(), one.size());
    mappings.iter().map(line).collect()
}

fn check_all(name: &str, mappings: &[LinuxIdMapping]) -> Result<(), PlanError> {
    let invalid = |what, why| Err(PlanError::Invalid { what, why });
    let named = |one: &LinuxIdMapping| format!("{name} {}:{}:{}", one.container_id(), one.host_id(), one.size());
    if mappings.len() > MOST {
        return invalid(format!("{name}: {} mappings", mappings.len()), "the kernel takes no more than 340");
    }
    for (at, one) in mappings.iter().enumerate() {
        if one.size() == 0 {
            return invalid(named(one), "maps nothing: its size is 0");
        }
        // The last number is no id: chown(2) takes it as "unchanged".
        if [one.container_id(), one.host_id()].iter().any(|first| first.checked_add(one.size()).is_none()) {
            return invalid(named(one), "reaches beyond the last id");
        }
        let overlaps = |first: fn(&LinuxIdMapping) -> u32, other: &LinuxIdMapping| {
            first(one) < first(other) + other.size() && first(other) < first(one) + one.size()
        };
        for other in &mappings[..at] {
            if overlaps(LinuxIdMapping::container_id, other) || overlaps(LinuxIdMapping::host_id, other) {
                return invalid(format!("{} and {}", named(other), named(one)), "overlap");
            }
        }
    }
    if outside(mappings, 0).is_none() {
        return invalid(name.to_owned(), "id 0 of the namespace is in no mapping, and it prepares the container");
    }
    Ok(())
}
