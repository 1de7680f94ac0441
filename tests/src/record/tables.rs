//! The tables of `docs/performance.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use husk_cli::bench::chart::LEGEND;
use husk_cli::bench::report::{Execs, Idle, Outcome, Runtime as Measured};
use husk_cli::bench::stats::Summary;
use husk_cli::bench::table::interval;

use super::Record;
use crate::ctr::Runtime;

/// What stands between these lines is made.
const BEGIN: &str = "<!-- made from docs/results/bench.json by `cargo run -p husk-tests --bin husk-performance` -->\n";
const END: &str = "<!-- end of what is made -->\n";

/// The columns.
const RUNTIMES: [(&str, Runtime); 3] = [("null shim", Runtime::Null), ("runc", Runtime::Runc), ("husk", Runtime::Husk)];

/// The page with the record's tables in it.
///
/// # Errors
/// It has no place for them.
pub fn put_in(page: &str, record: &Record) -> Result<String, String> {
    let missing = |line: &str| format!("the line {:?} is missing", line.trim_end());
    let (before, rest) = page.split_once(BEGIN).ok_or_else(|| missing(BEGIN))?;
    let (_, after) = rest.split_once(END).ok_or_else(|| missing(END))?;
    Ok(format!("{before}{BEGIN}\n{}\n{END}{after}", markdown(record)))
}

/// All tables.
fn markdown(record: &Record) -> String {
    let mut out = String::new();
    let host = &record.report.host;
    let _ = writeln!(
        out,
        "{}, commit {}. {}; host: Debian's kernel {}, containerd {}, {}, {} MiB, transparent huge pages `{}`.\n\
         {} runs of each; in brackets the interval of the median, {:.1} % sure. Runs and machines that hung and were made again: {}.",
        host.date,
        record.commit,
        record.qemu,
        host.kernel,
        host.containerd,
        record.runc,
        host.memory_mib,
        host.transparent_hugepage,
        record.report.runs,
        record.runtime(Runtime::Husk).map_or(0.0, |husk| husk.start.time.coverage * 100.0),
        record.hung + record.report.hung,
    );
    out.push_str("\n| promised | at most | measured |\n|---|---|---|\n");
    for bar in &record.bars {
        let met = if bar.value <= bar.most { "" } else { ": **missed**" };
        let _ = writeln!(out, "| {} | {} | {}{met} |", bar.what, plain(bar.most), plain(bar.value));
    }
    if let Some(ratio) = record.above_the_floor() {
        let _ = writeln!(
            out,
            "\n(husk − null) / (runc − null): {:.2}; as far as the intervals let it go, {:.2} to {:.2}.",
            ratio.median, ratio.low, ratio.high
        );
    }
    starts(&mut out, record);
    phases(&mut out, record);
    boot(&mut out, record);
    idle(&mut out, record);
    calls(&mut out, record);
    out
}

fn head(out: &mut String, what: &str) {
    let _ = write!(out, "\n| {what} |");
    RUNTIMES.iter().for_each(|(name, _)| {
        let _ = write!(out, " {name} |");
    });
    out.push_str("\n|---|---|---|---|\n");
}

fn row(out: &mut String, record: &Record, what: &str, cell: impl Fn(&Measured) -> String) {
    let _ = write!(out, "| {what} |");
    for (_, runtime) in RUNTIMES {
        let _ = write!(out, " {} |", record.runtime(runtime).map(&cell).unwrap_or_default());
    }
    out.push('\n');
}

fn starts(out: &mut String, record: &Record) {
    head(out, &format!("`ctr run --rm`, {}, `echo`", record.report.root));
    row(out, record, "vms", |runtime| interval(&runtime.start.time));
    row(out, record, "page faults of the host, median", |runtime| count(&runtime.start.page_faults));
    row(out, record, "context switches of the host, median", |runtime| count(&runtime.start.context_switches));
    row(out, record, "processes and threads made on the host, median", |runtime| count(&runtime.start.processes));
    row(out, record, "system calls of the host, median", |runtime| {
        record.calls.get(&runtime.name).map(|calls| count(&calls.all)).unwrap_or_default()
    });
    head(out, "`ctr task exec`");
    let vms = |execs: &Outcome<Execs>| match execs {
        Outcome::Measured(execs) => interval(&execs.runs.time),
        Outcome::Refused(why) => format!("not measured: {}", why.trim_start_matches("ctr: ")),
    };
    row(out, record, "`echo`, vms", |runtime| vms(&runtime.exec));
    row(out, record, "a program that prints 1 MiB, vms", |runtime| vms(&runtime.exec_mib));
}

fn phases(out: &mut String, record: &Record) {
    let Some(husk) = record.runtime(Runtime::Husk).filter(|husk| !husk.phases.is_empty()) else { return };
    out.push_str("\n![The phases of a start](results/start.svg)\n\n| husk's start in the middle: vms |");
    LEGEND.iter().for_each(|(_, name, _)| {
        let _ = write!(out, " {name} |");
    });
    out.push_str(" all |\n|---|---|---|---|---|---|---|---|\n| |");
    let sum = |wanted: Option<_>| -> f64 {
        husk.phases.iter().filter(|part| wanted.is_none_or(|who| part.who == who)).map(|part| part.time).sum()
    };
    LEGEND.iter().map(|(who, ..)| Some(*who)).chain([None]).for_each(|who| {
        let _ = write!(out, " {:.1} |", sum(who));
    });
    out.push('\n');
}

