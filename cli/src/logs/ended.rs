//! A pod that has ended: its lines in containerd's log.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Longest line that is looked at as one.
const LONGEST: u64 = 64 * 1024;

/// Why there are no lines.
#[derive(Debug, thiserror::Error)]
pub enum EndedError {
    /// No file.
    #[error("cannot read {}: {}", .0.display(), .1)]
    File(PathBuf, io::Error),
    /// No journal.
    #[error(
        "no pod {id} is on this host, and a pod's directory goes with it. What husk logged of it is in containerd's log, \
         but the journal cannot be asked ({cause}): name the file with --from FILE"
    )]
    NoJournal {
        /// The pod.
        id: String,
        /// Why not.
        cause: io::Error,
    },
    /// Nothing of this pod.
    #[error(
        "no pod {id} is on this host (husk ps lists them), and {place} has no line of one; if containerd's log is \
         elsewhere: --from FILE"
    )]
    Nothing {
        /// The pod.
        id: String,
        /// Where it was looked for.
        place: String,
    },
}

/// The lines of pod `id` in a file with containerd's log.
pub fn from_file(
    path: &Path,
    id: &str,
    print: impl FnMut(&str) -> io::Result<()>,
) -> Result<io::Result<()>, EndedError> {
    let place = path.display().to_string();
    if path == Path::new("-") {
        return matching(io::stdin().lock(), id, "the standard input".to_owned(), print);
    }
    let file = File::open(path).map_err(|cause| EndedError::File(path.to_owned(), cause))?;
    matching(file, id, place, print)
}

/// The lines of pod `id` in the journal of containerd's service.
pub fn from_journal(id: &str, print: impl FnMut(&str) -> io::Result<()>) -> Result<io::Result<()>, EndedError> {
    let mut command = Command::new("journalctl");
    command.args(["--unit=containerd", "--output=cat", "--no-pager", "--quiet"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let no_journal = |cause| EndedError::NoJournal { id: id.to_owned(), cause };
    let mut child = command.spawn().map_err(no_journal)?;
    let Some(output) = child.stdout.take() else { return Err(no_journal(io::ErrorKind::BrokenPipe.into())) };
    let found = matching(output, id, "containerd's journal".to_owned(), print);
    // It has ended, or writes to a pipe that is closed now.
    let _ = child.wait();
    found
}

fn matching(
    from: impl Read,
    id: &str,
    place: String,
    mut print: impl FnMut(&str) -> io::Result<()>,
) -> Result<io::Result<()>, EndedError> {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    let mut found = false;
    loop {
        line.clear();
        match (&mut reader).take(LONGEST).read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) => {}
            Err(cause) => return Err(EndedError::File(PathBuf::from(place), cause)),
        }
        let text = String::from_utf8_lossy(&line);
        if is_of(&text, id) {
            found = true;
            if let Err(cause) = print(text.trim_end_matches('\n')) {
                return Ok(Err(cause));
            }
        }
    }
    if found { Ok(Ok(())) } else { Err(EndedError::Nothing { id: id.to_owned(), place }) }
}

/// Whether it is a line of husk's about this pod. The key comes after the message, in which quotes are escaped.
fn is_of(line: &str, id: &str) -> bool {
    let Some((_, keys)) = line.rsplit_once(" sandbox=") else { return false };
    line.starts_with("time=") && keys.split_whitespace().next() == Some(id)
}
