//! What a container has used, as containerd wants to hear it.

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use husk_protocol::agent::Stats;
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, Result};

/// The type's name, bare: containerd 1.6 compares whole strings.
const TYPE: &str = "io.containerd.cgroups.v2.Metrics";
/// Devices, and sizes of huge pages, at most: the guest says them.
const MOST: usize = 64;
/// Characters of a size of huge pages: "1GB".
const LONGEST_SIZE: usize = 16;

/// The numbers of the guest's that mean something.
pub fn metrics(stats: &Stats) -> Metrics {
    let (mut pids, mut cpu, mut memory, mut events) =
        (PidsStat::new(), CPUStat::new(), MemoryStat::new(), MemoryEvents::new());
    for counter in &stats.counters {
        let field = match counter.name.as_str() {
            "pids.current" => &mut pids.current,
            // No limit is 0 here, as containerd's own library has it.
            "pids.max" if counter.value == u64::MAX => continue,
            "pids.max" => &mut pids.limit,
            "memory.current" => &mut memory.usage,
            "memory.peak" => &mut memory.max_usage,
            "memory.max" => &mut memory.usage_limit,
            "memory.swap.current" => &mut memory.swap_usage,
            "memory.swap.peak" => &mut memory.swap_max_usage,
            "memory.swap.max" => &mut memory.swap_limit,
            name => match name.split_once('/') {
                Some(("cpu.stat", key)) => match of_cpu(&mut cpu, key) {
                    Some(field) => field,
                    None => continue,
                },
                Some(("memory.stat", key)) => match of_memory(&mut memory, key) {
                    Some(field) => field,
                    None => continue,
                },
                Some(("memory.events", key)) => match of_events(&mut events, key) {
                    Some(field) => field,
                    None => continue,
                },
                _ => continue,
            },
        };
        *field = counter.value;
    }
    let io = stats.io.iter().take(MOST).map(|io| IOEntry {
        major: io.major,
        minor: io.minor,
        rbytes: io.read_bytes,
        wbytes: io.written_bytes,
        rios: io.reads,
        wios: io.writes,
        ..IOEntry::default()
    });
    let pages = stats.huge_pages.iter().take(MOST).filter(|pages| is_size(&pages.size));
    let pages = pages.map(|pages| HugeTlbStat {
        current: pages.current,
        max: pages.max,
        pagesize: pages.size.clone(),
        ..HugeTlbStat::default()
    });
    Metrics {
        pids: MessageField::some(pids),
        cpu: MessageField::some(cpu),
        memory: MessageField::some(memory),
        memory_events: MessageField::some(events),
        io: MessageField::some(IOStat { usage: io.collect(), ..IOStat::default() }),
        hugetlb: pages.collect(),
        ..Metrics::default()
    }
}

/// Packs them.
///
/// # Errors
/// They are too large for a message.
pub fn packed(metrics: &Metrics) -> Result<Any> {
    Ok(Any { type_url: TYPE.to_owned(), value: metrics.write_to_bytes()?, ..Any::default() })
}

fn is_size(text: &str) -> bool {
    text.len() <= LONGEST_SIZE && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn of_cpu<'a>(cpu: &'a mut CPUStat, key: &str) -> Option<&'a mut u64> {
    Some(match key {
        "usage_usec" => &mut cpu.usage_usec,
        "user_usec" => &mut cpu.user_usec,
        "system_usec" => &mut cpu.system_usec,
        "nr_periods" => &mut cpu.nr_periods,
        "nr_throttled" => &mut cpu.nr_throttled,
        "throttled_usec" => &mut cpu.throttled_usec,
        "nr_bursts" => &mut cpu.nr_bursts,
        "burst_usec" => &mut cpu.burst_usec,
        _ => return None,
    })
}

