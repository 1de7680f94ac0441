//! Random sequences of task calls, without containerd in between: husk's shim answers as runc's.

use std::path::Path;

use husk_tests::host::leaves_nothing;
use husk_tests::sequences::Pair;

/// `husk-sequences` makes a thousand.
const COUNT: usize = 20;

#[test]
fn random_sequences_of_calls_are_answered_as_runc_answers_them() {
    // `tests/e2e/run` says which: the same ones for every change.
    let seed = std::env::var("HUSK_TEST_SEED").map_or(1, |seed| seed.parse().expect("HUSK_TEST_SEED is a number"));
    leaves_nothing(|| {
        let shim = |name: &str| Path::new("/usr/bin").join(name);
        let mut pair = Pair::new(&shim("containerd-shim-runc-v2"), &shim("containerd-shim-husk-v2"));
        let report = pair.compare(seed, COUNT, 1, |text| println!("{text}"));
        assert_eq!((report.sequences, report.found), (COUNT, 0), "see the seed, the calls and the transcripts above");
    });
}
