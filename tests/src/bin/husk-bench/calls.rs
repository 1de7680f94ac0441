//! System calls of a start, by the kernel's histogram of the event `raw_syscalls:sys_enter`
//! (Documentation/trace/histogram.rst). It takes time, so these are runs of their own.

use std::collections::BTreeMap;
use std::fs;

use husk_cli::bench::stats::Summary;
use husk_tests::ctr::{Run, Runtime};
use husk_tests::record::Calls;
use husk_tests::rootfs;

use super::{Hung, is_hung};

/// The event's directory.
const EVENT: &str = "/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter";
/// One count for each thread and call; as many of them as the kernel takes.
const TRIGGER: &str = "hist:keys=common_pid.execname,id.syscall:size=32768";
/// Runs, after one that does not count.
const RUNS: usize = 5;
/// Calls that open files.
const OPENS: [&str; 4] = ["sys_open", "sys_openat", "sys_openat2", "sys_creat"];
/// Threads that measure.
const OURS: [&str; 2] = ["bench", "timeout"];

/// Counts by thread, all and opens.
type Counts = (BTreeMap<String, u64>, BTreeMap<String, u64>);

/// Counts `RUNS` starts.
pub fn of_a_start(runtime: Runtime, hung: &mut Hung) -> Calls {
    let root = tempfile::tempdir().unwrap();
    rootfs::busybox(root.path());
    let run = Run::on_directory("calls", root.path()).runtime(runtime);
    let count = |_| {
        hung.until_one_does_not(|| {
            fs::write(format!("{EVENT}/trigger"), TRIGGER).unwrap();
            let output = run.run(&["echo", "husk"]);
            let histogram = fs::read_to_string(format!("{EVENT}/hist")).unwrap();
            fs::write(format!("{EVENT}/trigger"), format!("!{TRIGGER}")).unwrap();
            if is_hung(Some(output.status), &output.errors()) {
                return Err(format!("hung: status {}: {}", output.status, output.errors()));
            }
            assert_eq!(output.status, 0, "{}", output.errors());
            Ok(counts(&histogram))
        })
    };
    let mut counted: Vec<Counts> = (0..=RUNS).map(count).skip(1).collect();
    let sum = |counts: &Counts| counts.0.values().sum::<u64>();
    let all = Summary::of(counted.iter().map(|counts| sum(counts) as f64)).unwrap();
    counted.sort_by_key(sum);
    let (by_program, opens) = counted.swap_remove(RUNS / 2);
    Calls { all, by_program, opens }
}

/// `{ common_pid: ctr [ 181], id: sys_openat [257] } hitcount: 3`
fn counts(histogram: &str) -> Counts {
    let mut counts = Counts::default();
    for line in histogram.lines().filter(|line| line.starts_with('{')) {
        let between = |from: &str, to: &str| Some(line.split_once(from)?.1.split_once(to)?.0.trim().to_owned());
        let thread = between("common_pid:", "[").unwrap();
        let call = between("id: sys", "[").map(|name| format!("sys{name}")).unwrap_or_default();
        let hits: u64 = line.split_once("hitcount:").unwrap().1.trim().parse().unwrap();
        if OURS.iter().any(|ours| thread.contains(ours)) {
            continue;
        }
        *counts.0.entry(thread.clone()).or_default() += hits;
        if OPENS.contains(&call.as_str()) {
            *counts.1.entry(thread).or_default() += hits;
        }
    }
    // The kernel counts what found no room in the table.
    let dropped = histogram.lines().find_map(|line| line.trim().strip_prefix("Dropped:")).unwrap();
    assert_eq!(dropped.trim(), "0", "the histogram is too small");
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_summed_by_thread() {
        let text = "# event histogram\n\n\
            { common_pid: ctr             [       181], id: sys_openat                    [257] } hitcount:          3\n\
            { common_pid: ctr             [       182], id: sys_futex                     [202] } hitcount:         40\n\
            { common_pid: bench           [        90], id: sys_read                      [  0] } hitcount:          9\n\
            { common_pid: fs              [       190], id: sys_openat2                   [437] } hitcount:          1\n\n\
            Totals:\n    Hits: 53\n    Entries: 4\n    Dropped: 0\n";
        let (all, opens) = counts(text);
        assert_eq!(all, [("ctr".to_owned(), 43), ("fs".to_owned(), 1)].into());
        assert_eq!(opens, [("ctr".to_owned(), 3), ("fs".to_owned(), 1)].into());
    }
}