fn boot(out: &mut String, record: &Record) {
    let boot = &record.boot;
    let _ = writeln!(out, "\n| start of a machine alone, 1 vCPU, 128 MiB, {} starts | |\n|---|---|", boot.runs);
    let _ = writeln!(out, "| vms from the start of `husk-vmm` to the agent's answer | {} |", interval(&boot.ready));
    let _ = writeln!(
        out,
        "| of these: `husk-vmm` up to the guest's first instruction | {} |",
        interval(&boot.before_guest)
    );
    let _ = writeln!(out, "| of these: guest kernel, from its entry to `/init` | {} |", interval(&boot.entry_to_init));
    let _ = writeln!(out, "| exits of KVM in all, median | {} |", count(&boot.exits));
    let _ = writeln!(
        out,
        "| exits to user space, median | {}: {} |",
        count(&boot.exits_to_user_space),
        list(&boot.by_reason)
    );
    let _ =
        writeln!(out, "| KVM's counters of a container's machine when its program runs | {} |", list(&record.exits));
}

fn idle(out: &mut String, record: &Record) {
    head(out, "idle container");
    let cell = |of: fn(&Idle) -> String| {
        move |runtime: &Measured| match &runtime.idle {
            Outcome::Measured(idle) => of(idle),
            Outcome::Refused(why) => format!("not measured: {why}"),
        }
    };
    row(
        out,
        record,
        "memory of the host for one more, MiB (`MemAvailable`)",
        cell(|idle| format!("{:.1} (over {})", idle.available_kib_each / 1024.0, idle.more)),
    );
    row(
        out,
        record,
        "private memory of the runtime's processes without the guest's, MiB",
        cell(|idle| {
            let each: Vec<String> = idle
                .processes
                .iter()
                .map(|one| format!("{} {:.1}", one.name, one.private_kib as f64 / 1024.0))
                .collect();
            format!("{:.1}: {}", idle.private_kib() as f64 / 1024.0, each.join(", "))
        }),
    );
    row(
        out,
        record,
        "of these, unchanged from files (programs, which more containers share)",
        cell(|idle| format!("{:.1}", idle.clean_kib() as f64 / 1024.0)),
    );
    row(
        out,
        record,
        "the guest's memory that is there, MiB",
        cell(|idle| match idle.guest_kib() {
            0 => String::new(),
            guest => format!("{:.1}", guest as f64 / 1024.0),
        }),
    );
    row(
        out,
        record,
        "processes, threads, descriptors",
        cell(|idle| {
            let sum = |of: fn(&husk_cli::bench::report::Process) -> usize| idle.processes.iter().map(of).sum::<usize>();
            format!("{}, {}, {}", idle.processes.len(), sum(|one| one.threads), sum(|one| one.descriptors))
        }),
    );
}

fn calls(out: &mut String, record: &Record) {
    let Some(calls) = record.calls.get(Runtime::Husk.name()) else { return };
    out.push_str(
        "\n| system calls of a start with husk, by thread | all | files opened, or tried to |\n|---|---|---|\n",
    );
    let mut programs: Vec<(&String, &u64)> = calls.by_program.iter().collect();
    programs.sort_by(|one, other| other.1.cmp(one.1).then(one.0.cmp(other.0)));
    for (program, all) in programs {
        let opens = calls.opens.get(program).copied().unwrap_or(0);
        let _ = writeln!(out, "| `{program}` | {} | {} |", thousands(*all), thousands(opens));
    }
}

/// A median of counts.
fn count(summary: &Summary) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts, far below 2^53")]
    let whole = summary.median.round() as u64;
    thousands(whole)
}

fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn list(counts: &BTreeMap<String, u64>) -> String {
    let mut counts: Vec<(&String, &u64)> = counts.iter().filter(|(_, count)| **count > 0).collect();
    counts.sort_by(|one, other| other.1.cmp(one.1).then(one.0.cmp(other.0)));
    counts
        .iter()
        .map(|(name, count)| format!("{} {}", thousands(**count), name.replace('_', " ")))
        .collect::<Vec<_>>()
        .join(", ")
}

fn plain(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_around_the_tables_stays() {
        let files = super::super::Files::of_repository();
        let record = Record::read(&files.record).unwrap();
        let page = format!("before\n{BEGIN}old\n{END}after\n");
        let made = put_in(&page, &record).unwrap();
        assert!(made.starts_with(&format!("before\n{BEGIN}")) && made.ends_with(&format!("{END}after\n")));
        assert!(!made.contains("old\n") && made.contains(&record.commit));
        // Once more changes nothing.
        assert_eq!(put_in(&made, &record).unwrap(), made);
        assert!(put_in("no place", &record).unwrap_err().contains("is missing"));
    }

    #[test]
    fn numbers_are_read_easily() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.9, 50.0, 0.654, 6.0].map(plain), ["0.9", "50", "0.65", "6"]);
        let counts = [("mmio_read", 2), ("kick", 0), ("port_in", 1040)];
        let counts = counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        assert_eq!(list(&counts), "1,040 port in, 2 mmio read");
    }
}