fn of_memory<'a>(memory: &'a mut MemoryStat, key: &str) -> Option<&'a mut u64> {
    Some(match key {
        "anon" => &mut memory.anon,
        "file" => &mut memory.file,
        "kernel_stack" => &mut memory.kernel_stack,
        "slab" => &mut memory.slab,
        "sock" => &mut memory.sock,
        "shmem" => &mut memory.shmem,
        "file_mapped" => &mut memory.file_mapped,
        "file_dirty" => &mut memory.file_dirty,
        "file_writeback" => &mut memory.file_writeback,
        "anon_thp" => &mut memory.anon_thp,
        "inactive_anon" => &mut memory.inactive_anon,
        "active_anon" => &mut memory.active_anon,
        "inactive_file" => &mut memory.inactive_file,
        "active_file" => &mut memory.active_file,
        "unevictable" => &mut memory.unevictable,
        "slab_reclaimable" => &mut memory.slab_reclaimable,
        "slab_unreclaimable" => &mut memory.slab_unreclaimable,
        "pgfault" => &mut memory.pgfault,
        "pgmajfault" => &mut memory.pgmajfault,
        // Linux 5.9 counts both kinds of pages apart; containerd has one field.
        "workingset_refault_file" => &mut memory.workingset_refault,
        "workingset_activate_file" => &mut memory.workingset_activate,
        "workingset_nodereclaim" => &mut memory.workingset_nodereclaim,
        "pgrefill" => &mut memory.pgrefill,
        "pgscan" => &mut memory.pgscan,
        "pgsteal" => &mut memory.pgsteal,
        "pgactivate" => &mut memory.pgactivate,
        "pgdeactivate" => &mut memory.pgdeactivate,
        "pglazyfree" => &mut memory.pglazyfree,
        "pglazyfreed" => &mut memory.pglazyfreed,
        "thp_fault_alloc" => &mut memory.thp_fault_alloc,
        "thp_collapse_alloc" => &mut memory.thp_collapse_alloc,
        _ => return None,
    })
}

fn of_events<'a>(events: &'a mut MemoryEvents, key: &str) -> Option<&'a mut u64> {
    Some(match key {
        "low" => &mut events.low,
        "high" => &mut events.high,
        "max" => &mut events.max,
        "oom" => &mut events.oom,
        "oom_kill" => &mut events.oom_kill,
        "oom_group_kill" => &mut events.oom_group_kill,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use husk_protocol::agent::{Counter, HugePages, IoCounters};

    use super::*;

    #[test]
    fn numbers_get_to_their_fields() {
        let counter = |name: &str, value| Counter { name: name.to_owned(), value, ..Counter::default() };
        let counters = vec![
            counter("memory.current", 1),
            counter("memory.max", u64::MAX),
            counter("memory.stat/anon", 2),
            counter("memory.events/oom_kill", 3),
            counter("cpu.stat/usage_usec", 4),
            counter("pids.max", u64::MAX),
            counter("pids.current", 5),
            counter("nonsense", 6),
            counter("memory.stat/nonsense", 7),
        ];
        let pages = |size: &str| HugePages { size: size.to_owned(), current: 8, ..HugePages::default() };
        let stats = Stats {
            counters,
            io: vec![IoCounters { major: 8, reads: 9, ..IoCounters::default() }; MOST + 1],
            huge_pages: vec![pages("2MB"), pages("../../etc")],
            ..Stats::default()
        };
        let metrics = metrics(&stats);
        assert_eq!((metrics.memory.usage, metrics.memory.usage_limit, metrics.memory.anon), (1, u64::MAX, 2));
        assert_eq!((metrics.memory_events.oom_kill, metrics.cpu.usage_usec), (3, 4));
        assert_eq!((metrics.pids.current, metrics.pids.limit), (5, 0));
        assert_eq!(
            (metrics.io.usage.len(), metrics.io.usage.first().map(|io| (io.major, io.rios))),
            (MOST, Some((8, 9)))
        );
        assert_eq!(metrics.hugetlb.iter().map(|pages| pages.pagesize.as_str()).collect::<Vec<_>>(), ["2MB"]);
        let any = packed(&metrics).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        assert_eq!(Metrics::parse_from_bytes(&any.value).unwrap(), metrics);
    }
}
