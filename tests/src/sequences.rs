//! Random sequences of the calls of containerd's task interface, legal and illegal, made to two shims without containerd
//! in between: what they answer and the events that they send have to be the same. What may differ is in
//! `tests/sequences/differences.toml`, each with its reason.
//!
//! A sequence comes from a seed ([`generate`]). Nothing in it depends on time: a call that ends a process is followed by a
//! wait for that process's exit event ([`model`]), and programs say when they run. [`execute`] runs it with one shim and
//! writes a transcript, in which ids, pids and paths are what they stand for ([`words`]); [`compare`] puts two beside each
//! other. A sequence that differs is made shorter for as long as it still does.

mod calls;
pub mod compare;
pub mod execute;
pub mod generate;
pub mod model;
pub mod place;
pub mod server;
pub mod shim;
pub mod step;
pub mod words;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use compare::{Differences, beside};
use execute::{Line, execute};
use generate::{are_permitted, generate};
use place::Place;
use step::Step;
use tokio::runtime::Runtime;

/// Runs that making one sequence shorter may take.
const MOST_SHORTER: usize = 20;
/// Rows of a shim's log below a difference.
const LOG_ROWS: usize = 15;

/// Two shims and the place where they run.
pub struct Pair {
    programs: [PathBuf; 2],
    differences: Differences,
    place: Place,
    runtime: Runtime,
    /// Bundles so far: no two containers have one id.
    count: usize,
}

/// What a number of sequences came to.
#[derive(Debug, Default)]
pub struct Report {
    /// Sequences.
    pub sequences: usize,
    /// Their steps.
    pub steps: usize,
    /// Sequences with differences that nobody has meant.
    pub found: usize,
    /// Differences that are meant, and were met.
    pub met: usize,
    /// Differences that are meant, and were not.
    pub unused: Vec<String>,
}

impl Pair {
    /// Two shims, by the paths of their programs. The reviewed differences are those of the second to the first, so that a
    /// shim compared with itself has none.
    ///
    /// # Panics
    /// The host refuses.
    #[must_use]
    pub fn new(one: &Path, other: &Path) -> Self {
        let differences = if one == other { Differences::default() } else { Differences::reviewed() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { programs: [one, other].map(Path::to_owned), differences, place: Place::new(), runtime, count: 0 }
    }

    /// What the shims are called in what people read: runc, husk.
    fn names(&self) -> [String; 2] {
        [0, 1].map(|n: usize| {
            let name = self.programs[n].file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let name = name.strip_prefix("containerd-shim-").unwrap_or(name);
            name.split('-').next().unwrap_or(name).to_owned()
        })
    }

    /// Runs the sequence with both.
    fn run(&mut self, steps: &[Step]) -> [Vec<Line>; 2] {
        self.count += 1;
        let id = |side| format!("sequence-{}-{}{side}", std::process::id(), self.count);
        let [one, other] = &self.programs;
        self.runtime.block_on(async {
            [execute(&self.place, one, &id("a"), steps).await, execute(&self.place, other, &id("b"), steps).await]
        })
    }

    /// Runs the sequence with both; returns all that came.
    pub fn replay(&mut self, steps: &[Step]) -> String {
        let [one, other] = self.run(steps);
        let at = self.differences.first(&one, &other);
        let verdict = if at.is_some() { "they differ at the mark" } else { "no difference" };
        format!("{}{verdict}\n", beside(&self.names(), &one, &other, at.is_none().then_some(usize::MAX)))
    }

    /// Runs the sequences of `count` seeds, from `seed` on, until `most` differ. `tell` gets each seed before it is tried,
    /// and each difference.
    pub fn compare(&mut self, seed: u64, count: usize, most: usize, tell: impl Fn(&str)) -> Report {
        let mut report = Report::default();
        for seed in (seed..).take(count) {
            let steps = generate(seed);
            tell(&format!("seed {seed}: {} steps", steps.len()));
            report.sequences += 1;
            report.steps += steps.len();
            let lines = self.run(&steps);
            if self.differences.first(&lines[0], &lines[1]).is_some() {
                report.found += 1;
                tell(&self.explain(seed, steps, lines));
                if report.found >= most {
                    break;
                }
            }
        }
        report.met = self.differences.met();
        report.unused = self.differences.unused();
        report
    }

    /// Says how a sequence differs, and makes it shorter for as long as it does.
    fn explain(&mut self, seed: u64, mut steps: Vec<Step>, mut lines: [Vec<Line>; 2]) -> String {
        let mut text = format!("seed {seed} differs:\n{}", self.difference(&steps, &lines));
        let (before, mut at, mut left) = (steps.len(), steps.len(), MOST_SHORTER);
        // The last steps first: what follows the difference goes at once.
        while at > 0 && left > 0 {
            at -= 1;
            let mut shorter = steps.clone();
            shorter.remove(at);
            if !are_permitted(&shorter) {
                continue;
            }
            left -= 1;
            let new = self.run(&shorter);
            if self.differences.first(&new[0], &new[1]).is_some() {
                (steps, lines) = (shorter, new);
            }
        }
        if steps.len() < before {
            let _ = write!(text, "\nof its {before} calls these {} are enough:\n", steps.len());
            text.push_str(&self.difference(&steps, &lines));
        }
        text
    }

    /// The calls, the transcripts up to the difference, and the ends of the shims' logs.
    fn difference(&self, steps: &[Step], lines: &[Vec<Line>; 2]) -> String {
        let mut text: String = steps.iter().map(|step| format!("{step}\n")).collect();
        let (names, at) = (self.names(), self.differences.first(&lines[0], &lines[1]));
        let _ = write!(text, "\n{}", beside(&names, &lines[0], &lines[1], at));
        for (name, lines) in names.iter().zip(lines) {
            let log = lines.iter().filter(|line| line.call == "log").flat_map(|line| &line.events);
            // Not what runc's shim says of its own parts.
            let log: Vec<&String> = log.filter(|row| !row.contains("loading plugin")).collect();
            for row in &log[log.len().saturating_sub(LOG_ROWS)..] {
                let _ = writeln!(text, "log of {name}: {row}");
            }
        }
        text
    }
}
