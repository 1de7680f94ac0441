//! The figures as text for a terminal.

use std::fmt::Write as _;

use super::report::{Execs, Outcome, Report, Runs, Runtime};
use super::stats::Summary;

/// What the others are compared with, if it was measured.
const USUAL: &str = "io.containerd.runc.v2";

/// The tables.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "host: kernel {}, containerd {}, {}, {} MiB, transparent huge pages {}; {}",
        report.host.kernel,
        report.host.containerd,
        plural(report.host.cpus, "CPU", "CPUs"),
        report.host.memory_mib,
        report.host.transparent_hugepage,
        report.root,
    );
    let _ = writeln!(
        out,
        "{} runs of each, in turn, after {} that do not count; {}; in brackets: where the median is, with {:.0} %",
        report.runs,
        report.warm_up,
        report.unit,
        report.runtimes.first().map_or(0.0, |runtime| runtime.start.time.coverage * 100.0),
    );
    if report.hung > 0 {
        let _ = writeln!(out, "{} runs hung and were made again", report.hung);
    }
    let _ = writeln!(out, "\nstart (ctr run --rm)");
    rows(&mut out, report, |runtime| Ok(&runtime.start));
    for runtime in report.runtimes.iter().filter(|runtime| !runtime.printed) {
        let _ = writeln!(out, "  {}: its containers did not print what they were told to", runtime.name);
    }
    execs(&mut out, report, "exec (ctr task exec)", |runtime| &runtime.exec);
    execs(&mut out, report, "exec, with 1 MiB of output", |runtime| &runtime.exec_mib);
    let _ = writeln!(out, "\nidle container");
    let width = width(report);
    for runtime in &report.runtimes {
        let _ = match &runtime.idle {
            Outcome::Refused(why) => writeln!(out, "  {:width$}  not measured: {why}", runtime.name),
            Outcome::Measured(idle) => writeln!(
                out,
                "  {:width$}  {:.1} MiB of the host for one more (over {}); private memory of {}: {:.1} MiB, {:.1} of it clean{}",
                runtime.name,
                idle.available_kib_each / 1024.0,
                idle.more,
                plural(idle.processes.len(), "process", "processes"),
                idle.private_kib() as f64 / 1024.0,
                idle.clean_kib() as f64 / 1024.0,
                match idle.guest_kib() {
                    0 => String::new(),
                    guest => format!(", and {:.1} MiB of the guest", guest as f64 / 1024.0),
                },
            ),
        };
    }
    out
}

/// So many of them.
#[must_use]
pub fn plural(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

fn width(report: &Report) -> usize {
    report.runtimes.iter().map(|runtime| runtime.name.len()).max().unwrap_or(0)
}

fn rows<'a>(out: &mut String, report: &'a Report, of: impl Fn(&'a Runtime) -> Result<&'a Runs, &'a String>) {
    let width = width(report);
    let measured = || report.runtimes.iter().filter_map(|runtime| Some((&runtime.name, of(runtime).ok()?)));
    let base = measured().find(|(name, _)| *name == USUAL).or_else(|| measured().next());
    for runtime in &report.runtimes {
        let _ = match of(runtime) {
            Err(why) => writeln!(out, "  {:width$}  not measured: {why}", runtime.name),
            Ok(runs) => writeln!(
                out,
                "  {:width$}  {:30}  {}",
                runtime.name,
                interval(&runs.time),
                match base {
                    Some((name, base)) if *name != runtime.name => compared(&runs.time, &base.time, name),
                    _ => String::new(),
                }
            ),
        };
    }
}

fn execs(out: &mut String, report: &Report, what: &str, of: fn(&Runtime) -> &Outcome<Execs>) {
    let _ = writeln!(out, "\n{what}");
    rows(out, report, |runtime| match of(runtime) {
        Outcome::Measured(execs) => Ok(&execs.runs),
        Outcome::Refused(why) => Err(why),
    });
    for runtime in &report.runtimes {
        if let Outcome::Measured(Execs { printed: false, .. }) = of(runtime) {
            let _ = writeln!(out, "  {}: its processes did not print what they were told to", runtime.name);
        }
    }
}

/// A median with its interval.
#[must_use]
pub fn interval(summary: &Summary) -> String {
    format!("{:.1} ({:.1} to {:.1})", summary.median, summary.low, summary.high)
}

fn compared(time: &Summary, base: &Summary, name: &str) -> String {
    match time.ratio(base, None) {
        _ if time.may_equal(base) => format!("against {name}: not decidable, the intervals overlap"),
        Some(ratio) => format!("{:.2} ({:.2} to {:.2}) of {name}", ratio.median, ratio.low, ratio.high),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::example;
    use super::*;

    #[test]
    fn what_overlaps_is_not_decided_and_what_was_refused_is_said() {
        let text = text(&example());
        assert!(text.contains("io.containerd.husk.v2  186.0 (185.0 to 187.0)"), "{text}");
        assert!(text.contains("0.74 (0.74 to 0.75) of io.containerd.runc.v2"), "{text}");
        assert!(text.contains("not measured: it has no head"), "{text}");
        assert!(text.contains("null.v2: its containers did not print"), "{text}");
        let mut same = example();
        same.runtimes[0].start = same.runtimes[1].start.clone();
        assert!(super::text(&same).contains("against io.containerd.runc.v2: not decidable"));
    }
}
