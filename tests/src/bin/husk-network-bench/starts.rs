//! What an interface adds to a start.

use std::time::Instant;

use husk_cli::bench::stats::Summary;
use husk_tests::ctr::{Run, Runtime};
use husk_tests::network::Namespace;
use husk_tests::rootfs;

use crate::peers::Wired;

/// `ctr run --rm` of one runtime, vms.
pub struct Starts {
    pub runtime: Runtime,
    /// In an empty namespace.
    pub without: Summary,
    /// In one with a veth.
    pub with: Summary,
}

/// Runs of each, in turn.
pub fn measure(runs: usize, first: usize) -> Vec<Starts> {
    let runtimes = [Runtime::Runc, Runtime::Husk];
    let root = tempfile::tempdir().unwrap();
    rootfs::busybox(root.path());
    let empty = Namespace::new("bench-empty");
    let wired = Wired::new(first);
    let once = |runtime: Runtime, namespace: &Namespace| {
        let [with, path] = namespace.flags();
        let run = Run::on_directory("start", root.path()).runtime(runtime).flags(&[&with, &path]);
        let begin = Instant::now();
        let output = run.run(&["echo", "husk"]);
        let took = begin.elapsed().as_secs_f64() * 1000.0;
        assert_eq!((output.status, output.text().as_str()), (0, "husk\n"), "{}", output.errors());
        took
    };
    let mut took = vec![(Vec::new(), Vec::new()); runtimes.len()];
    // The first ones do not count.
    for run in 0..=runs {
        for (runtime, took) in runtimes.iter().zip(&mut took) {
            let (without, with) = (once(*runtime, &empty), once(*runtime, &wired.namespace));
            if run > 0 {
                took.0.push(without);
                took.1.push(with);
            }
        }
    }
    let summary = |values: Vec<f64>| Summary::of(values).unwrap();
    let starts = |(runtime, (without, with))| Starts { runtime, without: summary(without), with: summary(with) };
    runtimes.into_iter().zip(took).map(starts).collect()
}
