//! What a container has used: the numbers of its cgroup (Documentation/admin-guide/cgroup-v2.rst).

use std::fs;
use std::path::Path;

use husk_protocol::agent::{Counter, HugePages, IoCounters, Stats};

use super::cgroup::Cgroup;

/// Files with one number.
const SINGLE: [&str; 8] = [
    "memory.current",
    "memory.peak",
    "memory.max",
    "memory.swap.current",
    "memory.swap.peak",
    "memory.swap.max",
    "pids.current",
    "pids.max",
];
/// Files with a key and a number on each line.
const KEYED: [&str; 3] = ["cpu.stat", "memory.stat", "memory.events"];

impl Cgroup {
    /// Reads them. A file that is not there has nothing to say: its controller is not built in.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::new();
        let mut count = |name: String, value: &str| {
            let value = match value.trim() {
                "max" => Some(u64::MAX),
                number => number.parse().ok(),
            };
            if let Some(value) = value {
                stats.counters.push(Counter { name, value, ..Counter::default() });
            }
        };
        let read = |file: &str| fs::read_to_string(self.path().join(file)).unwrap_or_default();
        for file in SINGLE {
            count(file.to_owned(), &read(file));
        }
        for file in KEYED {
            for (key, value) in read(file).lines().filter_map(|line| line.split_once(' ')) {
                count(format!("{file}/{key}"), value);
            }
        }
        stats.io = read("io.stat").lines().filter_map(io_line).collect();
        stats.huge_pages = huge_pages(self.path());
        stats
    }
}

/// A line of `io.stat`: `8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353`.
fn io_line(line: &str) -> Option<IoCounters> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut counters = IoCounters { major: major.parse().ok()?, minor: minor.parse().ok()?, ..IoCounters::default() };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let value = value.parse().ok()?;
        match key {
            "rbytes" => counters.read_bytes = value,
            "wbytes" => counters.written_bytes = value,
            "rios" => counters.reads = value,
            "wios" => counters.writes = value,
            _ => {}
        }
    }
    Some(counters)
}

/// Those of `hugetlb.<size>.current` and `.max`.
fn huge_pages(cgroup: &Path) -> Vec<HugePages> {
    let Ok(entries) = fs::read_dir(cgroup) else { return Vec::new() };
    let sizes = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some(name.strip_prefix("hugetlb.")?.strip_suffix(".current")?.to_owned())
    });
    let mut pages: Vec<HugePages> = sizes
        .map(|size| {
            let number = |what: &str| {
                let text = fs::read_to_string(cgroup.join(format!("hugetlb.{size}.{what}"))).unwrap_or_default();
                text.trim().parse().unwrap_or(u64::MAX)
            };
            HugePages { current: number("current"), max: number("max"), size, ..HugePages::default() }
        })
        // `hugetlb.<size>.rsvd.current` is another count.
        .filter(|pages| !pages.size.contains('.'))
        .collect();
    pages.sort_by(|a, b| a.size.cmp(&b.size));
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        file("memory.current", "4096\n");
        file("memory.max", "max\n");
        file("memory.events", "low 0\noom 2\noom_kill 1\n");
        file("io.stat", "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\nbroken\n");
        file("hugetlb.2MB.current", "0\n");
        file("hugetlb.2MB.max", "max\n");
        file("hugetlb.2MB.rsvd.current", "7\n");
        let stats = Cgroup::at(directory.path()).stats();
        let counters: Vec<_> = stats.counters.iter().map(|counter| (counter.name.as_str(), counter.value)).collect();
        assert_eq!(
            counters,
            [
                ("memory.current", 4096),
                ("memory.max", u64::MAX),
                ("memory.events/low", 0),
                ("memory.events/oom", 2),
                ("memory.events/oom_kill", 1)
            ]
        );
        let io = stats.io.first().unwrap();
        assert_eq!((io.major, io.minor, io.read_bytes, io.written_bytes, io.reads, io.writes), (8, 16, 1, 2, 3, 4));
        assert_eq!(stats.io.len(), 1);
        let [pages] = stats.huge_pages.as_slice() else { panic!("{:?}", stats.huge_pages) };
        assert_eq!((pages.size.as_str(), pages.current, pages.max), ("2MB", 0, u64::MAX));
    }
}
