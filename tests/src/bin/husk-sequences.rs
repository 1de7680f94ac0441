//! Random sequences of task calls against two shims, as root in the test bed (CONTRIBUTING.md, "Test"): whether their
//! answers and events are the same.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use husk_tests::sequences::Pair;
use husk_tests::sequences::step::Step;

/// Makes the same random calls to two shims and compares what they answer.
#[derive(Parser)]
struct Arguments {
    /// The first sequence.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many sequences; each has the seed after the one before.
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// Ends after so many sequences that differ.
    #[arg(long, default_value_t = 1)]
    most: usize,
    /// The shim to compare with.
    #[arg(long, default_value = "/usr/bin/containerd-shim-runc-v2")]
    runtime_a: PathBuf,
    /// The shim in question.
    #[arg(long, default_value = "/usr/bin/containerd-shim-husk-v2")]
    runtime_b: PathBuf,
    /// Instead: the sequences in this file, a call a line, an empty line between two; prints all that comes.
    #[arg(long)]
    replay: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut pair = Pair::new(&arguments.runtime_a, &arguments.runtime_b);
    if let Some(file) = arguments.replay {
        for block in std::fs::read_to_string(file).unwrap().split("\n\n") {
            let calls = block.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
            let steps: Vec<Step> = calls.map(|line| line.parse().unwrap()).collect();
            println!("{}\n{}", block.lines().next().unwrap_or_default(), pair.replay(&steps));
        }
        return ExitCode::SUCCESS;
    }
    let begin = Instant::now();
    let report = pair.compare(arguments.seed, arguments.count, arguments.most, |text| {
        println!("{} s: {text}", begin.elapsed().as_secs());
    });
    report.unused.iter().for_each(|unused| println!("never met: {unused}"));
    println!("{} calls in {} sequences, {} meant differences met", report.steps, report.sequences, report.met);
    println!("{} passed, {} failed", report.sequences - report.found, report.found);
    if report.found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
