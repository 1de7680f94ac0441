//! When and where a process runs: `process.scheduler`, `process.ioPriority` and `process.execCPUAffinity`.
//!
//! All of it is about the guest's processors and its queues; what the host gives the machine is another matter.

use std::io;

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy, Process, Scheduler,
};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::plan::PlanError;

/// SCHED_FLAG_* of include/uapi/linux/sched.h.
const RESET_ON_FORK: u64 = 0x01;
const RECLAIM: u64 = 0x02;
const DL_OVERRUN: u64 = 0x04;
const KEEP_POLICY: u64 = 0x08;
const KEEP_PARAMS: u64 = 0x10;
/// SCHED_ISO has a number, and no kernel has it.
const ISO: libc::c_int = 4;

/// A checked document's.
#[derive(Debug)]
pub(super) struct Scheduling {
    scheduler: Option<libc::sched_attr>,
    /// As ioprio_set(2) takes it.
    io_priority: Option<libc::c_int>,
    /// Of execs: as the document has it, and its meaning.
    affinity: Option<(String, CpuSet)>,
}

impl Scheduling {
    /// What a `process` asks for.
    ///
    /// # Errors
    /// The field whose value cannot be.
    pub(super) fn of(process: &Process) -> Result<Self, PlanError> {
        let affinity = process.exec_cpu_affinity().as_ref();
        let words = |list: &Option<String>, field: &str| -> Result<Option<(String, CpuSet)>, PlanError> {
            let Some(list) = list.as_deref().filter(|list| !list.is_empty()) else { return Ok(None) };
            let what = format!("process.execCPUAffinity.{field} {list}");
            Ok(Some((what.clone(), cpus(list).map_err(|why| PlanError::Invalid { what, why })?)))
        };
        let first = affinity.map(|both| words(both.initial(), "initial")).transpose()?.flatten();
        let last = affinity.map(|both| words(both.cpu_affinity_final(), "final")).transpose()?.flatten();
        Ok(Self {
            scheduler: process.scheduler().as_ref().map(attributes).transpose()?,
            io_priority: process.io_priority().as_ref().map(io_priority).transpose()?,
            // An exec is made in the container's cgroup, so there is no time before that.
            affinity: last.or(first),
        })
    }

    /// Gives a process, 0: this one, its policy and its priority. Takes the agent's privileges.
    ///
    /// # Errors
    /// The field and the kernel's answer.
    pub(super) fn apply(&self, pid: u32) -> Result<(), String> {
        let pid = libc::c_long::from(pid);
        if let Some(attributes) = &self.scheduler {
            // SAFETY: the attributes are valid and say their size, and the kernel only reads them.
            if unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const *attributes, 0) } < 0 {
                return Err(format!("cannot set process.scheduler: {}", io::Error::last_os_error()));
            }
        }
        if let Some(priority) = self.io_priority {
            /// IOPRIO_WHO_PROCESS of include/uapi/linux/ioprio.h.
            const PROCESS: libc::c_int = 1;
            // SAFETY: no pointers.
            if unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, pid, priority) } < 0 {
                return Err(format!("cannot set process.ioPriority: {}", io::Error::last_os_error()));
            }
        }
        Ok(())
    }

    /// Binds this process, an exec, to its processors.
    ///
    /// # Errors
    /// The field and the kernel's answer.
    pub(super) fn pin(&self) -> Result<(), String> {
        let Some((what, cpus)) = &self.affinity else { return Ok(()) };
        sched_setaffinity(None, cpus).map_err(|cause| match cause {
            rustix::io::Errno::INVAL => format!("{what}: the guest has none of these processors"),
            _ => format!("cannot set {what}: {cause}"),
        })
    }
}

fn attributes(scheduler: &Scheduler) -> Result<libc::sched_attr, PlanError> {
    let invalid = |what: String, why| Err(PlanError::Invalid { what: format!("process.scheduler.{what}"), why });
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        LinuxSchedulerPolicy::SchedIso => ISO,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
    };
    let nice = scheduler.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return invalid(format!("nice {nice}"), "is not in -20 to 19");
    }
    let priority = scheduler.priority().unwrap_or(0);
    let real_time = [libc::SCHED_FIFO, libc::SCHED_RR].contains(&policy);
    if !real_time && priority != 0 {
        return invalid(format!("priority {priority}"), "only SCHED_FIFO and SCHED_RR have priorities");
    }
    if real_time && !(1..=99).contains(&priority) {
        return invalid(format!("priority {priority}"), "SCHED_FIFO and SCHED_RR have priorities from 1 to 99");
    }
    let times = [*scheduler.runtime(), *scheduler.deadline(), *scheduler.period()].map(|time| time.unwrap_or(0));
    if policy != libc::SCHED_DEADLINE && times != [0; 3] {
        return invalid("runtime, deadline and period".to_owned(), "only SCHED_DEADLINE has them");
    }
    let mut flags = 0;
    for flag in scheduler.flags().iter().flatten() {
        flags |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => RESET_ON_FORK,
            LinuxSchedulerFlag::SchedFlagReclaim => RECLAIM,
            LinuxSchedulerFlag::SchedFlagDLOverrun => DL_OVERRUN,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => KEEP_POLICY,
            LinuxSchedulerFlag::SchedFlagKeepParams => KEEP_PARAMS,
            LinuxSchedulerFlag::SchedFlagUtilClampMin | LinuxSchedulerFlag::SchedFlagUtilClampMax => {
                return invalid(format!("flags {flag}"), "the specification has no value for the clamp");
            }
        };
    }
    let [sched_runtime, sched_deadline, sched_period] = times;
    Ok(libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(0),
        sched_policy: policy.unsigned_abs(),
        sched_flags: flags,
        sched_nice: nice,
        sched_priority: priority.unsigned_abs(),
        sched_runtime,
        sched_deadline,
        sched_period,
    })
}

