//! Wrong OCI documents by the thousand against the checks of shim and agent (`husk_tests::documents`).

use std::process::ExitCode;

use clap::Parser;
use husk_tests::documents::{Outcome, try_one};

/// Changes one value of a document and looks at what becomes of it, again and again.
#[derive(Parser)]
struct Arguments {
    /// The first document.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many documents; each has the seed after the one before.
    #[arg(long, default_value_t = 100_000)]
    count: u64,
}

fn main() -> ExitCode {
    let Arguments { seed, count } = Arguments::parse();
    let (mut taken, mut refused, mut wrong) = (0_u64, 0_u64, 0_u64);
    for seed in seed..seed.saturating_add(count) {
        match try_one(seed) {
            Ok(Outcome::Taken) => taken += 1,
            Ok(Outcome::Refused(_)) => refused += 1,
            Err(why) => {
                wrong += 1;
                println!("{why}");
            }
        }
    }
    println!("{} passed, {wrong} failed ({taken} documents taken, {refused} refused)", taken + refused);
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
