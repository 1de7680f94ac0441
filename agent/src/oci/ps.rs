//! `ps`: the processes of a container.

use std::path::Path;
use std::process::Command;

use super::args::{Flag, Words, value};
use super::error::OciError;
use super::state::Stored;

/// Its flags.
pub(super) const FLAGS: &[Flag] = &[value(&["format", "f"])];

/// Prints their ids, or what the host's `ps` says of them.
pub(super) fn ps(root: &Path, words: &Words) -> Result<(), OciError> {
    let [id, options @ ..] = words.rest.as_slice() else { return Err("ps: a container's id is wanted".into()) };
    let container = Stored::open(root, id)?;
    let pids = container.cgroup().processes().map_err(|cause| format!("cannot list the processes: {cause}"))?;
    match words.value("format").unwrap_or("table") {
        "json" => super::print(&serde_json::json!(pids).to_string()),
        "table" => {
            let options = if options.is_empty() { &["-ef".to_owned()] } else { options };
            let output =
                Command::new("ps").args(options).output().map_err(|cause| format!("cannot run ps: {cause}"))?;
            if !output.status.success() {
                let errors = String::from_utf8_lossy(&output.stderr);
                return Err(format!("ps {}: {}: {}", options.join(" "), output.status, errors.trim()).into());
            }
            super::print(table(&String::from_utf8_lossy(&output.stdout), &pids)?.trim_end())
        }
        other => Err(format!("ps: unknown format {other:?}: it is table or json").into()),
    }
}

/// The heading and the lines of these processes.
fn table(text: &str, pids: &[i32]) -> Result<String, OciError> {
    let mut lines = text.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading.split_whitespace().position(|word| word == "PID");
    let column = column.ok_or("ps: its output has no column PID")?;
    let ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    Ok(std::iter::once(heading).chain(lines.filter(ours)).map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_other_processes_are_left_out() {
        let text = "UID   PID CMD\nroot    7 a\nroot   70 b\nroot    8 7\n";
        assert_eq!(table(text, &[7, 9]).unwrap(), "UID   PID CMD\nroot    7 a\n");
        assert!(table("UID CMD\n", &[7]).is_err());
    }
}
