//! `events`: what a container has used, in runc's words (its `types/events.go`).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use husk_protocol::agent::{IoCounters, Stats};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use super::args::{Flag, Words, switch, value};
use super::error::OciError;
use super::state::{Status, Stored};
use crate::container::OomWatch;

/// Its flags.
pub(super) const FLAGS: &[Flag] = &[switch(&["stats"]), value(&["interval"])];

/// Prints the numbers once, or again and again with the OOM kills until the container has ended.
pub(super) fn events(root: &Path, words: &Words) -> Result<(), OciError> {
    let id = words.only("events")?;
    let interval = interval(words.value("interval").unwrap_or("5s"))?;
    let container = Stored::open(root, id)?;
    if container.status() == Status::Stopped {
        return Err(OciError::NotRunning);
    }
    let told = || -> Result<(), OciError> {
        super::print(&json!({ "type": "stats", "id": id, "data": numbers(&container.cgroup().stats()) }).to_string())
    };
    told()?;
    if words.has("stats") {
        return Ok(());
    }
    let Some(init) = container.init() else { return Ok(()) };
    let ended = || {
        let mut fds = [PollFd::new(&init, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    };
    super::wait(async {
        let oom = OomWatch::new(&container.cgroup()).map_err(|cause| format!("cannot watch for OOM kills: {cause}"))?;
        // Those that were before.
        oom.has_more();
        while !ended() {
            match tokio::time::timeout(interval, oom.changed()).await {
                Ok(Ok(())) if oom.has_more() => super::print(&json!({ "type": "oom", "id": id }).to_string())?,
                Ok(Ok(())) => {}
                Ok(Err(cause)) => return Err(format!("cannot watch for OOM kills: {cause}").into()),
                Err(_) => told()?,
            }
        }
        Ok::<_, OciError>(())
    })
}

/// `5s`, `1m30s`, `250ms`: the durations of Go, as far as anybody writes them.
fn interval(text: &str) -> Result<Duration, OciError> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, behind) = rest.split_at(digits);
        let letters = behind.len() - behind.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, behind) = behind.split_at(letters);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(format!("--interval {text:?}: it has to be a duration (5s)").into()),
        };
        let number: u64 = number.parse().map_err(|_| format!("--interval {text:?}: it has to be a duration (5s)"))?;
        total = total.saturating_add(Duration::from_millis(number.saturating_mul(milliseconds)));
        rest = behind;
    }
    if total.is_zero() {
        return Err("duration interval must be greater than 0".into());
    }
    Ok(total)
}

/// One of the numbers that there are of a block device.
type IoCounter = fn(&IoCounters) -> u64;

/// The numbers of a cgroup under runc's names.
fn numbers(stats: &Stats) -> Value {
    let counters: BTreeMap<&str, u64> =
        stats.counters.iter().map(|counter| (counter.name.as_str(), counter.value)).collect();
    let of = |name: &str| counters.get(name).copied().unwrap_or(0);
    // The document's clock is in nanoseconds, the kernel's in microseconds.
    let nanoseconds = |name: &str| of(name).saturating_mul(1000);
    let raw: BTreeMap<&str, u64> =
        counters.iter().filter_map(|(name, value)| Some((name.strip_prefix("memory.stat/")?, *value))).collect();
    let events = of("memory.events/max");
    let memory = |usage: u64, max: u64, limit: u64, failures: u64| json!({ "usage": usage, "max": max, "limit": limit, "failcnt": failures });
    let swap_limit = of("memory.max").saturating_add(of("memory.swap.max"));
    let swap = of("memory.current").saturating_add(of("memory.swap.current"));
    let swap_peak = of("memory.peak").saturating_add(of("memory.swap.peak"));
    let io = |values: [(&str, IoCounter); 2]| -> Vec<Value> {
        let one = |line: &IoCounters| {
            values
                .map(|(op, value)| json!({ "major": line.major, "minor": line.minor, "op": op, "value": value(line) }))
        };
        stats.io.iter().flat_map(one).collect()
    };
    let huge: BTreeMap<&str, Value> = stats
        .huge_pages
        .iter()
        .map(|pages| (pages.size.as_str(), json!({ "usage": pages.current, "max": 0, "failcnt": 0 })))
        .collect();
    let pids_limit = Some(of("pids.max")).filter(|limit| *limit != u64::MAX).unwrap_or(0);
    json!({
        "cpu": {
            "usage": {
                "total": nanoseconds("cpu.stat/usage_usec"),
                "kernel": nanoseconds("cpu.stat/system_usec"),
                "user": nanoseconds("cpu.stat/user_usec"),
            },
            "throttling": {
                "periods": of("cpu.stat/nr_periods"),
                "throttledPeriods": of("cpu.stat/nr_throttled"),
                "throttledTime": nanoseconds("cpu.stat/throttled_usec"),
            },
        },
        "memory": {
            "cache": of("memory.stat/file"),
            "usage": memory(of("memory.current"), of("memory.peak"), of("memory.max"), events),
            "swap": memory(swap, swap_peak, swap_limit, 0),
            "kernel": memory(0, 0, 0, 0),
            "kernelTCP": memory(0, 0, 0, 0),
            "raw": raw,
        },
        "pids": { "current": of("pids.current"), "limit": pids_limit },
        "blkio": {
            "ioServiceBytesRecursive": io([("Read", |line| line.read_bytes), ("Write", |line| line.written_bytes)]),
            "ioServicedRecursive": io([("Read", |line| line.reads), ("Write", |line| line.writes)]),
        },
        "hugetlb": huge,
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

#[cfg(test)]
mod tests {
    use husk_protocol::agent::Counter;

    use super::*;

    #[test]
    fn numbers_have_runcs_names() {
        let counter = |name: &str, value| Counter { name: name.to_owned(), value, ..Counter::default() };
        let stats = Stats {
            counters: vec![
                counter("cpu.stat/usage_usec", 7),
                counter("memory.current", 4096),
                counter("memory.swap.current", 1),
                counter("memory.stat/anon", 12),
                counter("pids.current", 3),
                counter("pids.max", u64::MAX),
            ],
            io: vec![IoCounters { major: 8, minor: 1, read_bytes: 5, ..IoCounters::default() }],
            ..Stats::default()
        };
        let told = numbers(&stats);
        assert_eq!(told["cpu"]["usage"]["total"], 7000);
        assert_eq!(told["memory"]["usage"]["usage"], 4096);
        assert_eq!(told["memory"]["swap"]["usage"], 4097);
        assert_eq!(told["memory"]["raw"]["anon"], 12);
        assert_eq!(told["pids"], json!({ "current": 3, "limit": 0 }));
        let first = &told["blkio"]["ioServiceBytesRecursive"][0];
        assert_eq!(*first, json!({ "major": 8, "minor": 1, "op": "Read", "value": 5 }));
    }

    #[test]
    fn intervals_are_gos() {
        assert_eq!(interval("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(interval("250ms").unwrap(), Duration::from_millis(250));
        for wrong in ["0s", "", "5", "s", "5 s", "-5s"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
