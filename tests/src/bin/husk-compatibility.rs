//! Makes the table of `docs/compatibility.md` from `tests/compatibility.toml`.

use std::process::ExitCode;

use husk_tests::compatibility::Repository;

fn main() -> ExitCode {
    let repository = Repository::this();
    let written = repository.made().and_then(|page| {
        let path = repository.page();
        std::fs::write(&path, page).map_err(|cause| format!("cannot write {}: {cause}", path.display()))
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("husk-compatibility: {cause}");
            ExitCode::FAILURE
        }
    }
}
