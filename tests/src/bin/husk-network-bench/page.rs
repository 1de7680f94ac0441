//! The results as a page of `docs/results`.

use std::fmt::Write as _;

use crate::loads::LOADS;
use crate::peers::{Kind, MACHINE};
use crate::{Measured, Results};

/// husk against QEMU without vhost, per byte and per transaction.
const MOST_OF_QEMUS: f64 = 0.9;
/// Private memory that a flood may add, KiB: a page or two of what is made at first use.
const MOST_GROWTH_KIB: u64 = 64;
/// The loads that husk promises something of: bytes each way, and transactions.
const PROMISED: usize = 3;

/// The page, and whether every promise is kept.
pub fn text(results: &Results) -> (String, bool) {
    let mut page = Page { text: String::new(), met: true };
    page.loads(results);
    page.bars(results);
    page.starts(results);
    page.floods(results);
    page.idle(results);
    (page.text, page.met)
}

struct Page {
    text: String,
    met: bool,
}

/// Of the load with this name.
fn of<'a>(results: &'a Results, load: &str, kind: Kind) -> &'a Measured {
    results.loads.iter().find(|measured| measured.load.name == load && measured.kind == kind).expect("all are measured")
}

impl Page {
    fn line(&mut self, line: impl AsRef<str>) {
        let _ = writeln!(self.text, "{}", line.as_ref());
    }

    fn bar(&mut self, what: &str, value: f64, most: f64) {
        let met = value <= most;
        self.met &= met;
        self.line(format!("* {}: {what}: {value:.2}, at most {most}", if met { "met" } else { "MISSED" }));
    }

    fn loads(&mut self, results: &Results) {
        self.line("## Instructions of the whole machine\n");
        self.line(format!(
            "Medians of {} runs in turn, and between which values the median lies; client and wire are the same for all. Idle: the largest part \
             of a run in which the machine waited for a timer, which is taken off. \
             Its vCPU's: what the thread of the vCPU ran, the guest and KVM; its devices': the VMM's other threads, vhost's worker among them; both while exits were counted.\n",
            results.runs
        ));
        for load in LOADS {
            self.line(format!("**{}**, {} times a run, for each {}:\n", load.name, load.times, load.unit));
            self.line(
                "| | instructions | between | of runc's | its vCPU's | its devices' | idle | packets | exits a packet | to user space a packet |",
            );
            self.line("|---|---|---|---|---|---|---|---|---|---|");
            let runc = of(results, load.name, Kind::Runc).each.median;
            for kind in Kind::ALL {
                let measured = of(results, load.name, kind);
                let (each, exits) = (&measured.each, &measured.exits);
                let a_packet = |count: u64| count as f64 / exits.packets.max(1) as f64;
                let exits_said = match kind {
                    Kind::Runc => "| |".to_owned(),
                    _ => format!("{:.3} | {:.4} |", a_packet(exits.all), a_packet(exits.to_user_space)),
                };
                let threads = match kind {
                    Kind::Runc => "| |".to_owned(),
                    _ => format!("{:.2} | {:.2} |", exits.guest, exits.devices),
                };
                self.line(format!(
                    "| {} | {:.2} | {:.2} to {:.2} | {:.2} | {threads} {:.1} % | {} | {exits_said}",
                    kind.name(),
                    each.median,
                    each.low,
                    each.high,
                    each.median / runc,
                    measured.idle * 100.0,
                    exits.packets,
                ));
            }
            self.line("");
        }
        self.line(format!(
            "QEMU: {}, `-M {MACHINE} -cpu host -smp 1`, virtio-net-device on a tap, redirected as husk's.\n",
            results.qemu
        ));
    }

    fn bars(&mut self, results: &Results) {
        self.line("## Promises\n");
        for load in &LOADS[..PROMISED] {
            let each = |kind| of(results, load.name, kind).each.median;
            let ratio = each(Kind::Husk { vhost: false }) / each(Kind::Qemu { vhost: false });
            self.bar(&format!("{}: husk / QEMU, both without vhost", load.name), ratio, MOST_OF_QEMUS);
        }
        for (kind, switches) in &results.idle {
            self.bar(
                &format!("context switches of {} in an idle minute", kind.name()),
                switches.values().sum::<u64>() as f64,
                0.0,
            );
        }
        for (kind, flood) in &results.floods {
            let (before, after) = flood.private_kib;
            if *kind != Kind::Runc {
                let what = format!("private memory that a flood adds to {}, KiB", kind.name());
                self.bar(&what, after.saturating_sub(before) as f64, MOST_GROWTH_KIB as f64);
            }
        }
        self.line("");
    }

    fn starts(&mut self, results: &Results) {
        self.line("## What an interface adds to a start\n");
        self.line("`ctr run --rm` of `echo`, millions of instructions, in an empty network namespace and in one with a veth, in turn.\n");
        self.line("| | empty | with a veth | difference |\n|---|---|---|---|");
        for starts in &results.starts {
            let (without, with) = (&starts.without, &starts.with);
            let decidable = if without.may_equal(with) { ", not decidable" } else { "" };
            self.line(format!(
                "| {} | {:.1} ({:.1} to {:.1}) | {:.1} ({:.1} to {:.1}) | {:.1}{decidable} |",
                starts.runtime.name(),
                without.median,
                without.low,
                without.high,
                with.median,
                with.low,
                with.high,
                with.median - without.median,
            ));
        }
        self.line("");
    }

    fn floods(&mut self, results: &Results) {
        self.line("## A pod beside one that floods\n");
        self.line(
            "One pod sends datagrams of 64 bytes to the host as fast as it can while the host does the same to it; how long requests of 64 bytes to another pod \
             of husk's take meanwhile, in thousands of instructions. All share one CPU.\n",
        );
        self.line("| who floods | quiet, median | 99 of 100 | flooded, median | 99 of 100 | datagrams | private memory before and after, KiB |");
        self.line("|---|---|---|---|---|---|---|");
        for (kind, flood) in &results.floods {
            self.line(format!(
                "| {} | {:.0} | {:.0} | {:.0} | {:.0} | {} | {}, {} |",
                kind.name(),
                flood.quiet.median,
                flood.quiet.p99,
                flood.flooded.median,
                flood.flooded.p99,
                flood.datagrams,
                flood.private_kib.0,
                flood.private_kib.1,
            ));
        }
        self.line("");
    }

    fn idle(&mut self, results: &Results) {
        self.line("## An idle pod\n");
        self.line("Context switches of its VMM, shim and stub in a minute in which nobody asks for anything.\n");
        for (kind, switches) in &results.idle {
            let said: Vec<String> = switches.iter().map(|(thread, count)| format!("{thread}: {count}")).collect();
            self.line(format!(
                "* {}: {}",
                kind.name(),
                if said.is_empty() { "none".to_owned() } else { said.join(", ") }
            ));
        }
    }
}
