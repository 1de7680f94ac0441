//! Makes the tables of `docs/performance.md` and the chart beside it from `docs/results/bench.json`.

use std::process::ExitCode;

use husk_tests::record::Files;

fn main() -> ExitCode {
    let files = Files::of_repository();
    let written = files.made().and_then(|(page, chart)| {
        let write = |path: &std::path::Path, text| {
            std::fs::write(path, text).map_err(|cause| format!("cannot write {}: {cause}", path.display()))
        };
        write(&files.page, page).and_then(|()| write(&files.chart, chart))
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("husk-performance: {cause}");
            ExitCode::FAILURE
        }
    }
}