fn io_priority(document: &LinuxIOPriority) -> Result<libc::c_int, PlanError> {
    /// IOPRIO_CLASS_SHIFT of include/uapi/linux/ioprio.h; the classes are numbered from 1.
    const SHIFT: u32 = 13;
    let class = match document.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let priority = libc::c_int::try_from(document.priority()).ok().filter(|priority| (0..8).contains(priority));
    let Some(priority) = priority else {
        let what = format!("process.ioPriority.priority {}", document.priority());
        return Err(PlanError::Invalid { what, why: "is not in 0 to 7" });
    };
    Ok((class << SHIFT) | priority)
}

/// "0-3,7": what oci-spec has not refused as no list.
fn cpus(list: &str) -> Result<CpuSet, &'static str> {
    let number = |text: &str| match text.parse() {
        Ok(number) if number < CpuSet::MAX_CPU => Ok(number),
        _ => Err("a processor's number is below 1024"),
    };
    let mut set = CpuSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err("a range begins behind its end");
        }
        (first..=last).for_each(|cpu| set.set(cpu));
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn scheduling(key: &str, value: Value) -> Result<Scheduling, String> {
        let mut process = json!({ "user": { "uid": 0, "gid": 0 }, "cwd": "/" });
        process[key] = value;
        Scheduling::of(&serde_json::from_value(process).unwrap()).map_err(|why| why.to_string())
    }

    #[test]
    fn policies_and_priorities_are_the_kernels() {
        let of = |value| scheduling("scheduler", value).map(|all| all.scheduler.unwrap());
        let batch = of(json!({ "policy": "SCHED_BATCH", "nice": -7 })).unwrap();
        assert_eq!((batch.sched_policy, batch.sched_nice, batch.sched_flags), (3, -7, 0));
        let fifo = of(json!({ "policy": "SCHED_FIFO", "priority": 99, "flags": ["SCHED_RESET_ON_FORK"] })).unwrap();
        assert_eq!((fifo.sched_policy, fifo.sched_priority, fifo.sched_flags, fifo.size), (1, 99, 1, 48));
        let deadline = json!({ "policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3 });
        let deadline = of(deadline).unwrap();
        assert_eq!((deadline.sched_runtime, deadline.sched_deadline, deadline.sched_period), (1, 2, 3));
        for (value, words) in [
            (json!({ "policy": "SCHED_OTHER", "nice": 20 }), "process.scheduler.nice 20: is not in"),
            (json!({ "policy": "SCHED_OTHER", "priority": 1 }), "priority 1: only SCHED_FIFO"),
            (json!({ "policy": "SCHED_RR" }), "priority 0: SCHED_FIFO and SCHED_RR have"),
            (json!({ "policy": "SCHED_RR", "priority": -1 }), "priority -1"),
            (json!({ "policy": "SCHED_IDLE", "period": 1 }), "only SCHED_DEADLINE"),
        ] {
            let error = of(value).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn io_priorities_are_the_kernels() {
        let of = |class: &str, priority: i64| {
            let value = json!({ "class": format!("IOPRIO_CLASS_{class}"), "priority": priority });
            scheduling("ioPriority", value).map(|all| all.io_priority.unwrap())
        };
        assert_eq!(of("RT", 7), Ok(1 << 13 | 7));
        assert_eq!((of("BE", 0), of("IDLE", 0)), (Ok(2 << 13), Ok(3 << 13)));
        assert!(of("BE", 8).unwrap_err().contains("process.ioPriority.priority 8: is not in 0 to 7"));
        assert!(of("BE", -1).is_err());
    }

    #[test]
    fn processors_are_lists_and_ranges() {
        let of = |value: Value| {
            let set = scheduling("execCPUAffinity", value)?.affinity.map(|(_, set)| set);
            Ok::<_, String>(set.map(|set| (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect::<Vec<_>>()))
        };
        assert_eq!(of(json!({ "initial": "0-2,5", "final": "1,1023" })), Ok(Some(vec![1, 1023])));
        assert_eq!(of(json!({ "initial": "0-2,5" })), Ok(Some(vec![0, 1, 2, 5])));
        assert_eq!(of(json!({})), Ok(None));
        assert!(of(json!({ "final": "3-2" })).unwrap_err().contains("process.execCPUAffinity.final 3-2: a range"));
        assert!(of(json!({ "initial": "1024" })).unwrap_err().contains("below 1024"));
    }
}
